"""Jobs: shared by key, in line, told to stop, and never lost with a page."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from streamlit.testing.v1 import AppTest

from app import jobs, widgets
from app.environment import AUDIENCE_VARIABLE
from app.jobs import KEPT, MOST_WAITING, SILENT, Job, Lane, generation, now
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


@pytest.mark.parametrize("audience", ["own", "public"])
def test_who_waits_is_told_behind_what_and_for_how_long(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, audience: str
) -> None:
    """So that the line changes while nothing else does. What strangers do is not told."""
    monkeypatch.setenv(AUDIENCE_VARIABLE, audience)
    lane = Lane("test")
    running = lane.submit("a", "Training a model", gate)
    assert gate.began.wait(5)
    while running.share is None:
        time.sleep(0.01)
    waiting = [lane.submit(key, key, lambda progress: None) for key in "bc"]
    assert widgets.standing(running, lane) == "waiting at the gate"
    monkeypatch.setattr(jobs, "now", lambda: time.monotonic() + 40)
    behind = " behind “Training a model” (50 %)" if audience == "own" else ""
    said = [widgets.standing(job, lane) for job in waiting]
    assert said == [f"{place} in line{behind}, for 40 s" for place in ("next", "number 2")]


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
    torch_said = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")
    assert "not enough memory" in ended(lane.submit("t", "T", fail(torch_said))).error
    assert "mistake in Headscope (RuntimeError)" in ended(lane.submit("s", "S", fail(RuntimeError("shapes")))).error
    assert "mistake in Headscope (ZeroDivisionError)" in ended(lane.submit("c", "C", fail(ZeroDivisionError()))).error
    assert [job.state for job in map(lane.find, "abc") if job] == ["failed"] * 3
    assert ended(lane.submit("d", "D", lambda progress: 1)).state == "done"  # the worker lives on


@pytest.mark.parametrize(("audience", "others"), [("own", 0), ("public", 1)])
def test_what_a_stranger_asked_for_is_wanted_though_they_left(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, audience: str, others: int
) -> None:
    """They were told that it goes on if their page is closed; one's own computer has no strangers."""
    monkeypatch.setenv(AUDIENCE_VARIABLE, audience)
    lane = Lane("test")
    lane.submit("a", "A", gate, owner="one@here")
    job = lane.submit("a", "A", gate, owner="two@here")
    assert job.wanted_by_others("two@here") == others
    assert Job("b", "B", gate, owners={"two@here"}).wanted_by_others("two@here") == 0


def test_finished_jobs_are_bounded() -> None:
    lane = Lane("test")
    for number in range(3 * KEPT):
        ended(lane.submit(number, "N", lambda progress: None))
    assert len(lane._jobs) <= KEPT + 1


