"""What goes wrong in the libraries below, in our words: their errors for the middle of a sentence, and panics of Rust."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from core.errors import AnalysisError, InputError
from core.words import quoted, short


def check_environment() -> None:
    """Whether huggingface_hub can read what the environment says to it; where it cannot, not even its import succeeds.

    Raises:
        InputError: one of its variables is not what it has to be.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        urlsplit(endpoint).port  # noqa: B018 (it is looked at when it is asked for)
    except ValueError as error:
        raise InputError(
            f"HF_ENDPOINT is {quoted(endpoint)}, which is no address: give one as https://HOST or http://HOST:PORT, or "
            "leave it away."
        ) from error
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        if not re.fullmatch(r"\s*[0-9]{0,9}\s*", value := os.environ.get(name, "")):
            raise InputError(f"{name} is {quoted(value)}, but it must be a whole number of seconds: correct it.")


def asks_for_code(error: Exception) -> bool:
    """Whether transformers refused a model because it wants Python code of its own to be run."""
    return "trust_remote_code" in str(error)


def reason(error: Exception) -> str:
    """What a library says is wrong with a model or a file, for the middle of a sentence."""
    if asks_for_code(error):
        return "it asks for Python code of its own, which is never run here"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if re.search("validation error", lines[0], re.IGNORECASE):  # then the next line says which
        text = re.sub(r"^\w+Error: ", "", lines[min(1, len(lines) - 1)])
    else:
        text = f"{lines[0]} is not known" if isinstance(error, KeyError) and " " not in lines[0] else lines[0]
    text = re.sub(r"(?<![\w.])(/[\w.@~+-]+){2,}", "its folder", text)  # paths of this machine are no one's business
    return short(text.rstrip(".: "), 200)  # without control characters: it may quote a file


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
