"""Clocks that are wrong, or jump: results are kept and found by what they depend on, not by dates."""

from __future__ import annotations

import os

import pytest

from tests.faults.conftest import Bench
from tests.faults.jobs import JOBS, Place

YEARS = 365 * 24 * 3600.0


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", sorted(JOBS))
@pytest.mark.parametrize("years", [-20, 12])
def test_a_clock_that_is_years_off(bench: Bench, place: Place, job: str, years: float) -> None:
    bench.digest(job)
    bench.ask(job, place, kind="kill", at=bench.events[job] // 2)
    bench.judge(job, bench.ask(job, place, kind="clock", seconds=years * YEARS))
    bench.goes_on(job, place)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", sorted(JOBS))
def test_clocks_that_jump(bench: Bench, place: Place, job: str) -> None:
    bench.judge(job, bench.ask(job, place, kind="jumps", seed=len(job)))
    bench.goes_on(job, place)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", sorted(JOBS))
@pytest.mark.parametrize("date", [0.0, 4e9])
def test_files_of_another_age(bench: Bench, place: Place, finished, job: str, date: float) -> None:
    """From 1970, or from the next century: as a copied or restored cache may have them."""
    finished(job, place)
    for path in place.home.rglob("*"):
        os.utime(path, (date, date))
    ended = bench.ask(job, place)
    bench.judge(job, ended)
    assert ended.digest
