"""Rows of the comparison are the numbers of the other rooms, from the store, the model or a sweep's data set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from core.analysis import Analysis
from core.cli.commands import cli
from core.compare import (
    RATIOS,
    TOKENS,
    Row,
    as_json,
    compare_row,
    cosines,
    distinct,
    finding,
    names,
    read_data,
    steering_accuracy,
    stored_row,
)
from core.errors import InputError
from core.figures import compare as figures
from core.results import plain
from core.settings import Settings
from core.store import Store
from core.sweep.plan import Run
from core.sweep.results import failed_row, row_of, write_row
from tests.app.arrays import ArrayAnalysis, planted
from tests.core.conftest import SETTINGS
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def rows(model: Path, store: Store) -> list[Row]:
    """One model on two texts, measured."""
    return [compare_row(Analysis(str(model), corpus, SETTINGS, store)) for corpus in ("sampler", "python-docs")]


def test_a_row_holds_the_numbers_of_the_other_rooms(model: Path, store: Store, rows: list[Row]) -> None:
    analysis = Analysis(str(model), "sampler", SETTINGS, store)
    encoding, row = analysis.encoding(), rows[0]
    assert (row.r2, row.r2_held_out_text, row.effective_dims) == (
        encoding.r2,
        encoding.r2_held_out_text,
        encoding.effective_dims,
    )
    assert row.sparsity == encoding.sparsity and np.array_equal(row.weights, encoding.weights)
    assert (row.model, row.corpus, row.positions, row.seed) == (str(model), "sampler", 2000, 3)
    size = len(encoding.token_ids)
    ids = analysis.tokens_of_rank(size // 10, size, TOKENS)
    together = analysis.compare_directions(ids, RATIOS, ("minimum-variance",), (True,))[0]
    assert row.steering is not None and row.steering.reached == pytest.approx(together.reached)
    np.testing.assert_allclose(row.steering.held_out, together.held_out, rtol=1e-9)
    judged = analysis.prune(("rotated",), (0.3,))[0].points[0]
    curve = next(each for each in row.pruning if each.method == "rotated")
    at = next(p for p in curve.points if p.removed == 0.3)
    assert at.top1_agreement == pytest.approx(judged.top1_agreement) and at.kl == pytest.approx(judged.kl, rel=1e-5)


def test_a_stored_row_needs_no_model(
    model: Path, store: Store, rows: list[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Analysis, "loaded", load)
    found = stored_row(Analysis(str(model), "sampler", SETTINGS, store), model="gpt2", corpus="text")
    assert found is not None and found.complete and (found.model, found.corpus) == ("gpt2", "text")
    assert plain(as_json([replace(found, model=rows[0].model, corpus="sampler")])) == plain(as_json(rows[:1]))
    assert stored_row(Analysis(str(model), "sampler", SETTINGS, Store(tmp_path))) is None
    other = Settings(positions=2000, context=64, held_out=0.5, seed=4)
    assert stored_row(Analysis(str(model), "sampler", other, store)) is None


def test_a_row_is_told_of_as_it_grows(store: Store, model: Path, rows: list[Row]) -> None:
    told: list[Row] = []
    analysis = Analysis(str(model), "sampler", SETTINGS, store)
    compare_row(analysis, on_row=told.append)
    assert [(row.steering is not None, bool(row.pruning)) for row in told] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    assert not compare_row(analysis, steering=False, pruning=False).complete


def test_an_analysis_without_files_is_not_mixed_up_with_others() -> None:
    """Nothing is stored under a key that does not say of which model it is."""
    assert steering_accuracy(ArrayAnalysis()).reached != ()
    assert stored_row(ArrayAnalysis()).steering is None  # type: ignore[union-attr]


def test_cosines() -> None:
    one, other = np.array([3.0, 4.0]), np.array([4.0, -3.0])
    some = [Row("a", "t", weights=w) for w in (one, -one, other, np.ones(3), np.zeros(0), np.zeros(2))]
    found = cosines(some)
    np.testing.assert_allclose(found[:3, :3], [[1, -1, 0], [-1, 1, 0], [0, 0, 1]], atol=1e-12)
    assert np.isnan(found[:3, 3:]).all() and found[3, 3] == pytest.approx(1) and np.isnan(found[4:]).all()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([Row("demo", "sampler"), Row("smollm2", "sampler")], ["demo", "smollm2"]),
        ([Row("demo", "sampler"), Row("demo", "python-docs")], ["sampler", "python-docs"]),
        ([Row("demo", "a"), Row("smollm2", "b")], ["demo · a", "smollm2 · b"]),
        (
            [Row("m", "t", positions=1024), Row("m", "t", positions=4096)],
            ["t · 1,024 positions", "t · 4,096 positions"],
        ),
        ([Row("m", "t", seed=1), Row("m", "t", seed=2)], ["t · seed 1", "t · seed 2"]),
        ([Row("o/m@a", "t", revision="1"), Row("o/m@b", "t", revision="2")], ["o/m@a", "o/m@b"]),
        ([Row("./models/mine", "./texts/a.txt")], ["mine"]),
        ([Row("m", "t", revision="1"), Row("m", "t", revision="2")], ["1", "2"]),
    ],
)
def test_rows_are_told_apart_by_what_differs(rows: list[Row], told: list[str]) -> None:
    assert names(rows) == told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([], "Nothing is measured yet."),
        ([0.913], "So far one row: a line explains 91 % of −log α on text it has not seen."),
        ([0.8, 0.91], "It holds in all 2: a line explains 80–91 % of −log α on text it has not seen."),
        ([0.8, 0.2, 0.8], "It holds in 2 of 3: a line explains 20–80 % of −log α on text it has not seen."),
        ([0.1, 0.1], "It holds in 0 of 2: a line explains 10 % of −log α on text it has not seen."),
    ],
)
def test_the_finding(values: list[float], told: str) -> None:
    assert finding([*(Row("m", str(v), r2_held_out_text=v) for v in values), Row("broken", "t", error="no")]) == told


def test_the_rows_of_a_sweep(tmp_path: Path) -> None:
    encoding = planted()[2]
    good, bad = (
        Run(name, "sampler", name, "sampler", "0" * 64, Settings(seed=5), 1) for name in ("demo", "<b>gone</b>")
    )
    write_row(tmp_path, row_of(good, encoding, "abc", 1.0, False))
    write_row(tmp_path, failed_row(bad, "There is no such model.", 1.0))
    failed, row = read_data(tmp_path)
    assert failed.error == "There is no such model." and np.isnan(failed.r2) and failed.model == "<b>gone</b>"
    assert (row.model, row.revision, row.seed, row.positions, row.dim) == ("demo", "abc", 5, 400, 6)
    assert (row.r2, row.log_z_std) == (encoding.r2, encoding.log_z_std) and row.sparsity == encoding.sparsity
    assert not len(row.weights) and not row.complete
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="There is no run in"):
        read_data(tmp_path / "empty")
    with pytest.raises(InputError, match="no folder"):
        read_data(tmp_path / "nowhere")


def test_damaged_files_of_a_sweep_are_named(tmp_path: Path) -> None:
    run = Run("demo", "sampler", "demo", "sampler", "0" * 64, Settings(), 1)
    write_row(tmp_path, row_of(run, planted()[2], "abc", 1.0, False))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    (damaged,) = read_data(tmp_path)
    assert damaged.model == path.name and damaged.error.startswith("It is damaged and left out")
    assert finding([damaged]) == "Nothing is measured yet."


def test_copies_of_a_row_are_one(rows: list[Row]) -> None:
    first, second = rows[:2]
    of_sweep = replace(first, steering=None, pruning=(), weights=np.zeros(0))
    other, rounded = replace(of_sweep, r2=0.123), replace(of_sweep, log_z_std=of_sweep.log_z_std * (1 + 1e-12))
    failed = Row("m", "t", positions=8, error="It is short.")
    assert distinct([first, failed, second, of_sweep, rounded, other, replace(failed, error="So short.")]) == [
        first, failed, second, other,
    ]  # fmt: skip
    assert len(set(names([first, other]))) == 2 and names([first, other])[0].endswith("(1)")


@pytest.mark.parametrize("make", [figures.fit, figures.sparsity, figures.weights, figures.accuracy])
def test_figures_show_every_row(rows: list[Row], make) -> None:
    hostile = [*rows, replace(rows[0], model="<script>x</script>", corpus="$y$", steering=None, pruning=())]
    chart = make(hostile)
    assert "<script" not in chart.figure.to_json().replace("\\u003c", "<")
    curves = [trace for trace in chart.figure.data if trace.type == "scatter"]
    if make is figures.fit:
        assert [len(trace.x) for trace in curves] == [3, 3, 3] and len(chart.table) == 3
    elif make is figures.weights:
        assert np.shape(chart.figure.data[0].z) == (3, 3)
    else:
        assert len(curves) == (3 if make is figures.sparsity else 2)
        assert len({(trace.marker.symbol, trace.line.dash) for trace in curves}) == len(curves)
    if make is figures.accuracy:
        assert all(trace.marker.symbol.endswith("-open") for trace in curves)  # held-out: always hollow
        assert list(curves[0].y) == pytest.approx(np.exp(rows[0].steering.held_out))  # type: ignore[union-attr]


def test_the_pruning_figure(rows: list[Row]) -> None:
    chart = figures.pruning(rows, "rotated")
    curve = next(each for each in rows[1].pruning if each.method == "rotated")
    assert list(chart.figure.data[1].y) == [100, *(100 * p.top1_agreement for p in curve.points)]
    assert figures.pruning([Row("m", "t")], "rotated").table.empty


def test_the_command(model: Path, store: Store, rows: list[Row], tmp_path: Path) -> None:
    small = ["--context", "64", "--held-out", "0.5", "--seed", "3", "--cache", str(store.folder)]
    arguments = ["compare", "--row", str(model), "sampler", "2000", "--row", str(model), "python-docs", "2000"]
    done = CliRunner().invoke(cli, [*arguments, *small, "--json", "-"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == plain(as_json(rows))
    broken = CliRunner().invoke(
        cli, ["compare", str(model), str(tmp_path), "--positions", "2000", *small, "--no-pruning", "--json", "-"]
    )
    found = json.loads(broken.stdout)
    assert broken.exit_code == 1 and found["rows"][1]["error"] and found["rows"][1]["r2"] is None
    assert found["rows"][0]["pruning"] == [] and found["rows"][0]["steering"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to compare"),
        (["--row", "demo", "sampler", "many"], "many"),
        (["--data", "nowhere"], "There is no folder"),
        (["no-such-model"], "no-such-model"),
    ],
)
def test_what_is_wrong_gets_one_sentence(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["compare", *arguments])
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.output
