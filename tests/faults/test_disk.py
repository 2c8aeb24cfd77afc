"""A disk that is full, failing or not ours to write to: the result all the same or one sentence, and nothing half written."""

from __future__ import annotations

import numpy as np
import pytest

from tests.faults.conftest import Bench
from tests.faults.jobs import JOBS, Place

FULL, ONCE, LIMITS = 4, 3, 5
"""Cases per job: no space from some write on; at one write only; no file beyond a size, whoever writes it."""
RANDOM = np.random.default_rng(11)
SHARES = [(job, float(share)) for job in JOBS for share in (np.arange(FULL) + RANDOM.random(FULL)) / FULL]
TIMES = [(job, float(share)) for job in JOBS for share in (np.arange(ONCE) + RANDOM.random(ONCE)) / ONCE]
SIZES = [(job, int(size)) for job in JOBS for size in np.exp(RANDOM.uniform(np.log(20), np.log(300_000), LIMITS))]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("job", "share"), SHARES)
def test_no_space_from_some_write_on(bench: Bench, place: Place, job: str, share: float) -> None:
    bench.digest(job)
    bench.judge(job, bench.ask(job, place, kind="full", at=1 + int(share * bench.events[job])))
    bench.goes_on(job, place)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("job", "share"), TIMES)
def test_no_space_for_a_moment(bench: Bench, place: Place, job: str, share: float) -> None:
    bench.digest(job)
    bench.judge(job, bench.ask(job, place, kind="full", at=1 + int(share * bench.events[job]), once=True))
    bench.goes_on(job, place)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("job", "size"), SIZES)
def test_writes_that_end_in_the_middle(bench: Bench, place: Place, job: str, size: int) -> None:
    bench.judge(job, bench.ask(job, place, kind="limit", bytes=size))
    bench.goes_on(job, place)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", sorted(JOBS))
@pytest.mark.parametrize("kind", ["fsync", "safetensors"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_library_that_reports_it_in_its_own_way(bench: Bench, place: Place, job: str, kind: str, at: int) -> None:
    bench.judge(job, bench.ask(job, place, kind=kind, at=at))
    bench.goes_on(job, place)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", sorted(JOBS))
def test_a_folder_that_is_read_only(bench: Bench, place: Place, job: str) -> None:
    """As root the case runs as nobody, to whom the folder does not belong."""
    place.home.chmod(0o555)
    bench.judge(job, bench.ask(job, place, kind="read-only"))
    place.home.chmod(0o755)
    bench.goes_on(job, place)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", sorted(JOBS))
def test_a_folder_that_may_not_even_be_read(bench: Bench, place: Place, job: str, finished) -> None:
    finished(job, place)
    place.home.chmod(0o000)
    ended = bench.ask(job, place, kind="read-only")
    place.home.chmod(0o755)
    bench.judge(job, ended)
    bench.goes_on(job, place)
