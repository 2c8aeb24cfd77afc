"""The two streams: results on stdout arrive or are missed; progress and remarks on stderr may go unheard.

What people read is shown without control characters, which a terminal would obey, and in the characters that the
output knows.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click

from core import disk
from core.errors import AnalysisError
from core.words import harmless

PLAIN = {"−": "-", "–": "-", "×": "x", "…": "...", "’": "'", "‖": "|"}
"""Signs that have a plain form, for an output that does not know them."""


told_to_stop: list[int] = []
"""The signals that asked for an end. Their exception alone is not enough: click and Ray make one of their own of it, and
code that is being loaded, or that lets an object go, swallows it."""


def prepare() -> None:
    """Make sure that both streams are there and take any character; run once, before anything is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would be taken for the stream
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error("plainly", _plainly)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="plainly")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


def say(text: str) -> None:
    """Print a result.

    Raises:
        AnalysisError: what takes the output cannot.
    """
    if sys.stdout is None:
        raise AnalysisError("The result cannot be written to the output (it is closed): give --json a file.")
    with arriving():
        click.echo(harmless(text))


def say_json(document: str) -> None:
    """Print JSON, in whatever encoding the output has; its non-ASCII characters stand in strings only."""
    utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    say(re.sub("[\x7f-\x9f]" if utf8 else "[^\0-\x7e]", lambda found: json.dumps(found[0])[1:-1], document))


@contextlib.contextmanager
def arriving() -> Iterator[None]:
    """What is printed within arrives, or one sentence says why not.

    Raises:
        AnalysisError: what takes the output cannot.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _give_up(sys.stdout)
        raise AnalysisError(
            f"The result cannot be written to the output ({disk.why(error)}): make room there, or give --json a file "
            "elsewhere."
        ) from error


def remark(text: str = "", *, instead: bool = False, end: bool = True) -> None:
    """Say something on stderr, `instead` of the progress in the last line. Nobody has to hear it."""
    try:
        click.echo(("\r\x1b[K" if instead else "") + harmless(text), nl=end, err=True)
    except OSError:
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Send the rest nowhere: what is still held of it would fail once more at the end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Remarks(logging.Handler):
    """Warnings of the log, as remarks."""

    def emit(self, record: logging.LogRecord) -> None:
        remark(self.format(record))
