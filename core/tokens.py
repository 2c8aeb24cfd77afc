"""What a token looks like to a reader: its text, its visible form and its kind."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("word start", "word inside", "number", "punctuation", "blank", "special", "bytes", "other script")

_VISIBLE = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u200b": "∅", "\ufeff": "∅"}


def visible(text: str) -> str:
    """The text with its blanks and control characters made visible: ` river` reads `␣river`."""
    return "".join(_VISIBLE.get(c) or (f"⟨{ord(c):04x}⟩" if unicodedata.category(c) in _HIDDEN else c) for c in text)


_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The printable alphabet in which byte-level BPE writes the 256 bytes (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """The text each token stands for, blanks kept (` river`); a part of a character reads as hex bytes, `⟨e2 80⟩`."""
    pieces = tokenizer.convert_ids_to_tokens([int(i) for i in ids])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel(" in str(backend.decoder)  # the whole as JSON would take 0.1 s
    special = set(tokenizer.all_special_tokens)
    return tuple(_text(piece, byte_level, special) for piece in pieces)


def _text(piece: str | None, byte_level: bool, special: set[str]) -> str:
    if piece is None:
        return "⟨no token⟩"
    if piece in special:
        return piece
    if byte_level:
        table = _byte_of_character()
        if all(c in table for c in piece):
            return _decode(bytes(table[c] for c in piece))
        return piece
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return _decode(bytes([int(piece[3:5], 16)]))
    return piece.replace("▁", " ")


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "⟨" + raw.hex(" ") + "⟩"


def kind_of(text: str, special: bool = False) -> str:
    """One of `KINDS`, judged from the token's text alone."""
    if special:
        return "special"
    if text.startswith("⟨") and text.endswith("⟩") and len(text) > 2:
        return "bytes"
    bare = text.strip()
    if not bare:
        return "blank"
    if any(c.isalpha() for c in bare):
        if any(ord(c) > 0x24F and c.isalpha() for c in bare):
            return "other script"
        return "word start" if text[0].isspace() else "word inside"
    return "number" if any(c.isdigit() for c in bare) else "punctuation"
