"""The store gives back what it was given, or nothing; never half of it, never something else."""

from __future__ import annotations

import errno
import io
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from core import disk, store
from core.errors import InputError
from core.store import (
    MOST_HELD,
    Store,
    Unkept,
    check_place,
    default_folder,
    handed_over,
    read_result,
    write_result,
    write_text,
)
from tests.app.arrays import planted


@dataclass(frozen=True)
class Inner:
    name: str
    values: np.ndarray


@dataclass(frozen=True)
class Outer:
    number: float
    table: np.ndarray
    inner: Inner
    several: tuple[Inner, ...]
    words: tuple[str, ...] = ()
    maybe: Inner | None = None


def example() -> Outer:
    inner = Inner("a ⟨b⟩", np.arange(6, dtype=np.int32).reshape(2, 3))
    return Outer(np.float64(0.1) + 0.2, np.eye(3), inner, (inner, Inner("", np.zeros(0))), ("x", "\n<script>"), inner)


def same(a: Outer, b: Outer) -> None:
    assert a.number == b.number and a.words == b.words and a.inner.name == b.inner.name
    np.testing.assert_array_equal(a.table, b.table)
    assert b.maybe is not None and a.maybe is not None
    np.testing.assert_array_equal(a.maybe.values, b.maybe.values)
    assert [i.values.shape for i in b.several] == [i.values.shape for i in a.several]
    assert b.inner.values.dtype == a.inner.values.dtype


def test_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get("thing", {"k": 1}, Outer) is None
    store.put("thing", {"k": 1}, example())
    found = store.get("thing", {"k": 1}, Outer)
    assert found is not None
    same(example(), found)
    assert store.get("thing", {"k": 2}, Outer) is None
    assert store.get("other", {"k": 1}, Outer) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_byte_is_noticed(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r.safetensors"
    write_result(path, example(), "key")
    raw = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    place = int(random.integers(len(raw)))
    raw[place] ^= int(random.integers(1, 256))
    path.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        found = read_result(path, Outer, "key")
    if found is not None:  # the byte was padding between header and arrays
        same(example(), found)
    else:
        assert "damaged" in caplog.text and not path.exists()


def test_a_truncated_entry_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    write_result(path, example())
    path.write_bytes(path.read_bytes()[:-7])
    assert read_result(path, Outer) is None
    assert not path.exists()


@pytest.mark.parametrize("before", ["save_file", "os.fsync"])
def test_a_folder_that_another_process_removes_meanwhile_is_made_anew(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two observe the same; the one that comes to its end first removes the chunks of both."""
    path, real = tmp_path / "partial" / "chunk.safetensors", attrgetter(before)(store)
    removed: list[None] = []

    def late(*given: Any) -> None:
        if not removed:
            removed.append(shutil.rmtree(path.parent))
        real(*given)

    monkeypatch.setattr(f"core.store.{before}", late)
    write_result(path, Inner("a", np.arange(3.0)), "key")
    found = read_result(path, Inner, "key")
    assert removed and found is not None and found.values.tolist() == [0, 1, 2]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_size_is_bounded_and_the_least_used_leaves(tmp_path: Path) -> None:
    import os

    store = Store(tmp_path, max_bytes=25_000)
    for i in range(4):
        store.put("big", {"i": i}, Inner(str(i), np.zeros(1000)))
        for path in store.results.glob("*"):
            os.utime(path, (path.stat().st_atime - 100, path.stat().st_mtime - 100))
        store.get("big", {"i": 0}, Inner)  # used all the time
    assert store.get("big", {"i": 0}, Inner) is not None
    assert store.get("big", {"i": 3}, Inner) is not None
    assert store.get("big", {"i": 1}, Inner) is None
    assert sum(p.stat().st_size for p in store.results.glob("*")) <= 25_000


def test_what_killed_runs_left_is_swept_away(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("thing", {}, example())
    old = time.time() - 30 * 24 * 3600
    forgotten, waiting = store.partial("a", {"k": 1}), store.partial("a", {"k": 2})
    for folder in (forgotten, waiting):
        folder.mkdir(parents=True)
    half, hashes, ahead = store.results / ".writing-x", tmp_path / "hashes.json.abcd", store.results / ".writing-y"
    for path, written in ((half, old), (hashes, old), (ahead, 2 * time.time())):
        path.write_bytes(b"half")
        os.utime(path, (written, written))
    os.utime(forgotten, (old, old))
    store.put("thing", {"k": 2}, example())
    assert not half.exists() and not hashes.exists() and not ahead.exists()
    assert not forgotten.exists() and waiting.exists()
    assert store.get("thing", {}, Outer) is not None


def test_a_result_that_could_not_be_kept_is_told_until_one_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "core.store.write_result", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        store.put("thing", {}, example())
    assert (
        store.trouble == Store(tmp_path).trouble == "No space left on device" and Store(tmp_path / "b").trouble is None
    )
    store.put("thing", {}, example())
    assert store.trouble is None


def test_a_full_disk_that_takes_a_small_result_is_still_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it did not take is there as long as the process is, and written as soon as there is room."""
    free, store = [10**6], Store(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free[0]))
    write = write_result

    def only_small(place: Path, result: Any, key: str) -> None:
        if not place.name.startswith("small") and free[0] < 10**7:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(place, result, key)

    monkeypatch.setattr("core.store.write_result", only_small)
    for number in range(MOST_HELD + 1):
        store.put("large", {"number": number}, example())
    store.put("small", {}, example())
    assert store.trouble == "No space left on device"
    last = {"number": MOST_HELD}
    assert store.get("large", last, Outer) is not None and not list(store.results.glob("large-*"))
    free[0] = 10**8
    assert store.trouble is None and len(list(store.results.glob("large-*"))) == MOST_HELD
    assert store.get("large", last, Outer) is not None and store.get("large", {"number": 0}, Outer) is None


@pytest.mark.parametrize(
    ("number", "free", "told"),
    [(errno.ENOSPC, 10**6, True), (errno.ENOSPC, 10**7, False), (errno.EROFS, 10**6, False), (errno.EIO, 10**7, False)],
)
def test_a_disk_that_was_freed_is_called_full_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, free: int, told: bool
) -> None:
    """Also before the next result is kept: after a full one there is more room, after a closed one it is open."""
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free))
    monkeypatch.setattr("core.store._unkept", {tmp_path: Unkept("as it was", number, 10**6)})
    assert (Store(tmp_path).trouble is not None) == told


