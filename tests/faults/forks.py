"""A process that has torch loaded and forks a child for every case, so that a kill costs a few hundredths of a second.

    python -m tests.faults.forks       reads one request a line on stdin, answers one line on stdout

A request is {"job", "place", "fault"}. The child does the job with the fault built in and dies of it, or tells its
result. Faults: `kill` at the n-th event (a progress call, or a file opened for writing, renamed, made or removed below the
case's folder), `alarm` after so many seconds wherever the code is then, `full` (from the n-th event on nothing more can
be written; `once`: that one time only), `limit` (no file grows beyond so many bytes, whoever writes it), `fsync`,
`safetensors`, `read-only`, `clock` (the system's clock is off by so many seconds), `jumps` (both clocks jump).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
NOBODY = 65534
PATIENCE = 60.0
"""Seconds after which a child counts as hanging."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        digest: of its result, if it came to one. sentence: of the error that it told, kind: the error's class.
        killed: it was killed before it could tell anything. events: how many it has seen.
    """

    digest: str | None = None
    sentence: str | None = None
    kind: str | None = None
    killed: bool = False
    events: int = 0


class Forks:
    """The process, from the side of the tests."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.faults.forks"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def ask(
        self, job: str, place: dict[str, str], fault: dict[str, Any] | None = None, together: int = 1
    ) -> list[Ended]:
        """Does a job in `together` children at once and tells how each ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"job": job, "place": place, "fault": fault or {}, "together": together}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that forks has died"
        return [Ended(**each) for each in json.loads(answer)]

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(10)


# --- inside -----------------------------------------------------------------------------------------------------------


class Events:
    """Counts what happens below a folder, and lets a fault strike at the n-th."""

    def __init__(self, home: str, fault: dict[str, Any]) -> None:
        self.home, self.fault, self.count = home, fault, 0

    def progress(self, phrase: str, share: float | None) -> None:
        self._strike("progress")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            path = arguments[0]
        else:
            return
        if isinstance(path, str | bytes | Path) and os.fsdecode(path).startswith(self.home):
            self._strike(event)

    def _strike(self, event: str) -> None:
        self.count += 1
        at = self.fault.get("at", -1)
        kind = self.fault.get("kind")
        if kind == "kill" and self.count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        full = self.count == at if self.fault.get("once") else 0 < at <= self.count
        if kind == "full" and full and event not in ("progress", "os.remove", "os.rmdir"):
            raise OSError(errno.ENOSPC, "No space left on device")


def _arm(fault: dict[str, Any], home: str) -> Events:
    """Builds a fault into this process, which will not live long."""
    events = Events(home, fault)
    kind = fault.get("kind")
    if kind == "alarm":
        signal.setitimer(signal.ITIMER_REAL, fault["seconds"])  # nothing handles it: the kernel ends the process
    elif kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))
    elif kind == "fsync":
        os.fsync = _failing(fault["at"], OSError(errno.EIO, "Input/output error"))
    elif kind == "safetensors":
        from safetensors import SafetensorError

        import core.store

        full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        core.store.save_file = _failing(fault["at"], full, core.store.save_file)
    elif kind == "read-only" and os.getuid() == 0:
        os.seteuid(NOBODY)
    elif kind == "clock":
        real = time.time
        time.time = lambda: real() + fault["seconds"]
    elif kind == "jumps":
        random = np.random.default_rng(fault["seed"])
        clock, steady, far = time.time, time.monotonic, [0.0]
        time.time = lambda: clock() + random.normal(0, 1e8)
        time.monotonic = lambda: far.append(far[-1] + random.exponential(1e4)) or steady() + far[-1]  # type: ignore[func-returns-value]
    sys.addaudithook(events.audit)
    return events


def _failing(at: int, error: Exception, real: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
    """Raises an error at the `at`-th call and at every later one."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise error
        return real(*arguments, **options)

    return call


def _child(job: str, place: dict[str, str], fault: dict[str, Any], answers: int) -> None:
    """Runs in the child: does the job and tells how it ended."""
    from core.errors import HeadscopeError
    from tests.faults.jobs import JOBS, Place

    told: dict[str, Any] = {}
    events = _arm(fault, place["home"])
    try:
        told["digest"] = JOBS[job](Place(**{name: Path(path) for name, path in place.items()}), events.progress)
    except HeadscopeError as error:
        told |= {"sentence": str(error), "kind": type(error).__name__}
    except BaseException as error:
        import traceback

        told |= {"sentence": "".join(traceback.format_exception(error)), "kind": type(error).__name__}
    os.write(answers, json.dumps(told | {"events": events.count}).encode())


def _fork(job: str, place: dict[str, str], fault: dict[str, Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(2, 1)  # stdout is for answers alone
        try:
            _child(job, place, fault, writing)
        finally:
            os._exit(0)
    os.close(writing)
    return child, reading


def _wait(child: int, reading: int) -> dict[str, Any]:
    """What a child tells, or that it was killed. One that hangs fails its test."""
    told, end = b"", time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if select.select([reading], [], [], 1.0)[0]:
            piece = os.read(reading, 2**16)
            if not piece:
                break
            told += piece
    else:
        os.kill(child, signal.SIGKILL)
        told = json.dumps({"sentence": f"It hangs: nothing in {PATIENCE:g} s", "kind": "Hanging"}).encode()
    os.close(reading)
    os.waitpid(child, 0)
    return json.loads(told) if told else {"killed": True}


class _ForkedReloader:
    """In place of the process in which an export is reloaded: a fork that has torch already."""

    def __init__(self, scratch: Path, device: str, threads: int) -> None:
        self.scratch = scratch

    def __enter__(self) -> _ForkedReloader:
        return self

    def __exit__(self, *_: object) -> None: ...

    def answer(self, progress: Callable[[str, float | None], None]) -> dict[str, Any]:
        from core.export import reload

        progress("Reloading the checkpoint in another process", None)
        reload.write_answer(self.scratch, "cpu")
        return json.loads((self.scratch / reload.ANSWER).read_text("utf-8"))


def main() -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    import core.observe
    from core import series  # noqa: F401  (everything is imported before the first fork)
    from core.export import run as export
    from core.model import load  # noqa: F401
    from core.model.quiet import quiet_transformers
    from tests.faults.jobs import JOBS, Place

    core.observe.FOLD_EVERY = 4
    export.Reloader = _ForkedReloader  # type: ignore[misc, assignment]
    with quiet_transformers():
        for line in sys.stdin:
            request = json.loads(line)
            if request["job"] == "warm":  # so that no child imports, or loads the model, once more
                for job in JOBS.values():
                    job(Place(**{name: Path(path) for name, path in request["place"].items()}), lambda *_: None)
                print("[]", flush=True)
                continue
            arguments = (request["job"], request["place"], request["fault"])
            children = [_fork(*arguments) for _ in range(request["together"])]
            print(json.dumps([_wait(*child) for child in children]), flush=True)


if __name__ == "__main__":
    main()
