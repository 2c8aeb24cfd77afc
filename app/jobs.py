"""Long work, away from the pages: a bounded pool of threads, one job for everyone who asks for the same thing.

A page's thread never does what takes seconds. It asks for a job under the key of what is to be computed and draws
the job's state; a reload or a second visitor with the same key finds the job that is already there. Work is told to
stop through its progress callback, which raises `Cancelled` between two steps.

The line is fair: jobs are served by turns, and every further job of the same visitor has a later turn (start-time fair
queueing; Goyal, Vin and Cheng 1996), so that whoever asks for much waits for it and nobody else does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from app import memory
from app.rules import rules
from core.errors import Cancelled, HeadscopeError, InputError, is_out_of_memory
from core.settings import Progress, step_of

State = Literal["waiting", "running", "done", "failed", "cancelled"]
KEPT = 24
KEPT_TEXTS = 200
"""Finished jobs remembered with their results; texts are small, and every visitor of a class has some."""
WATCHING = 3.0
"""Seconds after which a page that no longer draws a job counts as gone."""
STANDS_BACK = 0.3
"""Most seconds for which a job stands back from answers, in each of its steps."""
LEAST_SHARE = 0.1
"""Of the time, that a job gets however many answers there are."""
MOST_WAITING = 100
"""Jobs in one line; more are refused."""
SILENT = 15.0
"""Seconds without any progress after which a page tells that there is none."""
REMEMBERED = 8
"""Finished jobs of which the waiting time of others is guessed."""

log = logging.getLogger("headscope")


def now() -> float:
    return time.monotonic()


class _Answers:
    """How many answers are being worked out for which somebody waits."""

    def __init__(self) -> None:
        self._open = 0
        self._change = threading.Condition()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """While a page or a slider is answered, jobs stand back: all share one interpreter. Decorates a function too."""
        with self._change:
            self._open += 1
        try:
            yield
        finally:
            with self._change:
                self._open -= 1
                self._change.notify_all()

    def let_through(self, seconds: float) -> None:
        """Wait until there is none, but not longer than that: with many visitors there is always one."""
        with self._change:
            self._change.wait_for(lambda: not self._open, seconds)


_answers = _Answers()
answering = _answers.one


@dataclass(eq=False)
class Job:
    """One piece of work and how far it is. Read by pages, written by its worker.

    Attributes:
        title: what is computed, in a few words.
        phrase, share: what it is doing, and the part done (0 to 1) or None.
        partial: what there is of the result so far, for work that can show it; set by the work.
        result, error: of a job that is done or failed; the error is one sentence.
        turn: when it is served; of two that wait the lower one goes first.
        owners: sessions that asked for it.
    """

    key: Hashable
    title: str
    work: Callable[[Progress], Any]
    turn: int = 0
    owners: set[str] = field(default_factory=set)
    state: State = "waiting"
    phrase: str = ""
    share: float | None = None
    partial: Any = None
    result: Any = None
    error: str = ""
    started: float = 0.0
    phrase_started: tuple[float, float] = (0.0, 0.0)  # clock and share when the phrase began
    went_on: float = field(default_factory=now)  # when it stood back last
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where it was asked for, of several one; "" where that is not known."""
        return _address(min(self.owners, default=""))

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running")

    def progress(self, phrase: str, share: float | None) -> None:
        """Given to the work as its progress callback."""
        _answers.let_through(min(STANDS_BACK, (now() - self.went_on) / LEAST_SHARE))
        self.went_on = now()
        if self.stop.is_set():
            raise Cancelled("Cancelled.")
        phrase = rules().said(phrase)
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

    def seconds_silent(self) -> float | None:
        """For how long it has told nothing, None where that is not worth a word."""
        silent = now() - self.went_on
        return silent if self.state == "running" and silent > SILENT else None

    def seconds_waiting(self) -> float:
        """For how long it has been in line; for one that waits."""
        return now() - self.went_on

    def watched_by_others(self, session: str) -> int:
        now = time.monotonic()
        return sum(1 for who, when in list(self.seen.items()) if who != session and now - when < WATCHING)

    def wanted_by_others(self, session: str) -> int:
        """How many others wait for it: who looks at it now and, where strangers meet, who has asked for it and was told
        that it goes on without them."""
        asked = len(self.owners - {session}) if rules().shared else 0
        return max(asked, self.watched_by_others(session))

    @property
    def left(self) -> bool:
        """Whether those who asked for it have gone: it has waited for a while, and no page draws it any more."""
        return bool(self.owners) and now() - max([self.went_on, *self.seen.values()]) > WATCHING


