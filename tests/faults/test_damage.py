"""Files of the cache with damaged bytes: noticed, and computed or fetched again, or told in one sentence; never believed."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core.encoding import Encoding
from core.errors import InputError
from core.model.facts import HeadFacts
from core.model.weights import file_sha256
from core.moments import Observation
from core.observe import _Kept, _Sums
from core.results import Generated, NextToken
from core.store import read_result
from core.train import Frequency, read_run
from tests.faults.conftest import Bench
from tests.faults.damage import KINDS, damage, damaged
from tests.faults.jobs import Place
from tests.ledger import refused, survived

ROOT = Path(__file__).parents[2]
TRIES = {"observe": 10, "edit": 12, "train": 22, "series": 8, "convert": 10, "fetch": 12}
"""Per job: a file of what it left, damaged, before it is done once more."""
RESULTS = {
    "encoding": Encoding,
    "observation": Observation,
    "head": HeadFacts,
    "texts": Generated,
    "prompt": NextToken,
    "frequency": Frequency,
    "chunk": _Kept,
    "sums": _Sums,
}
EACH = 250
"""Damages per kind of result, in this process."""


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "headscope")


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("job", "number"), [(job, number) for job, count in TRIES.items() for number in range(count)])
def test_a_damaged_file_and_the_job_once_more(bench: Bench, place: Place, finished, job: str, number: int) -> None:
    finished(job, place)
    random = np.random.default_rng([number, len(job)])
    files = sorted(p for p in place.home.rglob("*") if p.is_file() and p.stat().st_size)
    path = files[int(random.integers(len(files)))]
    damage(path, KINDS[number % len(KINDS)], random)
    bench.judge(job, bench.ask(job, place))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("job", ["observe", "train"])
@pytest.mark.parametrize("number", range(10))
def test_a_damaged_file_of_a_run_that_was_killed(bench: Bench, place: Place, job: str, number: int) -> None:
    bench.digest(job)
    random = np.random.default_rng([number, 99])
    bench.ask(job, place, kind="kill", at=int(bench.events[job] * random.uniform(0.3, 0.9)))
    files = sorted(p for p in place.home.rglob("*") if p.is_file() and p.stat().st_size)
    for path in random.choice(np.array(files, dtype=object), size=min(3, len(files)), replace=False):
        damage(path, KINDS[number % len(KINDS)], random)
    bench.judge(job, bench.ask(job, place))


@pytest.fixture(scope="module")
def files(bench: Bench) -> dict[str, bytes]:
    """One file of every kind of result."""
    found: dict[str, bytes] = {}
    for job, share in (("edit", 2.0), ("train", 2.0), ("observe", 0.55)):
        place = bench.case()
        bench.digest(job)
        bench.ask(job, place, kind="kill", at=int(share * bench.events[job]))
        for path in sorted(place.home.rglob("*.safetensors")):
            found.setdefault(path.name.split("-")[0].removesuffix(".safetensors"), path.read_bytes())
        if job == "train":
            found["run.json"] = (place.run / "run.json").read_bytes()
    return found


def values(result: object) -> Iterator[object]:
    """All plain values and arrays in a result, in order."""
    if dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from values(getattr(result, field.name))
    elif isinstance(result, tuple):
        for item in result:
            yield from values(item)
    else:
        yield result


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", sorted(RESULTS))
def test_thousands_of_damaged_results(files: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    import json

    from safetensors import safe_open

    path, raw, random = tmp_path / "r.safetensors", files[kind], np.random.default_rng(len(kind))
    path.write_bytes(raw)
    with safe_open(path, framework="numpy") as file:
        key = (file.metadata() or {})["key"]
    right = list(values(read_result(path, RESULTS[kind], key)))
    assert len(right) > 1 and json.dumps(key)
    for number in range(EACH):
        path.write_bytes(damaged(raw, KINDS[number % len(KINDS)], random))
        found = read_result(path, RESULTS[kind], key)
        if found is not None:  # the byte means nothing, as padding between header and numbers
            for a, b in zip(right, values(found), strict=True):
                np.testing.assert_array_equal(a, b)
        survived()


def test_damaged_hashes_are_worked_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.model import weights

    monkeypatch.setattr(weights, "_hashed", {})
    content, random, hashes = tmp_path / "file", np.random.default_rng(3), tmp_path / "hashes.json"
    content.write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    assert file_sha256(content, tmp_path) == right
    raw = hashes.read_bytes()
    for number in range(400):
        hashes.write_bytes(damaged(raw, KINDS[number % len(KINDS)], random))
        weights._hashed.clear()
        assert file_sha256(content, tmp_path) == right
        survived()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_where_a_file_of_the_cache_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for: what it stands for is made anew, or told."""
    from app import runs, uploads
    from core.model import convert, weights
    from core.train import HASHES, is_damaged

    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_hashed", {})
    content, run = tmp_path / "file", tmp_path / "runs" / "some"
    content.write_bytes(b"weights")
    run.mkdir(parents=True)
    for pipe in (
        tmp_path / "hashes.json", tmp_path / "uploads.key", run / runs.MARK, run / "run.json", run / HASHES,
        run / convert.HASHES, tmp_path / "weights",
    ):  # fmt: skip
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    assert file_sha256(content, tmp_path) == hashlib.sha256(b"weights").hexdigest()
    assert (tmp_path / "hashes.json").is_file()
    assert runs.kept() == [] and is_damaged(run) and not convert.is_converted(run, tmp_path)
    assert uploads._key() == uploads._key()
    for read in (lambda: read_run(run), lambda: file_sha256(tmp_path / "weights", tmp_path)):
        with pytest.raises(InputError, match=r"damaged|no ordinary file"):
            read()
    survived()


