"""The cache on disk: results kept under everything they depend on.

A result is a frozen dataclass of arrays and plain values. It is written as one safetensors file whose name is
the hash of its key, first beside its place and then moved there, so a reader never sees half of it. The key and
a digest of the contents travel inside: a damaged entry is noticed, reported and computed again. The folder is
bounded in size; what was not used for longest leaves first. Nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import platformdirs
import psutil
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from core import disk
from core.errors import InputError
from core.settings import ASSETS
from core.words import quoted, whole_characters

RESULT_FORMAT = 1
"""Part of every key. Raise it whenever the meaning of a stored number changes."""

BUNDLED = ASSETS / "demo" / "results"
"""Results of the model `demo` that come with Headscope; read only."""

log = logging.getLogger("headscope")
T = TypeVar("T")


LEFTOVER_SECONDS = 14 * 24 * 3600
"""After this long, what a killed run left is no longer waited for."""
AT_WORK_SECONDS = 600
"""A run that has kept nothing new for so long may be one that was left."""
_pipes: list[int] = []
"""Open until the process ends, or else who reads one would find its end before a result has come."""
MOST_LINKS = 40
LEAST_ROOM = 2**14
"""Bytes that must be free where a file is to be written: most are larger than this."""
_HANDED_OVER = re.compile(r"/(?:dev/fd|proc/(?:self|thread-self|\d+)/fd)/(\d+)")

MOST_HELD = 2
"""Results that are held in memory because they could not be kept; the largest is an observation, with some 200 MB."""


@dataclass
class Unkept:
    """Results of this process that could not be kept.

    Attributes:
        why, number, free: of the last of them, in words, the system's number, and the bytes that were free then.
        results: the last `MOST_HELD` of them, each with its key, by its place.
    """

    why: str
    number: int
    free: int
    results: dict[Path, tuple[Any, str]] = field(default_factory=dict)


_unkept: dict[Path, Unkept] = {}
"""By the folder of the store."""


def default_folder() -> Path:
    """`HEADSCOPE_CACHE`, or the user's cache folder."""
    named = os.path.expanduser(os.environ.get("HEADSCOPE_CACHE", ""))  # noqa: PTH111 (lets an unknown user be)
    return Path(named or platformdirs.user_cache_dir("headscope"))


