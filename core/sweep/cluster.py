"""Runs a plan on Ray: started here by default, or a cluster that runs already.

Every run is cut into tasks, one for each shard and one that fits what they give. The numbers of a task depend on nothing
but the plan, so a task that was lost with its worker is simply run again. This process waits, adds up and stores; it
imports no torch, and holds the observations of one run at a time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import disk
from core.errors import AnalysisError, InputError
from core.moments import Observation
from core.store import Store, place_of, read_result, write_result
from core.sweep import tasks as worker
from core.sweep.plan import Plan, Run
from core.sweep.results import Row, failed_row, read_row, row_of, write_row
from core.sweep.tasks import Fitted, Refused, Shard, Work
from core.words import quoted

IN_FLIGHT = 256
"""Tasks that Ray knows of at once; the others wait here, where they cost nothing."""
POLL_SECONDS = 0.5
SILENT_SECONDS = 30.0
"""For which Ray's control service may be away; after 60 Ray itself would end this process."""
MOST_REPAIRS = 3
"""How often finished shards of a run that are damaged on disk are observed again."""
REACHED_WITHIN = 5.0
"""Seconds."""
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS
"""How both sides of HTTP/2 begin. Source: RFC 9113, sections 3.4 and 6.5."""
FIT = -1
"""The task that fits, among the numbers of the shards."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a task.

    Attributes:
        task: the run and, where there are several, its part; or Ray itself.
        state: started, again (on another worker, after one was lost or failed), anew (what it had finished is not on the disk
            any more), working, done, failed, kept (was finished before).
        text: a step, a reason, or "". share: of the step, 0 to 1. node: of the cluster where it runs, or "".
    """

    task: str
    state: str
    text: str = ""
    share: float | None = None
    node: str = ""


@dataclass(frozen=True)
class Sweep:
    """What a plan came to: its rows in the plan's order, and where the data set is. `kept` of them were there before."""

    rows: tuple[Row, ...]
    out: Path
    kept: int

    @property
    def failed(self) -> int:
        return sum(row["status"] != "done" for row in self.rows)


def tell_nobody(event: Event) -> None:
    """The listener that hears nothing."""


def run_sweep(
    plan: Plan,
    out: Path,
    store: Store | None = None,
    *,
    address: str | None = None,
    tell: Callable[[Event], None] = tell_nobody,
) -> Sweep:
    """Do all runs of a plan that are not done yet.

    Args:
        plan: from `read_plan`. out: folder of the data set; rows that are there and fit the plan are taken.
        store: where results are kept, and read if they are there.
        address: of a running cluster (`auto`, `host:6379` or `ray://host:10001`); None starts Ray on this machine.
        tell: hears what happens to every task.

    Raises:
        InputError: Ray is not installed, the cluster is not there or too small for a task, `out` cannot be written.
            A run that cannot be done raises nothing: its row says why.
    """
    store = store or Store()
    rows: dict[str, Row] = {}
    for run in plan.runs:
        row = _known_row(run, out, store)
        if row is not None:
            rows[run.key] = row
            tell(Event(run.name, "kept"))
    kept = len(rows)
    todo = [run for run in plan.runs if run.key not in rows]
    if todo:
        tell(Event("Ray", "working", "starting" if address is None else "connecting"))
        with _unheard(), _ray(address, plan) as ray, _scratch(store) as folder:
            driver = _Driver(ray, plan, todo, out, store, None if address else str(store.folder), folder, tell)
            rows |= driver.run()
    return Sweep(tuple(rows[run.key] for run in plan.runs), out, kept)


def _known_row(run: Run, out: Path, store: Store) -> Row | None:
    """The row of a run that is finished: from the data set, or made from the store."""
    if not store.enabled:
        return None
    row = read_row(out, run.key)
    if row is not None and row["status"] == "done":
        here = worker.revision_on_disk(run, store)
        if here is None or here == row["revision"]:  # else the weights were changed since
            return row
    found = worker.known(run, store)
    if found is None:
        return None
    row = row_of(run, *found, 0.0, True)
    write_row(out, row)
    return row


