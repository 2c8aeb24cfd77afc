"""Long work, away from the pages: a bounded pool of threads, one job for everyone who asks for the same thing.

A page's thread never does what takes seconds. It asks for a job under the key of what is to be computed and draws
the job's state; a reload or a second visitor with the same key finds the job that is already there. Work is told to
stop through its progress callback, which raises `Cancelled` between two steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from core.errors import Cancelled, HeadscopeError
from core.settings import Progress, step_of

State = Literal["waiting", "running", "done", "failed", "cancelled"]
KEPT = 24
"""Finished jobs remembered with their results; the oldest leave first."""
WATCHING = 3.0
"""Seconds after which a page that no longer draws a job counts as gone."""

log = logging.getLogger("headscope")


def now() -> float:
    return time.monotonic()


@dataclass(eq=False)
class Job:
    """One piece of work and how far it is. Read by pages, written by its worker.

    Attributes:
        title: what is computed, in a few words.
        phrase, share: what it is doing, and the part done (0 to 1) or None.
        partial: what there is of the result so far, for work that can show it; set by the work.
        result, error: of a job that is done or failed; the error is one sentence.
    """

    key: Hashable
    title: str
    work: Callable[[Progress], Any]
    state: State = "waiting"
    phrase: str = ""
    share: float | None = None
    partial: Any = None
    result: Any = None
    error: str = ""
    started: float = 0.0
    phrase_started: tuple[float, float] = (0.0, 0.0)  # clock and share when the phrase began
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running")

    def progress(self, phrase: str, share: float | None) -> None:
        """Given to the work as its progress callback."""
        if self.stop.is_set():
            raise Cancelled("Cancelled.")
        if step_of(phrase) != step_of(self.phrase) or (share or 0.0) < (self.share or 0.0):
            self.phrase_started = (time.monotonic(), share or 0.0)
        self.phrase, self.share = phrase, share

    def seconds_left(self) -> float | None:
        """For the step it is at, from its own speed; None until that can be told."""
        since, at = self.phrase_started
        elapsed = time.monotonic() - since
        if self.share is None or self.share - at < 0.02 or elapsed < 1:
            return None
        return elapsed * (1 - self.share) / (self.share - at)

    def watched_by_others(self, session: str) -> int:
        now = time.monotonic()
        return sum(1 for who, when in list(self.seen.items()) if who != session and now - when < WATCHING)


class Lane:
    """Jobs done by `workers` threads, first come first served; one that a page shows goes first."""

    def __init__(self, name: str, workers: int = 1) -> None:
        self._queue: deque[Job] = deque()
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        self._change = threading.Condition()
        for number in range(workers):
            threading.Thread(target=self._work, name=f"headscope-{name}-{number}", daemon=True).start()

    def submit(self, key: Hashable, title: str, work: Callable[[Progress], Any]) -> Job:
        """The job with this key: the one that is there, however it ended (see `forget`), or a new one."""
        with self._change:
            job = self._jobs.get(key)
            if job is None:
                job = Job(key, title, work)
                self._jobs[key] = job
                self._queue.append(job)
                self._change.notify()
            self._jobs.move_to_end(key)
            finished = [k for k, j in self._jobs.items() if not j.active and k != key]
            for old in finished[: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[old]
            return job

    def find(self, key: Hashable) -> Job | None:
        with self._change:
            return self._jobs.get(key)

    def place(self, job: Job) -> int:
        """Its place in line, from 1; 0 when it is not waiting."""
        with self._change:
            return self._queue.index(job) + 1 if job in self._queue else 0

    def cancel(self, job: Job) -> None:
        with self._change:
            job.stop.set()
            if job in self._queue:
                self._queue.remove(job)
                job.state = "cancelled"
                job.finished.set()

    def forget(self, key: Hashable) -> None:
        """Drop a finished job, so that the next request starts a new one."""
        with self._change:
            job = self._jobs.get(key)
            if job is not None and not job.active:
                del self._jobs[key]

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._queue:
                    self._change.wait()
                job = next((j for j in self._queue if j.watched_by_others("")), self._queue[0])
                self._queue.remove(job)
                job.state, job.started = "running", time.monotonic()
            _run(job)


def _run(job: Job) -> None:
    try:
        job.progress("Starting", None)
        job.result = job.work(job.progress)
        job.state = "done"
    except Cancelled:
        job.state = "cancelled"
    except HeadscopeError as error:
        job.error, job.state = str(error), "failed"
    except MemoryError:
        job.error, job.state = "There was not enough memory: choose fewer positions or a smaller model.", "failed"
    except BaseException as error:
        log.error("A job failed: %s", job.title, exc_info=error)
        job.error = f"{job.title} failed because of a mistake in Headscope ({type(error).__name__}); see the terminal."
        job.state = "failed"
    finally:
        job.finished.set()


@cache
def analyses() -> Lane:
    """Loading, observing and fitting: one at a time, it takes all cores."""
    return Lane("analysis")


@cache
def generation() -> Lane:
    """Sampling texts and few-shot curves: beside a running analysis."""
    return Lane("generation")
