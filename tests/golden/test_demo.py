"""The results on `demo` are those of the golden file, in any process and with any number of threads.

After a change that is meant to change numbers: `python -m tests.golden`, and say in the commit why they changed.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden.results import DIGITS, FILE, SAME_DIGITS, differences

ROOT = Path(__file__).parents[2]
THREADS = ("HEADSCOPE_GOLDEN_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@pytest.fixture(scope="module")
def computed() -> dict[int, Any]:
    """The results of two processes, by their number of threads; they run at the same time."""
    processes = {
        threads: subprocess.Popen(
            [sys.executable, "-m", "tests.golden", "--print"],
            cwd=ROOT,
            env=os.environ | dict.fromkeys(THREADS, str(threads)) | {"OMP_WAIT_POLICY": "passive"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for threads in (1, 2)
    }
    found = {}
    for threads, process in processes.items():
        output, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()[-2000:]
        found[threads] = json.loads(output)
    return found


@pytest.mark.parametrize("threads", [1, 2])
def test_the_results_are_the_golden_ones(computed: dict[int, Any], threads: int) -> None:
    golden = json.loads(FILE.read_text("utf-8"))
    found = differences(golden, computed[threads], DIGITS)
    assert found == [], "\n".join([*found[:20], "meant to be so? python -m tests.golden"])


def test_two_processes_with_one_and_two_threads_give_the_same(computed: dict[int, Any]) -> None:
    assert differences(computed[1], computed[2], SAME_DIGITS) == []


def test_a_change_in_the_last_digit_is_seen() -> None:
    golden = json.loads(FILE.read_text("utf-8"))
    changed = copy.deepcopy(golden)
    changed["fit"]["r2"] *= 1.001
    changed["steer"]["tokens"][0]["realised_held_out"] *= 0.999
    changed["prune"]["curve"][1]["top1_agreement"] += 0.01
    changed["generate"][0] += "."
    assert len(differences(golden, changed, DIGITS)) == 4
    assert differences({"a": 1.0}, {"b": 1.0}, DIGITS) and differences([1.0], [1.0, 2.0], DIGITS)
