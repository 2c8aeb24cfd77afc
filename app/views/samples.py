"""Samples: what does it write then?"""

from __future__ import annotations

import html

import streamlit as st

from app import cache, edits, jobs, state, widgets
from app.cache import Writing
from app.state import Choice
from core.figures import texts, words
from core.results import Generated
from core.tokens import visible

QUESTION = "What does it write then?"


def page() -> None:
    st.title(QUESTION, anchor=False)
    choice = state.choice()
    if choice is None:
        widgets.note("Choose a model on the left first.")
        return
    encoding = widgets.need_encoding(choice)
    widgets.need_prepared(choice)
    state.drop_unknown(edits.alphas(encoding, state.edits()))
    state.offer(lambda: edits.offered(encoding))
    known = edits.alphas(encoding, state.edits())
    place = st.container()
    form, pressed = _form(choice)
    asked = state.chosen("writing")
    if pressed or not isinstance(asked, Writing):  # a first visit finds texts without a press
        asked = form
        state.choose(writing=asked)
        if pressed:
            jobs.generation().forget(("texts", choice, asked))
        cache.texts(choice, asked)
    job = cache.find_texts(choice, asked)
    with place:
        _edit_line(known)
    if job is None:
        widgets.note("Press Write for texts by this model.")
        return
    if job.state != "done":
        widgets.progress(job, jobs.generation())
        return
    with place:
        widgets.say(_sentence(job.result))
        if asked.edits != state.edits():
            widgets.note("These texts were written with an earlier edit: press Write for new ones.")
    _show(job.result, asked)


def _edit_line(known: dict[int, tuple[str, float]]) -> None:
    chips = [
        f"{widgets.chip(known[e.token_id][0], e.token_id, steered=True)} {words.ratio(e.ratio)}"
        for e in state.edits()
        if e.token_id in known
    ]
    if chips:
        name = html.escape(str(state.chosen("name") or ""))
        widgets.note(f"The edit{f' “{name}”' if name else ''}: {', '.join(chips)}. Change it on the page Steering.")
    else:
        widgets.note("Nothing is steered yet, so both sides will be the same: add a token on the page Steering.")


def _form(choice: Choice) -> tuple[Writing, bool]:
    """What is to be written as the inputs say, and whether the button was pressed."""
    with st.form("writing-form", border=True):
        prompt = st.text_area("Prompt", key="prompt", height=90, persist_state="session")
        with st.container(horizontal=True):
            samples = st.number_input("Texts per side", 1, 64, 6, key="samples", persist_state="session")
            length = st.number_input("New tokens", 1, 1024, 40, key="new-tokens", persist_state="session")
            seed = st.number_input("Seed of the noise", 0, 2**32 - 1, 0, key="noise-seed", persist_state="session")
        with st.expander("Sampling"), st.container(horizontal=True):
            heat = st.number_input("Temperature", 0.01, 10.0, 1.0, 0.1, key="temperature", persist_state="session")
            top_k = st.number_input("Top-k (0 keeps all)", 0, 100_000, 0, key="top-k", persist_state="session")
            top_p = st.number_input("Top-p (1 keeps all)", 0.01, 1.0, 1.0, 0.05, key="top-p", persist_state="session")
        chat = cache.has_chat_template(choice) and st.toggle(
            "Chat format", key="chat", persist_state="session", help="Wrap the prompt in the model's chat template."
        )
        pressed = st.form_submit_button("Write", type="primary")
    wanted = Writing(
        state.edits(),
        str(state.chosen("direction")),
        bool(state.chosen("calibrate")),
        prompt or "",
        bool(chat),
        int(samples),
        int(length),
        float(heat),
        int(top_k),
        float(top_p),
        int(seed),
    )
    return wanted, pressed


def _sentence(result: Generated) -> str:
    if not result.counts:
        return "Nothing is steered: both sides are the same, token for token."
    told = [
        f"{widgets.chip(c.token, c.id, steered=True)} <b>{c.after}</b> of {result.steps_after:,} tokens, "
        f"{c.before} before; expected {words.number(c.expected_after)}"
        for c in result.counts
    ]
    return "; ".join(told) + "."


def _show(result: Generated, asked: Writing) -> None:
    steered = {count.id for count in result.counts}
    widgets.note("Same noise on both sides; shaded from the first token that differs.")
    for number in range(len(result.before)):
        first = first_difference(result.before[number], result.after[number])
        st.html(
            '<div class="hs-pair">'
            + _side("Before", "before", result.before[number], result.before_tokens[number], first, steered)
            + _side("After", "after", result.after[number], result.after_tokens[number], first, steered)
            + "</div>"
        )
    if result.counts:
        chart = texts.sampled_counts(result.counts, result.steps_after, state.look())
        widgets.chart(chart, "counts", "How often it came")


def first_difference(before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """Place of the first token that differs; the shorter length where one continues the other."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))


def _side(title: str, side: str, ids: tuple[int, ...], pieces: tuple[str, ...], first: int, steered: set[int]) -> str:
    def piece(token_id: int, text: str) -> str:
        return widgets.chip(text, token_id, steered=True) if token_id in steered else html.escape(_readable(text))

    parts = [piece(i, t) for i, t in zip(ids, pieces, strict=True)]
    kind = "hs-changed" if side == "after" else "hs-changed-before"
    changed = "".join(parts[first:])
    marked = f'<span class="{kind}">{changed}</span>' if changed else ""
    return f'<div class="hs-{side}"><h4>{title}</h4>{"".join(parts[:first])}{marked}</div>'


def _readable(text: str) -> str:
    """A token inside running text: blanks and line ends stay, everything else that cannot be seen is made visible."""
    return "".join(c if c in " \n" else visible(c) for c in text)


if __name__ == "__main__":
    page()
