"""Small models, observed once for all tests of `core`."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.analysis import Analysis
from core.settings import Settings
from core.store import Store
from tests.tiny import tiny_model

SETTINGS = Settings(positions=2000, context=64, held_out=0.5, seed=3)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def tiny_analysis(store: Store, tmp_path_factory: pytest.TempPathFactory):
    """An analysis of a small random model of an architecture, on the bundled sampler."""
    made: dict[str, Analysis] = {}

    def of(architecture: str) -> Analysis:
        if architecture not in made:
            folder: Path = tiny_model(architecture, tmp_path_factory.mktemp(architecture))
            made[architecture] = Analysis(str(folder), "sampler", SETTINGS, store)
        return made[architecture]

    return of