@contextlib.contextmanager
def _scratch(store: Store) -> Iterator[Path | None]:
    """Where finished shards are kept if the store keeps nothing: a folder that is gone afterwards."""
    if store.enabled:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="headscope-sweep-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _ray(address: str | None, plan: Plan) -> Iterator[Any]:
    """Ray, connected, and let go of at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise InputError(
            'headscope sweep runs on Ray, which is not installed: pip install "headscope[cluster]".'
        ) from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"_system_config": {"task_oom_retries": plan.tasks.retries}}  # Ray's own default is without end
    else:
        options["address"] = address
    if ray.is_initialized():
        raise InputError("This process is connected to Ray already: call ray.shutdown() first.")
    if address is not None:
        _check_address(address)
    stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except SystemExit as error:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt from error
    except Exception as error:  # some of what Ray raises is of no kind of its own
        ray.shutdown()
        if address is not None:
            raise _not_reached(address, error) from error
        raise AnalysisError(
            f"Ray cannot be started on this machine ({_line(error)}): close other programs, for it needs memory and has a "
            "limited time to start, and try again."
        ) from error
    if callable(stop):  # Ray has put its own in its place, which prints the stack of every thread
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, stop)
    try:
        yield ray
    except (OSError, ray.exceptions.RayError) as error:
        if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError):
            raise  # of this machine's disk; Ray's own name no number
        local = isinstance(error, ray.exceptions.LocalRayletDiedError)  # it names a file of Ray's own
        reason = "its own process on this machine has ended" if local else _line(error)
        raise AnalysisError(
            f"Ray ended while the sweep was running ({reason}): the same command goes on from what could be kept."
        ) from error
    finally:
        with contextlib.redirect_stdout(io.StringIO()):  # what it held back of its own
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raises `InputError` if nothing that speaks HTTP/2, as Ray's control service does, listens at `HOST:PORT`; Ray itself
    would try again without end. Of other addresses it says so itself."""
    if not re.fullmatch(r"[^/]+:\d+", address):
        return
    try:
        with socket.create_connection(_place(address), timeout=REACHED_WITHIN) as there:
            there.settimeout(REACHED_WITHIN)
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                there.sendall(HELLO)
                answer = there.recv(len(SETTINGS), socket.MSG_WAITALL)
                if answer[3:4] != SETTINGS[3:4]:
                    raise ConnectionError("another service listens there")
    except (OSError, OverflowError) as error:
        raise _not_reached(address, error) from error


