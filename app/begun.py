"""Exports that were begun, noted on disk until their end: one that goes with its server is told by the next one.

A note is a file with the export's folder in the cache, and whoever writes the export holds the lock beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from core import disk
from core.export.place import sweep
from core.model.weights import write_atomically
from core.store import Store


def _notes() -> Path:
    return Store().folder / "exports"


@contextlib.contextmanager
def noted(folder: str) -> Iterator[None]:
    """While an export to `folder` is under way; without a note where none can be written."""
    target = str(Path(os.path.expanduser(folder)).absolute())  # noqa: PTH111 (lets an unknown user be)
    forget(target)
    note = _notes() / f"{uuid.uuid4().hex}.json"
    lock = FileLock(note.with_suffix(".lock"))
    with contextlib.suppress(OSError):  # a full disk
        note.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        write_atomically(note, json.dumps({"folder": target}).encode())
    try:
        yield
    finally:
        _remove(note)
        lock.release()


def broken_off() -> list[str]:
    """The folders of exports that went with their server, of which nothing is left then; where the folder is there its export
    had come to its end."""
    found = set()
    for note, folder in _left().items():
        with contextlib.suppress(OSError):
            if folder.exists():
                _remove(note)
            else:
                sweep(folder.parent)
                found.add(str(folder))
    return sorted(found)


def forget(folder: str) -> None:
    """Tell of an export no more."""
    for note in [note for note, left in _left().items() if str(left) == folder]:
        _remove(note)


def _left() -> dict[Path, Path]:
    """The notes that nobody writes an export under any more, with the folders."""
    found = {}
    for note in _notes().glob("*.json"):
        ended = FileLock(note.with_suffix(".lock"), timeout=0)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, Timeout), ended:
            found[note] = Path(str(json.loads(disk.content(note))["folder"]))
    return found


def _remove(note: Path) -> None:
    for path in (note, note.with_suffix(".lock")):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
