"""The report is one file: every figure is in it, its numbers are the analysis's, and no text in it becomes markup."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from core.cli.commands import cli
from core.errors import InputError
from core.figures import words
from core.model.facts import HeadCheck, HeadDescription, HeadFacts, StoredHead
from core.report import Report, Wanted, page, report_of, write_report
from core.results import Sampling
from core.settings import Progress, no_progress
from core.steering import Edit
from tests.app.arrays import HOSTILE, RIVER, ArrayAnalysis, planted
from tests.tiny import tiny_model

PROMPT = "</script><img src=x onerror=alert(1)> & “quoted”"
EVERY = Wanted((*(Edit(i, 0.5) for i in range(8)), Edit(RIVER, 4.0)), prompt=PROMPT, sampling=Sampling(2, 4))


class Planted(ArrayAnalysis):
    """The planted analysis, with a head that is known."""

    def head_facts(self, progress: Progress = no_progress) -> HeadFacts:
        told = HeadDescription("<b>Planted</b>", 240, 240, 6, True, False, None, 1.0, 0, "float32", 14_400)
        stored = StoredHead("model.safetensors", "weight", "", "")
        return HeadFacts(told, HeadCheck(2e-6, 1e-4, None), stored, False, "", "0" * 64, 10**6, "cpu")


class _Page(HTMLParser):
    """What a browser would see: elements, attributes, the text of each script element, all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside is None:
            self.text += data


@pytest.fixture(scope="module")
def found() -> Report:
    return report_of(Planted(), EVERY, command="headscope report 'a b'")


@pytest.fixture(scope="module")
def seen(found: Report) -> _Page:
    return _Page(page(found))


def test_every_figure_is_in_the_file(found: Report, seen: _Page) -> None:
    charts = [chart for section in found.sections for _, chart in section.charts]
    figures = json.loads(seen.scripts[0])
    assert len(figures) == len(charts) == 12
    places = [attributes["id"] for tag, attributes in seen.tags if tag == "div" and "id" in attributes]
    assert places == [f"figure-{number}" for number in range(len(charts))]
    for figure, chart in zip(figures, charts, strict=True):
        assert figure == json.loads(chart.figure.to_json())
        assert chart.summary in seen.text


def test_the_numbers_are_those_of_the_analysis(seen: _Page) -> None:
    encoding = planted()[2]
    assert f"explains {100 * encoding.r2:.0f} %" in seen.text
    assert f"{encoding.r2_held_out_text:.4f}" in seen.text
    steered = Planted().steer(EVERY.edits)
    assert f"got {words.ratio(steered.tokens[-1].realised_held_out)}" in seen.text
    for told in (
        "positions 400",
        "seed 0",
        "plotly ",
        "torch ",
        "0" * 64,
        Planted().corpus.sha256,
        "headscope report 'a b'",
    ):
        assert told in seen.text


def test_nothing_from_outside_and_nothing_to_outside(seen: _Page) -> None:
    for tag, attributes in seen.tags:
        assert tag not in {"link", "img", "iframe", "form", "object", "base", "a"}
        assert not {"src", "href"} & set(attributes)
    policy = next(a["content"] for tag, a in seen.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy


def test_hostile_texts_stay_text(found: Report, seen: _Page) -> None:
    assert len(seen.scripts) == 3  # the figures, plotly.js, the lines that draw
    assert not [attributes for _, attributes in seen.tags if any(name.startswith("on") for name in attributes)]
    assert PROMPT in seen.text and "<script>alert(1)</script>" in seen.text and "<b>Planted</b>" in seen.text
    raw = page(found).partition('id="figures">')[2].partition("</script>")[0]
    assert "<" not in raw and "&" not in raw
    labels = " ".join(json.dumps(figure, ensure_ascii=False) for figure in json.loads(raw))
    assert "&lt;script&gt;alert(1)" in labels and "<script" not in labels  # plotly reads labels as markup itself


def test_what_was_not_asked_for_is_left_out() -> None:
    short = report_of(Planted())
    assert [len(section.charts) for section in short.sections] == [2, 5]
    told = _Page(page(short)).text
    assert "knob" not in told and HOSTILE[0] in told


def test_a_place_that_cannot_be_written_is_refused(found: Report, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_report(found, tmp_path / "nowhere" / "report.html")
    path = write_report(found, tmp_path / "report.html")
    assert path.read_text("utf-8") == page(found) and list(tmp_path.iterdir()) == [path]


def test_the_command(tmp_path: Path) -> None:
    model, out = tiny_model("gpt2", tmp_path / "model"), tmp_path / "report.html"
    arguments = [
        "report", str(model), "--out", str(out), "--positions", "400", "--context", "64", "--held-out", "0.5",
        "--cache", str(tmp_path / "cache"), "--token", "id:70", "--ratio", "3", "--prompt", "The", "--samples", "2",
        "--new-tokens", "4", "--json", "-",
    ]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "core.cli", *arguments], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    told = json.loads(run.stdout)
    assert told == {"path": str(out), "bytes": out.stat().st_size, "figures": 12}
    assert re.search(r"<pre>headscope report .*--ratio 3", out.read_text("utf-8"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "nowhere/report.html"], "there is no such folder"),
        (["--out", "report.html", "--prompt", "x", "--samples", "99"], "number of samples is 99"),
        ([], "--out"),
    ],
)
def test_what_is_wrong_gets_one_sentence(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["report", "demo", *arguments])
    assert done.exit_code == 2 and said in done.stderr