@pytest.mark.parametrize(("flags", "why"), [(os.ST_RDONLY, "Read-only file system"), (0, "Permission denied")])
def test_a_disk_that_takes_nothing_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, why: str
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=flags))
    assert Store(tmp_path / "new").trouble == why


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 0
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free))
    assert Store(tmp_path / "new").trouble == "No space left on device"
    free = 10**6
    assert Store(tmp_path / "new").trouble is None


def test_runs_that_were_left_make_room(tmp_path: Path) -> None:
    """Of what cancelled runs leave only so much is kept, the newest; what may be at work stays."""
    store = Store(tmp_path)
    now = time.time()
    for number in range(6):
        folder = store.partial("a", {"k": number})
        folder.mkdir(parents=True)
        (folder / "chunk").write_bytes(b"x" * 100)
        os.utime(folder, (now, now - 3600 * (6 - number)))
    os.utime(store.partial("a", {"k": 0}), (now, now))  # goes on
    store.max_bytes = 600
    left = [
        number for number in range(6) if (store.partial("b", {}).parent / store._path("a", {"k": number}).stem).exists()
    ]
    assert left == [0, 4, 5]


def test_without_a_cache_nothing_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "none", enabled=False)
    store.put("thing", {}, example())
    assert store.get("thing", {}, Outer) is None
    assert not (tmp_path / "none").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.store.save_file", full)
    store = Store(tmp_path)
    store.put("thing", {}, example())  # reported, not raised: the result itself is not lost
    assert list(store.results.iterdir()) == []