def _place(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, without the brackets of IPv6."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _not_reached(address: str, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else _line(error)
    return InputError(f"Ray cannot be reached at {quoted(address)} ({reason}): is it running there?")


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Within, what Ray says of itself goes nowhere: its C++ part writes to the descriptor of stderr, a thread of its own to
    stdout. What becomes of tasks is told as events."""
    with contextlib.ExitStack() as stack:
        own = os.dup(2)
        stack.callback(os.close, own)
        if sys.stderr is sys.__stderr__ and sys.stderr is not None:
            stderr = stack.enter_context(
                open(own, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors, closefd=False)
            )
            stack.enter_context(contextlib.redirect_stderr(stderr))
        stack.callback(os.dup2, own, 2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        stack.enter_context(contextlib.redirect_stdout(_NotOfRay()))
        yield


class _NotOfRay(io.TextIOBase):
    """Standard output while Ray runs: what one of Ray's own threads prints (how a worker ended, which is told as an event) is
    left out, the rest goes to stderr."""

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else sys.stderr.write(text)


@dataclass
class _Progress:
    """A run that is being done: which shards are there, and when its first task was given to Ray."""

    run: Run
    folder: Path
    missing: set[int]
    began: float = field(default_factory=time.monotonic)
    model_sha256: str | None = None
    repairs: int = 0


class _Control:
    """Ray's control service. Once it is gone, Ray's own calls wait for it, and then end this process without a word."""

    def __init__(self, ray: Any) -> None:
        self.place: tuple[str, int] | None = None
        # a client is told no address that it reaches, and hears of the end by itself
        with contextlib.suppress(Exception):
            place = _place(str(ray.get_runtime_context().gcs_address))
            socket.create_connection(place, timeout=1).close()
            self.place = place

    def wait(self) -> None:
        """Returns when it can be reached; raises `ConnectionError` after `SILENT_SECONDS`."""
        end = time.monotonic() + SILENT_SECONDS
        while self.place is not None:
            try:
                socket.create_connection(self.place, timeout=1).close()
                return
            except OSError as error:
                if time.monotonic() > end:
                    raise ConnectionError("its control service does not answer any more") from error
            time.sleep(POLL_SECONDS)


class _Driver:
    """Gives tasks to Ray, takes what comes back, and keeps it."""

    def __init__(
        self,
        ray: Any,
        plan: Plan,
        todo: list[Run],
        out: Path,
        store: Store,
        cache: str | None,
        scratch: Path | None,
        tell: Callable[[Event], None],
    ) -> None:
        self.ray, self.plan, self.todo, self.out, self.store = ray, plan, todo, out, store
        self.cache, self.scratch, self.tell = cache, scratch, tell
        self.threads = self._threads(sum(run.shards for run in todo))
        self.rows: dict[str, Row] = {}
        self.waiting: deque[tuple[_Progress, int]] = deque()
        self.running: dict[Any, tuple[_Progress, int]] = {}
        self.control = _Control(ray)
        self.board = self._board()
        self.seen: set[str] = set()
        self.lost: set[str] = set()  # finished tasks of which nothing is left
        options = {
            "num_cpus": self.threads,
            "num_gpus": plan.tasks.gpus,
            "memory": plan.tasks.memory_gb * 2**30 or None,
            "max_retries": plan.tasks.retries,
            "retry_exceptions": True,
        }
        self.observe, self.fit = (ray.remote(**options)(each) for each in (_observe, _fit))

    def _threads(self, tasks: int) -> int:
        """CPUs of a task, so that there is a machine that has them."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        cpus, wanted = [int(node.get("CPU", 0)) for node in nodes], self.plan.tasks
        most = {
            "threads": max(cpus, default=0),
            "gpus": max((node.get("GPU", 0) for node in nodes), default=0),
            "memory_gb": max((node.get("memory", 0) for node in nodes), default=0) / 2**30,
        }
        for name, there in most.items():
            if getattr(wanted, name) > there:
                raise InputError(
                    f"The plan {self.plan.name!r} wants {name} = {getattr(wanted, name):g} for a task, but no machine has "
                    f"more than {there:g}: ask for less."
                )
        return wanted.threads or max(1, min(max(cpus, default=0), sum(cpus) // max(1, tasks)))

    def _board(self) -> Any:
        """Where tasks say how far they are: beside this process, so that it outlives other machines, and started again
        elsewhere if it does not; what is said meanwhile waits."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        return self.ray.remote(**options)(_Board).remote()

    def run(self) -> dict[str, Row]:
        for run in self.todo:
            self._open(run)
        while self.waiting or self.running:
            self.control.wait()
            while self.waiting and len(self.running) < IN_FLIGHT:
                self._submit(*self.waiting.popleft())
            finished, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS)
            self._hear()
            for reference in finished:
                self._take(reference)
        self._hear()
        return self.rows

    def _open(self, run: Run) -> None:
        """Put a run's shards in line, but for those that an earlier sweep left."""
        key = {"run": run.key, "shards": run.shards}
        folder = self.store.partial("sweep", key) if self.scratch is None else self.scratch / run.key
        progress = _Progress(run, folder, set(range(run.shards)))
        for index in range(run.shards):
            shard = _kept(progress, index)
            if shard is not None and progress.model_sha256 in (None, shard.model_sha256):
                progress.model_sha256 = shard.model_sha256
                progress.missing.discard(index)
                self.tell(Event(_name(run, index), "kept"))
        if progress.missing:
            self.waiting.extend((progress, index) for index in sorted(progress.missing))
        else:
            self.waiting.append((progress, FIT))

    def _submit(self, progress: _Progress, index: int) -> None:
        if progress.run.key in self.rows:  # it has failed meanwhile
            return
        self.control.wait()
        work = Work(progress.run, self.cache, self.threads)
        name = _name(progress.run, index)
        if index == FIT:
            observation, lost = self._merged(progress)
            if lost:
                self._repair(progress, lost)
                return
            reference = self.fit.remote(work, observation, name, self.board)
        else:
            reference = self.observe.remote(work, index, name, self.board)
        self.running[reference] = progress, index

    def _merged(self, progress: _Progress) -> tuple[Observation | None, list[int]]:
        """The observation of all shards, added in their order, and the shards that are not on disk any more."""
        merged: Observation | None = None
        lost = []
        for index in range(progress.run.shards):  # one in memory at a time
            shard = _kept(progress, index)
            if shard is None:
                lost.append(index)
            elif shard.observation is not None:
                merged = shard.observation if merged is None else merged.merge(shard.observation)
        return merged, lost

    def _repair(self, progress: _Progress, lost: list[int]) -> None:
        """Observe shards again that are not on disk any more, or damaged: a run counts every position asked for.

        Another sweep on the same cache removes them when it has finished the run, whose results are there then.
        """
        run = progress.run
        if (row := _known_row(run, self.out, self.store)) is not None:
            self.rows[run.key] = row
            self.tell(Event(run.name, "kept", "another sweep has finished it"))
            return
        progress.repairs += 1
        if progress.repairs > MOST_REPAIRS:
            where = progress.folder.parent
            self._fail(
                progress, f"Finished shards are damaged again and again in {where}: check that disk, or take another."
            )
            return
        progress.missing = set(lost)
        self.lost |= {_name(run, each) for each in lost}
        self.waiting.extendleft((progress, each) for each in lost)

    def _take(self, reference: Any) -> None:
        progress, index = self.running.pop(reference)
        if progress.run.key in self.rows:
            return
        try:
            found = self.ray.get(reference)
        except self.ray.exceptions.LocalRayletDiedError:
            raise  # the end of Ray on this machine, not of a task
        except (self.ray.exceptions.RayError, MemoryError) as error:
            self._fail(progress, _reason(error), index)
            return
        if isinstance(found, Refused):
            self._fail(progress, found.reason, index)
        elif isinstance(found, Shard):
            self._keep(progress, index, found)
        else:
            self._finish(progress, found)

    def _keep(self, progress: _Progress, index: int, shard: Shard) -> None:
        """A shard goes to disk, and the run to the next step when it was the last."""
        if progress.model_sha256 not in (None, shard.model_sha256):
            self._refuse(progress, index)
            return
        progress.model_sha256 = shard.model_sha256
        try:
            path = _file(progress, index)
            write_result(path, shard, place_of(path))
        except OSError as error:
            raise AnalysisError(
                f"Finished shards cannot be kept in {progress.folder.parent} ({disk.why(error)}): {disk.room(error)}choose "
                "another folder with --cache."
            ) from error
        progress.missing.discard(index)
        self.tell(Event(_name(progress.run, index), "done"))
        if not progress.missing:
            self.waiting.appendleft((progress, FIT))

    def _finish(self, progress: _Progress, found: Fitted) -> None:
        run, seconds = progress.run, time.monotonic() - progress.began
        if found.model_sha256 != progress.model_sha256:
            self._refuse(progress, FIT)
            return
        if self.store.enabled:
            observation, lost = self._merged(progress)
            if lost:  # while it was fitted
                self._repair(progress, lost)
                return
            worker.store_results(run, self.store, found, observation)
        row = row_of(run, found.encoding, found.revision, seconds, False)
        write_row(self.out, row)
        self.rows[run.key] = row
        shutil.rmtree(progress.folder, ignore_errors=True)
        self.tell(Event(run.name, "done", f"R² {found.encoding.r2:.3f}, {seconds:.0f} s"))

    def _refuse(self, progress: _Progress, index: int) -> None:
        """A task had another model than those before it."""
        shutil.rmtree(progress.folder, ignore_errors=True)
        self._fail(
            progress, f"{progress.run.model} is not the same model on all machines, or changed meanwhile.", index
        )

    def _fail(self, progress: _Progress, reason: str, index: int = FIT) -> None:
        run = progress.run
        row = failed_row(run, reason, time.monotonic() - progress.began)
        write_row(self.out, row)
        self.rows[run.key] = row
        self.tell(Event(_name(run, index), "failed", reason))
        for reference, (other, _) in self.running.items():
            if other is progress:
                self.ray.cancel(reference, force=False)

    def _hear(self) -> None:
        """Pass on what the tasks have said."""
        try:
            events = self.ray.get(self.board.take.remote(), timeout=10)
        except self.ray.exceptions.RayError:
            return  # the work goes on without being told of
        for event in events:
            if event.state == "started":
                state = "again" if event.task in self.seen else "started"
                if event.task in self.lost:
                    state = "anew"
                    self.lost.discard(event.task)
                self.seen.add(event.task)
                event = Event(event.task, state, event.text, event.share, event.node)
            self.tell(event)


def _file(progress: _Progress, index: int) -> Path:
    return progress.folder / f"shard-{index:04d}.safetensors"


def _kept(progress: _Progress, index: int) -> Shard | None:
    """A shard that is finished; None where it is not, or is damaged."""
    path = _file(progress, index)
    return read_result(path, Shard, place_of(path))


def _name(run: Run, index: int) -> str:
    """The fit has the run's own name, so that no task has that of another."""
    return run.name if index == FIT else f"{run.name} · part {index + 1} of {run.shards}"


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")[:200]


def _reason(error: BaseException) -> str:
    """Why Ray gave a task up, in a sentence."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"It failed unexpectedly, also when it was tried again ({type(cause).__name__}: {_line(cause)})."
    kind = type(error).__name__
    if "Memory" in kind:
        return "There is not enough memory on the worker: set memory_gb in [tasks], or take fewer positions."
    return f"Its worker was lost each time it was tried ({kind})."


# --- what runs in a worker --------------------------------------------------------------------------------------------


class _Board:
    """An actor that keeps what tasks have said until it is taken."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events


class _Telling:
    """The progress of a task, told to the board now and then."""

    def __init__(self, name: str, board: Any) -> None:
        import ray

        self.name, self.board, self.last = name, board, ("", 0.0)
        self.node = ray.get_runtime_context().get_node_id()
        self._tell("started", "", None)

    def _tell(self, state: str, text: str, share: float | None) -> None:
        self.board.tell.remote(Event(self.name, state, text, share, self.node))

    def __call__(self, phrase: str, share: float | None) -> None:
        text, at = self.last
        now = time.monotonic()
        if phrase.partition(": ")[0] != text or now - at > 1.0:
            self._tell("working", phrase, share)
            self.last = phrase.partition(": ")[0], now


def _observe(work: Work, index: int, name: str, board: Any) -> Shard | Refused:
    return worker.observe_shard(work, index, _Telling(name, board))


def _fit(work: Work, observation: Any, name: str, board: Any) -> Fitted | Refused:
    return worker.fit_run(work, observation, _Telling(name, board))
