"""Files of the user that change while the dashboard runs: nothing that was computed from the old ones is shown as the new."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from app import cache, jobs, rules
from app.state import Choice
from core import corpus
from core.errors import Cancelled
from tests.app.arrays import ArrayAnalysis


def looked_at(choice: Choice) -> None:
    cache.notice_changes(choice.model, choice.corpus)


def computed(choice: Choice, result: str) -> None:
    job = jobs.analyses().submit(("encode", choice), "encode", lambda progress: result)
    assert job.finished.wait(5)


@pytest.mark.parametrize("how", ["longer", "same length", "touched", "in a folder", "column", "gone"])
def test_a_changed_text_is_read_anew(how: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.csv"
    file.write_text("one text")
    name = {"in a folder": str(tmp_path), "column": f"{file}:text"}.get(how, str(file))
    choice = Choice("demo", name, 1024)
    looked_at(choice)
    computed(choice, "of the old text")
    looked_at(choice)
    assert jobs.analyses().find(("encode", choice)) is not None  # nothing has changed
    if how == "gone":
        file.unlink()
    else:
        file.write_text("two texts" if how == "longer" else "one more")
        os.utime(file, (1, 1) if how == "touched" else (2e9, 2e9))
    looked_at(choice)
    assert jobs.analyses().find(("encode", choice)) is None


def test_a_run_on_a_text_that_changed_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, measured = tmp_path / "notes.txt", []
    file.write_text("old")
    monkeypatch.setattr(cache, "_measure", lambda *_: measured.append(file.read_text()) or measured[-1])
    monkeypatch.setattr("app.state.session", lambda: "me")
    name = f"train:small:0:{file}"

    def shown() -> object:
        found = cache.dynamics(name)
        if isinstance(found, jobs.Job):
            assert found.finished.wait(5)
        return cache.dynamics(name)

    assert shown() == shown() == "old"
    file.write_text("new and longer")
    assert shown() == "new and longer" and measured == ["old", "new and longer"]


def test_work_that_read_the_old_text_is_not_taken_for_the_new(tmp_path: Path) -> None:
    file, over = tmp_path / "notes.txt", threading.Event()
    file.write_text("old")
    choice, other = Choice("demo", str(file), 1024), Choice("demo", "sampler", 1024)
    looked_at(choice)
    job = jobs.analyses().submit(("encode", choice), "encode", lambda progress: over.wait(5) and "of the old text")
    file.write_text("new and longer")
    looked_at(choice)
    assert jobs.analyses().find(("encode", choice)) is job  # at work still
    over.set()
    assert job.finished.wait(5)
    looked_at(choice)
    assert jobs.analyses().find(("encode", choice)) is None
    computed(choice, "of the new text")
    computed(other, "of another")
    looked_at(choice)
    assert [jobs.analyses().find(("encode", each)) is not None for each in (choice, other)] == [True, True]


def test_a_shared_server_looks_at_no_place_on_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "rules", lambda: rules.Rules("public", None, None, ""))
    monkeypatch.setattr(cache, "_stamp", lambda name: pytest.fail(f"looked at {name}"))
    cache.notice_changes(str(tmp_path), "/etc/passwd")


@pytest.mark.parametrize("large_file", [False, True])
def test_a_folder_or_a_large_file_is_read_once_and_away_from_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_file: bool
) -> None:
    """Nobody knows beforehand how much is in one: until it is read the page shows how far that is, and can cancel it."""
    notes = tmp_path / "notes.csv"
    notes.write_text('said\n"Seventeen mills and a river."\n' + '"And another."\n' * 1000)
    named = f"{notes}:said" if large_file else str(tmp_path)
    monkeypatch.setattr(cache, "QUICKLY_READ", notes.stat().st_size - 1)
    read, go_on = [], threading.Event()
    real = corpus._read_path

    def slow(name: str, *rest: Any) -> corpus.Corpus:
        read.append(name)
        assert go_on.wait(20)
        return real(name, *rest)

    monkeypatch.setattr(corpus, "_read_path", slow)
    monkeypatch.setattr(cache, "_encode", lambda choice, progress: cache.open_analysis(choice).corpus.texts)
    monkeypatch.setattr("app.state.session", lambda: "me")
    choice = Choice("demo", named, 1024)
    reading = cache.encoding(choice)
    assert isinstance(reading, jobs.Job) and reading.title == f"Reading {named}"
    assert cache.encoding(choice) is reading
    go_on.set()
    assert reading.finished.wait(20)
    encoding = cache.encoding(choice)
    assert isinstance(encoding, jobs.Job) and encoding is not reading and encoding.finished.wait(20)
    assert encoding.result[0].startswith("Seventeen mills") and read == [named]


def test_reading_a_folder_can_be_stopped(tmp_path: Path) -> None:
    for number in range(3 * corpus.TOLD_EVERY):
        (tmp_path / f"{number}.txt").write_text("a mill")
    told = []

    def progress(phrase: str, share: float | None) -> None:
        told.append(phrase)
        if phrase == f"Reading texts: {corpus.TOLD_EVERY:,}":
            raise Cancelled

    with pytest.raises(Cancelled):
        corpus.read_corpus(str(tmp_path), progress=progress)
    assert told[0] == "Looking through the folder" and told[-2:] == ["Reading texts", "Reading texts: 500"]


def test_the_model_is_loaded_by_a_job_where_only_its_tokenizer_knows_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that loads it by itself stands still, and imports transformers while another thread does."""

    class Unknown(ArrayAnalysis):
        def needs_tokenizer(self, text: str) -> bool:
            return text != " river"

    analysis = Unknown()
    monkeypatch.setattr(cache, "open_analysis", lambda choice: analysis)
    monkeypatch.setattr("app.state.session", lambda: "me")
    choice = Choice("demo", "sampler", 1024)
    assert cache.find_token(choice, " river").note == ""  # type: ignore[union-attr]
    loading = cache.find_token(choice, " rivers")
    assert isinstance(loading, jobs.Job) and loading.title == "Loading demo" and loading.finished.wait(20)
    assert "is 2 tokens" in cache.find_token(choice, " rivers").note  # type: ignore[union-attr]
