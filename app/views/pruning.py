"""Pruning: which dimensions could go?"""

from __future__ import annotations

import html

import streamlit as st

from app import begun, cache, edits, handout, jobs, state, widgets
from app.cache import PRUNED, Pruned
from app.jobs import Job
from app.rules import rules
from app.state import Choice
from core import summary
from core.encoding import Encoding
from core.errors import HeadscopeError
from core.export.result import Exported
from core.figures import pruning as figures
from core.figures import sentences, words
from core.figures.pairs import pair
from core.pruning.result import Pruning, largest_removable
from core.results import Sampling
from core.tokens import visible
from core.words import quoted, short

QUESTION = "Which dimensions could go?"
VIEWS = ("Who goes", "Frequent and rare", "Texts", "Size and speed", "Export")
MEASURES = {"KL": "kl", "Top prediction": "top1_agreement", "Perplexity": "perplexity_ratio", "JS": "js"}


def page() -> None:
    st.title(QUESTION, anchor=False)
    if not rules().shared:
        _broken_off()
    choice = state.choice()
    encoding = widgets.need_encoding(choice)
    try:
        ready = cache.pruning(choice)
    except HeadscopeError as error:
        widgets.problem(error)
        return
    if isinstance(ready, Job):
        widgets.note(
            "Every method is measured at every twentieth of the dimensions, on text that none of them has seen."
        )
        widgets.progress(ready, jobs.analyses())
        return
    _bench(choice, encoding, ready)


@st.fragment
def _broken_off() -> None:
    """Exports that went with a server, which was ended or killed, until they are put away."""
    for folder in begun.broken_off():
        widgets.warning(
            f"The export to <code>{html.escape(folder)}</code> broke off because its server ended, and nothing of it was left: "
            "export it again under Figure, Export."
        )
        st.button("Put away", key=f"broken-off-{folder}", on_click=begun.forget, args=(folder,))


@st.fragment
def _bench(choice: Choice, encoding: Encoding, found: tuple[Pruning, ...]) -> None:
    """The slider and all that follows it, so that a step draws only this part anew."""
    look = state.look()
    place = st.container()
    removed = _fraction()
    method = best_method(found, removed)
    with place:
        if (asked := state.unread("removed")) is not None:
            widgets.problem(
                f"The address asks for {quoted(short(asked, 40))} of the dimensions to go, but the curves have a point at "
                f"every {100 * (PRUNED[1] - PRUNED[0]):.0f} % from {100 * PRUNED[0]:.0f} to {100 * PRUNED[-1]:.0f}: "
                f"{100 * removed:.0f} % is shown."
            )
        widgets.say(sentences.pruning(found, method, removed))
        handout.draw(
            "pruning", choice, lambda: summary.prune(found, model=choice.model), encoding, report=False, edits=(),
            method=method, removed=removed,
        )  # fmt: skip
    state.publish()
    measure = widgets.one_of("Measure", MEASURES, "prune-measure", hidden=True)
    chart = figures.curves(found, look, removed, MEASURES[measure], method)
    widgets.chart(chart, "curve", "What it costs on text that no method has seen")
    _threshold(found)
    view = widgets.one_of("Figure", VIEWS, "prune-view", hidden=True)
    by_name = {each.method: each for each in found}
    if view == "Frequent and rare":
        shown = [by_name[m] for m in dict.fromkeys((method, "saliency")) if m in by_name]
        chart = figures.by_frequency(shown, removed, look, method)
        widgets.chart(chart, "tenths", "Whom it hits")
        widgets.note(html.escape(chart.summary))
    elif view == "Texts":
        _texts(choice, _methods(found, method), removed)
    elif view == "Size and speed":
        _cost(choice, _methods(found, method), removed)
    elif view == "Export":
        _export(choice, encoding, _methods(found, method), removed)
    else:
        chosen = st.selectbox("Method", _methods(found, "saliency"), format_func=figures.name_of, key="prune-who")
        chart = figures.leaving(by_name[chosen], encoding, removed, look)
        widgets.chart(chart, "leaving", "Which dimensions go, by weight and by spread")
        widgets.note(html.escape(chart.summary))
    _reading()


