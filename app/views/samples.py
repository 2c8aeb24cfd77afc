"""Samples: what does it write then?"""

from __future__ import annotations

import html

import numpy as np
import streamlit as st

from app import cache, edits, handout, jobs, state, widgets
from app.cache import Writing
from app.rules import rules
from app.state import Choice
from core import summary
from core.encoding import Encoding
from core.errors import HeadscopeError
from core.figures import sentences, texts, words
from core.figures.pairs import pair
from core.results import Generated, Sampling
from core.settings import Texts

QUESTION = "What does it write then?"
SAME_NOISE = "Same noise on both sides; shaded from the first token that differs."
SHOWN = 12
"""Texts per side that are shown while they are being written."""


def page() -> None:
    st.title(QUESTION, anchor=False)
    choice = state.choice()
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
        old = cache.find_texts(choice, asked)
        if pressed and old is not None and old.state != "done":  # what is done may be looked at by others
            jobs.generation().forget(old.key)
        try:
            cache.texts(choice, asked)
        except HeadscopeError as error:
            widgets.problem(error)
            return
    job = cache.find_texts(choice, asked)
    with place:
        edits.refusal()
        _edit_line(known)
    if job is None:
        widgets.note("Press Write for texts by this model.")
        return
    if job.state != "done":
        widgets.progress(
            job,
            jobs.generation(),
            lambda partial: _show_partial(encoding, asked, *partial),
            again=lambda: cache.texts(choice, asked),
        )
        return
    with place:
        widgets.say(sentences.texts(job.result))
        handout.draw(
            "samples",
            choice,
            lambda: summary.texts(job.result, model=choice.model),
            encoding,
            edits=asked.edits,
            direction=asked.direction,
            calibrate=asked.calibrate,
            prompt=asked.prompt,
            chat=asked.chat,
            sampling=asked.sampling,
        )
        if asked != form:
            earlier = " and ".join(_differing(asked, form))
            widgets.note(f"These texts were written with an earlier {earlier}: press Write for new ones.")
    _show(job.result)


def _differing(one: Writing, other: Writing) -> list[str]:
    """In what two requests for texts differ, in words."""
    parts = (
        ("edit", lambda w: (w.edits, w.direction, w.calibrate)),
        ("prompt", lambda w: (w.prompt, w.chat)),
        ("sampling", lambda w: w.sampling),
    )
    return [name for name, part in parts if part(one) != part(other)]


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
    allowed = rules()
    with st.form("writing-form", border=True):
        prompt = st.text_area("Prompt", key="prompt", height=90, persist_state="session")
        widgets.tell_left_out("prompt")
        with st.container(horizontal=True):
            samples = st.number_input("Texts per side", 1, allowed.most_samples, key="samples", persist_state="session")
            length = st.number_input(
                "New tokens", 1, allowed.most_new_tokens, key="new-tokens", persist_state="session"
            )
            seed = st.number_input("Seed of the noise", 0, 2**32 - 1, key="noise-seed", persist_state="session")
        with st.expander("Sampling"), st.container(horizontal=True):
            heat = st.number_input("Temperature", 0.01, 10.0, step=0.1, key="temperature", persist_state="session")
            top_k = st.number_input("Top-k (0 keeps all)", 0, state.MOST_TOP_K, key="top-k", persist_state="session")
            top_p = st.number_input("Top-p (1 keeps all)", 0.01, 1.0, step=0.05, key="top-p", persist_state="session")
        chat = widgets.chat_format(choice)
        widgets.tell_no_chat_format(choice)
        pressed = st.form_submit_button("Write", type="primary")
    wanted = Writing(
        state.edits(),
        str(state.chosen("direction")),
        bool(state.chosen("calibrate")),
        prompt or "",
        bool(chat),
        Sampling(int(samples), int(length), float(heat), int(top_k), float(top_p), int(seed)),
    )
    return wanted, pressed


def _show_partial(encoding: Encoding, asked: Writing, before: Texts, after: Texts) -> None:
    """The texts while they are being written; of many only the first, because they are sent again and again."""
    widgets.note(SAME_NOISE)
    names = _token_names(encoding, {i for ids in (*before[:SHOWN], *after[:SHOWN]) for i in ids})
    steered = {edit.token_id for edit in asked.edits}
    for old, new in zip(before[:SHOWN], after[:SHOWN], strict=True):
        st.html(pair(old, new, tuple(names[i] for i in old), tuple(names[i] for i in new), steered))
    if len(before) > SHOWN:
        widgets.note(f"The first {SHOWN} of {len(before)} texts; all of them stand here when they are finished.")


def _token_names(encoding: Encoding, ids: set[int]) -> dict[int, str]:
    """Texts of tokens, as `core.tokens.token_texts` gives them; known from the fit, so no tokenizer is read each time."""
    wanted = np.array(sorted(ids), dtype=np.int64)
    at = np.searchsorted(encoding.token_ids, wanted).clip(max=len(encoding.token_ids) - 1)
    return {
        int(i): encoding.tokens[place] if encoding.token_ids[place] == i else "⟨no token⟩"
        for i, place in zip(wanted, at, strict=True)
    }


def _show(result: Generated) -> None:
    steered = {count.id for count in result.counts}
    widgets.note(SAME_NOISE)
    for sides in zip(result.before, result.after, result.before_tokens, result.after_tokens, strict=True):
        st.html(pair(*sides, steered))
    if result.counts:
        chart = texts.sampled_counts(result.counts, result.steps_after, state.look())
        widgets.chart(chart, "counts", "How often it came", live=True)


if __name__ == "__main__":
    page()
