"""Two texts side by side as HTML, escaped: shaded from the first token that differs, steered tokens as chips."""

from __future__ import annotations

import html
from collections.abc import Collection

from core.show import chip
from core.tokens import visible

STYLE = """
.hs-pair {display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: .4rem 2rem;
  border-top: 1px solid color-mix(in srgb, currentColor 15%, transparent); padding: .7rem 0;}
.hs-pair div {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6;}
.hs-pair .hs-side {font-size: .85rem; font-weight: 600; margin: 0; padding: 0 0 .2rem 0;}
.hs-before .hs-side {color: HS_BEFORE;} .hs-after .hs-side {color: HS_AFTER_TEXT;}
.hs-changed {background: color-mix(in srgb, HS_AFTER 11%, transparent);}
.hs-changed-before {background: color-mix(in srgb, HS_BEFORE 16%, transparent);}
.hs-steered {background: color-mix(in srgb, HS_AFTER 26%, transparent); box-shadow: inset 0 -2px 0 HS_AFTER;}
"""
"""Of pairs and steered chips; HS_BEFORE, HS_AFTER and HS_AFTER_TEXT stand for the colours of a `Look`."""


def pair(
    before: tuple[int, ...],
    after: tuple[int, ...],
    before_tokens: tuple[str, ...],
    after_tokens: tuple[str, ...],
    steered: Collection[int],
) -> str:
    """A text before and after an edit, by its tokens' ids and texts."""
    first = first_difference(before, after)
    return (
        '<div class="hs-pair">'
        + _side("Before", "before", before, before_tokens, first, steered)
        + _side("After", "after", after, after_tokens, first, steered)
        + "</div>"
    )


def first_difference(before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """Place of the first token that differs; the shorter length where one continues the other."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))


def _side(
    title: str, side: str, ids: tuple[int, ...], pieces: tuple[str, ...], first: int, steered: Collection[int]
) -> str:
    def piece(token_id: int, text: str) -> str:
        return chip(text, token_id, steered=True) if token_id in steered else html.escape(_readable(text))

    parts = [piece(i, t) for i, t in zip(ids, pieces, strict=True)]
    kind = "hs-changed" if side == "after" else "hs-changed-before"
    changed = "".join(parts[first:])
    marked = f'<span class="{kind}">{changed}</span>' if changed else ""
    return f'<div class="hs-{side}"><p class="hs-side">{title}</p>{"".join(parts[:first])}{marked}</div>'


def _readable(text: str) -> str:
    """A token inside running text: blanks and line ends stay, everything else that cannot be seen is made visible."""
    return "".join(c if c in " \n" else visible(c) for c in text)
