"""Results show themselves in a notebook: their numbers are there, and texts of tokens stay text."""

from __future__ import annotations

import re
from dataclasses import fields
from html.parser import HTMLParser

import numpy as np
import plotly.io
import pytest

from core import figures
from core.results import Generated, NextToken, TokenCount
from core.show import chip
from core.steering import Steerer
from tests.app.arrays import EDITS, HOSTILE, TOKENS, planted


class _Tags(HTMLParser):
    """Checks that every tag that opens closes again, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> _Tags:
    parser = _Tags()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def results() -> dict[str, object]:
    embedding, observation, encoding = planted()
    ids = [edit.token_id for edit in EDITS]
    rows = embedding[ids].astype(np.float64)
    names = [TOKENS[i] for i in ids]
    steerer = Steerer(observation.fit, observation.held_out, encoding, ids, rows, np.zeros(2), names)
    k = np.arange(len(HOSTILE))
    p = np.linspace(0.1, 0.01, len(k))
    return {
        "encoding": encoding,
        "observation": observation,
        "steering": steerer.steer([edit.ratio for edit in EDITS]),
        "next": NextToken(k, HOSTILE, p, p, k < 0, 1.0, 2.0, 2.0, np.ones(6), 1.0),
        "texts": Generated(
            "<b>p</b>", ((1,),), ((2,),), (("a",),), (("b",),), (HOSTILE[0],), (HOSTILE[1],),
            (TokenCount(1, HOSTILE[0], 0, 1, 0.1, 1.0, 0.0, 2.0),), 1, 1,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["encoding", "observation", "steering", "next", "texts"])
def test_a_result_shows_itself_as_well_formed_html(name: str) -> None:
    result = results()[name]
    html = result._repr_html_()  # type: ignore[attr-defined]
    page = read(html)
    assert type(result).__name__ in page.text
    assert page.seen <= {"style", "div", "strong", "p", "dl", "dt", "dd", "table", "tr", "th", "td", "details", "summary",
                         "span"}  # fmt: skip
    assert len(html) < 60_000


def test_the_numbers_are_those_of_the_result() -> None:
    encoding = planted()[2]
    text = read(encoding._repr_html_()).text
    assert f"{encoding.r2_held_out_text:.4g}".replace("-", "−") in text
    assert "The first 8 of 240." in text
    steering = results()["steering"]
    shown = read(steering._repr_html_()).text  # type: ignore[attr-defined]
    for token in steering.tokens:  # type: ignore[attr-defined]
        assert f"{token.realised_held_out:.4g}" in shown


def test_every_plain_field_is_somewhere() -> None:
    encoding = planted()[2]
    text = read(encoding._repr_html_()).text
    plain = [f.name for f in fields(encoding) if isinstance(getattr(encoding, f.name), int | float)]
    assert len(plain) > 15 and [name for name in plain if name.replace("_", " ") not in text] == []


def test_hostile_tokens_stay_text() -> None:
    html = results()["next"]._repr_html_() + results()["texts"]._repr_html_()  # type: ignore[attr-defined]
    assert "<script" not in html and "<b>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert re.search(r"hs-chip[^<]*>␣</span>", html) and "⏎" in html


def test_a_chip_says_its_id() -> None:
    assert chip(" <i>", 7, steered=True) == '<span class="hs-chip hs-steered" title="id 7">␣&lt;i&gt;</span>'


def test_a_figure_needs_no_look_and_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")  # as in a notebook
    encoding = planted()[2]
    for make in (figures.encoding.fit_scatter, figures.encoding.weights, figures.encoding.sparsity):
        chart = make(encoding)
        bundle = chart._repr_mimebundle_()["application/vnd.plotly.v1+json"]
        assert len(bundle["data"]) == len(chart.figure.data) > 0
