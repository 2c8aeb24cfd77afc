"""Where an export goes: checked before any work, made beside its place, there in one step or not at all.

The folder is written as `.headscope-export-…/model` in the folder it is to stand in, and renamed when it has been
reloaded and compared. Whoever makes it holds a lock inside, so that what a killed run left can be told from what is
being written, and goes with the next export.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from core import disk
from core.errors import AnalysisError, HeadscopeError, InputError, check_fits
from core.settings import check_new_folder

PREFIX = ".headscope-export-"
LOCK = "lock"


def check_target(out: str | Path) -> Path:
    """The absolute path of a folder that can be made.

    Raises:
        InputError: it is there already, or cannot be made there.
    """
    if not str(out).strip():
        raise InputError("The folder to export to has no name: give one that does not exist yet, as edited-model.")
    try:
        path = Path(out).expanduser().absolute()
        path = path.resolve() if path.name == ".." else path.parent.resolve() / path.name
        if _is_there(path):
            raise _exists(path)
        existing = next(parent for parent in path.parents if _is_there(parent))
    except PermissionError as error:
        raise _not_allowed(Path(out).parent, error.strerror or "read-only") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError("The folder to export to cannot be a path here: give a shorter, plain one.") from error
    check_new_folder(path)
    if not existing.is_dir():
        raise InputError(f"{existing} is a file, so {path.name} cannot be made in it: choose another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _not_allowed(existing, "read-only")
    return path


def _is_there(path: Path) -> bool:
    """Whether anything stands there, be it a link to nowhere; unlike `exists` it tells what cannot be a path."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A folder beside `target` to make it in. It goes afterwards, and with it what killed exports left there."""
    made = [parent for parent in target.parents if not parent.exists()]
    scratch = lock = None
    try:
        with telling_of_the_disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent)
            scratch, lock = _own_scratch(target.parent)
            yield scratch
    finally:
        if scratch is not None and lock is not None:
            lock.release()
            shutil.rmtree(scratch, ignore_errors=True)
            sweep(target.parent)  # what was killed a moment before this began may only have let go of its lock since
        for parent in made:  # empty again if nothing was exported
            with contextlib.suppress(OSError):
                parent.rmdir()


def _own_scratch(parent: Path) -> tuple[Path, FileLock]:
    """A new folder in `parent` and its lock, held; one that another export took for left over meanwhile is made anew."""
    while True:
        scratch = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX))
        lock = FileLock(scratch / LOCK)
        try:
            lock.acquire()
            if (scratch / LOCK).exists():
                return scratch, lock
            lock.release()
        except FileNotFoundError:
            continue
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def sweep(folder: Path) -> None:
    """Remove what exports that were killed left in `folder`; those that are being written stay."""
    for left in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(Timeout, OSError), FileLock(left / LOCK, timeout=0):
            shutil.rmtree(left, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Move the finished `folder` to its place, on the same disk: there is no moment at which half of it is there.

    Raises:
        InputError: something stands there by now.
    """
    if _is_there(target):
        raise _exists(target)
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise _exists(target) from error
        raise
    with contextlib.suppress(OSError):  # the name itself, where folders can be synced
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_room(needed: int, target: Path) -> None:
    """Raises `AnalysisError`, with both figures, if `needed` bytes are not free where `target` is to stand."""
    existing = next(parent for parent in target.parents if parent.exists())
    total, _, free = shutil.disk_usage(existing)
    if not total:
        raise AnalysisError(f"{existing} lies on no disk: choose another folder to export to.")
    advice = f"free some space in {existing}, or choose a folder on another disk"
    check_fits("The export", needed, free, "disk", advice)


@contextlib.contextmanager
def telling_of_the_disk(target: Path) -> Iterator[None]:
    """Turns a full disk, or a folder that may not be written to, into one sentence."""
    try:
        yield
    except HeadscopeError:
        raise
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _not_allowed(target.parent, error.strerror or str(error)) from error
        raise AnalysisError(
            f"The export to {target} broke off ({disk.why(error)}) and nothing of it was left: {disk.room(error)}choose "
            "another folder."
        ) from error


def _exists(path: Path) -> InputError:
    return InputError(f"{path} exists already and is left as it is: name a folder that does not exist yet.")


def _not_allowed(folder: Path, why: str) -> InputError:
    return InputError(f"{folder} cannot be written to ({why}): choose a folder of your own to export to.")
