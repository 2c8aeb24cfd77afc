"""The command line as a program sees it: exit codes, one sentence, one JSON object, and a run that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from core.cli import cli
from tests.tiny import tiny_model

SMALL = ["--positions", "400", "--context", "64", "--held-out", "0.5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("gpt2", tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def result(*arguments: str) -> dict:
    done = run(*arguments, "--json", "-")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_fit(model: str, cache: str, tmp_path: Path) -> None:
    weights, tokens = tmp_path / "w.csv", tmp_path / "t.csv"
    found = result("fit", model, *SMALL, "--cache", cache, "--weights", str(weights), "--tokens", str(tokens))
    assert found.keys() >= {
        "model",
        "revision",
        "corpus",
        "positions",
        "vocab_size",
        "dim",
        "rows_fitted",
        "r2",
        "r2_adjusted",
        "r2_held_out_tokens",
        "r2_held_out_text",
        "intercept",
        "condition_number",
        "cosine_minus_mean_hidden",
        "log_z_std",
        "effective_dims",
        "sparsity",
        "seconds",
        "cached",
    }
    assert found["sparsity"][-1].keys() >= {"dims", "r2"} and found["positions"] == 400
    assert list(pd.read_csv(weights).columns) == ["dim", "weight", "stderr", "t", "p", "saliency"]
    table = pd.read_csv(tokens)
    assert {"id", "token", "count", "alpha", "neg_log_alpha", "predicted", "residual"} <= set(table.columns)
    assert len(table) == found["rows_fitted"]
    again = result("fit", model, *SMALL, "--cache", cache)
    assert again["cached"] and {**again, "seconds": 0, "cached": 0} == {**found, "seconds": 0, "cached": 0}


def test_steer(model: str, cache: str) -> None:
    found = result(
        "steer", model, *SMALL, "--cache", cache, "--token", "id:70", "--ratio", "2", "--token", "id:80", "--ratio", "0.5",
        "--sweep", "0.5,2", "--few-shot", "16,64",
    )  # fmt: skip
    assert found.keys() >= {
        "direction",
        "calibrated",
        "tokens",
        "kl",
        "js",
        "top1_agreement",
        "others_drift",
        "delta_norm",
        "sweep",
        "few_shot",
    }
    assert found["tokens"][0].keys() >= {"id", "token", "alpha", "target", "realised", "realised_held_out", "max_ratio"}
    assert [t["id"] for t in found["tokens"]] == [70, 80]
    assert found["tokens"][0]["realised"] == pytest.approx(2, rel=1e-4)
    assert found["direction"] == "minimum-variance" and found["calibrated"]
    assert [p["ratio"] for p in found["sweep"]] == [0.5, 2] and len(found["few_shot"]) == 2


def test_generate(model: str, cache: str) -> None:
    arguments = ["--prompt", "The", "--samples", "3", "--new-tokens", "5"]
    found = result("generate", model, *SMALL, "--cache", cache, *arguments, "--token", "id:70", "--ratio", "3")
    assert len(found["before"]) == len(found["after"]) == 3 and len(found["token_counts"]) == 1
    plain = result("generate", model, *SMALL, "--cache", cache, *arguments)
    assert plain["before"] == plain["after"] == found["before"]


def test_doctor(model: str, cache: str) -> None:
    found = result("doctor", model, "--cache", cache)
    assert found.keys() >= {
        "model",
        "architecture",
        "vocab_size",
        "tokens",
        "dim",
        "tied",
        "bias",
        "softcap",
        "logit_scale",
        "padded_rows",
        "dtype",
        "parameters",
        "ram_bytes",
        "max_logit_error",
        "supported",
        "reason",
    }
    assert found["supported"] and found["max_logit_error"] < 1e-4


def test_directions(model: str, cache: str) -> None:
    found = result(
        "directions", model, *SMALL, "--cache", cache, "--ranks", "20:120", "--tokens", "5", "--ratios", "0.5,2"
    )
    assert {row["direction"] for row in found["rows"]} >= {"minimum-variance", "saliency", "least-norm", "logit-bias"}
    calibrated = next(r for r in found["rows"] if r["calibrated"] and r["direction"] == "minimum-variance")
    assert max(calibrated["fit"]) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fit", "no/such/model/name"], 2, ""),
        (["fit", "MODEL", "--corpus", "nowhere.txt"], 2, "There is no corpus"),
        (["fit", "MODEL", "--positions", "3"], 2, "--positions is 3"),
        (["fit", "MODEL", "--positions", "many"], 2, "many"),
        (["fit", "MODEL", "--dtype", "int8"], 2, "--dtype is int8"),
        (["fit", "MODEL", "--device", "abacus"], 2, "--device is abacus"),
        (["fit"], 2, "MODEL"),
        (["dance"], 2, "dance"),
        (["steer", "MODEL", "--ratio", "2"], 2, "No token is named"),
        (["steer", "MODEL", "--token", "id:5", "--ratio", "-1"], 2, "ratio is -1"),
        (["steer", "MODEL", "--token", "id:999999", "--ratio", "2"], 2, "is no token"),
        (["steer", "MODEL", "--token", "id:5", "--ratio", "2", "--direction", "up"], 2, "direction is 'up'"),
        (["steer", "MODEL", "--token", "id:5", "--ratio", "2", "--sweep", "a,b"], 2, "--sweep is 'a,b'"),
        (
            ["steer", "MODEL", "--token", "id:5", "--token", "id:6", "--ratio", "2", "--ratio", "3", "--ratio", "4"],
            2,
            "3 --ratio",
        ),
        (["generate", "MODEL", "--prompt", "x" * 50_000], 2, "50,000 characters"),
        (["generate", "MODEL", "--prompt", "x", "--samples", "0"], 2, "number of samples is 0"),
        (["directions", "MODEL", "--ranks", "7"], 2, "--ranks is '7'"),
        (["fetch", "gpt2"], 2, "no packaged model"),
        (["fit", "MODEL", "--json", "/nonexistent/x.json"], 2, "cannot be written"),
    ],
)
def test_what_is_wrong_gets_one_sentence(model: str, cache: str, arguments: list[str], code: int, said: str) -> None:
    arguments = [model if a == "MODEL" else a for a in arguments]
    shared = [] if arguments[0] in ("dance", "fetch") else SMALL
    if "--positions" in arguments:
        shared = []
    done = run(*arguments, *shared, *([] if arguments[0] == "dance" else ["--cache", cache]))
    assert done.exit_code == code, done.output
    assert said in done.stderr and "Traceback" not in done.output
    assert done.stdout == ""


def test_the_help_names_every_command() -> None:
    said = run("--help").stdout
    for command in ("app", "doctor", "fetch", "fit", "steer", "generate", "directions"):
        assert command in said


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "core.cli", *arguments]


def test_a_run_killed_with_9_goes_on_where_it_was(model: str, tmp_path: Path) -> None:
    """kill −9 while chunks are being written, then the same command: same numbers as a run that was never killed."""
    arguments = ["fit", model, "--positions", "9000", "--context", "64", "--json", "-", "--seed", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command(*arguments, "--cache", str(tmp_path / "a")), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(chunks := list((tmp_path / "a" / "partial").glob("*/chunk-*"))) < 4:
        assert started.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    kept = {path: path.stat().st_mtime_ns for path in chunks}
    assert not list((tmp_path / "a").glob("results/encoding-*"))
    found = []
    for folder in ("a", "b"):
        done = subprocess.run(
            command(*arguments, "--cache", str(tmp_path / folder)), capture_output=True, text=True, check=True,
            env=environment,
        )  # fmt: skip
        found.append(json.loads(done.stdout))
    assert not any(path.exists() for path in kept)  # used up by the run that went on
    assert {**found[0], "seconds": 0} == {**found[1], "seconds": 0}


@pytest.mark.thorough
def test_a_run_that_is_told_to_end_says_so_and_goes_on_later(model: str, tmp_path: Path) -> None:
    arguments = ["fit", model, "--positions", "30000", "--context", "64", "--cache", str(tmp_path)]
    running = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("partial/*/*.safetensors")) and time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.terminate()
    said, told = running.communicate(timeout=60)
    assert running.returncode == 143 and said == ""
    assert told.rstrip().splitlines()[-1].startswith("Stopped; the same command goes on")
    assert "Traceback" not in told
    done = subprocess.run(command(*arguments, "--json", "-"), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["positions"] == 30000, done.stderr


def test_a_table_that_is_asked_for_under_no_name(model: str, cache: str) -> None:
    done = run("fit", model, *SMALL, "--cache", cache, "--weights", "")
    assert done.exit_code == 2 and "has no name" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device here")
@pytest.mark.parametrize("also", [[], ["--json", "-"]])
def test_an_output_that_is_full(model: str, cache: str, also: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("fit", model, *SMALL, "--cache", cache, *also),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("headscope: The result cannot be written to the output (No space")
    )


def test_importing_the_command_line_is_quick() -> None:
    heavy = {"torch", "transformers", "pandas", "scipy"}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, core.cli; print(sorted({heavy} & set(sys.modules)))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
