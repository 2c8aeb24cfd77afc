"""What a class and strangers may do: limits hold where work is started, whatever a page or an address says."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import segno
from PIL import Image
from streamlit.proto.Common_pb2 import FileURLs
from streamlit.runtime.uploaded_file_manager import UploadedFile, UploadedFileRec
from streamlit.testing.v1 import AppTest

import core.model.load  # noqa: F401  two tests open a model: imported here, before any test has threads
from app import cache, environment, runs, sidebar, state, uploads, widgets
from app.jobs import Lane
from app.rules import Rules
from app.state import Choice
from app.views.join import qr_code
from core.errors import AnalysisError, HeadscopeError, InputError
from core.model.fetch import writing_to
from core.results import Sampling
from core.settings import Progress
from core.store import Store
from tests.app.arrays import EDITS
from tests.app.conftest import read, settled, text_of

Visit = Callable[..., AppTest]
CLASS = Rules("classroom", "demo", "python-docs", "http://192.168.1.5:8501")
PUBLIC = Rules("public", "org/name", None, "http://192.168.1.5:8501")


def serve(monkeypatch: pytest.MonkeyPatch, what: Rules) -> None:
    for variable, value in (
        (environment.AUDIENCE_VARIABLE, what.audience),
        (environment.MODEL_VARIABLE, what.model),
        (environment.CORPUS_VARIABLE, what.corpus),
        (environment.ADDRESS_VARIABLE, what.address),
    ):
        monkeypatch.setenv(variable, value or "")


def test_at_home_everything_is_allowed() -> None:
    own = Rules()
    assert own.admit("a/folder", "/a/file.txt", 65536) == ("a/folder", "/a/file.txt")
    own.check_prompt("x" * 100_000)
    own.check_sampling(Sampling(64, 1024))
    own.check_own("training")
    assert own.fixed is None and own.jobs_each == 0


@pytest.mark.parametrize("model", ["smollm2", "org/name", "/etc", "../models/a"])
def test_a_class_opens_nothing_else(model: str) -> None:
    with pytest.raises(InputError, match="This class works with demo on python-docs"):
        CLASS.admit(model, "python-docs", 8192)
    with pytest.raises(InputError, match="This class"):
        CLASS.admit("demo", "/etc/passwd", 8192)
    assert CLASS.admit("demo", "python-docs", 8192) == ("demo", "python-docs")


def test_a_place_on_the_teachers_disk_is_not_told() -> None:
    own = Rules("classroom", "~/models/mine", "~/texts/novel.txt")
    assert own.fixed == ("mine", "novel.txt")
    assert own.admit("mine", "novel.txt", 8192) == ("~/models/mine", "~/texts/novel.txt")
    assert Rules("public", "~/models/mine", None).models == ("demo", "smollm2", "mine")


@pytest.mark.parametrize(
    ("model", "corpus", "positions"),
    [
        ("other/model", "sampler", 1024),
        ("/etc", "sampler", 1024),
        ("demo", "/etc/passwd", 1024),
        ("demo", "..", 1024),
        ("demo", "hub:dataset", 1024),
        ("demo", "self:1000000", 1024),
        ("demo", "self:\u0663", 1024),
        ("demo", "upload:0123456789abcdef/../../../etc/passwd", 1024),
        ("demo", "sampler", 65536),
    ],
)
def test_strangers_reach_neither_the_disk_nor_the_hub(model: str, corpus: str, positions: int) -> None:
    with pytest.raises(InputError, match="open to others"):
        PUBLIC.admit(model, corpus, positions)


def test_an_upload_that_is_gone_has_a_sentence_of_its_own() -> None:
    with pytest.raises(InputError, match=r"^The text none\.txt is not kept here any more: upload it again\.$"):
        PUBLIC.admit("demo", "upload:0123456789abcdef/none.txt", 1024)


def test_strangers_have_what_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    for model in ("demo", "smollm2", "org/name"):
        assert PUBLIC.admit(model, "sampler", 16384) == (model, "sampler")
    assert PUBLIC.admit("demo", "self:20000", 1024) == ("demo", "self:20000")
    name = uploads.public_name(uploads.keep("../my text.txt", b"one two"))
    assert re.fullmatch(r"upload:[0-9a-f]{16}/my-text\.txt", name) and str(tmp_path) not in name
    assert PUBLIC.admit("demo", name, 1024) == ("demo", name)
    found = uploads.find(name)
    assert found is not None and found.read_bytes() == b"one two"


@pytest.mark.parametrize("shared", [CLASS, PUBLIC])
def test_shared_prompts_and_samples_are_bounded(shared: Rules) -> None:
    shared.check_prompt("x" * 500)
    with pytest.raises(InputError, match=r"501 characters.*at most 500"):
        shared.check_prompt("x" * 501)
    shared.check_sampling(Sampling(8, 64))
    for sampling in (Sampling(9, 64), Sampling(8, 65)):
        with pytest.raises(InputError, match="this server is shared, so at most"):
            shared.check_sampling(sampling)
    with pytest.raises(InputError, match="switched off"):
        shared.check_own("training")


def test_limits_hold_where_work_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, CLASS)
    choice = Choice("demo", "python-docs", 8192)
    writing = cache.Writing(EDITS, "minimum-variance", True, "x" * 501, False, Sampling())
    with pytest.raises(InputError, match="500"):
        cache.texts(choice, writing)
    with pytest.raises(InputError, match="500"):
        cache.prompt(choice, "x" * 501, False)
    with pytest.raises(InputError, match="switched off"):
        cache.dynamics("/a/folder")
    with pytest.raises(InputError, match="This class"):
        cache.open_analysis(Choice("smollm2", "sampler", 8192))


def test_a_class_has_no_choices(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, CLASS)
    test = visit("encoding", model="smollm2", corpus="/etc/passwd", positions="1024", seed="7")
    assert not test.exception and not test.error
    assert test.session_state["model"] == "demo" and test.session_state["corpus"] == "python-docs"
    assert not test.selectbox and not test.get("file_uploader")
    assert "This class works with <b>demo</b> on the text <b>python-docs</b>" in text_of(test)
    assert not {"model", "corpus", "positions", "seed"} & set(test.query_params)
    settled(test.switch_page("views/samples.py").run())
    assert test.number_input(key="samples").max == 8 and test.number_input(key="new-tokens").max == 64
    test.switch_page("views/model.py").run()
    assert not [b for b in test.button if "SmolLM2" in b.label]


def test_a_strangers_address_falls_back(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, PUBLIC)
    test = visit("encoding", model="/etc", corpus="/etc/passwd", positions="65536")
    assert not test.exception and not test.error
    assert test.session_state["model"] == "org/name" and test.session_state["corpus"] == "sampler"
    assert list(test.selectbox(key="model").options) == ["demo", "smollm2", "org/name"]


def test_an_upload_of_a_stranger_is_named_without_its_place(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    serve(monkeypatch, Rules("public", "demo"))
    test = visit("model")
    test.file_uploader(key="upload").set_value(("notes.txt", b"one two three", "text/plain")).run()
    assert test.session_state["corpus"].startswith("upload:") and not test.error
    test.file_uploader(key="upload").set_value(("big.txt", b"a" * (5 * 2**20 + 1), "text/plain")).run()
    assert any("at most 5 MB" in e.value.replace("\\", "") for e in test.error)


def test_the_join_page_shows_the_address_as_a_code(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, CLASS)
    test = visit("join")
    said = text_of(test)
    assert not test.exception and "<b>192.168.1.5:8501/learn</b>" in said
    picture = re.search(r'<img alt="[^"]+" src="data:image/png;base64,([^"]+)">', said)
    assert picture is not None
    with Image.open(io.BytesIO(base64.b64decode(picture[1]))) as code:
        dots = np.asarray(code.convert("L"))[6::12, 6::12][3:-3, 3:-3]  # 12 pixels a dot, a border of 3
    expected = segno.make("http://192.168.1.5:8501/learn", error="m", micro=False)
    assert ((dots < 128) == np.array([list(row) for row in expected.matrix], dtype=bool)).all()
    assert "<script" not in qr_code('http://x/"><script>')


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8501/join", CLASS.address),
        ("http://127.0.0.1:8501/join", CLASS.address),
        ("https://class.example.org/join", "https://class.example.org"),
        ("http://10.0.0.7:8501/join", "http://10.0.0.7:8501"),
        (None, CLASS.address),
    ],
)
def test_the_address_is_the_one_that_works_for_the_teacher(
    monkeypatch: pytest.MonkeyPatch, url: str | None, address: str
) -> None:
    monkeypatch.setattr(state.st, "context", SimpleNamespace(url=url))
    assert state.reached_at(CLASS.address) == address


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"corpus": "/etc/hostname"}, "open to others, so it reads only"),
        ({"corpus": "self:999999"}, "self:N with N from 512 to 20,000"),
        ({"model": "../../etc"}, "open to others, so it opens only"),
    ],
)
def test_what_an_address_may_not_ask_for_is_said(
    visit: Visit, query: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.AUDIENCE_VARIABLE, "public")
    test = visit("model", **query)
    said = read(test.error[0])
    assert sentence in said and said.endswith("Shown is demo on sampler.")
    assert not test.exception and len(test.error) == 1


@pytest.mark.parametrize("content", [b"  \n", b"a" * 20_000, b"\xff\xfe\xfd", b"one word after the other " * 900])
def test_strangers_are_not_told_where_uploads_lie(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, PUBLIC)
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path / "secret place"))
    corpus = uploads.public_name(uploads.keep("my text.txt", content))
    with pytest.raises(HeadscopeError) as caught:
        cache.open_analysis(Choice("demo", corpus, 1024)).encoding()
    assert "secret" not in str(caught.value) and "my-text.txt" in str(caught.value)


def test_a_class_is_not_told_where_its_text_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret place" / "lesson.txt"
    path.parent.mkdir()
    path.write_text("one word after the other " * 900)
    serve(monkeypatch, replace(CLASS, corpus=str(path)))
    with pytest.raises(HeadscopeError, match=r"'lesson\.txt' is one document") as caught:
        cache.open_analysis(Choice("demo", "lesson.txt", 1024)).encoding()
    assert "secret" not in str(caught.value)


def test_a_relative_place_is_not_told_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret place" / "own model").mkdir(parents=True)
    (tmp_path / "secret place" / "table.csv").write_text("text\none\n")
    own = Rules("classroom", "secret place/own model", "secret place/table.csv:text")
    assert own.fixed == ("own model", "table.csv:text")
    (tmp_path / "secret place" / "own model").rmdir()
    assert own.named_model == "own model", "not even when it is gone"
    assert Rules("public", "no-folder/of-ours", "hub:no-folder/of-ours").corpora[-1] == "hub:no-folder/of-ours"
    assert Rules("public", "no-folder/of-ours").named_model == "no-folder/of-ours"


@pytest.mark.parametrize("relative", [False, True])
def test_sentences_to_others_hold_no_place(relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "secret" / ("long " * 30) / f"texts-{relative}"
    (home / "mine").mkdir(parents=True)
    (home / "novel.txt").write_text("one two three")
    model, corpus = (str(p.relative_to(tmp_path) if relative else p) for p in (home / "mine", home / "novel.txt"))
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path / "secret" / "cache"))
    serve(monkeypatch, Rules("public", model, corpus))
    analysis = cache.open_analysis(Choice("mine", "novel.txt", 1024))
    (home / "mine").rmdir()

    def keep(progress: Progress) -> None:
        progress(f"Loading {model}", None)
        with writing_to(Store().folder / "models" / "smollm2.gguf"):
            raise OSError(30, "Read-only file system", corpus)

    lane = Lane("test")
    gone, full = lane.submit("gone", "A", analysis.loaded), lane.submit("full", "B", keep)
    assert gone.finished.wait(30) and full.finished.wait(30)
    assert gone.state == full.state == "failed"
    assert gone.error.startswith("There is no folder 'mine'") and full.phrase == "Loading mine"
    assert (
        full.error == "The model cannot be kept in cache/models (Read-only file system): tell whoever runs this server."
    )
    said: list[str] = []
    monkeypatch.setattr(widgets.st, "error", said.append)
    widgets.problem(AnalysisError(f"{home.resolve() / 'mine' / 'config.json'} and {corpus} are damaged."))
    widgets.problem(uploads.not_kept("text", OSError(28, "No space left on device")))
    widgets.problem(
        InputError("Which column is it? Call it text, or give the file alone, as a.csv:COLUMN; it has 'b'.")
    )
    assert [re.sub(r"\\(.)", r"\1", each) for each in said] == [
        "mine/config.json and novel.txt are damaged.",
        "The text cannot be kept in Headscope's cache (No space left on device): tell whoever runs this server.",
        "Which column is it? Call it text; it has 'b'.",
    ]
    serve(monkeypatch, Rules())
    own = lane.submit("own", "C", keep)
    assert own.finished.wait(30) and "--cache" in own.error and str(tmp_path) in own.error


@pytest.mark.parametrize(
    ("audience", "said"),
    [
        ("own", "1024, 4096, 8192, 16384 or 65536"),
        ("public", "1024, 4096, 8192 or 16384"),
        ("classroom", None),
    ],
)
def test_what_is_named_as_allowed_is_taken(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, audience: Any, said: str | None
) -> None:
    serve(monkeypatch, Rules(audience, "demo", "sampler", "http://192.0.2.7:8501"))
    unread = visit("method", positions="77").session_state["unread"]
    assert unread == ({"positions": ("77", said)} if said else {})
    assert (65536 in state.positions()) == (audience == "own")


@pytest.mark.parametrize("text", ["", " \n "])
def test_an_empty_field_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(state.st, "session_state", {"pasted": text})
    sidebar._take_pasted()
    assert str(state.chosen("upload_refused")).startswith("There is no text in the field: paste one")


def test_advice_that_only_a_terminal_can_take_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "tiny sees 128 tokens at once and --context is 256: choose a --context of at most 127."
    said = Rules("own").said(sentence)
    assert (
        said.endswith("256: on the command line, choose a --context of at most 127.")
        and Rules("own").said(said) == said
    )
    assert Rules("public").said(sentence).endswith("256: tell whoever runs this server.")


@pytest.mark.parametrize("name", ["b.parquet", "picture", "x.<b>exe"])
def test_a_kind_of_file_that_is_not_taken_is_told_in_our_words(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    serve(monkeypatch, Rules("public"))
    file = UploadedFile(UploadedFileRec("1", name, "", b"x"), FileURLs())
    monkeypatch.setattr(state.st, "session_state", {"upload": file})
    sidebar._take_upload()
    said = f"The file {name!r} is not taken, only .txt, .md, .jsonl, .csv: save its text as .txt."
    assert state.chosen("upload_refused") == said and state.chosen("corpus") == "sampler"
    state.choose(upload=None)  # taken away again
    sidebar._take_upload()
    assert not state.chosen("upload_refused")


def test_strangers_are_not_offered_the_hosts_own_runs(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runs, "kept", lambda: [f"train:small:0:{tmp_path}/salary-talks.txt"])
    own = visit("dynamics", model="smollm2")
    assert "Own run: small, salary-talks.txt, seed 0" in map(str.strip, own.selectbox(key="series").options)
    serve(monkeypatch, Rules("public"))
    test = visit("dynamics", model="smollm2")
    assert not test.exception and list(test.selectbox(key="series").options) == ["demo: the bundled run"]
    assert not test.selectbox(key="series").proto.accept_new_options and not [
        b for b in test.button if b.key == "train-start"
    ]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("日本語.txt", "text.txt"),
        ("....txt", "text.txt"),
        ("aaaaa." + "b" * 75 + ".txt", "b" * 70 + ".txt"),
        ("my notes é.parquet", "my-notes.parquet"),
        ("../.hidden", "text.hidden"),
        ("notes", "notes.txt"),
    ],
)
def test_a_file_of_any_name_keeps_its_ending(
    given: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    path = Path(uploads.keep(given, b"one two"))
    assert path.name == kept and uploads.find(uploads.public_name(str(path))) == path
