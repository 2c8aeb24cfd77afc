"""`headscope prune` as a program sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from core.cli.commands import cli
from core.pruning.names import METHODS, STANDARD
from tests.tiny import tiny_model

SMALL = ["--positions", "400", "--context", "64", "--held-out", "0.5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("gpt2", tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["prune", *arguments])


def test_the_table_of_all_methods(model: str, cache: str) -> None:
    done = run(model, *SMALL, "--cache", cache)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].split()[0] == "removed" and "10 % (29 stay)" in lines[2] and "50 % (16 stay)" in lines[2]
    assert [line.split()[0] for line in lines[3:]] == list(STANDARD)
    assert "–" in next(line for line in lines if line.startswith("random"))  # the band of its seeds


def test_the_table_with_the_methods_that_let_the_model_write(model: str, cache: str) -> None:
    done = run(model, *SMALL, "--cache", cache, "--method", "all", "--remove", "0.3,0.3", "--seeds", "1")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("30 % (22 stay)") == 1
    assert [line.split()[0] for line in done.stdout.splitlines()[3:]] == list(METHODS)


def test_json(model: str, cache: str, tmp_path: Path) -> None:
    done = run(
        model, *SMALL, "--cache", cache, "--method", "saliency,rotated", "--remove", "0,0.3", "--judge", "python-docs",
        "--keep-top1", "0.5", "--time", "--json", "-",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["judged_on"] == found["corpus"] == "sampler" and found["perplexity_full"] > 1
    assert [(p["method"], p["removed"], p["dims"]) for p in found["curve"]] == [
        ("saliency", 0, 32), ("saliency", 0.3, 22), ("rotated", 0, 32), ("rotated", 0.3, 22),
    ]  # fmt: skip
    for point in found["curve"]:
        assert point.keys() >= {"kl", "js", "top1_agreement", "perplexity", "perplexity_ratio"}
        assert (point["kl"] <= 1e-9) == (point["removed"] == 0)
        assert sum(point["kl_by_decile"]) >= -1e-6 and len(point["drift_by_decile"]) == 10
    other = found["other"]
    assert (other["corpus"], other["judged_on"]) == ("sampler", "python-docs") and len(other["curve"]) == 4
    assert other["curve"][1]["kl"] != found["curve"][1]["kl"]
    assert found["largest_removed"].keys() == {"saliency", "rotated"}
    cost = found["cost"][1]
    assert (cost["method"], cost["dims"], cost["dim"]) == ("rotated", 16, 32)
    assert cost["bytes"] < cost["bytes_full"] and [each["positions"] for each in cost["speed"]] == [1, 16, 128, 512]
    assert all(each["ratio"] == pytest.approx(each["seconds"] / each["seconds_full"]) for each in cost["speed"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--method", "magic"), "The method is 'magic', but it must be one of saliency,"),
        (("--method", "saliency,all"), "'all' names every method by itself"),
        (("--remove", "1"), "The fraction to remove is 1, but it must be from 0"),
        (("--remove", "-0.1,0.3"), "The fraction to remove is -0.1"),
        (("--remove", "nan"), "The fraction to remove is nan"),
        (("--remove", "much"), "--remove is 'much', but it must be numbers with commas"),
        (("--keep-top1", "1.5"), "--keep-top1 is 1.5"),
    ],
)
def test_bad_arguments_get_one_sentence(model: str, cache: str, arguments: tuple[str, ...], sentence: str) -> None:
    done = run(model, *SMALL, "--cache", cache, *arguments)
    assert done.exit_code == 2 and sentence in done.stderr and done.stdout == ""


def test_results_are_read_without_torch() -> None:
    code = (
        "import sys, core.cli.prune, core.pruning.result, core.pruning.names, core.summary; "
        "print(sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