def test_what_a_killed_process_left_beside_a_file_goes_with_the_next(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    write = f"""
import os, pathlib
from core.store import write_text
pathlib.Path.replace = lambda self, target: os.kill(os.getpid(), 9)
write_text({str(target)!r}, "whole")
"""
    assert subprocess.run([sys.executable, "-c", write]).returncode == -9
    (left,) = tmp_path.iterdir()
    others = tmp_path / ".writing-another-machine-7-7", tmp_path / f".writing-{platform.node()}-{os.getpid()}-7"
    for other in others:  # who is at work, there or here, keeps its own
        other.touch()
    write_text(target, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([target, *others]) and left not in others


def test_a_file_that_a_user_asked_for_replaces_files_only(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real.json", tmp_path / "link.json", tmp_path / "pipe"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink() and real.read_text() == "new"
    write_text(tmp_path / "fresh.json", "whole")
    assert (tmp_path / "fresh.json").read_text() == "whole"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through the pipe")
    reader.join(5)
    assert read == ["through the pipe"] and pipe.is_fifo()
    device = Path(os.devnull)
    write_text(device, "nothing is kept of this")
    assert device.is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh.json", "link.json", "pipe", "real.json"]
    link.unlink()
    link.symlink_to(link)  # names itself
    write_text(link, "no longer a circle")
    assert link.read_text() == "no longer a circle"
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        write_text(tmp_path, "text")


def test_an_empty_folder_name_is_not_the_folder_one_stands_in() -> None:
    assert Store("").folder == Store(None).folder == default_folder()


def test_a_file_without_a_name_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="has no name"):
        write_text("", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="open files have no names here")
def test_an_open_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As `--json /dev/stdout >> notes.txt` asks for."""
    notes = tmp_path / "notes.txt"
    notes.write_text("mine\n")
    (tmp_path / "link").symlink_to("/dev/stdout")
    assert (handed_over("/dev/stdout"), handed_over(tmp_path / "link"), handed_over(notes)) == (1, 1, None)
    with notes.open("a") as file:
        name = f"/dev/fd/{file.fileno()}"
        check_place(name)
        write_text(name, "new\n")
    assert notes.read_text() == "mine\nnew\n"
    with pytest.raises(InputError, match="cannot be written: Bad file descriptor"):
        check_place("/dev/fd/999")


def test_a_cache_in_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEADSCOPE_CACHE", "~/there")
    assert Store().folder == tmp_path / "there" and Store("~/here").folder == tmp_path / "here"


def test_a_disk_that_keeps_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    for seed in (1, 2):
        store.put("encoding", {"seed": seed}, planted()[2])
    assert [each.getMessage() for each in caplog.records] == [
        f"Results cannot be kept in {tmp_path / 'file' / 'results'} (a part of its path is no folder): they will be computed "
        "again. Another folder is chosen with --cache."
    ]


def test_what_stands_in_the_way_of_a_result_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    Store(tmp_path / "link").put("thing", {}, example())
    path = Store(tmp_path)._path("thing", {})
    (path / "full").mkdir(parents=True)
    Store(tmp_path).put("thing", {}, example())
    link, folder = (each.getMessage() for each in caplog.records)
    assert "('link' is a link to nowhere)" in link and f"({path.name!r} is a folder, where a file belongs)" in folder
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_full_disk_is_told_in_the_words_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    monkeypatch.setattr("core.store.save_file", lambda *_: (_ for _ in ()).throw(SafetensorError(said)))
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$") as caught:
        write_result(tmp_path / "x.safetensors", example())
    assert disk.room(caught.value) and not disk.room(OSError(30, "Read-only file system"))


def test_a_place_on_a_full_disk_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.store.tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(InputError, match=r"No space left on device \(make room there, or choose another place\)\.$"):
        check_place(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def test_a_pipe_that_nobody_reads_is_refused_before_the_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="it is a pipe that nobody reads"):
        check_place(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_place(tmp_path / "pipe")
    os.close(reader)
