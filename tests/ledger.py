"""What the suites on faults, bad input and strangers tried, and how it ended: the last lines of a run say so.

A case survives when it ends with the right result, and is refused when it ends with exactly one clear sentence. There
is no third way: anything else fails the test that tried it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from core.errors import HeadscopeError

T = TypeVar("T")

tally: Counter[str] = Counter()
"""Cases `survived` and `refused`."""


def check_sentence(text: str) -> str:
    """Fails unless a text is one that a user can be shown: printable, whole, and none of a library's tracebacks."""
    assert text.isprintable() and text == text.strip() and text.endswith((".", ".'", ").")), repr(text)
    assert 10 < len(text) < 700, f"{len(text)} characters: {text[:200]!r}"
    assert not re.search(r"Traceback|0x[0-9a-f]{8}|object at|unexpectedly|\bErrno\b", text), text
    return text


def survived(cases: int = 1) -> None:
    tally["survived"] += cases


def refused(sentence: str) -> None:
    """Counts a refusal that came from elsewhere (another process), once its sentence is fine."""
    check_sentence(sentence)
    tally["refused"] += 1


def attempt(work: Callable[[], T], check: Callable[[T], None] | None = None) -> T | None:
    """What `work` gives, once it is found right, or None where it was refused with a sentence; counted either way."""
    try:
        result = work()
    except HeadscopeError as error:
        refused(str(error))
        return None
    if check is not None:
        check(result)
    survived()
    return result


def refuse(work: Callable[[], object], kind: type[HeadscopeError] = HeadscopeError) -> str:
    """The sentence with which `work` is refused; it must be."""
    try:
        result = work()
    except kind as error:
        refused(str(error))
        return str(error)
    raise AssertionError(f"this was taken, and gave {str(result)[:200]}")


def summary() -> str:
    return (
        f"faults survived {tally['survived']:,}, inputs refused {tally['refused']:,}, "
        f"cases tried {tally['survived'] + tally['refused']:,}"
    )
