"""What is said of a disk that takes nothing: why, and whether room would help."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from pathlib import Path

from core.foreign import reason
from core.words import quoted

FULL = (errno.ENOSPC, errno.EDQUOT)
"""How a system says that a disk, or what a user may have of it, is full."""


FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
"""How it says that nothing may be written there."""
LEAST_ROOM = 2**16
"""Free bytes below which a disk is called full before anything was tried: no result is smaller."""


def of_the_system(error: Exception) -> OSError:
    """The system's own error: safetensors, which reports a full disk in its own words, names its number in them."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def why(error: Exception) -> str:
    """What is wrong with a place, for the middle of a sentence; no more of it than a name, for strangers may read it."""
    found = of_the_system(error)
    place = Path(str(found.filename2 or found.filename or ""))
    if isinstance(found, FileExistsError) and place.name:
        return f"{quoted(place.name)} is {'no folder' if os.path.exists(place) else 'a link to nowhere'}"  # noqa: PTH110
    if isinstance(found, NotADirectoryError):
        return "a part of its path is no folder"
    if isinstance(found, IsADirectoryError) and place.name:
        return f"{quoted(place.name)} is a folder, where a file belongs"
    return found.strerror or reason(found)


def content(path: Path) -> bytes:
    """The bytes of a file that Headscope keeps.

    Raises:
        OSError: as reading does; also where something else has its name, for a pipe would be waited for without end.
    """
    check_ordinary(path)
    return path.read_bytes()


def check_ordinary(path: Path) -> None:
    """Raises `FileNotFoundError` where there is no file that can be read to its end."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no ordinary file", str(path))


def free(folder: Path) -> int:
    """Free bytes where a folder is, or would be made; 0 if that cannot be said."""
    try:
        return shutil.disk_usage(_there(folder)).free
    except OSError:
        return 0


def age(path: Path) -> float:
    """Seconds since a path was last written to, or until a clock that was wrong says that it will be."""
    try:
        return abs(time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def closed(folder: Path) -> str | None:
    """Why nothing can be written into a folder, or where it would be made; None where that may be, as far as one can see."""
    try:
        there = _there(folder)
        if os.access(there, os.W_OK):
            return None if shutil.disk_usage(there).free >= LEAST_ROOM else os.strerror(errno.ENOSPC)
        read_only = hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY
    except OSError as error:
        return why(error)
    return os.strerror(errno.EROFS if read_only else errno.EACCES)


def room(error: Exception, asked: str = "free some space there, or ") -> str:
    """The beginning of a remedy: to make room, where that is what is missing; "" elsewhere."""
    return asked if of_the_system(error).errno in FULL else ""
