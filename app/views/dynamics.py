"""Dynamics: when does the encoding appear?"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import streamlit as st

from app import cache, handout, jobs, runs, state, uploads, widgets
from app.jobs import Job
from app.rules import rules
from core.dynamics import Checkpoint, Dynamics, finding, stand_in
from core.errors import HeadscopeError
from core.figures import dynamics as figures
from core.figures import words

QUESTION = "When does the encoding appear in training?"
SHOWN = 12
"""Duplicated steps that are named; of more only the number."""


def page() -> None:
    st.title(QUESTION, anchor=False)
    _choose()
    series = str(state.chosen("series") or state.FIRST_SERIES)
    try:
        if not rules().shared and not _begun(series):
            widgets.note(f"{html.escape(runs.title(series))} has not been trained: it takes minutes of this computer.")
            st.button("Train it", type="primary", key="train-it", on_click=state.choose, kwargs={"trained": series})
            return
        ready = cache.dynamics(series)
    except HeadscopeError as error:
        widgets.problem(error)
        return
    if isinstance(ready, Job):
        widgets.progress(ready, jobs.analyses(), _growing)
        return
    widgets.say(html.escape(finding(ready)))
    handout.draw(
        "dynamics", state.choice(), lambda: _result(ready), report=False, told=_where_from(series), series=series
    )
    _told(ready)
    if runs.parse(series) is not None:
        _keep_or_discard(series)
    _bench(ready)
    _tokens(ready)
    _reading()


def _result(found: Dynamics) -> dict[str, Any]:
    from core.series import summary

    return summary(found)


def _where_from(series: str) -> str:
    if series == "demo":
        return "Precomputed: the run was trained beforehand and came with Headscope."
    return html.escape(runs.title(series))


def _choose() -> None:
    """Which checkpoints, or a training run of one's own."""
    own = not rules().shared
    with st.container(horizontal=True, vertical_alignment="bottom"):
        current = str(state.chosen("series") or state.FIRST_SERIES)
        widgets.names(
            "Checkpoints",
            [state.FIRST_SERIES, *(runs.kept() if own else []), current],
            typed=own,
            title=runs.title,
            key="series",
            help="`demo` comes with Headscope. A folder of checkpoints, named step-N, or revisions on the Hub as "
            "`org/name@step{0,1,512}`: of those only the output heads are read. Type it and press Enter."
            if own
            else None,
        )
        if own:
            with st.popover("Train one now"):
                _train_form()


def _train_form() -> None:
    st.markdown("A small model from nothing, on this computer. The curves grow while it learns.")
    corpus = st.selectbox(
        "Text",
        list(dict.fromkeys([*runs.CORPORA, str(state.chosen("corpus") or runs.CORPORA[0])])),
        format_func=uploads.title,
        key="train-corpus",
        persist_state="session",
    )
    size = st.segmented_control(
        "Size",
        list(runs.SIZES),
        default="small",
        required=True,
        key="train-size",
        persist_state="session",
        help="small: 2,048 tokens × 64 dimensions, 1,024 steps, about a minute on two cores. medium: 4,096 × 128, "
        "2,048 steps, some minutes.",
    )
    seed = st.number_input("Seed", 0, 2**32 - 1, 0, key="train-seed", persist_state="session")
    st.button(
        "Train",
        type="primary",
        key="train-start",
        on_click=_start_training,
        args=(str(corpus or "python-docs"), str(size or "small"), int(seed)),
    )


def _start_training(corpus: str, size: str, seed: int) -> None:
    name = runs.Run(size, seed, corpus).name
    cache.forget_ended_dynamics(name)
    state.choose(series=name, trained=name)


def _begun(series: str) -> bool:
    """Whether a run of one's own was asked for by a hand, here or before; an address alone starts none."""
    run = runs.parse(series)
    return run is None or state.chosen("trained") == series or cache.dynamics_begun(series) or run.folder().is_dir()


def _growing(found: Dynamics) -> None:
    """What there is of a series while it is measured."""
    if len(found.curve) < 2:
        return
    last = found.curve[-1]
    loss = "" if last.loss is None else f", loss {words.nats(last.loss)}"
    widgets.note(
        f"Step {last.step:,}: R² of corpus frequency <b>{words.number(last.r2_corpus_frequency)}</b>{loss}. "
        "The 90 % lines move until the run has ended."
    )
    widgets.chart(figures.curves(found, state.look()), "growing", "What the embedding holds, and the loss")


def _keep_or_discard(series: str) -> None:
    with st.container(horizontal=True):
        if series in runs.kept():
            widgets.note("This run is kept: it stands in the list above, also after a restart.")
        else:
            st.button("Keep this run", key="run-keep", on_click=_try, args=(runs.keep, series))
        with st.popover("Discard this run"):
            st.markdown("Its model and all its checkpoints are deleted; training again takes as long as it took.")
            st.button("Delete it", key="run-discard", on_click=_try, args=(_discard, series))
    match state.chosen("run_refused"):
        case (refused, str(told)) if refused == series:
            widgets.problem(told)


def _try(change: Callable[[str], None], series: str) -> None:
    """Callback: change a run, and tell on the page if that cannot be."""
    state.choose(run_refused=None)
    try:
        change(series)
    except HeadscopeError as error:
        state.choose(run_refused=(series, str(error)))


def _discard(series: str) -> None:
    runs.discard(series)
    cache.forget_dynamics(series)
    state.choose(series=state.FIRST_SERIES, trained=None)


