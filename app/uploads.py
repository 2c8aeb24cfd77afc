"""Texts that visitors upload or paste: kept as files under the cache, so that a reload still finds them; bounded in space."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from core import disk
from core.errors import InputError
from core.model.weights import write_atomically
from core.store import Store
from core.words import without_folders

KINDS = ("txt", "md", "jsonl", "csv", "parquet")
MOST_MEGABYTES = 50
MOST_CHARACTERS = 1_000_000
"""Of a text that is pasted; a file may hold more."""
KEPT = 200
KEPT_MEGABYTES = 500
"""Of all uploads together; those leave first that nobody has used for longest."""
KEY_BYTES = 32
USED_AGAIN = 60.0
"""Seconds after which a use is written down again."""
SHARED_KINDS = ("txt", "md", "jsonl", "csv")
"""What strangers may upload: a few kilobytes of Parquet can unpack to gigabytes."""
NAMED = re.compile(r"upload:([0-9a-f]{16})/([A-Za-z0-9_-][A-Za-z0-9._-]{0,79})")


def keep(name: str, content: bytes) -> str:
    """Write an upload under a keyed hash, whole or not at all; returns the corpus name (a path) under which `core` reads it.

    Without the key, who has the same text could find out by its address whether somebody else has uploaded it.

    Raises:
        InputError: there is no room for it, or the cache cannot be written.
    """
    folder = Store().folder / "uploads"
    place = None
    try:
        place = folder / hashlib.blake2b(content, digest_size=8, key=_key()).hexdigest()
        path = place / _safe(Path(name).name)
        if not path.is_file() or path.stat().st_size != len(content):
            write_atomically(path, content)
        os.utime(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            if place is not None:
                place.rmdir()  # only if nothing is in it
        raise not_kept("text", error) from error
    _make_room(folder)
    return str(path)


def _key() -> bytes:
    """This cache's own secret, made when the first upload is kept. Another one later only gives other addresses."""
    path = Store().folder / "uploads.key"
    with contextlib.suppress(OSError):
        if len(key := disk.content(path)) == KEY_BYTES:
            return key
    key = secrets.token_bytes(KEY_BYTES)
    write_atomically(path, key)
    return key


def _safe(name: str) -> str:
    """A file's name as `NAMED` allows it; its ending stays whatever stands before it, for it tells how the text is read."""
    stem, dot, kind = name.rpartition(".")
    stem, kind = (re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in ((stem, kind) if dot else (kind, "")))
    return f"{stem.strip('.-')[-70:].lstrip('.-') or 'text'}.{kind[:9] or 'txt'}"


def not_kept(what: str, error: OSError) -> InputError:
    """What is said when the disk is full or read-only."""
    return InputError(
        f"The {what} cannot be kept in Headscope's cache ({disk.why(error)}): {disk.room(error, 'make room there, or ')}start "
        "with --cache FOLDER."
    )


def _make_room(folder: Path) -> None:
    """Remove what has been used longest ago, until no more is kept than may be; the newest always stays."""
    used: list[tuple[float, int, Path]] = []
    for place in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removes too
            used.append((place.stat().st_mtime, sum(file.stat().st_size for file in place.iterdir()), place))
    space = 0
    for number, (_, size, place) in enumerate(sorted(used, reverse=True)):
        space += size
        if number and (number >= KEPT or space > KEPT_MEGABYTES * 2**20):
            shutil.rmtree(place, ignore_errors=True)


def named(corpus: str) -> str:
    """A corpus as the command line names it; an upload by the name that it came with."""
    return Path(corpus).name if NAMED.fullmatch(corpus) else corpus


def title(corpus: str) -> str:
    """A model or corpus as a menu shows it: a file or folder by its name, all else as it is."""
    return without_folders(named(corpus))


def is_kept(corpus: str) -> bool:
    """Whether a path is that of an upload."""
    return Path(corpus).is_relative_to(Store().folder / "uploads")


def public_name(path: str) -> str:
    """An upload as its address names it on a shared server: by its keyed hash, without the place on the disk."""
    kept = Path(path)
    return f"upload:{kept.parent.name}/{kept.name}"


def find(corpus: str) -> Path | None:
    """The file that `public_name` named, None if there is none (any more). Counts as a use of it."""
    named = NAMED.fullmatch(corpus)
    if named is None:
        return None
    path = Store().folder / "uploads" / named[1] / named[2]
    if not path.is_file():
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written to
        if time.time() - path.parent.stat().st_mtime > USED_AGAIN:
            os.utime(path.parent)
    return path
