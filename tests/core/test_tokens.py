"""Tokens read as the text they stand for, blanks and bytes included."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tokens import kind_of, token_texts, visible
from tests.tiny import tiny_tokenizer


def test_byte_level_tokens_join_to_the_text() -> None:
    tokenizer = tiny_tokenizer()
    text = " river, the\nmill  12"
    assert "".join(token_texts(tokenizer, tokenizer.encode(text, add_special_tokens=False))) == text


def test_parts_of_a_character_read_as_bytes() -> None:
    tokenizer = tiny_tokenizer()
    texts = token_texts(tokenizer, tokenizer.encode("é", add_special_tokens=False))
    assert texts == ("⟨c3⟩", "⟨a9⟩")


@given(st.text())
def test_nothing_invisible_stays(text: str) -> None:
    shown = visible(text)
    assert not any(c in " \t\n\r\x00\u00a0\u200b\u202e\ufeff\ud800" for c in shown)
    assert len(shown) >= len(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(" river", "word start"), ("ing", "word inside"), (" 12", "number"), (",", "punctuation"), ("\n\n", "blank"),
     ("⟨e2 80⟩", "bytes"), (" река", "other script"), ("été", "word inside")],
)  # fmt: skip
def test_kinds(text: str, kind: str) -> None:
    assert kind_of(text) == kind
    assert kind_of(text, special=True) == "special"