class Store:
    """Results on disk.

    Args:
        folder: where; `default_folder()` if not given. Models (`models/`) live beside the results (`results/`).
        max_bytes: bound on the results; the least recently used leave first.
        enabled: False reads and writes no results (`--no-cache`); models still have their place.
    """

    def __init__(self, folder: Path | str | None = None, max_bytes: int = 4 * 2**30, enabled: bool = True) -> None:
        self.folder = Path(os.path.expanduser(folder)) if folder else default_folder()  # noqa: PTH111
        self.max_bytes = max_bytes
        self.enabled = enabled

    @property
    def trouble(self) -> str | None:
        """Why a result cannot be kept here, as `No space left on device`: one was not, or the disk takes none.

        Where there is far more room now, or leave to write, what could not be kept is written first.
        """
        unkept, closed = _unkept.get(self.folder), disk.closed(self.results)
        if unkept is None or closed is not None:
            return unkept.why if unkept else closed
        if disk.free(self.results) > 2 * unkept.free + disk.LEAST_ROOM or unkept.number in disk.FORBIDDEN:
            self._keep_again()
        return unkept.why if (unkept := _unkept.get(self.folder)) else None

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def get(self, kind: str, key: Mapping[str, Any], result_type: type[T]) -> T | None:
        """The stored result, or None where there is none (or only a damaged one, which is removed)."""
        path = self._path(kind, key)
        if not self.enabled:
            return None
        if not _is_there(path):
            if (unkept := _unkept.get(self.folder)) and path in unkept.results:
                return cast(T, unkept.results[path][0])
            return read_result(BUNDLED / path.name, result_type, _canonical(key), remove=False)
        result = read_result(path, result_type, _canonical(key))
        if result is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
        return result

    def is_precomputed(self, kind: str, key: Mapping[str, Any]) -> bool:
        """Whether `get` serves what came with Headscope, not what was computed here."""
        path = self._path(kind, key)
        return self.enabled and not _is_there(path) and (BUNDLED / path.name).is_file()

    def put(self, kind: str, key: Mapping[str, Any], result: Any) -> None:
        """Keep a result. A full or read-only disk costs the cache, not the result: it is reported and that is all."""
        if not self.enabled:
            return
        place = self._path(kind, key)
        if self._write(place, result, _canonical(key)) and (unkept := _unkept.get(self.folder)):
            unkept.results.pop(place, None)
            if not unkept.results or unkept.number not in disk.FULL:  # a small one fits where a large one did not
                self._keep_again()

    def _write(self, place: Path, result: Any, key: str) -> bool:
        """Whether it is kept; if not, that is noted."""
        try:
            write_result(place, result, key)
            self._bound()
        except OSError as error:
            why, before = disk.why(error), _unkept.get(self.folder)
            if before is None or before.why != why:  # once is enough
                log.warning(
                    "Results cannot be kept in %s (%s): they will be computed again. Another folder is chosen with --cache.",
                    self.results,
                    why,
                )
            number, free = disk.of_the_system(error).errno or 0, disk.free(self.results)
            held = {**({} if before is None else before.results), place: (result, key)}
            _unkept[self.folder] = Unkept(why, number, free, dict(list(held.items())[-MOST_HELD:]))
            return False
        return True

    def _keep_again(self) -> None:
        """Write what could not be kept and is held; what cannot be kept now either is noted anew."""
        unkept = _unkept.pop(self.folder, None)
        for place, (result, key) in ({} if unkept is None else unkept.results).items():
            self._write(place, result, key)

    def partial(self, kind: str, key: Mapping[str, Any]) -> Path:
        """The folder where a long run keeps its finished chunks until it is done; runs that were left make room for it."""
        folder = self.folder / "partial" / self._path(kind, key).stem
        self._bound_partial(folder)
        return folder

    def _bound_partial(self, beginning: Path) -> None:
        space = 0
        with contextlib.suppress(OSError):  # where it may not be looked at nothing is kept
            left = [(disk.age(path), path) for path in beginning.parent.glob("*") if path != beginning]
            for age, path in sorted(left):  # what was written last stays
                space += sum(_size(file) for file in path.rglob("*"))
                if space > self.max_bytes // 2 and age > AT_WORK_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _path(self, kind: str, key: Mapping[str, Any]) -> Path:
        return self.results / f"{kind}-{hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]}.safetensors"

    def _sweep_leftovers(self) -> None:
        """Remove half-written files of killed processes and unfinished runs that nobody came back to."""
        for path in (*self.results.glob(".writing-*"), *self.folder.glob("hashes.json.*")):
            if disk.age(path) > 3600:
                path.unlink(missing_ok=True)
        for path in (self.folder / "partial").glob("*"):
            if disk.age(path) > LEFTOVER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def _bound(self) -> None:
        self._sweep_leftovers()
        entries = []
        for path in self.results.glob("*.safetensors"):
            with contextlib.suppress(OSError):  # another process may have removed it meanwhile
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries)[:-1]:  # the newest stays, whatever its size
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


