"""Steering: can I turn that knob?"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import streamlit as st

from app import cache, edits, handout, jobs, state, widgets
from app.jobs import Job
from app.live.knobs import knob_data, knobs, range_figure, sweep_points
from app.state import Choice
from core import summary
from core.encoding import Encoding
from core.errors import HeadscopeError
from core.figures import Chart, sentences, texts, words
from core.figures import steering as figures
from core.results import NextToken
from core.steering import Curve, Steering

QUESTION = "Can I turn that knob?"
VIEWS = ("Result", "Side effects", "Few positions")


def page() -> None:
    st.title(QUESTION, anchor=False)
    choice = state.choice()
    encoding = widgets.need_encoding(choice)
    widgets.need_prepared(choice)
    _bench(choice, encoding)


@st.fragment
@jobs.answering()
def _bench(choice: Choice, encoding: Encoding) -> None:
    """Sliders and figures together, so that a slider draws only this part anew."""
    state.drop_unknown(edits.alphas(encoding, state.edits()))
    state.offer(lambda: edits.offered(encoding))
    place = st.container()
    edits.add(choice, encoding)
    edits.refusal()
    direction, calibrate = edits.controls()
    state.publish()
    if not state.edits():
        with place:
            widgets.say("Add a token below and say how many times as often it should come.")
        return
    try:
        steering = cache.steer(choice, state.edits(), direction, calibrate)
    except HeadscopeError as error:
        with place:
            widgets.say("Not like this:")
            widgets.problem(error)
        edits.rows(encoding)
        return
    with place:
        widgets.say(sentences.steering(steering))
    prompt = _prompt(choice, direction, calibrate)
    known = edits.alphas(encoding, state.edits())
    curves = cache.curves(choice, state.edits(), direction, calibrate)
    look = state.look()
    data = knob_data(
        cache.steerer(choice, steering.token_ids, direction),
        steering,
        curves,
        prompt,
        [edits.options(known[token.id][1], token.target) for token in steering.tokens],
        look,
    )
    whole = cache.of_first_curve(
        lambda curve: range_figure(curve, steering, look), choice, state.edits(), direction, calibrate, look
    )
    if whole is not None:
        data["figures"]["range"] = whole
    knobs(data, moved=state.set_ratio, removed=state.remove_edit)
    _numbers(steering, prompt, data, curves[0])
    view = widgets.one_of("Figure", VIEWS, "figure", hidden=True)
    draw = {"Result": _result, "Side effects": _costs, "Few positions": _few}
    with place:
        _handout(choice, encoding, steering, prompt, view)
    draw[view](choice, steering, encoding)


def _handout(choice: Choice, encoding: Encoding, steering: Steering, prompt: NextToken | None, figure: str) -> None:
    def result() -> dict[str, Any]:
        others = cache.baselines(choice, edited)
        return summary.steer(steering, model=choice.model, corpus=choice.corpus, baselines=others, at_prompt=prompt)

    edited = state.edits()
    handout.draw(
        "steering",
        choice,
        result,
        encoding,
        prompt=None if prompt is None else str(state.chosen("prompt") or ""),
        chat=cache.has_chat_template(choice) and bool(state.chosen("chat")),
        figure=figure,
    )


def _prompt(choice: Choice, direction: str, calibrate: bool) -> NextToken | None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        prompt = st.text_input(
            "Prompt", key="prompt", persist_state="session", help="What comes next? Press Enter after a change."
        )
        chat = widgets.chat_format(choice)
    widgets.tell_left_out("prompt")
    widgets.tell_no_chat_format(choice)
    try:
        ready = cache.prompt(choice, prompt or "", bool(chat))
        if isinstance(ready, Job):
            widgets.waiting(ready, jobs.analyses())
            return None
        return cache.next_token(choice, prompt or "", bool(chat), state.edits(), direction, calibrate)
    except HeadscopeError as error:
        widgets.problem(error)
        return None


def _numbers(steering: Steering, prompt: NextToken | None, data: dict[str, Any], curve: Curve) -> None:
    """What the live figures show, in words and as tables."""

    def show(chart: Callable[[], Chart], key: str, title: str) -> None:
        made = functools.cache(chart)  # its table and its figure are of one chart
        widgets.data(lambda: made().table, key, picture=title, figure=lambda: made().figure)

    look, chosen = state.look(), str(state.chosen("prompt") or "")

    def told() -> None:
        for figure in data["figures"].values():
            widgets.note(html.escape(figure["summary"]))
        if prompt is not None:
            widgets.note(
                f"Here every other token is multiplied by {words.number(prompt.others_factor, 4)}; entropy "
                f"{words.number(prompt.entropy_before)} before, {words.nats(prompt.entropy_after)} after. The ratio at "
                "one prompt differs from the mean over a text, which is what was asked."
            )
            show(lambda: texts.next_token(prompt, look), "next", f"The next token after “{chosen}”")
        if "range" in data["figures"]:
            points = sweep_points(curve, steering)
            show(lambda: figures.sweep(points, steering, look), "range", data["figures"]["range"]["title"])

    widgets.reading(told, "in-words", "The figures in words and numbers")


def _result(choice: Choice, steering: Steering, encoding: Encoding) -> None:
    chart = figures.asked_and_realised(steering, state.look())
    widgets.chart(chart, "result", "Asked, and realised on text it has and has not seen", live=True)
    for t in steering.tokens:
        widgets.note(
            f"{widgets.chip(t.token, t.id)} {words.one_in(t.alpha)}: its row moves by "
            f"{words.percent(t.share_of_row)} of its length; at most {words.ratio(t.max_ratio)} is possible."
        )

    edits.explain_misses(steering, encoding)


def _costs(choice: Choice, steering: Steering, encoding: Encoding) -> None:
    try:
        others = cache.baselines(choice, state.edits())
    except HeadscopeError as error:
        widgets.problem(error)
        others = ()
    chart = figures.side_effects((steering, *others), state.look())
    widgets.chart(chart, "costs", "What else moves, on held-out text")
    widgets.note(
        "Grey: a constant logit bias of log r (the ceiling, but no change of the embedding) and a random direction "
        "scaled to the same mean shift."
    )


def _few(choice: Choice, steering: Steering, encoding: Encoding) -> None:
    job = jobs.generation().find(cache.few_shot_key(choice, state.edits(), steering.direction))
    if job is None:
        widgets.note("How good is the edit if its direction is estimated from 16, 64, … positions only? Uncalibrated.")
        if st.button("Measure", type="primary", key="few-start"):
            widgets.start(lambda: cache.few_shot(choice, state.edits(), steering.direction))
    elif job.state != "done":
        again = lambda: cache.few_shot(choice, state.edits(), steering.direction)  # noqa: E731
        widgets.progress(job, jobs.generation(), again=again)
    else:
        chart = figures.few_shot(job.result, steering.tokens[0].target, state.look())
        widgets.chart(chart, "few", "Estimated from few positions")
        widgets.note(html.escape(chart.summary))


if __name__ == "__main__":
    page()
