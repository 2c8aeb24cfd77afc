"""Every test here is marked `faults`. Inputs and the process that forks are made once; every case has a folder of its own."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.forks import Ended, Forks
from tests.faults.jobs import JOBS, Place, as_json, prepare
from tests.ledger import refused, survived

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.faults)


class Bench:
    """Does jobs with faults built in, and knows what each gives without."""

    def __init__(self, shared: Place, home: Path) -> None:
        self.shared, self.home, self.forks = shared, home, Forks()
        self.numbers = itertools.count()
        self.forks.ask("warm", as_json(self.case()))
        self.right: dict[str, str] = {}
        self.events: dict[str, int] = {}

    def case(self) -> Place:
        """A place of its own for a case."""
        home = self.home / f"case-{next(self.numbers)}"
        home.mkdir()
        return Place(**{**{name: Path(path) for name, path in as_json(self.shared).items()}, "home": home})

    def ask(self, job: str, place: Place, **fault: Any) -> Ended:
        return self.forks.ask(job, as_json(place), fault)[0]

    def together(self, job: str, place: Place, many: int) -> list[Ended]:
        return self.forks.ask(job, as_json(place), together=many)

    def digest(self, job: str) -> str:
        """What the job gives where nothing goes wrong."""
        if job not in self.right:
            ended = self.ask(job, self.case())
            assert ended.digest, ended
            self.right[job], self.events[job] = ended.digest, ended.events
        return self.right[job]

    def judge(self, job: str, ended: Ended) -> None:
        """A case is right if it gave the right result or a sentence of ours."""
        if ended.digest is not None:
            assert ended.digest == self.digest(job), f"{job} gave other numbers"
            survived()
        else:
            assert ended.kind in ("InputError", "AnalysisError"), f"{job}: {ended.sentence}"
            refused(ended.sentence or "")

    def goes_on(self, job: str, place: Place) -> None:
        """Without the fault the same command comes to the right result, and leaves nothing half done."""
        ended = self.ask(job, place)
        assert ended.digest == self.digest(job), f"{job} did not go on: {ended}"
        assert not leftovers(place), leftovers(place)


def leftovers(place: Place) -> list[str]:
    """What an unfinished run may leave, but a finished one must not.

    A result that was being written stays for an hour, for it may be another process that writes it (`Store`).
    """
    found = [*place.home.rglob(".writing-*"), *place.home.rglob("*.part-*"), *place.home.rglob(".headscope-export-*")]
    return [str(path.relative_to(place.home)) for path in found if path.parent.name != "results"]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("faults")
    base = tmp_path_factory.getbasetemp()
    # some cases run as another user, who must be able to read; a process of several has one folder more
    for folder in (home, base, base.parent, *([base.parent.parent] if "PYTEST_XDIST_WORKER" in os.environ else [])):
        folder.chmod(0o755)
    bench = Bench(prepare(home), home)
    yield bench
    bench.forks.close()


@pytest.fixture
def place(bench: Bench) -> Iterator[Place]:
    place = bench.case()
    yield place
    shutil.rmtree(place.home, ignore_errors=True)


@pytest.fixture(scope="session")
def finished(bench: Bench) -> Callable[[str, Place], None]:
    """Puts into a place what a job leaves there when nothing goes wrong."""
    kept: dict[str, Place] = {}

    def put(job: str, place: Place) -> None:
        if job not in kept:
            kept[job] = bench.case()
            assert bench.ask(job, kept[job]).digest == bench.digest(job)
        shutil.copytree(kept[job].home, place.home, dirs_exist_ok=True)

    return put


__all__ = ["JOBS", "Bench"]