def _size(path: Path) -> int:
    """Bytes of a file; 0 where another process has removed it meanwhile."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_there(path: Path) -> bool:
    """Whether a result is there and may be looked at."""
    try:
        return path.is_file()
    except OSError:
        return False


def _canonical(key: Mapping[str, Any]) -> str:
    return whole_characters(json.dumps({"format": RESULT_FORMAT, **key}, sort_keys=True, ensure_ascii=False))


def write_result(path: Path, result: Any, key: str = "") -> None:
    """Write a dataclass atomically: complete under `path`, or not at all."""
    arrays: dict[str, np.ndarray] = {}
    body = whole_characters(json.dumps(_pack(result, "", arrays), ensure_ascii=False))
    metadata = {"key": key, "body": body, "digest": _digest(key, body, arrays)}
    try:
        _write_whole(path, arrays, metadata)
    except FileNotFoundError:  # another process that does the same has come to its end, and removed the folder just now
        _write_whole(path, arrays, metadata)


def _write_whole(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    os.close(handle)
    temporary = Path(name)
    try:
        save_file(arrays or {"empty": np.zeros(1)}, temporary, metadata)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # how safetensors reports a full disk
            raise disk.of_the_system(error) from error
        raise


def place_of(path: Path) -> str:
    """The key of a part of an unfinished run: where it belongs, so that one that was copied to another place is none."""
    return f"{path.parent.name}/{path.stem}"


def write_text(path: str | Path, text: str) -> None:
    """Write a file that a user asked for: whole under its name, or not at all. Half characters become U+FFFD.

    Raises:
        InputError: the place cannot be written.
    """
    with _writing(path):
        if (number := handed_over(path)) is not None:
            if sys.stdout is not None:
                sys.stdout.flush()  # what was printed before stands before it
            with os.fdopen(os.dup(number), "w", encoding="utf-8") as stream:
                stream.write(whole_characters(text))
            return
        target = Path(os.path.realpath(path))  # a link stays, and what it names is written
        if _is_stream(path):  # is written to, not replaced
            Path(path).write_text(whole_characters(text), "utf-8")
            return
        _clear_unfinished(target.parent)
        temporary = target.with_name(f"{_unfinished()}{os.getpid()}-{threading.get_ident()}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                with contextlib.suppress(OSError):  # nobody may read more than before
                    shutil.copymode(target, temporary)
                file.write(whole_characters(text))
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                temporary.unlink(missing_ok=True)
            raise


def _unfinished() -> str:
    """How the names of files begin that this machine has not written to their end."""
    return f".writing-{platform.node()}-"


def _clear_unfinished(folder: Path) -> None:
    """Remove what processes of this machine left that were killed while they wrote there."""
    for path in folder.glob(".writing-*"):
        left = re.fullmatch(re.escape(_unfinished()) + r"(\d{1,9})-\d+", path.name)
        if left and not psutil.pid_exists(int(left[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def check_place(path: str | Path) -> None:
    """Say before the work what `write_text` would say after it, as far as that can be known.

    Raises:
        InputError: the place cannot be written.
    """
    with _writing(path):
        if (number := handed_over(path)) is not None:
            if number == 1 and sys.stdout is None:
                raise OSError(None, "it is closed")
            os.write(number, b"")  # raises what is wrong with it
            return
        target = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError):
            target.lstat()  # raises what else is wrong with the name
        if target.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if _is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "it is read-only")
            if Path(path).is_fifo():  # opened without a reader it would wait for one, without a word
                try:
                    _pipes.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                except OSError as error:
                    raise OSError(None, "it is a pipe that nobody reads") from error
            return
        if not target.parent.exists():
            raise FileNotFoundError(None, "there is no such folder")
        with tempfile.TemporaryFile(dir=target.parent) as file:  # whether one can be made and filled; it has no name
            file.write(bytes(LEAST_ROOM))


def handed_over(path: str | Path) -> int | None:
    """The number of the open file that a path means, as `/dev/stdout` or `/dev/fd/3` do; None for any other path.

    It is written to where it stands: behind it may be a file that was opened to append to, and must not be replaced.
    """
    named = os.path.abspath(path)  # noqa: PTH100 (links must stay)
    for _ in range(MOST_LINKS):
        if found := _HANDED_OVER.fullmatch(named):
            return int(found[1])
        try:
            named = os.path.normpath(os.path.join(os.path.dirname(named), os.readlink(named)))  # noqa: PTH115, PTH118, PTH120
        except (OSError, ValueError):
            return None
    return None


def _is_stream(path: str | Path) -> bool:
    """Whether a device or a pipe is there."""
    return Path(path).exists() and not Path(os.path.realpath(path)).is_file()


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """One sentence for all that can be wrong with a place to write to."""
    if not str(path):
        raise InputError("The file to write has no name: give a path.")
    try:
        yield
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no name of a file"
        remedy = f"({disk.room(error, 'make room there, or ')}choose another place)"
        raise InputError(f"{quoted(str(path))} cannot be written: {why} {remedy}.") from error


def read_result(path: Path, result_type: type[T], key: str = "", *, remove: bool = True) -> T | None:
    """Read what `write_result` wrote; None, with a warning, where it is damaged; then it is removed unless told not to."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not arrays.keys() - {"empty"}:
            arrays = {}
        if metadata["key"] != key or metadata["digest"] != _digest(key, metadata["body"], arrays):
            raise ValueError("its digest does not match its contents")
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        _drop(path, f"damaged ({error})", remove)
        return None
    try:  # the contents are what was written; another version of Headscope may have written other fields
        return typing.cast(T, _unpack(json.loads(metadata["body"]), result_type, arrays))
    except (TypeError, KeyError) as error:
        _drop(path, f"of another kind or version ({error})", remove)
        return None


def _drop(path: Path, why: str, remove: bool) -> None:
    log.warning("A stored result is %s and will be computed again: %s.", why, path.name)
    if not remove:
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _digest(key: str, body: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(key.encode())
    digest.update(body.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _pack(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """A JSON value in which every array is replaced by its name in `arrays`."""
    if isinstance(value, np.ndarray):
        arrays[path] = np.ascontiguousarray(value)
        return {"array": path}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: _pack(getattr(value, f.name), f"{path}.{f.name}" if path else f.name, arrays) for f in fields}
    if isinstance(value, tuple | list):
        return [_pack(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _unpack(value: Any, hint: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict) and value.keys() == {"array"}:
        return arrays[value["array"]]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _unpack(item, hints[name], arrays) for name, item in value.items()})
    if isinstance(value, list):
        inner = typing.get_args(hint)
        return tuple(_unpack(item, inner[0] if inner else None, arrays) for item in value)
    return value
