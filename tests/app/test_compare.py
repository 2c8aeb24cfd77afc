"""The page Compare: rows appear as they are measured, stand in the address, and one that fails leaves the others."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app import cache, jobs, share, state, uploads
from app.share import View
from app.state import Choice
from app.views import compare
from core.compare import FRACTIONS, compare_row, finding
from core.errors import AnalysisError
from core.figures import words
from core.pruning.result import PrunePoint, Pruning
from core.settings import Progress, Settings, no_progress
from core.sweep.plan import Run
from core.sweep.results import failed_row, row_of, write_row
from tests.app.arrays import ArrayAnalysis, planted
from tests.app.conftest import settled, text_of

Visit = Callable[..., AppTest]
THERE = "stands in the list: choose another"
"""Said of a row that would be added twice."""
TWO = "planted|sampler|1024,planted|python-docs|4096"
HOSTILE = "<script>alert(1)</script>"


class Measured(ArrayAnalysis):
    """The planted analysis, with a curve of pruning."""

    def prune(self, methods: Any = (), removed: Any = (), *, progress: Progress = no_progress, **_: Any) -> Any:
        progress("Pruning", 0.5)
        nothing = np.zeros(10)
        return tuple(
            Pruning(
                method, "sampler", "sampler", 100, 1, False, 20.0,
                tuple(
                    PrunePoint(method, f, 3, f, f, 1 - f, 20.0, 1.0, f, f, 1 - f, 1 - f, nothing, nothing, np.zeros(6))
                    for f in removed
                ),
                np.zeros(0, dtype=np.int64),
            )
            for method in methods
        )  # fmt: skip


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are measured as ever, on a quarter of the tokens."""
    monkeypatch.setattr("core.compare.TOKENS", 6)


def charts(test: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]


def fine(test: AppTest) -> AppTest:
    assert not test.exception and not test.error, [e.value for e in test.error]
    return test


def address(test: AppTest) -> dict[str, str]:
    return {key: value if isinstance(value, str) else value[0] for key, value in test.query_params.items()}


def test_a_first_visitor_finds_two_texts_compared(visit: Visit, lanes: dict[str, jobs.Lane]) -> None:
    test = fine(visit("compare", Measured(), model="smollm2"))
    row = compare_row(Measured(), steering=False, pruning=False)
    assert finding([row, row]).partition(":")[2] in text_of(test)
    measured = [key[1] for key in lanes["analyses"]._jobs if key[0] == "compare"]
    assert measured == [Choice("smollm2", "sampler", 16384), Choice("smollm2", "python-docs", 16384)]
    table = test.dataframe[-1].value
    assert list(table["text"]) == ["sampler", "python-docs"] and list(table["r2"]) == [row.r2, row.r2]
    assert table["top1_kept_rotated_30"].tolist() == [0.7, 0.7]
    assert "2 rows measured here" in text_of(test) and "rows" not in address(test)


@pytest.mark.parametrize("view", ["Fit", "Sparsity", "Weights", "Steering", "Pruning"])
def test_every_figure_shows_every_row(visit: Visit, view: str) -> None:
    test = fine(visit("compare", Measured(), model="smollm2", rows=TWO, compared=view))
    (chart,) = charts(test)
    assert len(chart["data"]) == {"Fit": 3, "Weights": 1}.get(view, 2)
    if view == "Pruning":
        assert chart["data"][0]["y"][0] == 100
        assert f"{words.number(70.0, 2)} of 100 contexts" in text_of(test)


