"""Jobs: shared by key, in line, told to stop, and never lost with a page."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from app.jobs import KEPT, Job, Lane, now
from core.errors import InputError
from core.settings import Progress, tell_bytes


class Gate:
    """Work that waits to be let through, telling its progress."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.began = threading.Event()

    def __call__(self, progress: Progress) -> str:
        self.began.set()
        while not self.open.wait(0.01):
            progress("Waiting at the gate", 0.5)
        return "through"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def ended(job: Job) -> Job:
    assert job.finished.wait(5)
    return job


def test_the_same_key_is_one_job(gate: Gate) -> None:
    lane = Lane("test")
    first = lane.submit("a", "A", gate)
    assert lane.submit("a", "A", gate) is first
    gate.open.set()
    assert ended(first).result == "through"
    assert lane.submit("a", "A", gate) is first  # done: its result is there for the next visitor
    assert lane.find("a") is first and lane.find("b") is None


def test_jobs_wait_in_line_and_tell_their_place(gate: Gate) -> None:
    lane = Lane("test")
    running = lane.submit("a", "A", gate)
    assert gate.began.wait(5)
    waiting = [lane.submit(key, key, lambda progress: None) for key in "bc"]
    assert [lane.place(job) for job in (running, *waiting)] == [0, 1, 2]
    assert [job.state for job in waiting] == ["waiting", "waiting"]
    gate.open.set()
    assert [ended(job).state for job in waiting] == ["done", "done"]


def test_a_running_job_is_cancelled_at_its_next_step(gate: Gate) -> None:
    lane = Lane("test")
    job = lane.submit("a", "A", gate)
    assert gate.began.wait(5)
    lane.cancel(job)
    assert ended(job).state == "cancelled"
    lane.forget("a")
    again = lane.submit("a", "A", lambda progress: 1)
    assert again is not job and ended(again).result == 1


def test_a_waiting_job_is_cancelled_at_once(gate: Gate) -> None:
    lane = Lane("test")
    lane.submit("a", "A", gate)
    assert gate.began.wait(5)
    job = lane.submit("b", "B", lambda progress: 1)
    lane.cancel(job)
    assert job.state == "cancelled" and job.finished.is_set()


def test_a_running_job_is_not_forgotten(gate: Gate) -> None:
    lane = Lane("test")
    job = lane.submit("a", "A", gate)
    lane.forget("a")
    assert lane.find("a") is job


def test_failures_become_sentences(caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: BaseException):
        def work(progress: Progress) -> None:
            raise error

        return work

    lane = Lane("test")
    assert ended(lane.submit("a", "A", fail(InputError("Give a number.")))).error == "Give a number."
    assert "not enough memory" in ended(lane.submit("b", "B", fail(MemoryError()))).error
    assert "mistake in Headscope (ZeroDivisionError)" in ended(lane.submit("c", "C", fail(ZeroDivisionError()))).error
    assert [job.state for job in map(lane.find, "abc") if job] == ["failed"] * 3
    assert ended(lane.submit("d", "D", lambda progress: 1)).state == "done"  # the worker lives on


def test_finished_jobs_are_bounded() -> None:
    lane = Lane("test")
    for number in range(3 * KEPT):
        ended(lane.submit(number, "N", lambda progress: None))
    assert len(lane._jobs) <= KEPT + 1


def test_one_that_is_looked_at_goes_first(gate: Gate) -> None:
    lane, order = Lane("test"), []
    lane.submit("a", "A", gate)
    assert gate.began.wait(5)
    left = lane.submit("b", "B", lambda progress: order.append("b"))
    seen = lane.submit("c", "C", lambda progress: order.append("c"))
    seen.seen["visitor"] = now()
    gate.open.set()
    ended(left), ended(seen)
    assert order == ["c", "b"]


def test_time_left_comes_from_the_speed_of_the_phrase(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("app.jobs.time.monotonic", lambda: clock[0])
    job = Job("a", "A", lambda progress: None)
    job.progress("Reading", 0.0)
    assert job.seconds_left() is None
    clock[0] += 10
    job.progress("Reading", 0.25)
    assert job.seconds_left() == pytest.approx(30)
    job.progress("Fitting", None)
    assert job.seconds_left() is None
    tell_bytes(job.progress, "Fetching", 0, 93e6)
    clock[0] += 10
    tell_bytes(job.progress, "Fetching", 31e6, 93e6)  # the same step, although its phrase counts on
    assert job.phrase == "Fetching: 31 of 93 MB"
    assert job.seconds_left() == pytest.approx(20)
