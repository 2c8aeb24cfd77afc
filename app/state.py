"""What a visitor has chosen: the one file that knows session state and the URL.

A choice is read from the URL when a session begins and written back after every run, so an address can be shared,
and a reload comes back to the same place.
"""

from __future__ import annotations

import contextlib
import math
import re
import urllib.parse
import uuid
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import streamlit as st

from app.rules import SHARED_POSITIONS, rules
from core.errors import InputError
from core.figures import Look
from core.settings import Settings
from core.steering import DIRECTIONS, MOST_TOKENS, Edit
from core.words import quoted, short

if TYPE_CHECKING:
    from app.lesson.questions import Verdict

POSITIONS = (1024, 4096, 8192, 16384, 65536)
FIRST_MODEL = "demo"
DEMO_POSITIONS = 8192
"""Positions of the results that come with the model `demo`."""
DEFAULT_PROMPT = "We walked along the"
FIRST_REMOVED = 0.3
FIRST_SERIES = "demo"
PLAY_SECONDS = 1.0
DIRECTION_CHOICES = tuple(
    each
    for name in DIRECTIONS
    for each in ([name.replace("K", size) for size in ("10", "50")] if name.endswith(":K") else [name])
)
MOST_TOP_K = 100_000
MOST_STEP = 10**12
LARGE_TYPE = 22
"""Pixels in figures for a class room, where nothing may be smaller than 20."""
HISTORY = 50
MOST_ROWS = 8
"""Rows that are compared at a time."""
NAME_LENGTH = 60
MOST_PATH = 500
NAMED = 5
"""Unknown tokens that a sentence names; of more only the number."""
LESSON_STEPS = 8


@dataclass(frozen=True)
class Choice:
    """What is analysed; together with the store, everything that results depend on."""

    model: str
    corpus: str = "sampler"
    positions: int = 16384
    seed: int = 0

    @property
    def settings(self) -> Settings:
        return Settings(positions=self.positions, seed=self.seed)


def positions() -> list[int]:
    """The numbers of positions that a visitor may choose from."""
    return [number for number in POSITIONS if not rules().shared or number <= SHARED_POSITIONS]


Compared = tuple[str, str, int]
"""A row of the page Compare: model, text, positions. The seed is the session's."""


def _plainly(text: str) -> str:
    """The text of a number as it is written here; Python's own readers take blanks, underlines and other digits too."""
    if not re.fullmatch(r"[0-9.e+-]{1,30}", text):
        raise ValueError(text)
    return text


