"""Several processes that share a cache, a run or a target: all end with the same numbers, or one says the place is taken."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Bench
from tests.faults.jobs import JOBS, Place


@pytest.mark.sampled(5)
@pytest.mark.parametrize("many", [2, 4])
@pytest.mark.parametrize("job", sorted(JOBS))
def test_the_same_job_at_once(bench: Bench, place: Place, job: str, many: int) -> None:
    ended = bench.together(job, place, many)
    for each in ended:
        bench.judge(job, each)
    assert any(each.digest for each in ended), ended
    if job != "export":  # of two exports to the same folder the second is refused
        assert all(each.digest for each in ended), ended
    bench.goes_on(job, place)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", sorted(JOBS))
def test_one_is_killed_and_the_others_go_on(bench: Bench, place: Place, job: str) -> None:
    bench.digest(job)
    bench.ask(job, place, kind="kill", at=bench.events[job] // 2)
    for each in bench.together(job, place, 2):
        bench.judge(job, each)
    bench.goes_on(job, place)