def test_a_file_that_changed_behind_an_old_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written over in place, same size, and the time of writing set back: the hash is that of the new content."""

    from core.model import weights

    path = tmp_path / "file"
    for number in range(20):
        path.write_bytes(b"before")
        os.utime(path, (1e9, 1e9))
        file_sha256(path, tmp_path)
        with path.open("r+b") as file:
            file.write(b"%06d" % number)
        os.utime(path, (1e9, 1e9))
        assert file_sha256(path, tmp_path) == hashlib.sha256(b"%06d" % number).hexdigest()
        survived()
    weights._hashed.clear()


def test_a_damaged_run_json_is_no_run(files: dict[str, bytes], tmp_path: Path) -> None:
    path, random = tmp_path / "run.json", np.random.default_rng(4)
    path.write_bytes(files["run.json"])
    right = read_run(tmp_path)
    for number in range(400):
        path.write_bytes(damaged(files["run.json"], KINDS[number % len(KINDS)], random))
        try:
            assert read_run(tmp_path).items() >= right.items()
            survived()
        except InputError as error:
            refused(str(error))


ROWS = """
import sys
from pathlib import Path

import numpy as np

from core.sweep.plan import parse_plan
from core.sweep.results import failed_row, read_row, write_row
from tests.faults.damage import KINDS, damaged

folder, random = Path(sys.argv[1]), np.random.default_rng(5)
run = parse_plan('models = ["demo"]', "p.toml").runs[0]
row = failed_row(run, "why", 1.25) | {"status": "done", "r2": 0.875, "warnings": ["one", "two"], "positions": 1234}
write_row(folder, row)
path, right = next(folder.glob("*.parquet")), read_row(folder, run.key)
assert right == row
raw = path.read_bytes()
for number in range(600):
    path.write_bytes(damaged(raw, KINDS[number % len(KINDS)], random))
    assert read_row(folder, run.key) in (None, right), number
print("survived")
"""


def test_damaged_rows_of_a_sweep(tmp_path: Path) -> None:
    """In a process of its own: the reader of Parquet files is a library in C++ that must not crash either."""
    done = subprocess.run([sys.executable, "-c", ROWS, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "survived\n", done.stderr[-2000:]
    survived(600)
