"""The errors that a user may see, each one clear sentence: what was wrong, what is allowed, what to do.

The command line turns them into an exit code and the dashboard into a box; neither shows a traceback.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class HeadscopeError(Exception):
    """Base of every error whose message is meant to be read by a user."""

    exit_code = 1


class InputError(HeadscopeError):
    """An argument or an input is wrong; the message holds the remedy (exit code 2)."""

    exit_code = 2


class AnalysisError(HeadscopeError):
    """The input was fine but the analysis cannot be done; the message holds the reason (exit code 1)."""


class Cancelled(HeadscopeError):
    """The user stopped the work; what was finished so far is kept and the next run goes on from there."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of its GPU was not enough; torch says so by a `RuntimeError`."""
    told = isinstance(error, RuntimeError) and re.search(
        "can't allocate memory|not enough memory|out of memory", str(error)
    )
    return isinstance(error, MemoryError) or bool(told)


def asks_for_code(error: Exception) -> bool:
    """Whether transformers refused a model because it wants Python code of its own to be run."""
    return "trust_remote_code" in str(error)


def reason(error: Exception) -> str:
    """What a library says is wrong with a model, for the middle of a sentence."""
    if asks_for_code(error):
        return "it asks for Python code of its own, which is never run here"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if re.search("validation error", lines[0], re.IGNORECASE):  # then the next line says which
        text = re.sub(r"^\w+Error: ", "", lines[min(1, len(lines) - 1)])
    else:
        text = f"{lines[0]} is not known" if isinstance(error, KeyError) else lines[0]
    text = re.sub(r"(?<![\w.])(/[\w.@~+-]+){2,}", "its folder", text)  # paths of this machine are no one's business
    return text.rstrip(".:") if len(text) <= 200 else text[:197] + "..."


@contextlib.contextmanager
def no_panics(name: str) -> Iterator[None]:
    """Inside, a panic of the Rust code of a tokenizer, which is no `Exception`, is an `AnalysisError` about model `name`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise AnalysisError(
            f"The tokenizer of {name} breaks off on a text: its tokenizer.json is damaged or asks for what is not there, so "
            "copy or download it again."
        ) from error