def _told(found: Dynamics) -> None:
    """What a reader has to know before the figures."""
    if found.stand_in:
        widgets.warning(html.escape(stand_in(uploads.title(found.corpus))))
    if all(c.loss is None for c in found.checkpoints):
        widgets.warning(
            "Only the output heads were read, so the loss and −log probability are not known. The command "
            "<code>headscope dynamics --whole</code> downloads whole models and measures both."
        )
    same = [c for c in found.checkpoints if c.duplicate_of is not None]
    if same:
        named = "; ".join(f"step {c.step:,} is step {c.duplicate_of:,}" for c in same[:SHOWN])
        more = f"; and {len(same) - SHOWN} more" if len(same) > SHOWN else ""
        widgets.warning(f"Published with the same head, byte for byte, and left out of the curves: {named}{more}.")
    for each in found.missing:
        widgets.warning(f"<b>{html.escape(each.name)}</b> is left out. {html.escape(each.reason)}")
    if found.note:
        widgets.warning(html.escape(found.note))


def _bench(found: Dynamics) -> None:
    """A part of the page that draws itself anew: when the slider moves, and by itself while the steps are played."""
    st.fragment(_steps, run_every=state.PLAY_SECONDS if state.playing() else None)(found)


def _steps(found: Dynamics) -> None:
    """The curves, a slider over the steps, and what the model is at that step."""
    look, steps = state.look(), [c.step for c in found.curve]
    was_playing = state.playing()
    current = state.step_of_run(steps)
    widgets.chart(figures.curves(found, look, current), "curves", "What the embedding holds, and the loss")
    if len(steps) < 2:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.select_slider(
            "Step", steps, format_func=lambda step: f"{step:,}", key="step-slider", on_change=state.step_moved
        )
        if st.button("Pause" if state.playing() else "Play", key="play"):
            state.toggle_play()
    checkpoint = next(c for c in found.curve if c.step == current)
    if (asked := state.chosen("step")) not in (None, current):
        widgets.warning(f"Step {asked:,} is none of the checkpoints of this series: the nearest is shown, {current:,}.")
    widgets.note(_line(found, checkpoint))
    left, right = st.columns(2)
    with left:
        widgets.chart(figures.frequency_scatter(found, checkpoint, look), "frequency", "Is frequency in the embedding?")
    with right:
        widgets.chart(figures.weight_scatter(found, checkpoint, look), "turned", "The weights, against the last ones")
    _samples(found, checkpoint)
    with st.expander("How the weights turn"):
        chart = figures.rotation(found, look, checkpoint.step)
        widgets.chart(chart, "rotation", "Cosine of the weights to the last ones")
    state.publish()
    if state.playing() != was_playing:
        st.rerun()


def _line(found: Dynamics, checkpoint: Checkpoint) -> str:
    cosine = float(found.cosines[[c.step for c in found.curve].index(checkpoint.step)])
    parts = [f"R² of corpus frequency <b>{words.number(checkpoint.r2_corpus_frequency, 2)}</b>"]
    if checkpoint.loss is not None:
        parts.append(f"loss <b>{words.nats(checkpoint.loss)}</b>")
    parts.append(f"cosine of the weights to the last ones <b>{words.number(cosine, 2)}</b>")
    return f"Step {checkpoint.step:,}: " + ", ".join(parts) + "."


def _samples(found: Dynamics, checkpoint: Checkpoint) -> None:
    if not checkpoint.samples:
        return
    st.markdown("**What it writes at this step** (the same noise at every step)")
    texts = "".join(f"<div>{widgets.chip(found.prompt)}{html.escape(text)}</div>" for text in checkpoint.samples)
    st.html(f'<div class="hs-pair">{texts}</div>')


def _tokens(found: Dynamics) -> None:
    early, late = figures.early_late_tokens(found)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown("**Which tokens are learned early, and which late?**")
        widgets.data(lambda: figures.learned_table(found), "learned")
    for title, table in (("First, with the step", early), ("Last or never", late)):
        chips = [
            f"{widgets.chip(str(row.token), int(row.id))} {_when(int(row.learned_at_step))}"
            for row in table.itertuples()
        ]
        widgets.note(f"{title}: {' · '.join(chips) or 'none'}.")
    widgets.note(
        "Learned: from that step on the line through the embedding reads the token's frequency within a factor of 2. "
        "Tokens that come at least 20 times; those near the average are there without any learning and are left out."
    )


def _when(step: int) -> str:
    return "never" if step < 0 else f"{step:,}"


def _reading() -> None:
    with st.expander("How to read this"):
        st.latex(r"-\log f_w \approx A\cdot E_w + B, \qquad -\log \alpha_w \approx A'\cdot E_w + B'")
        st.markdown(
            "$f_w$ is a token's share of the training text, $\\alpha_w$ its mean probability in the model. At every "
            "checkpoint both are regressed on the output embedding as it is there. **R² of corpus frequency** is 0 in an "
            "untrained model and rises when frequency is written into the embedding. **R² of −log probability** starts "
            "near 1 for a dull reason: untrained logits are small, and then the relation is linear of itself. The dotted "
            "lines are the first steps at which 90 % of the final R², and 90 % of the fall of the loss, are reached. The "
            "claim would be wrong here if the two came together, or the loss first. Tokens that never occur leave the fit."
        )


if __name__ == "__main__":
    page()
