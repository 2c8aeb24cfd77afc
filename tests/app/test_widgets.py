"""The small parts: tokens as chips and labels, differences of texts, ratios on offer."""

from __future__ import annotations

import pytest

from app import edits, widgets
from core.figures.pairs import first_difference
from tests.app.arrays import RIVER, TOKENS, planted


@pytest.mark.parametrize(
    ("text", "span"),
    [(" river", "`␣river`"), ("$x$", "`$x$`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("\n", "`⏎`"), ("", "`∅`")],
)
def test_a_token_in_a_label_is_a_code_span(text: str, span: str) -> None:
    assert widgets.code_span(text) == span


def test_a_chip_is_escaped_and_names_its_id() -> None:
    chip = widgets.chip('<img src=x onerror="y"> a', 7)
    assert "<img" not in chip and "&lt;img" in chip and "␣a" in chip and 'title="id 7"' in chip


def test_plain_makes_no_links() -> None:
    """An address in a sentence, as a stranger's link may bring it, leads nowhere."""
    assert widgets.plain("samples = 'http://e.test/x', *no*") == r"samples \= `'http://e.test/x'`\, \*no\*"
    assert widgets.plain("WWW.e.test and me@e.test") == "`WWW.e.test` and `me@e.test`"
    assert widgets.plain("org/name@step3") == r"org\/name\@step3"


def test_plain_leaves_no_markup() -> None:
    assert widgets.plain("*a* :red[b] $c$ <d>") == r"\*a\* \:red\[b\] \$c\$ \<d\>"


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [((1, 2, 3), (1, 2, 3), 3), ((1, 2, 3), (1, 9, 3), 1), ((1, 2), (1, 2, 3), 2), ((), (1,), 0)],
)
def test_first_difference(before: tuple[int, ...], after: tuple[int, ...], first: int) -> None:
    assert first_difference(before, after) == first


def test_no_ratio_on_offer_is_impossible() -> None:
    for alpha in (1e-6, 0.05, 0.3, 0.9, 0.99):
        assert all(ratio * alpha < 1 for ratio in edits.options(alpha))
    assert 100.0 in edits.options(1e-6) and 20.0 not in edits.options(0.05)


def test_a_ratio_that_was_asked_for_is_on_offer_whatever_it_is() -> None:
    for asked in (777.0, 17.3, 1e-4):
        offered = edits.options(1e-6, asked)
        assert asked in offered and list(offered) == sorted(offered) and len(offered) == len(edits.options(1e-6)) + 1
    assert edits.options(1e-6, 1 / 3 + 1e-9) == edits.options(1e-6)


def test_suggestions_begin_with_the_word_itself() -> None:
    found = edits.candidates(planted()[2], "River")
    assert {TOKENS[i].strip() for i in list(found)[:3]} == {"river"}
    assert RIVER in found
    assert edits.candidates(planted()[2], " ") == {}
