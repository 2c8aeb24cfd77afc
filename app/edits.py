"""The list of tokens to steer: add one, set its ratio, take it away, undo."""

from __future__ import annotations

import html
import math
from collections.abc import Callable

import numpy as np
import streamlit as st

from app import cache, jobs, state, widgets
from app.jobs import Job
from app.state import Choice
from core.encoding import Encoding
from core.errors import HeadscopeError
from core.figures import words
from core.results import TokenChoice
from core.steering import Edit, Steering

UP = (1.1, 1.2, 1.35, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
TENS = (10, 12, 15, 18, 20, 25, 30, 35, 40, 50, 60, 70, 80, 90, 100)
RATIOS = (*(1 / r for r in reversed(UP + TENS)), 1.0, *(float(r) for r in UP + TENS))
FIRST_RATIO = 20.0
SUGGESTED = 12
MOST_FOUND = 8


FIRST_WORDS = (" river", " road", " path", " street", " water", " bridge", " garden", " window", " table")
LIKE = 0.2
"""Nats by which a token's mean probability may differ between the fitting and the held-out text to be offered first."""


def offered(encoding: Encoding) -> Edit | None:
    """The edit a first visitor finds: a word that is as probable in the text that judges as in the text that fits."""
    with np.errstate(divide="ignore"):
        apart = np.abs(np.log(encoding.alpha) - np.log(encoding.alpha_held_out))
    by_text = {text: at for at, text in enumerate(encoding.tokens)}
    words_there = [by_text[word] for word in FIRST_WORDS if word in by_text]
    ranked = np.argsort(-encoding.alpha)[200:3000]
    others = [int(i) for i in ranked if encoding.kinds[i] == "word start"]
    good = [at for at in words_there if apart[at] < LIKE] or sorted(others, key=lambda at: apart[at])[:1] or words_there
    if not good:
        return None
    allowed = options(float(encoding.alpha[good[0]]))
    return Edit(int(encoding.token_ids[good[0]]), state.nearest(FIRST_RATIO, allowed))


def find_tokens(encoding: Encoding, text: str) -> list[int]:
    """Places of the tokens that a text names: itself, else with a blank before it, else those that contain it.

    At most `MOST_FOUND`, the most probable first.
    """
    if not text:
        return []
    tests: tuple[Callable[[str], bool], ...] = (
        lambda token: token == text,
        lambda token: token == " " + text,
        lambda token: text.lower() in token.lower(),
    )
    for fits in tests:
        if found := [at for at, token in enumerate(encoding.tokens) if fits(token)]:
            return sorted(found, key=lambda at: -encoding.alpha[at])[:MOST_FOUND]
    return []


def alphas(encoding: Encoding, edits: tuple[Edit, ...]) -> dict[int, tuple[str, float]]:
    """Text and mean probability of each steered token; tokens that the model does not have are left out."""
    found = {}
    for edit in edits:
        at = int(np.searchsorted(encoding.token_ids, edit.token_id))
        if at < len(encoding.token_ids) and encoding.token_ids[at] == edit.token_id:
            found[edit.token_id] = (encoding.tokens[at], float(encoding.alpha[at]))
    return found


def options(alpha: float, asked: float = 1.0) -> tuple[float, ...]:
    """The ratios that a token of this mean probability can be asked for: r·alpha stays below 1.

    One that the address asked for is among them, whatever it is: a slider shows what is asked, not what is near.
    """
    found = tuple(ratio for ratio in RATIOS if ratio * alpha < 0.98) or RATIOS[:1]
    if any(abs(math.log(asked / ratio)) < 1e-6 for ratio in found):
        return found
    return tuple(sorted((*found, asked)))


def rows(encoding: Encoding) -> None:
    """The list with built-in sliders, for a list that cannot be solved as it stands (the live sliders need its solution)."""
    known = alphas(encoding, state.edits())
    for edit in state.edits():
        if edit.token_id in known:
            _row(edit, *known[edit.token_id])


def _row(edit: Edit, token: str, alpha: float) -> None:
    allowed = options(alpha, edit.ratio)
    wanted = alpha * edit.ratio
    then = words.one_in(wanted) if wanted < 1 else "more than 100 %"
    key = f"ratio-{edit.token_id}-{state.edits_revision()}"
    limit = f"; at most {words.ratio(1 / alpha)} is possible" if 1 / alpha < 100 else ""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.select_slider(
            f"{widgets.code_span(token)} {words.one_in(alpha)} → {then}{limit}",
            allowed,
            value=state.nearest(edit.ratio, allowed),
            format_func=words.ratio,
            key=key,
            on_change=state.change_ratio,
            args=(edit.token_id, key),
        )
        st.button(
            "✕",
            key=f"remove-{edit.token_id}",
            help="Take this token off the list",
            on_click=state.remove_edit,
            args=(edit.token_id,),
        )


def add(choice: Choice, encoding: Encoding) -> None:
    """Find a token and put it on the list; undo, reset and empty the list."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "Add a token",
            key="add-token",
            placeholder="for example: river",
            max_chars=widgets.MOST_TYPED,
            help="A blank before the word belongs to the token: ` river` and `river` are two. `id:123` names one by "
            "its number.",
        )
        st.button("Undo", on_click=state.undo, disabled=not state.can_undo(), key="undo")
        st.button("All to 1×", on_click=state.reset_ratios, disabled=not state.edits(), key="reset")
        st.button("Remove all", on_click=state.set_edits, args=((),), disabled=not state.edits(), key="clear")
    typed = str(state.chosen("add-token") or "")
    if typed:
        _suggest(choice, encoding, typed)


def _suggest(choice: Choice, encoding: Encoding, typed: str) -> None:
    """What the typed text may mean: as it stands, with a blank, capitalised, and tokens that contain it."""
    found = candidates(encoding, typed)
    note = ""
    try:
        exact = _token(choice, typed)
        if exact is not None:
            found = {exact.id: exact.token, **found} if typed[0].isspace() or exact.id not in found else found
            note = exact.note
            if not note and not typed.startswith((" ", "id:")):
                spaced = _token(choice, " " + typed)
                note = "" if spaced is None else spaced.note
    except HeadscopeError as error:
        if not found:
            widgets.problem(error)
    if note:
        widgets.note(html.escape(note))
    if not found:
        return
    with st.container(horizontal=True):
        for token_id, token in list(found.items())[:SUGGESTED]:
            st.button(
                widgets.code_span(token),
                key=f"suggest-{token_id}",
                on_click=_take,
                args=(token_id, encoding),
                help=f"id {token_id}",
            )


def _token(choice: Choice, typed: str) -> TokenChoice | None:
    """The token of a text; None while it is looked for, which the page says."""
    found = cache.find_token(choice, typed)
    if isinstance(found, Job):
        widgets.waiting(found, jobs.analyses())
        return None
    return found


def refusal() -> None:
    """What the list could not take in, in a sentence; until the list changes."""
    if refused := state.chosen("edit_refused"):
        widgets.problem(str(refused))


def candidates(encoding: Encoding, typed: str) -> dict[int, str]:
    """Tokens whose letters are the typed ones, then tokens that begin with them; most probable first."""
    bare = typed.strip().lower()
    if not bare or typed.startswith("id:"):
        return {}
    texts = [text.strip().lower() for text in encoding.tokens]
    same = [i for i, text in enumerate(texts) if text == bare]
    begin = [i for i, text in enumerate(texts) if text != bare and text.startswith(bare)]
    ranked = sorted(same, key=lambda i: -encoding.alpha[i]) + sorted(begin, key=lambda i: -encoding.alpha[i])
    return {int(encoding.token_ids[i]): encoding.tokens[i] for i in ranked[:SUGGESTED]}


def _take(token_id: int, encoding: Encoding) -> None:
    known = alphas(encoding, (Edit(token_id, 1.0),))
    if token_id not in known:
        return
    allowed = options(known[token_id][1])
    try:
        state.add_edit(token_id, state.nearest(FIRST_RATIO, allowed))
        state.choose(**{"add-token": "", "edit_refused": ""})
    except HeadscopeError as error:
        state.choose(edit_refused=str(error))


def controls() -> tuple[str, bool]:
    """Along which direction, and whether the step is calibrated."""
    with st.expander("Name, direction and calibration"):
        st.text_input(
            "Name of this list",
            key="name",
            max_chars=state.NAME_LENGTH,
            placeholder="for example: more water",
            persist_state="session",
            help="Stands beside the texts that are written with it, and in the address.",
        )
        direction = st.selectbox(
            "Direction",
            state.DIRECTION_CHOICES,
            key="direction",
            persist_state="session",
            help="Along which the token's row moves. minimum-variance (ours) shifts the logit most evenly over "
            "contexts; saliency, least-norm, uniform and top-k are readings of the paper's Ω; random is a baseline.",
        )
        calibrate = st.toggle(
            "Calibrate the step",
            key="calibrate",
            persist_state="session",
            help="Solve for the step at which the mean ratio on the fitting text is exact. Off: log r as it is.",
        )
        st.latex(
            r"E_w \leftarrow E_w + \Delta E,\qquad \Delta E = \log(r)\,\frac{\Sigma^{-1}\mu}{\mu^{\top}\Sigma^{-1}\mu}"
            r"\quad\text{or the paper's}\quad -\log(r)\,\Omega A^{-1}"
        )
    return direction, calibrate


def explain_misses(steering: Steering, encoding: Encoding) -> None:
    """Where the held-out ratio is off: how differently the token occurs in the two parts of the text."""
    known = alphas(encoding, state.edits())
    for t in steering.tokens:
        off = math.exp(abs(math.log(max(t.realised_held_out, 1e-12) / t.target)))
        if off < 1.25 or t.id not in known:
            continue
        held_out = float(encoding.alpha_held_out[np.searchsorted(encoding.token_ids, t.id)])
        widgets.warning(
            f"{widgets.chip(t.token, t.id)} is off by a factor of <b>{words.number(off)}</b> on new text. It is "
            f"{words.one_in(t.alpha)} in the text that fits and {words.one_in(held_out)} in the text that judges: a "
            "mean that rests on few contexts does not carry over. More positions help, or no calibration."
        )