def test_rows_are_added_and_taken_away_and_stand_in_the_address(visit: Visit) -> None:
    test = fine(visit("compare", Measured(), model="smollm2", rows=TWO))
    assert address(test)["rows"] == TWO and THERE not in text_of(test)
    test.selectbox(key="compare-model").set_value("demo").run()
    test.selectbox(key="compare-corpus").set_value("python-docs").run()
    test.button_group(key="compare-positions").set_value(1024).run()
    assert THERE not in text_of(test)
    test.button(key="compare-add").click().run()
    fine(settled(test))
    assert address(test)["rows"] == TWO + ",demo|python-docs|1024"
    assert len(test.dataframe[-1].value) == 3
    test.button(key="compare-add").click().run()  # the same again changes nothing
    assert len(settled(test).dataframe[-1].value) == 3 and THERE in text_of(test)
    test.button_group(key="compare-positions").set_value(4096).run()
    again = fine(visit("compare", Measured(), **address(test)))
    assert THERE not in text_of(test)
    assert text_of(again) == text_of(test) and charts(again) == charts(test)
    assert again.dataframe[-1].value.equals(test.dataframe[-1].value)
    for _ in range(3):
        test.button(key="compare-remove-0").click().run()
    assert address(fine(settled(test)))["rows"] == "none" and "Nothing is measured yet" in text_of(test)
    assert "Nothing is measured yet" in text_of(fine(visit("compare", Measured(), **address(test))))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "rows", ["planted", "planted|sampler|17", "|sampler|1024", "a|b|c|d", "a|b|1024,", "%", HOSTILE]
)
def test_a_bad_address_falls_back_in_silence(visit: Visit, rows: str) -> None:
    test = fine(visit("compare", Measured(), model="smollm2", rows=rows))
    assert "rows" not in address(test) and len(test.dataframe[-1].value) == 2


def test_names_with_anything_in_them_stand_in_the_address() -> None:
    rows = (("a,b|c", "x y/<z>.txt", 1024), ("org/name@main", "file.csv:column", 4096))
    assert state._read_rows(state._write_rows(rows)) == rows


def test_a_row_that_cannot_be_measured_leaves_the_others(visit: Visit) -> None:
    class Broken(Measured):
        def encoding(self, progress: Progress = no_progress) -> Any:
            raise AnalysisError(f"This {HOSTILE} cannot be read.")

    analyses = {HOSTILE: Broken(stored=False)}
    test = visit(
        "compare", lambda choice: analyses.get(choice.model) or Measured(), model="smollm2",
        rows=f"{HOSTILE}|sampler|1024,planted|sampler|1024",
    )  # fmt: skip
    fine(test)
    said = text_of(test)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; cannot be read." in said and "<script" not in said
    assert list(test.dataframe[-1].value["model"]) == ["planted"]
    analyses.clear()
    st.cache_resource.clear()
    next(button for button in test.button if button.label == "Try again").click().run()
    fine(settled(test))
    assert len(test.dataframe[-1].value) == 2 and "cannot be read" not in text_of(test)


def test_rows_that_fail_alike_have_a_button_each(visit: Visit) -> None:
    """Also where their texts have the same file name."""

    class Failing(Measured):
        def encoding(self, *_: Any, **__: Any) -> Any:
            raise AnalysisError("It is too short.")

        def cached_encoding(self) -> Any:
            return None

    rows = "planted|/one/notes.txt|1024,planted|/two/notes.txt|1024"
    test = visit("compare", Failing(), model="smollm2", rows=rows)
    end = time.monotonic() + 60
    while len(again := [each for each in test.button if each.label == "Try again"]) < 2 and time.monotonic() < end:
        test.run()
    assert len(again) == 2 and not test.exception and text_of(test).count("It is too short.") >= 2


