"""The errors that a user may see, each one clear sentence: what was wrong, what is allowed, what to do.

The command line turns them into an exit code and the dashboard into a box; neither shows a traceback.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
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
        text = f"{lines[0]} is not known" if isinstance(error, KeyError) and " " not in lines[0] else lines[0]
    text = re.sub(r"(?<![\w.])(/[\w.@~+-]+){2,}", "its folder", text)  # paths of this machine are no one's business
    text = "".join(letter if letter.isprintable() else "?" for letter in text)  # may be quoted from a file
    return text.rstrip(".:") if len(text) <= 200 else text[:197] + "..."


@contextlib.contextmanager
def no_panics(name: str) -> Iterator[None]:
    """Inside, a panic of the Rust code of a tokenizer, which is no `Exception`, is an `AnalysisError` about model `name`."""
    try:
        with _nothing_printed():
            yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise AnalysisError(
            f"The tokenizer of {name} breaks off on a text ({reason(Exception(str(error)))}): its tokenizer.json is damaged, "
            "asks for what is not there or never comes to an end, so copy it again, or choose another model."
        ) from error


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """Inside, what a command prints to stderr waits, and is dropped if a panic ends it, which Rust prints before it is told.

    A server's threads share one stderr: there it goes to the log.
    """
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(OSError):  # it is closed
                held = stack.enter_context(tempfile.TemporaryFile())
                kept = os.dup(2)
                os.dup2(held.fileno(), 2)

                def print_again(kind: type[BaseException] | None, *_: object) -> None:
                    os.dup2(kept, 2)
                    os.close(kept)
                    if kind is None or kind.__name__ != "PanicException":
                        held.seek(0)
                        with contextlib.suppress(OSError):
                            os.write(2, held.read())

                stack.push(print_again)
        yield