class Lane:
    """Jobs done by `workers` threads, by turns; one that a page shows goes first.

    Args:
        each: jobs that one visitor may have in line at a time, 0 for any number. Another one drops the oldest, unless
            others wait for it too.
        kept: finished jobs remembered with their results; the oldest leave first.
        alike: whether its jobs take about as long as each other, so that a wait can be guessed.
    """

    def __init__(self, name: str, workers: int = 1, each: int = 0, kept: int = KEPT, alike: bool = False) -> None:
        self.each, self.kept, self.alike = each, kept, alike
        self._queue: deque[Job] = deque()
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        self._turn = 0  # of the job that was started last
        self._turns: dict[str, int] = {}  # the last turn given to each visitor
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._change = threading.Condition()
        for number in range(workers):
            threading.Thread(target=self._work, name=f"headscope-{name}-{number}", daemon=True).start()

    def submit(self, key: Hashable, title: str, work: Callable[[Progress], Any], owner: str = "") -> Job:
        """The job with this key: the one that is there, however it ended (see `forget`), or a new one.

        Args:
            owner: the session that asks; "" for work of the server itself, which counts for nobody.

        Raises:
            InputError: the line is full of what others wait for.
        """
        with self._change:
            job = self._jobs.get(key)
            if job is None:
                self._make_room(owner)
                job = Job(key, title, work, self._next_turn(owner))
                self._jobs[key] = job
                self._queue.append(job)
                self._change.notify()
            if owner and job.active and owner not in job.owners:
                job.owners.add(owner)
                job.turn = min(job.turn, self._next_turn(owner))
                self._turns[owner] = max(job.turn, self._turns.get(owner, 0))
            self._jobs.move_to_end(key)
            finished = [k for k, j in self._jobs.items() if not j.active and k != key]
            for old in finished[: max(0, len(self._jobs) - self.kept)]:
                del self._jobs[old]
            return job

    def _next_turn(self, owner: str) -> int:
        return max(self._turn, self._turns.get(owner, 0) if owner else 0) + 1

    def _make_room(self, owner: str) -> None:
        if owner and self.each:
            own = [job for job in self._jobs.values() if job.active and owner in job.owners]
            for job in sorted(own, key=lambda job: job.turn)[: max(0, len(own) - self.each + 1)]:
                job.owners.discard(owner)
                if not job.owners:
                    self._drop(job)
        if len(self._queue) >= MOST_WAITING:
            left = [job for job in reversed(self._queue) if job.left] or self._crowd(owner)
            if not left:
                raise InputError(f"{MOST_WAITING} requests are waiting already: try again in a few minutes.")
            self._drop(max(left, key=lambda job: job.turn))

    def _crowd(self, owner: str) -> list[Job]:
        """The jobs that wait for the address with most of them, if that is another's and clearly more than this visitor's."""
        places = Counter(job.address for job in reversed(self._queue))
        crowd, most = places.most_common(1)[0]
        if most <= places[_address(owner)] + 1:
            return []
        return [job for job in reversed(self._queue) if job.address == crowd]

    def _drop(self, job: Job) -> None:
        """Stop what is nobody's any more; whoever asks for it again starts anew."""
        self._stop(job)
        del self._jobs[job.key]

    def find(self, key: Hashable) -> Job | None:
        with self._change:
            return self._jobs.get(key)

    def place(self, job: Job) -> int:
        """Its place in line, from 1; 0 when it is not waiting."""
        with self._change:
            return self._line().index(job) + 1 if job in self._queue else 0

    def at_work(self) -> Job | None:
        """The job that is being served."""
        with self._change:
            return next((job for job in self._jobs.values() if job.state == "running"), None)

    def _line(self) -> list[Job]:
        """Who waits, in the order in which they are served: of every address one in turn, of these each visitor in turn."""
        before: Counter[str] = Counter()
        places = {}
        for job in sorted(self._queue, key=lambda job: (job.watched_by_others("") == 0, job.turn)):
            places[job.key] = (job.watched_by_others("") == 0, before[job.address], job.turn)
            before[job.address] += 1
        return sorted(self._queue, key=lambda job: places[job.key])

    def seconds_to_wait(self, job: Job) -> float | None:
        """About how long until it is served, from how long others took; None until that can be told, where jobs are of all
        lengths, and where the one that is being served takes longer than those did."""
        place = self.place(job)
        with self._change:
            if not (place and self.alike and self._seconds):
                return None
            usual = sum(self._seconds) / len(self._seconds)
            served = self.at_work()
            gone = time.monotonic() - served.started if served is not None else 0.0
            return place * usual - gone if gone < usual else None

    def cancel(self, job: Job) -> None:
        with self._change:
            self._stop(job)

    def _stop(self, job: Job) -> None:
        job.stop.set()
        if job in self._queue:
            self._queue.remove(job)
            job.work = _spent
            job.state = "cancelled"
            job.finished.set()

    def forget(self, key: Hashable) -> None:
        """Drop a finished job, so that the next request starts a new one."""
        with self._change:
            job = self._jobs.get(key)
            if job is not None and not job.active:
                del self._jobs[key]

    def forget_finished(self) -> list[Job]:
        """Drop all finished jobs; returns those that wait or are at work."""
        with self._change:
            for key in [key for key, job in self._jobs.items() if not job.active]:
                del self._jobs[key]
            return list(self._jobs.values())

    def _work(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # where threads have a priority: pages go first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            with self._change:
                while not self._queue:
                    self._change.wait()
                job = self._line()[0]
                self._queue.remove(job)
                self._turn = max(self._turn, job.turn)
                self._turns = {who: turn for who, turn in self._turns.items() if turn > self._turn}
                job.state, job.started = "running", time.monotonic()
            _run(job)
            memory.give_back()
            if job.state == "done":
                self._seconds.append(time.monotonic() - job.started)


def _address(owner: str) -> str:
    """Where a session comes from; "" where that is not known."""
    return owner.partition("@")[2]


def _run(job: Job) -> None:
    try:
        job.progress("Starting", None)
        job.result = job.work(job.progress)
        job.state = "done"
    except Cancelled:
        job.state = "cancelled"
    except HeadscopeError as error:
        job.error, job.state = rules().said(str(error)), "failed"
    except BaseException as error:
        if is_out_of_memory(error):
            job.error = "There was not enough memory: choose fewer positions or a smaller model."
        else:
            log.error("A job failed: %s", job.title, exc_info=error)
            job.error = (
                f"{job.title} failed because of a mistake in Headscope ({type(error).__name__}); see the terminal."
            )
        job.state = "failed"
    finally:
        job.work = _spent
        job.finished.set()


def _spent(progress: Progress) -> Any:
    """In place of the work that is done: it holds the analysis with its thousands of hidden states, for hundreds of jobs."""
    raise RuntimeError("This job has been done.")


_making = (
    threading.Lock()
)  # `cache` alone lets two first visitors make two lanes, and jobs of one are lost to the other


def analyses() -> Lane:
    """Loading, observing and fitting: one at a time, it takes all cores."""
    with _making:
        return _lane("analysis", KEPT)


def generation() -> Lane:
    """Sampling texts and few-shot curves: beside a running analysis."""
    with _making:
        return _lane("generation", KEPT_TEXTS, alike=True)


@cache
def _lane(name: str, kept: int, alike: bool = False) -> Lane:
    return Lane(name, each=rules().jobs_each, kept=kept, alike=alike)