def test_one_address_does_not_fill_the_line(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full line the visitor behind few gets in for one behind many, whose last waiting job leaves."""
    monkeypatch.setattr(jobs, "MOST_WAITING", 4)
    lane = Lane("test")
    lane.submit("first", "F", gate, owner="one@crowd")
    assert gate.began.wait(5)
    waiting = [lane.submit(n, str(n), lambda progress: 1, owner=f"{n}@crowd") for n in range(4)]
    with pytest.raises(InputError, match="4 requests are waiting"):
        lane.submit("more", "M", lambda progress: 1, owner="five@crowd")
    other = lane.submit("other", "O", lambda progress: 1, owner="six@elsewhere")
    assert lane.place(other) <= 2, "addresses take turns"
    assert other.state == "waiting" and [job.state for job in waiting] == [*["waiting"] * 3, "cancelled"]
    gate.open.set()
    assert ended(other).result == 1


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


def recorder(order: list[str], name: str):
    return lambda progress: order.append(name)


def test_one_who_asks_for_much_does_not_starve_the_others(gate: Gate) -> None:
    lane, order = Lane("test"), []
    lane.submit("gate", "G", gate)
    assert gate.began.wait(5)
    for number in range(4):
        lane.submit(("a", number), "A", recorder(order, "a"), owner="a")
    last = lane.submit(("a", 4), "A", recorder(order, "a"), owner="a")
    first = [lane.submit(who, who, recorder(order, who), owner=who) for who in "bc"]
    assert [lane.place(job) for job in first] == [2, 3] and lane.place(last) == 7
    gate.open.set()
    ended(last)
    assert order == ["a", "b", "c", "a", "a", "a", "a"]


def test_newcomers_do_not_starve_the_old(gate: Gate) -> None:
    """A second job of somebody is overtaken only by those who came with their first before it."""
    lane, order = Lane("test"), []
    lane.submit("gate", "G", gate)
    assert gate.began.wait(5)
    lane.submit("a1", "A", recorder(order, "a1"), owner="a")
    second = lane.submit("a2", "A", recorder(order, "a2"), owner="a")
    lane.submit("b", "B", recorder(order, "b"), owner="b")
    gate.open.set()
    ended(second)
    gate.open.clear()
    for number in range(5):
        ended(lane.submit(("new", number), "N", recorder(order, "n"), owner=f"new {number}"))
    assert order[:3] == ["a1", "b", "a2"]


def test_another_job_of_a_visitor_drops_the_oldest(gate: Gate) -> None:
    lane, order = Lane("test", each=2), []
    running = lane.submit("gate", "G", gate, owner="a")
    assert gate.began.wait(5)
    second = lane.submit("a2", "A", recorder(order, "a2"), owner="a")
    third = lane.submit("a3", "A", recorder(order, "a3"), owner="a")
    assert ended(running).state == "cancelled"  # it was running: it stopped at its next step
    assert ended(second).state == "done" and ended(third).state == "done"


def test_what_others_wait_for_too_is_not_dropped(gate: Gate) -> None:
    lane, order = Lane("test", each=1), []
    lane.submit("gate", "G", gate)
    assert gate.began.wait(5)
    both = lane.submit("both", "B", recorder(order, "both"), owner="a")
    assert lane.submit("both", "B", recorder(order, "both"), owner="b") is both
    own = lane.submit("own", "O", recorder(order, "own"), owner="a")
    assert both.state == "waiting" and own.state == "waiting" and both.owners == {"b"}
    dropped = own
    newest = lane.submit("newest", "N", recorder(order, "newest"), owner="a")
    assert dropped.state == "cancelled" and lane.find("own") is None
    gate.open.set()
    ended(both), ended(newest)
    assert order == ["both", "newest"]


def test_what_was_dropped_can_be_asked_for_again(gate: Gate) -> None:
    lane = Lane("test", each=1)
    lane.submit("gate", "G", gate)
    assert gate.began.wait(5)
    lane.submit("x", "X", lambda progress: 1, owner="a")
    lane.submit("y", "Y", lambda progress: 2, owner="a")
    again = lane.submit("x", "X", lambda progress: 3, owner="b")
    gate.open.set()
    assert ended(again).result == 3


def test_the_line_is_bounded(gate: Gate) -> None:
    lane = Lane("test")
    lane.submit("gate", "G", gate)
    assert gate.began.wait(5)
    for number in range(MOST_WAITING):
        lane.submit(number, "N", lambda progress: None, owner=str(number))
    with pytest.raises(InputError, match="are waiting already"):
        lane.submit("more", "M", lambda progress: None)


def test_what_nobody_waits_for_any_more_makes_room_in_a_full_line(gate: Gate) -> None:
    lane = Lane("test")
    lane.submit("gate", "G", gate)
    assert gate.began.wait(5)
    ours = lane.submit("ours", "O", lambda progress: None)
    seen, *gone = [lane.submit(n, "N", lambda progress: None, owner=str(n)) for n in range(MOST_WAITING - 1)]
    for job in (ours, seen, *gone):
        job.went_on -= jobs.WATCHING + 1
    seen.seen["0"] = now() + 60
    for job in gone:
        job.seen["gone"] = now() - jobs.WATCHING - 1
    first = lane.submit("new", "M", lambda progress: None, owner="new")
    assert [job.state for job in gone].index("cancelled") == len(gone) - 1, "the latest turn first"
    first.seen["new"] = now() + 60
    for number in range(len(gone) - 1):
        lane.submit(number + 1000, "M", lambda progress: None, owner=f"new {number}").seen["new"] = now() + 60
    assert {job.state for job in gone} == {"cancelled"} and {ours.state, seen.state, first.state} == {"waiting"}
    with pytest.raises(InputError, match="are waiting already"):
        lane.submit("more", "M", lambda progress: None, owner="more")


def test_the_wait_is_guessed_from_what_others_took(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    lane = Lane("test", alike=True)
    job = lane.submit("gate", "G", gate)
    assert gate.began.wait(5)
    waiting = lane.submit("w", "W", lambda progress: None)
    assert lane.seconds_to_wait(waiting) is None and lane.seconds_to_wait(job) is None
    lane._seconds.extend([4.0, 6.0])
    assert lane.seconds_to_wait(waiting) == pytest.approx(5, abs=1)
    job.started -= 3
    assert lane.seconds_to_wait(waiting) == pytest.approx(2, abs=1)
    job.started -= 3  # longer than any other: nothing is known
    assert lane.seconds_to_wait(waiting) is None


def test_no_wait_is_guessed_where_jobs_are_of_all_lengths(gate: Gate) -> None:
    lane = Lane("test")
    lane.submit("gate", "G", gate)
    assert gate.began.wait(5)
    lane._seconds.extend([4.0, 6.0])
    assert lane.seconds_to_wait(lane.submit("w", "W", lambda progress: None)) is None


def test_first_visitors_at_the_same_moment_find_the_same_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """`functools.cache` calls a function once for each thread that comes before it has returned."""
    made = []

    class Slow(Lane):
        def __init__(self, *arguments: object, **options: object) -> None:
            made.append(self)
            time.sleep(0.05)
            super().__init__("test")

    monkeypatch.setattr(jobs, "Lane", Slow)
    jobs._lane.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: generation(), range(8)))
    jobs._lane.cache_clear()
    assert len(made) == 1 and set(map(id, found)) == {id(made[0])}


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


def test_a_job_that_tells_nothing_is_told_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(jobs, "now", lambda: clock[0])
    job = Job("a", "A", lambda progress: None, state="running")
    job.progress("Downloading", 0.5)
    for later, told in ((SILENT - 1, None), (2, SILENT + 1), (30, SILENT + 31)):
        clock[0] += later
        assert job.seconds_silent() == told
    test = AppTest.from_function(_drawn, args=(job,)).run()
    (bar,) = test.get("progress")
    assert bar.proto.text == "Downloading · 50 % · nothing new for 46 s" and not test.exception
    job.progress("Downloading", 0.6)
    assert job.seconds_silent() is None
    clock[0] += 60
    job.state = "done"
    assert job.seconds_silent() is None


def _drawn(job: object) -> None:
    from app import jobs, state, widgets

    state.start()
    widgets._progress(job, jobs.analyses(), None, 1.0, None)


class Large:
    """Stands for an analysis with its hidden states."""


@pytest.mark.parametrize("ending", ["done", "failed", "cancelled in line"])
def test_an_ended_job_lets_go_of_what_its_work_held(ending: str, gate: Gate) -> None:
    def fail(held: Large) -> None:
        raise InputError("Not like this.")

    lane, held = Lane("test"), Large()
    there = weakref.ref(held)
    if ending == "cancelled in line":
        lane.submit("before", "before", gate)
        assert gate.began.wait(5)
    work = fail if ending == "failed" else lambda held: None
    job = lane.submit("a", "A", lambda progress, held=held: work(held))  # type: ignore[misc]
    if ending == "cancelled in line":
        lane.cancel(job)
    assert ended(job).state == ending.split()[0]
    del held
    gc.collect()
    assert lane.find("a") is job and there() is None


def test_a_job_stands_back_from_answers_but_gets_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited = [0.0], []
    monkeypatch.setattr(jobs, "now", lambda: clock[0])

    def wait(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():  # and no job that another test left
            waited.append(seconds)
            clock[0] += seconds  # there is an answer all the time

    monkeypatch.setattr(jobs._answers, "let_through", wait)
    job = Job("key", "Work", lambda progress: None, went_on=0.0)
    began = clock[0]
    for step in [0.001] * 100 + [0.01] * 100 + [1.0]:
        clock[0] += step
        job.progress("Working", None)
    worked = 0.1 + 1.0 + 1.0
    assert max(waited) == pytest.approx(jobs.STANDS_BACK), "a long step is not made to wait for long"
    assert waited[0] == pytest.approx(0.01)
    assert worked / (clock[0] - began) > 0.9 * jobs.LEAST_SHARE


def test_standing_back_ends_with_the_last_answer() -> None:
    began = time.monotonic()
    with jobs.answering():
        jobs._answers.let_through(0.05)
    assert 0.04 < time.monotonic() - began < 1
    began = time.monotonic()
    jobs._answers.let_through(30)
    assert time.monotonic() - began < 1, "nobody waits for an answer"
    answer = jobs.answering()
    answer.__enter__()
    threading.Timer(0.1, answer.__exit__, (None, None, None)).start()
    jobs._answers.let_through(30)
    assert time.monotonic() - began < 5