def _told(allowed: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    """A reader whose error says what is allowed; none of Python's own does."""

    def decorate(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def told(text: str) -> Any:
            try:
                return read(text)
            except (ValueError, InputError):
                raise ValueError(allowed) from None

        return told

    return decorate


def _whole(least: int, most: int) -> Callable[[str], int]:
    @_told(f"a whole number from {least:,} to {most:,}")
    def read(text: str) -> int:
        if not least <= (found := int(_plainly(text))) <= most:
            raise ValueError(text)
        return found

    return read


def _listed(allowed: Sequence[object]) -> str:
    return f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    @_told(_listed(allowed))
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return read


def _number(least: float, most: float) -> Callable[[str], float]:
    @_told(f"a number from {least:g} to {most:g}")
    def read(text: str) -> float:
        if not least <= (found := float(_plainly(text))) <= most:
            raise ValueError(text)
        return found

    return read


def _exactly(value: float) -> str:
    """A number so that it reads back the same."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


@_told("0 or 1")
def _flag(text: str) -> bool:
    return bool(_whole(0, 1)(text))


def _write_flag(value: object) -> str:
    return str(int(bool(value)))


NONE = "none"
"""How the address says that the list was emptied, and not just never filled."""


@_told("token:ratio, more of them after commas, with a ratio from 1/1000000 to 1000000, as 300:20")
def _read_edits(text: str) -> tuple[Edit, ...]:
    if text == NONE:
        return ()
    pairs = [part.split(":") for part in text.split(",")]
    numbers = [(int(_plainly(number)), float(_plainly(ratio))) for number, ratio in pairs]
    edits = {number: Edit(number, ratio) for number, ratio in numbers}
    if min(edits) < 0 or max(edits) >= 2**31:
        raise ValueError(text)
    return tuple(edits.values())


def _write_edits(edits: tuple[Edit, ...]) -> str:
    return ",".join(f"{edit.token_id}:{_exactly(edit.ratio)}" for edit in edits) or NONE


@_told(f"model|text|positions, more of them after commas, with {_listed(POSITIONS)} positions")
def _read_rows(text: str) -> tuple[Compared, ...]:
    if text == NONE:
        return ()
    rows = []
    for part in text.split(",")[:MOST_ROWS]:
        model, corpus, positions = (urllib.parse.unquote(each) for each in part.split("|"))
        if int(_plainly(positions)) not in POSITIONS or not model or not corpus:
            raise ValueError(part)
        rows.append((model, corpus, int(positions)))
    return tuple(dict.fromkeys(rows))


def _write_rows(rows: tuple[Compared, ...]) -> str:
    return ",".join("|".join(urllib.parse.quote(str(each), safe="/:@") for each in row) for row in rows) or NONE


@_told(f"numbers of steps from 1 to {LESSON_STEPS} with commas between them")
def _read_steps(text: str) -> frozenset[int]:
    step = _whole(1, LESSON_STEPS)
    return frozenset(step(each) for each in text.split(","))


def _write_steps(steps: frozenset[int]) -> str:
    return ",".join(map(str, sorted(steps)))


# key: (default, how to read it from the URL, how to write it there)
_FIELDS: dict[str, tuple[object, Callable[[str], object], Callable[..., str]]] = {
    "model": (None, str, str),
    "corpus": ("sampler", str, str),
    "positions": (16384, lambda text: int(_one_of(tuple(map(str, POSITIONS)))(text)), str),
    "seed": (0, _whole(0, 2**32 - 1), str),
    "edit": (None, lambda text: _read_edits(text)[:MOST_TOKENS], _write_edits),
    "name": ("", lambda text: text[:NAME_LENGTH], str),
    "direction": ("minimum-variance", _one_of(DIRECTION_CHOICES), str),
    "calibrate": (True, _flag, _write_flag),
    "prompt": (DEFAULT_PROMPT, lambda text: text[: rules().most_prompt].replace("\0", ""), str),
    "chat": (False, _flag, _write_flag),
    "samples": (6, lambda text: _whole(1, rules().most_samples)(text), str),
    "new-tokens": (40, lambda text: _whole(1, rules().most_new_tokens)(text), str),
    "noise-seed": (0, _whole(0, 2**32 - 1), str),
    "temperature": (1.0, _number(0.01, 10), _exactly),
    "top-k": (0, _whole(0, MOST_TOP_K), str),
    "top-p": (1.0, _number(0.01, 1), _exactly),
    "removed": (FIRST_REMOVED, _number(0, 0.99), _exactly),
    "rows": (None, _read_rows, _write_rows),
    "data": ("", lambda text: text[:MOST_PATH], str),
    "series": (FIRST_SERIES, lambda text: text[:MOST_PATH], str),
    "step": (None, _whole(0, MOST_STEP), str),
    "lesson": (1, _whole(1, LESSON_STEPS), str),
    "present": (False, _flag, _write_flag),
    "answered": (None, _read_steps, _write_steps),
}


MOST_IN_ADDRESS = 2000
"""Characters of a field there; browsers and servers cut longer ones."""
OF_THE_CHOICE = ("model", "corpus", "positions", "seed")
"""Fields that a class does not choose."""


def start() -> None:
    """At the beginning of every run: a new session takes over what its URL says; see `misread` for what cannot be."""
    if "session" in st.session_state:
        for key in OF_THE_CHOICE:
            if st.session_state.get(key) is None and f"last-{key}" in st.session_state:
                st.session_state[key] = st.session_state[f"last-{key}"]
    else:
        _begin()
        # last: any of the lines before may be where a run is cut short
        st.session_state["session"] = f"{uuid.uuid4().hex}@{place()}"
    _put_right()
    _remember()


def _put_right() -> None:
    """A message made by hand can fill a field with what is no text: then what it began with stands there."""
    for key, (default, _, _) in _FIELDS.items():
        if isinstance(default, str) and not isinstance(st.session_state.get(key, default), str | None):
            st.session_state[key] = default
    _trim("model")
    _trim("corpus")


def _trim(key: str) -> None:
    """A name has no blanks around it; where there is nothing else, what was named before stays."""
    named = st.session_state.get(key)
    if isinstance(named, str) and named != (bare := named.strip()):
        st.session_state[key] = bare or st.session_state.get(f"last-{key}")


def place() -> str:
    """The network address of the visitor, for the fairness of lines; "" where there is none."""
    with contextlib.suppress(AttributeError):
        return str(st.context.ip_address or "")
    return ""


def _remember() -> None:
    """Keep what is chosen beside the fields, which lose it when a run is cut short or a browser has not shown it yet."""
    for key in OF_THE_CHOICE:
        if st.session_state.get(key) is not None:
            st.session_state[f"last-{key}"] = st.session_state[key]


def _begin() -> None:
    st.session_state["history"] = []
    st.session_state["revision"] = 0
    st.session_state["asked"] = {key: st.query_params.get_all(key) for key in st.query_params}
    for key, (default, read, _) in _FIELDS.items():
        st.session_state[key] = default
        if key in st.query_params:
            try:
                st.session_state[key] = read(st.query_params[key])
                if told := _shortened(key, st.query_params.get_all(key)):
                    st.session_state.setdefault("shortened", {})[key] = told
            except ValueError as error:
                told = str(error).replace(_listed(POSITIONS), _listed(positions()))
                st.session_state.setdefault("unread", {})[key] = short(st.query_params[key], 40), told
    allowed = rules()
    if allowed.fixed is not None:  # whatever the address says
        model, corpus = allowed.fixed
        st.session_state.update(model=model, corpus=corpus, positions=_positions_of(model), seed=0)
        for key in OF_THE_CHOICE:
            st.session_state.get("unread", {}).pop(key, None)
        if any(key in st.query_params for key in OF_THE_CHOICE):
            st.session_state["not_admitted"] = "A class works with what was chosen for it, whatever the address says."
        return
    if allowed.shared:
        try:
            allowed.admit(
                st.session_state["model"] or FIRST_MODEL, st.session_state["corpus"], st.session_state["positions"]
            )
        except InputError as error:
            st.session_state["not_admitted"] = str(error)
            st.session_state.update({key: _FIELDS[key][0] for key in OF_THE_CHOICE})
    if st.session_state["model"] is None:
        st.session_state["model"] = allowed.named_model or FIRST_MODEL
        if allowed.named_corpus and "corpus" not in st.query_params:
            st.session_state["corpus"] = allowed.named_corpus
    taken = "positions" in st.query_params and "positions" not in st.session_state.get("unread", {})
    if not taken or "not_admitted" in st.session_state:
        st.session_state["positions"] = _positions_of(st.session_state["model"])


def _shortened(key: str, given: list[str]) -> str | None:
    """What is to be said of what the address asks for and is taken over in part."""
    *_, text = given
    if len(given) > 1:
        return f"The address gives {key} {len(given):,} times: the last one, {quoted(short(text, 40))}, was taken."
    if key == "prompt" and len(text) > (most := rules().most_prompt):
        return f"The prompt of the address has {len(text):,} characters: the first {most:,}, the most, were taken."
    if key == "prompt" and "\0" in text:
        return "The prompt of the address holds NUL characters, which no text has: they were left away."
    if key == "edit" and (twice := _named_twice(text)) is not None:
        return f"The address names token {twice} with more than one ratio: the last one was taken."
    if key == "name" and len(text) > NAME_LENGTH:
        return f"The name in the address has {len(text):,} characters: the first {NAME_LENGTH}, the most, were taken."
    if key == "edit" and (named := len(_read_edits(text))) > MOST_TOKENS:
        return f"The address names {named:,} tokens to steer: the first {MOST_TOKENS}, the most at once, were taken."
    if key == "rows" and (named := text.count(",") + 1) > MOST_ROWS:
        return f"The address names {named:,} rows to compare: the first {MOST_ROWS}, the most at once, were taken."
    return None


def _named_twice(edits: str) -> int | None:
    """The first token that a list of edits names again, with another ratio."""
    seen: dict[int, float] = {}
    for number, ratio in (part.split(":") for part in edits.split(",") if edits != NONE):
        if seen.setdefault(int(number), float(ratio)) != float(ratio):
            return int(number)
    return None


def _positions_of(model: object) -> int:
    return DEMO_POSITIONS if model == "demo" else 16384


def model_chosen() -> None:
    """Callback of the field: another model has other tokens, and the demo's results are there for its own positions."""
    _trim("model")
    if st.session_state["model"] in (None, st.session_state.get("last-model")):
        return
    st.session_state["last-model"] = st.session_state["model"]
    st.session_state["positions"] = _positions_of(st.session_state["model"])
    forget_edits()


def publish() -> None:
    """Write what differs from the defaults into the URL; positions always, since their default depends on the model."""
    _remember()
    fixed = rules().fixed is not None
    defaults = {key: field[0] for key, field in _FIELDS.items()} | {"positions": None}
    if rules().named_corpus:
        defaults["corpus"] = None
    for key, (_, _, write) in _FIELDS.items():
        value = st.session_state.get(key, defaults[key])
        told = value is not None and value != defaults[key] and not (fixed and key in OF_THE_CHOICE)
        text = write(value) if told else ""
        if (text or (told and key == "prompt")) and len(text) <= MOST_IN_ADDRESS:  # no prompt is one, too
            if st.query_params.get(key) != text:
                st.query_params[key] = text
        elif key in st.query_params:
            del st.query_params[key]


def left_out(key: str) -> str:
    """What is to be said of a field that is too long for the address; "" where it is not."""
    write = _FIELDS[key][2]
    value = st.session_state.get(key)
    if value is None or (size := len(write(value))) <= MOST_IN_ADDRESS:
        return ""
    name = {"prompt": "The prompt", "rows": "The list of rows"}.get(key, key)
    return (
        f"{name} is too long for the address ({size:,} characters, at most {MOST_IN_ADDRESS:,}): after a reload, and for "
        "others, this page begins without it."
    )


def address() -> str:
    """Where this view can be opened again, by others too where they reach this server."""
    publish()
    told = {key: value for key, value in st.query_params.to_dict().items() if key != "answered"}  # is one's own
    query = urllib.parse.urlencode(told, safe=":,/", quote_via=urllib.parse.quote)
    return f"{st.context.url or ''}?{query}"


def session() -> str:
    return st.session_state["session"]


def choice() -> Choice:
    """What is to be analysed."""
    if (fixed := class_choice()) is not None:
        return fixed
    model, corpus, positions, seed = (_last(key) for key in OF_THE_CHOICE)
    name = str(model or "").strip() or FIRST_MODEL
    return Choice(name, str(corpus or "").strip() or "sampler", positions or _positions_of(name), int(seed or 0))


def _last(key: str) -> Any:
    """What a field says or, while it says nothing, what it said last."""
    now = st.session_state.get(key)
    return st.session_state.get(f"last-{key}") if now is None else now


def first_choice() -> Choice:
    """What a visitor is shown who has chosen nothing."""
    if (fixed := class_choice()) is not None:
        return fixed
    model = rules().named_model or FIRST_MODEL
    return Choice(model, rules().named_corpus or str(_FIELDS["corpus"][0]), _positions_of(model), 0)


def class_choice() -> Choice | None:
    """What a class works with, or None where everybody chooses."""
    fixed = rules().fixed
    return None if fixed is None else Choice(*fixed, _positions_of(fixed[0]))


def choose(**values: object) -> None:
    """Set choices from a callback, for example `choose(model="smollm2")`."""
    for key, value in values.items():
        st.session_state[key] = value
    if "model" in values:
        model_chosen()


def chosen(key: str) -> object:
    return st.session_state.get(key, _FIELDS[key][0] if key in _FIELDS else None)


def sent(component: str, name: str) -> Any:
    """What a component of the page has just sent, inside its callback; None if it is gone from the page meanwhile."""
    return (st.session_state.get(component) or {}).get(name)


def look() -> Look:
    """Light or dark as the browser shows it, large where the presenter asked for it."""
    with contextlib.suppress(AttributeError):
        return Look(dark=st.context.theme.type == "dark", type_size=LARGE_TYPE if _large() else 14)
    return Look()


def reached_at(address: str) -> str:
    """The address at which this visitor's browser found the server, unless that is this computer itself: then `address`."""
    with contextlib.suppress(AttributeError, ValueError):
        seen = urlsplit(st.context.url or "")
        if seen.hostname and seen.hostname not in ("localhost", "127.0.0.1", "::1"):
            return f"{seen.scheme}://{seen.netloc}"
    return address


def _large() -> bool:
    return bool(st.session_state.get("large")) or presenting()


# --- the lesson: its step, its answers, the presenter's view -----------------------------------------------------------


def lesson_step(steps: int) -> int:
    """The step of the lesson that is shown, from 1."""
    number = min(int(st.session_state.get("lesson") or 1), steps)
    st.session_state["lesson"] = number
    return number


def turn(by: int) -> None:
    """Go on or back in the lesson."""
    st.session_state["lesson"] = max(1, int(st.session_state.get("lesson") or 1) + by)


def presenting() -> bool:
    return bool(st.session_state.get("present"))


def start_presenting() -> None:
    st.session_state["present"] = True


def stop_presenting() -> None:
    st.session_state["present"] = False


def keep_verdict(step: int, question: str, verdict: Verdict) -> None:
    """What was said to the last answer of a step; a question that changed meanwhile has none."""
    st.session_state.setdefault("verdicts", {})[step] = (question, verdict)
    if verdict.right:
        st.session_state["answered"] = answered() | {step}


def verdict(step: int, question: str) -> Verdict | None:
    asked, found = st.session_state.get("verdicts", {}).get(step, ("", None))
    return found if asked == question else None


def answered() -> frozenset[int]:
    """Steps whose question was answered right; the address keeps them, so that a reload does not lose them."""
    return frozenset(st.session_state.get("answered") or ())


# --- the list of edits, with undo ---------------------------------------------------------------------------------


def edits() -> tuple[Edit, ...]:
    return st.session_state.get("edit") or ()


def edits_revision() -> int:
    """Changes whenever the list changes other than by a slider: sliders are drawn anew then."""
    return st.session_state.get("revision", 0)


def set_edits(new: tuple[Edit, ...], *, by_slider: bool = False) -> None:
    if new == edits():
        return
    st.session_state["history"] = [*st.session_state.get("history", []), edits()][-HISTORY:]
    st.session_state["edit"] = new
    st.session_state["edit_refused"] = ""
    if not by_slider:
        st.session_state["revision"] += 1


def add_edit(token_id: int, ratio: float) -> None:
    """Append a token; one that is there already stays as it is."""
    if token_id in [edit.token_id for edit in edits()]:
        return
    if len(edits()) >= MOST_TOKENS:
        raise InputError(f"{MOST_TOKENS} tokens are steered already, the most that can be at once: remove one first.")
    set_edits((*edits(), Edit(token_id, ratio)))


def change_ratio(token_id: int, slider: str) -> None:
    """Callback of a built-in slider: take over its value."""
    set_ratio(token_id, float(st.session_state[slider]))


def set_ratio(token_id: int, ratio: float) -> None:
    new = tuple(Edit(e.token_id, ratio) if e.token_id == token_id else e for e in edits())
    set_edits(new, by_slider=True)


def remove_edit(token_id: int) -> None:
    set_edits(tuple(edit for edit in edits() if edit.token_id != token_id))


def reset_ratios() -> None:
    set_edits(tuple(Edit(edit.token_id, 1.0) for edit in edits()))


def undo() -> None:
    if st.session_state.get("history"):
        st.session_state["edit"] = st.session_state["history"].pop()
        st.session_state["revision"] += 1


def can_undo() -> bool:
    return bool(st.session_state.get("history"))


def drop_unknown(known: Container[int]) -> None:
    """Tokens that the model does not have, as a URL may name them, leave the list."""
    kept = tuple(edit for edit in edits() if edit.token_id in known)
    if len(kept) < len(edits()):
        unknown = [edit.token_id for edit in edits() if edit.token_id not in known]
        one = len(unknown) == 1
        st.session_state["edit"] = kept or None
        st.session_state["edit_refused"] = (
            f"Token{'' if one else 's'} {_some(unknown)} cannot be steered, for this model does not have "
            f"{'it, or never gives it' if one else 'them, or never gives them'} here: {'it was' if one else 'they were'} left "
            "away."
        )


def _some(numbers: list[int]) -> str:
    """The first of some numbers, and how many more there are."""
    shown, more = numbers[:NAMED], len(numbers) - NAMED
    return f"{', '.join(map(str, shown))}{f' and {more} more' if more > 0 else ''}"


def offer(first: Callable[[], Edit | None]) -> None:
    """A first visitor finds one token steered, so that pages show something; a list that was emptied stays empty."""
    if st.session_state.get("edit") is None:
        found = first()
        st.session_state["edit"] = () if found is None else (found,)
        st.session_state["revision"] += 1


def forget_edits() -> None:
    """Token ids mean nothing to another model."""
    st.session_state["edit"] = None
    st.session_state["edit_refused"] = ""
    st.session_state["history"] = []
    st.session_state["revision"] += 1


def nearest(value: float, options: tuple[float, ...]) -> float:
    """The option closest in log scale, for ratios that come from a URL."""
    return min(options, key=lambda option: abs(math.log(option / value)))


# --- the rows that are compared ---------------------------------------------------------------------------------------


def compared(first: tuple[Compared, ...]) -> tuple[Choice, ...]:
    """The rows of the page Compare; `first` where nobody has chosen any."""
    rows = st.session_state.get("rows")
    seed = choice().seed
    return tuple(Choice(model, corpus, n, seed) for model, corpus, n in (first if rows is None else rows))


def compare(choices: tuple[Choice, ...]) -> None:
    """Callback: these are the rows from now on."""
    rows = dict.fromkeys((each.model, each.corpus, each.positions) for each in choices)
    st.session_state["rows"] = tuple(rows)[:MOST_ROWS]


# --- the step of a training run that is looked at ---------------------------------------------------------------------


def playing() -> bool:
    return bool(st.session_state.get("playing"))


def toggle_play() -> None:
    st.session_state["playing"] = not playing()


def step_moved() -> None:
    """Callback of the step slider."""
    st.session_state["step"] = st.session_state["step-slider"]


def step_of_run(steps: list[int]) -> int:
    """The step that is shown, the nearest there is: one on while playing, and at the last one playing ends."""
    wanted = st.session_state.get("step")
    now = steps[-1] if wanted is None else min(steps, key=lambda step: abs(step - wanted))
    if playing():
        now = steps[(steps.index(now) + 1) % len(steps)]
        st.session_state["playing"] = now != steps[-1]
        st.session_state["step"] = now
    st.session_state["step-slider"] = now
    return now


# --- the fraction of the dimensions that goes -------------------------------------------------------------------------


def fraction_moved() -> None:
    """Callback of the slider of the page Pruning."""
    st.session_state.get("unread", {}).pop("removed", None)
    st.session_state["removed"] = st.session_state["removed-slider"]


def misread(page: str) -> list[str]:
    """What the address asks for and the page does not show, a sentence each; until another page is opened."""
    if st.session_state.setdefault("opened-on", page) != page:
        st.session_state["asked"] = {}
        return []
    fields = st.session_state.get("unread", {})
    found = [
        f"The address asks for {key} = {quoted(value)}, but it must be {allowed}: shown is what stands without it."
        for key, (value, allowed) in fields.items()
        if key != "removed"  # its page says which fractions there are
    ]
    found += st.session_state.get("shortened", {}).values()
    if refused := st.session_state.get("not_admitted"):
        found.append(f"{refused} Shown is {choice().model} on {choice().corpus}.")
    return found


def unread(key: str) -> str | None:
    """What the address said for a field, where it could not be taken over; None where it could."""
    value, _ = st.session_state.get("unread", {}).get(key, (None, ""))
    return value


def asked(key: str) -> list[str]:
    """What the address said, when the session began, for a field that reads it by itself; until it is picked by hand or
    another page is opened."""
    return st.session_state.get("asked", {}).get(key, [])


def forget_asked(key: str) -> None:
    st.session_state["asked"].pop(key, None)


def keep_fraction(fractions: tuple[float, ...]) -> float:
    """Put the slider where the address says, at the nearest fraction that is measured; returns it."""
    wanted = float(st.session_state.get("removed", FIRST_REMOVED))
    found = min(fractions, key=lambda fraction: abs(fraction - wanted))
    if found != wanted:
        st.session_state.setdefault("unread", {})["removed"] = f"{100 * wanted:g} %", ""
    st.session_state["removed"] = st.session_state["removed-slider"] = found
    return found