def _fraction() -> float:
    """The slider; its place is in the address."""
    removed = state.keep_fraction(PRUNED)
    st.select_slider(
        "Dimensions removed", PRUNED, format_func=lambda share: f"{100 * share:.0f} %", key="removed-slider",
        on_change=state.fraction_moved, help="Arrow keys move it too.",
    )  # fmt: skip
    return removed


def best_method(found: tuple[Pruning, ...], removed: float) -> str:
    """The method with the lowest KL at a fraction, of those that train nothing."""
    known = [(point.kl, each.method) for each in found if not each.trained and (point := figures.at(each, removed))]
    return min(known)[1]


def _methods(found: tuple[Pruning, ...], first: str) -> list[str]:
    return sorted((each.method for each in found), key=lambda method: method != first)


def _threshold(found: tuple[Pruning, ...]) -> None:
    """How much can go while the top prediction stays often enough."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        least = st.number_input(
            "The top prediction has to stay in (% of contexts)", 1, 100, 90, key="prune-least", persist_state="session",
            help="The largest fraction is read off the measured curve, on a straight line between its points.", width=360,
        )  # fmt: skip
        shares = {each.method: largest_removable(each.points, least / 100) for each in found}
        widgets.data(lambda: figures.removable_table(shares), "removable")
    first = max(shares, key=lambda method: shares[method])
    named = {
        first: f"with {html.escape(figures.name_of(first))}",
        "saliency": "in the paper's order",
        "random": "at random",
    }
    told = [f"<b>{words.percent(shares[method])}</b> {name}" for method, name in named.items() if method in shares]
    widgets.note(f"So much can go then: {', '.join(told)}.")


def _texts(choice: Choice, methods: list[str], removed: float) -> None:
    method = st.selectbox("Method", methods, format_func=figures.name_of, key="prune-texts-method")
    prompt = st.text_input("Prompt", key="prompt", persist_state="session")
    widgets.tell_left_out("prompt")
    wanted = Pruned(method, removed, prompt or "", Sampling(samples=min(6, rules().most_samples)))
    job = cache.find_pruned_texts(choice, wanted)
    if job is None:
        widgets.note("Texts of the full head beside those of the pruned one, with the same noise.")
        if st.button("Write", type="primary", key="prune-write"):
            widgets.start(lambda: cache.pruned_texts(choice, wanted))
    elif job.state != "done":
        widgets.progress(job, jobs.generation(), again=lambda: cache.pruned_texts(choice, wanted))
    else:
        widgets.note("Before: the full head. After: the pruned one. Shaded from the first token that differs.")
        result = job.result
        for sides in zip(result.before, result.after, result.before_tokens, result.after_tokens, strict=True):
            st.html(pair(*sides, set()))


def _cost(choice: Choice, methods: list[str], removed: float) -> None:
    method = st.selectbox("Method", methods, format_func=figures.name_of, key="prune-cost-method")
    job = cache.find_pruned_cost(choice, method, removed)
    if job is None:
        widgets.note("Pruned matrices are really smaller. How much faster they are depends on this computer.")
        if st.button("Measure", type="primary", key="prune-measure-cost"):
            widgets.start(lambda: cache.pruned_cost(choice, method, removed))
    elif job.state != "done":
        widgets.progress(job, jobs.generation(), again=lambda: cache.pruned_cost(choice, method, removed))
    else:
        chart = figures.cost(job.result, state.look())
        widgets.chart(chart, "cost", "Time of the smaller head")
        widgets.note(html.escape(chart.summary) + " The width is rounded down to a multiple of 16.")


def _export(choice: Choice, encoding: Encoding, methods: list[str], removed: float) -> None:
    """The edited model as a folder that stock transformers loads."""
    if rules().shared:
        widgets.note("On a shared server nothing is written: run <code>headscope export</code> on your own computer.")
        return
    known = edits.alphas(encoding, state.edits())
    state.drop_unknown(known)
    edits.refusal()
    with st.form("export-form", border=True):
        folder = st.text_input(
            "New folder", key="export-folder", max_chars=state.MOST_PATH, placeholder="for example: my-edited-model"
        )
        prune = st.toggle(f"Prune the head: {100 * removed:.0f} % of the dimensions go", value=True, key="export-prune")
        method = st.selectbox("Method", methods, format_func=figures.name_of, key="export-method")
        listed = ", ".join(f"{widgets.code_span(known[e.token_id][0])} {words.ratio(e.ratio)}" for e in state.edits()
                           if e.token_id in known)  # fmt: skip
        steer = bool(listed) and st.toggle(f"Steer: {listed}", value=False, key="export-steer")
        pressed = st.form_submit_button("Export", type="primary")
    chosen = tuple(e for e in state.edits() if e.token_id in known) if steer else ()

    def begin() -> None:
        cache.export(choice, folder or "", chosen, method if prune else None, removed if prune else None)

    if pressed:
        named = (folder or "").strip()
        try:
            begin()
        except HeadscopeError as error:
            if named != state.chosen("exporting"):
                widgets.problem(error)
                return
            running = cache.find_export(choice, named)
            if running is not None and running.active:  # pressed twice: how far the first one is stands below
                st.toast(widgets.plain(str(error)))
            else:
                widgets.problem(error)
        state.choose(exporting=named)
    job = cache.find_export(choice, str(state.chosen("exporting") or ""))
    if job is None:
        widgets.note(
            "A checkpoint as transformers saves it, reloaded and compared before it appears. A pruned head is stored as a "
            "full matrix, because transformers knows no smaller one: the file does not shrink."
        )
    elif job.state != "done":
        widgets.progress(job, jobs.generation(), again=begin)
    else:
        done = job.result
        widgets.say(sentences.exported(done))
        widgets.facts(
            [
                ("Folder", str(done.path)),
                ("What was changed", _changes(done)),
                ("Largest difference of a logit", words.number(done.max_logit_error, 2)),
                ("KL, held-out text", words.nats(done.effect.kl)),
                ("Top prediction stays, held-out text", words.percent(done.effect.top1_agreement)),
                ("Head", f"{words.size(done.head_bytes)}, before {words.size(done.head_bytes_before)}"),
                ("Whole model", f"{words.size(done.model_bytes)}, before {words.size(done.model_bytes_before)}"),
            ]
        )


def _changes(done: Exported) -> str:
    """What an export was made with, which the fields above it may no longer say."""
    parts = [f"{visible(token.token)} {words.ratio(token.target)}" for token in done.tokens]
    if done.pruning is not None:
        parts.append(
            f"{figures.name_of(done.pruning.method)}, {words.percent(done.pruning.removed)} of the dimensions gone"
        )
    return "; ".join(parts)


def _reading() -> None:
    with st.expander("How to read this"):
        st.latex(
            r"\mathrm{KL} = \sum_w p_w\,(l_w - l'_w) - (\log Z - \log Z'), \qquad"
            r" G = \sum_w \alpha_w (E_w-\bar E)(E_w-\bar E)^{\top}"
        )
        st.markdown(
            "Everything a method needs (α, A, second moments) comes from the text that fits; all figures are on text that "
            "only judges. **The paper's order** drops the dimensions with the least saliency $|A_i|\\,\\mathrm{std}(E_i)$. "
            "**Compensated**: what the kept dimensions can predict of the dropped ones is folded into the matrix. "
            "**Rotated**: the head becomes a product of two thin matrices, the best ones for $G$ and the hidden states. For "
            "texts of another kind, `headscope prune --method rotated-self` lets the model write first and counts that. The "
            "grey band is the range of random orders. The claim that much can go would be wrong for this model if the "
            "curves rose at once; where they do, the sentence above says so with its number."
        )


if __name__ == "__main__":
    page()
