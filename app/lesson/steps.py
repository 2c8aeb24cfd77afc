"""The eight steps of the lesson: the sentence with its number, one live figure, something to try, a question.

A step asks for its control first (it stands under the figure but decides it), then draws the figure and says the sentence.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import cache, edits, jobs, state, widgets
from app.jobs import Job
from app.lesson import questions
from app.lesson.questions import Question
from app.live.knobs import knob_data, knobs
from app.state import Choice
from core import words
from core.dynamics import Dynamics
from core.encoding import Encoding
from core.errors import HeadscopeError
from core.figures import Chart
from core.figures import dynamics as of_training
from core.figures import encoding as of_encoding
from core.figures import lesson as figures
from core.results import NextToken
from core.tokens import visible


@dataclass(frozen=True)
class Places:
    """Where the parts of a step stand; each is a container of the page."""

    sentence: DeltaGenerator
    figure: DeltaGenerator
    control: DeltaGenerator
    question: DeltaGenerator


BARS = 6
"""Tokens beside the steered one in the presenter view."""
Draw = Callable[[Places, Choice, Encoding], Question | None]


@dataclass(frozen=True)
class Step:
    """One step of the lesson.

    Attributes:
        question: the step's heading. about: two sentences that say what is looked at.
        draw: puts sentence, figure and control in their places and returns the question (None while a job runs).
        prepared: whether edits are judged, for which the positions of the text are needed.
    """

    question: str
    about: str
    draw: Draw
    prepared: bool = False


def _say(places: Places, sentence: str) -> None:
    with places.sentence:
        widgets.say(sentence.replace(" %", "&nbsp;%"))


def _show(chart: Chart, key: str, title: str) -> None:
    widgets.chart(chart, key, title, alone=state.presenting())


# --- the steps ------------------------------------------------------------------------------------------------------


def _next_token(places: Places, choice: Choice, encoding: Encoding) -> Question | None:
    with places.control:
        text = _prompt_field()
    prompt = _prompt(places, choice, text)
    if prompt is None:
        return None
    with places.figure:
        _show(figures.next_token(prompt, state.look()), "lesson-next", "The likeliest next tokens")
    top = int(np.argmax(prompt.before))
    _say(
        places,
        f"<b>{words.percent(float(prompt.before[top]))}</b> for {widgets.chip(prompt.tokens[top])} after "
        f"{_quoted(text)}; each of the other {encoding.vocab_size - 1:,} tokens has something too.",
    )
    return questions.first_three(prompt)


def _mean(places: Places, choice: Choice, encoding: Encoding) -> Question:
    rows = len(encoding.alpha)
    with places.control:
        first = st.select_slider(
            "The first … tokens",
            [n for n in _counts(rows) if n <= rows],
            value=10,
            format_func=lambda n: f"{n:,}",
            key="lesson-first",
            persist_state="session",
        )
    with places.figure:
        chart = cache.chart(figures.mean_distribution, choice, encoding, state.look(), int(first))
        _show(chart, "lesson-mean", "Mean probability of every token")
    _say(
        places,
        f"<b>{words.percent(questions.share_of(encoding, int(first)))}</b> of all probability, averaged over "
        f"{encoding.positions:,} places of a text, lies on the first <b>{int(first):,}</b> of {rows:,} tokens.",
    )
    return questions.tokens_for_half(encoding)


def _line(places: Places, choice: Choice, encoding: Encoding) -> Question:
    with places.control:
        text = st.text_input(
            "Find a token",
            key="lesson-token",
            persist_state="session",
            max_chars=widgets.MOST_TYPED,
            placeholder="for example: river",
            help="Marks it in the figure. If there are several, the most probable one.",
            width=320,
        )
        found = edits.find_tokens(encoding, text or "")
        if text and not found:
            widgets.note(f"No token contains {widgets.chip(text)}.")
    place = found[0] if found else _own_place(encoding)
    token_id = int(encoding.token_ids[place])
    with places.figure:
        chart = cache.chart(of_encoding.fit_scatter, choice, encoding, state.look(), (), (token_id,))
        _show(chart, "lesson-line", f"{len(encoding.tokens):,} tokens, measured against predicted")
    low = min(encoding.r2_held_out_text, encoding.r2_held_out_tokens)
    _say(
        places,
        f"<b>{100 * encoding.r2:.0f} %</b> of the differences between tokens lie on one straight line "
        f"({100 * low:.0f} % where it has not seen them). {widgets.chip(encoding.tokens[place], token_id)}: measured "
        f"<b>{words.one_in(float(encoding.alpha[place]))}</b>, by the line "
        f"<b>{words.one_in(float(np.exp(-encoding.predicted[place])))}</b>.",
    )
    return questions.off_the_line(encoding, place)


def _weights(places: Places, choice: Choice, encoding: Encoding) -> Question:
    with places.control, st.container(horizontal=True):
        what = st.segmented_control(
            "Show", ("weight", "saliency"), default="weight", required=True, key="lesson-what", persist_state="session"
        )
        order = st.segmented_control(
            "Order", ("saliency", "index"), default="saliency", required=True, key="lesson-order",
            persist_state="session",
        )  # fmt: skip
    with places.figure:
        chart = cache.chart(of_encoding.weights, choice, encoding, state.look(), what, order == "saliency")
        _show(chart, "lesson-weights", "The weights of the line, with 95 % intervals")
    top = int(np.argmax(encoding.saliency))
    way = "rarer" if encoding.weights[top] > 0 else "more frequent"
    _say(
        places,
        f"<b>{words.ratio(float(np.exp(encoding.saliency[top])))}</b> {way}: so much does dimension {top} alone make a "
        f"token whose number there is one standard deviation up. It weighs most of {encoding.dim:,}.",
    )
    return questions.clear_weights(encoding)


def _knob(places: Places, choice: Choice, encoding: Encoding) -> Question | None:
    state.offer(lambda: edits.offered(encoding))
    if not state.edits() and (first := edits.offered(encoding)) is not None:  # the list was emptied: here is one needed
        state.set_edits((first,))
    if not state.edits():
        return None
    wanted = state.edits()[:1]
    direction, calibrate = "minimum-variance", True
    try:
        steering = cache.steer(choice, wanted, direction, calibrate)
    except HeadscopeError as error:
        with places.figure:
            widgets.problem(error)
        with places.control:
            edits.rows(encoding)
        return None
    prompt = _prompt(places, choice, str(state.chosen("prompt")))
    if prompt is None:
        return None
    edited = cache.next_token(choice, str(state.chosen("prompt")), False, wanted, direction, calibrate)
    token = steering.tokens[0]
    data = knob_data(
        cache.steerer(choice, steering.token_ids, direction),
        steering,
        cache.curves(choice, wanted, direction, calibrate),
        edited,
        [edits.options(token.alpha, token.target)],
        state.look(),
    )
    if state.presenting():  # so many bars as a projector shows
        data["shown"] = [row for place, row in enumerate(data["shown"]) if place < BARS or row["edit"] is not None]
    with places.figure:
        knobs(data | {"fixed": True}, moved=state.set_ratio, removed=state.remove_edit)
    _say(
        places,
        f"<b>{words.ratio(token.target)}</b> asked, <b>{words.ratio(token.realised_held_out)}</b> got on new text: so "
        f"much more often comes {widgets.chip(token.token, token.id, steered=True)}. The rest moved by "
        f"<b>{words.nats(steering.others_drift)}</b>.",
    )
    with places.control:
        widgets.note("Drag the slider above the figure: the bars follow. Only one row of the embedding changes.")
    return questions.largest_ratio(token)


def _deleted(places: Places, choice: Choice, encoding: Encoding) -> Question:
    counts = [p.dims for p in encoding.sparsity]
    with places.control:
        kept = st.select_slider(
            "Dimensions that stay, most salient first",
            counts,
            value=counts[0],
            format_func=lambda n: f"{n:,}",
            key="lesson-kept",
            persist_state="session",
        )
    with places.figure:
        chart = cache.chart(figures.kept_dimensions, choice, encoding, state.look(), int(kept))
        _show(chart, "lesson-kept-curve", "How many dimensions does the line need?")
    r2 = next(p.r2_refitted for p in encoding.sparsity if p.dims == kept)
    _say(
        places,
        f"<b>{100 * r2:.0f} %</b> of the differences are explained by <b>{words.plural(int(kept), 'dimension')}</b>; all "
        f"{encoding.dim:,} explain {100 * encoding.r2:.0f} %.",
    )
    return questions.dimensions_for_most(encoding)


def _training(places: Places, choice: Choice, encoding: Encoding) -> Question | None:
    found = _run()
    question = questions.times_as_late(found)
    if question is None:
        found = cache.bundled_dynamics()
        question = questions.times_as_late(found)
    curve = found.curve
    steps = [c.step for c in curve]
    with places.control:
        step = st.select_slider(
            "Training step",
            steps,
            value=steps[0],
            format_func=lambda n: f"{n:,}",
            key=f"lesson-step-{found.source}",
            persist_state="session",
        )
        if found.source != choice.model:
            widgets.note(
                "This model came without its checkpoints, so this is the run of the bundled model."
                if found.source == "demo"
                else f"The run: {html.escape(found.source)}."
            )
    now = next(c for c in curve if c.step == step)
    with places.figure:
        chart = of_training.curves(found, state.look(), now.step)
        _show(chart, "lesson-training", "What the embedding holds, and the loss")
    loss = "" if now.loss is None else f", with the loss at <b>{words.nats(now.loss)}</b>"
    share = max(0.0, now.r2_corpus_frequency)
    _say(
        places,
        f"<b>{100 * share:.0f} %</b> of the differences in frequency are in the embedding at step "
        f"<b>{now.step:,}</b>{loss}; at the end {100 * curve[-1].r2_corpus_frequency:.0f} %.",
    )
    return question


def _limits(places: Places, choice: Choice, encoding: Encoding) -> Question | None:
    text = str(state.chosen("prompt"))
    prompt = _prompt(places, choice, text)
    if prompt is None:
        return None
    there = [int(i) for i in prompt.token_ids if i in encoding.token_ids]  # padding rows are in no fit
    names = dict(zip(prompt.token_ids.tolist(), prompt.tokens, strict=True))
    with places.control:
        chosen = st.selectbox(
            "Token",
            there,
            format_func=lambda i: visible(names.get(i, "")),
            key="lesson-here",
            persist_state="session",
            width=320,
        )
    chosen = chosen if chosen in there else there[0]
    with places.figure:
        chart = figures.here_and_average(prompt, encoding, state.look(), chosen)
        _show(chart, "lesson-limits", "Here, and on average over the text")
    here, average = questions.at_prompt(prompt, chosen), questions.mean_of(encoding, chosen)
    _say(
        places,
        f"<b>{words.percent(here)}</b> for {widgets.chip(names[chosen], chosen)} after {_quoted(text)}; on average it has "
        f"<b>{words.one_in(average)}</b>. The embedding says only the average.",
    )
    return questions.here_against_average(prompt, encoding, chosen)


# --- what several steps need ------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return f"“{html.escape(text if len(text) <= 60 else '…' + text[-60:])}”"


def _prompt_field() -> str:
    text = st.text_input(
        "Prompt", key="prompt", persist_state="session", help="What comes next? Press Enter after a change."
    )
    return text or ""


def _prompt(places: Places, choice: Choice, text: str) -> NextToken | None:
    """The unedited next token at a prompt; None, with its place filled, while the model is loaded or if it is refused."""
    with places.figure:
        try:
            found = cache.prompt(choice, text, False)
        except HeadscopeError as error:
            widgets.problem(error)
            return None
        if isinstance(found, Job):
            widgets.waiting(found, jobs.analyses())
            return None
    return found


def _counts(most: int) -> list[int]:
    """1, 2, 3, 5, 7, 10, 15, 20, …: from one to the next less than a doubling."""
    return [
        m * 10**p // 2 for p in range(7) for m in (2, 3, 4, 6, 10, 14) if m * 10**p % 2 == 0 and m * 10**p // 2 <= most
    ]


def _own_place(encoding: Encoding) -> int:
    """The token the student steers, else the one that a first visitor is offered, else the most probable."""
    known = edits.alphas(encoding, state.edits())
    first = next(iter(known), None)
    if first is None and (offered := edits.offered(encoding)) is not None:
        first = offered.token_id
    return int(np.argmax(encoding.alpha)) if first is None else int(np.searchsorted(encoding.token_ids, first))


def _run() -> Dynamics:
    """The training run that is looked at, if it was measured; else the bundled one."""
    return cache.measured_dynamics(str(state.chosen("series") or "")) or cache.bundled_dynamics()


STEPS = (
    Step(
        "What comes next?",
        "A language model does one thing: to what stands there it gives every token a probability, and draws one. Change "
        "the prompt and see the bars move.",
        _next_token,
    ),
    Step(
        "How often does a token come on average?",
        "Over a whole text the probabilities of a token are averaged. A few tokens are likely almost everywhere, most "
        "hardly anywhere.",
        _mean,
    ),
    Step(
        "Is that written in the embedding?",
        "Every token has a row of numbers in the output embedding. Weighted and added up, that is on a straight line, they "
        "predict how often it comes.",
        _line,
    ),
    Step(
        "Which numbers carry it?",
        "The line has one weight for each number of the row. The weight times how much that number varies is its saliency.",
        _weights,
    ),
    Step(
        "Can I turn that knob?",
        "If a token's row says how often it comes, then changing the row should change that. This shifts one row and "
        "nothing else.",
        _knob,
        prepared=True,
    ),
    Step(
        "Which dimensions could go?",
        "The line is fitted again on only the most salient dimensions. What does not help it can be deleted with little "
        "loss.",
        _deleted,
    ),
    Step(
        "When does it get there?",
        "The same line at every checkpoint of a training run: first the embedding knows nothing, then frequencies appear, "
        "long before the model is good.",
        _training,
    ),
    Step(
        "What does this not show?",
        "The embedding holds an average over a text. What is likely at one place is decided by what stands before it, and "
        "no row of numbers knows that.",
        _limits,
    ),
)