def test_one_row_is_measured_at_a_time(visit: Visit, lanes: dict[str, jobs.Lane]) -> None:
    """On a shared server more than a few jobs of one visitor would push each other out of the line for ever."""
    most = []

    class Counting(Measured):
        def prune(self, *arguments: Any, **options: Any) -> Any:
            known = [job for key, job in lanes["analyses"]._jobs.items() if key[0] == "compare"]
            most.append(sum(job.active for job in known))
            return super().prune(*arguments, **options)

    rows = ",".join(f"planted|sampler|{n}" for n in state.POSITIONS)
    fine(visit("compare", Counting(), model="smollm2", rows=rows))
    assert most == [1] * len(state.POSITIONS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A sweep's data set: one run that went well, one that did not."""
    good, bad = (Run(name, "sampler", name, "sampler", "0" * 64, Settings(), 1) for name in ("swept", HOSTILE))
    write_row(tmp_path, row_of(good, planted()[2], "abc", 1.0, False))
    write_row(tmp_path, failed_row(bad, "There is no such model.", 1.0))
    return tmp_path


def test_the_rows_of_a_sweep_stand_beside_the_others(visit: Visit, data: Path) -> None:
    test = fine(visit("compare", Measured(), model="smollm2", rows=TWO, data=str(data), compared="Steering"))
    assert list(test.dataframe[-1].value["model"]) == ["planted", "planted", "swept"]
    said = text_of(test)
    assert "There is no such model." in said and "<script" not in said
    assert (
        "A sweep does not measure this, so it is not known for: swept · sampler." in said
        and len(charts(test)[0]["data"]) == 2
    )
    assert address(test)["data"] == str(data)
    missing = visit("compare", Measured(), model="smollm2", rows=TWO, data=str(data / "nowhere"))
    assert "There is no folder" in missing.error[0].value and len(missing.dataframe[-1].value) == 2


def test_a_shared_server_reads_no_data_set(visit: Visit, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_AUDIENCE", "public")
    test = visit("compare", Measured(), model="smollm2", rows="smollm2|sampler|1024", data=str(data))
    assert len(test.error) == 1 and "shared" in test.error[0].value
    assert "swept" not in test.dataframe[-1].value["model"].tolist()
    assert "data" not in [field.key for field in test.text_input]


def test_a_class_compares_what_it_has(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_AUDIENCE", "classroom")
    test = fine(visit("compare", Measured()))
    assert len(test.dataframe[-1].value) == 1


def test_a_row_for_which_others_wait_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    lane, job = jobs.Lane("test"), jobs.Job("a", "A", lambda progress: None, state="running")
    job.seen["other"] = jobs.now()
    told: list[str] = []
    monkeypatch.setattr(jobs, "analyses", lambda: lane)
    monkeypatch.setattr(state, "session", lambda: "me")
    monkeypatch.setattr(st, "button", lambda *_, **__: True)
    monkeypatch.setattr(st, "toast", told.append)
    working = inspect.unwrap(compare._working)
    working(job, None)
    assert not job.stop.is_set() and told == ["1 other visitor waits for this too, so it goes on."]
    job.seen.pop("other")
    working(job, None)
    assert job.stop.is_set() and len(told) == 1


def test_what_is_offered_to_copy_is_what_the_page_shows(visit: Visit) -> None:
    test = fine(visit("compare", Measured(), model="smollm2", rows=TWO, seed="4", compared="Pruning"))
    chosen = tuple(Choice("planted", text, n, 4) for text, n in (("sampler", 1024), ("python-docs", 4096)))
    view = View("compare", Choice("smollm2", "sampler", 16384, 4), figure="Pruning", more=chosen)
    assert test.code[1].value == share.command(view)
    assert share.command(view) == (
        "headscope compare --row planted sampler 1024 --row planted python-docs 4096 --seed 4"
    )
    assert test.code[2].value == share.python(view).rstrip()


def test_pruning_is_measured_where_its_own_page_measures_it() -> None:
    """So that both pages read the same results from the store."""
    assert cache.PRUNED == FRACTIONS


def test_a_run_that_is_read_twice_counts_once(visit: Visit, tmp_path: Path) -> None:
    """From the store and from a sweep's data set: with the same numbers it is one measurement, and a damaged file is told."""
    run = Run("smollm2", "sampler", "smollm2", "sampler", "0" * 64, Settings(positions=1024), 1)
    analysis = Measured()
    write_row(tmp_path, row_of(run, analysis.encoding(), "", 1.0, False))
    (tmp_path / "run-0.parquet").write_bytes(b"PAR1")
    rows = "smollm2|sampler|1024"
    test = fine(visit("compare", analysis, model="smollm2", rows=rows, data=str(tmp_path), compared="Fit"))
    said = text_of(test)
    assert "So far one row" in said
    assert "<b>run-0.parquet</b>: It is damaged and left out: the same sweep measures it again." in said


def test_rows_are_named_as_the_command_line_names_them() -> None:
    choice = state.Choice("org/name@abc", "upload:0123456789abcdef/my-text.txt", 1024, 3)
    row = cache.failed_row(choice, "It is gone.")
    assert (row.model, row.corpus, row.positions, row.seed) == ("org/name@abc", "my-text.txt", 1024, 3)
    assert uploads.title("org/name@abc") == "org/name@abc" and uploads.title("/some/where/name") == "name"
