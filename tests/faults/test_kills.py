"""Killed with −9 at any moment: the same command goes on to the same numbers, and nobody can tell that it was stopped."""

from __future__ import annotations

import numpy as np
import pytest

from tests.faults.conftest import Bench
from tests.faults.jobs import JOBS, Place
from tests.ledger import survived

KILLS = {"observe": 16, "edit": 8, "train": 16, "series": 10, "convert": 12, "fetch": 14, "export": 14}
"""Kills at an event (a step of the progress, a file that is opened, renamed or removed), spread over the whole run."""
ALARMS = {"observe": 6, "edit": 3, "train": 6, "series": 4, "convert": 4, "fetch": 4, "export": 5}
"""Kills by the clock, wherever the code is then: in Python, in torch or in the kernel."""


def cases(counts: dict[str, int]) -> list[tuple[str, float]]:
    """(job, share of the run after which it is killed), seeded and spread evenly."""
    random = np.random.default_rng(7)
    return [(job, float((i + random.random()) / count)) for job, count in counts.items() for i in range(count)]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("job", "share"), cases(KILLS))
def test_killed_at_an_event(bench: Bench, place: Place, job: str, share: float) -> None:
    bench.digest(job)
    ended = bench.ask(job, place, kind="kill", at=1 + int(share * bench.events[job]))
    assert ended.killed, ended
    bench.goes_on(job, place)
    survived()


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("job", "share"), cases(ALARMS))
def test_killed_by_the_clock(bench: Bench, place: Place, job: str, share: float) -> None:
    seconds = {"observe": 0.15, "edit": 0.2, "train": 0.8, "series": 0.4, "convert": 0.2, "fetch": 0.25, "export": 0.3}
    bench.ask(job, place, kind="alarm", seconds=share * seconds[job])  # it may be done before
    bench.goes_on(job, place)
    survived()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", sorted(JOBS))
def test_killed_again_and_again(bench: Bench, place: Place, job: str) -> None:
    """Each attempt gets a little further, and the last one to the end."""
    bench.digest(job)
    for at in (3, 9, 17, 26):
        bench.ask(job, place, kind="kill", at=at)
    bench.goes_on(job, place)
    survived(4)
