"""How results show themselves in a notebook: escaped HTML made from their fields, the same way for every result.

    encoding = Analysis("demo").encoding()
    encoding                                  # the last line of a cell: shows R², predictors, sparsity, the first tokens

Plain values stand in a grid, those named in `_first` before all others; arrays and tuples of one length are columns of one
table; results inside a result are tables or fold out. Texts of tokens are hostile until they are escaped: here they are.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from core import words
from core.tokens import visible

ROWS = 8
"""Rows of a table that are shown; the number of all of them stands below it."""
COLUMNS = 12
OPEN = 64
"""Columns with more values than that fold out."""
LONGEST = 300
"""Characters of a text that are shown."""

STYLE = """
.hs-shown {font-family: "Source Sans", "Segoe UI", system-ui, sans-serif; line-height: 1.45; max-width: 72rem;}
.hs-shown dl {display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .6rem 1.5rem; margin: .5rem 0;}
.hs-shown dt {font-size: .85em; opacity: .75;}
.hs-shown dd {margin: 0; overflow-wrap: anywhere;}
.hs-shown p {margin: .2rem 0; opacity: .8; max-width: 60rem;}
.hs-shown table {border-collapse: collapse; margin: .5rem 0;}
.hs-shown th, .hs-shown td {padding: .15rem .8rem .15rem 0; text-align: left; border: 0; border-bottom: 1px solid #8884;}
.hs-shown .hs-number {text-align: right; font-variant-numeric: tabular-nums;}
.hs-shown .hs-wide {overflow-x: auto;}
.hs-chip {font-family: "Source Code Pro", ui-monospace, monospace; font-size: .92em; white-space: pre-wrap;
  background: color-mix(in srgb, currentColor 9%, transparent); border-radius: .3em; padding: .05em .35em;}
"""


class Shown:
    """A frozen dataclass that shows itself where HTML can be shown. `_first`: fields and properties a reader looks for."""

    _first: ClassVar[tuple[str, ...]] = ()

    def _repr_html_(self) -> str:
        return f'<style>{STYLE}</style><div class="hs-shown">{body(self)}</div>'


def chip(text: str, token_id: int | None = None, *, steered: bool = False) -> str:
    """A token as HTML: monospaced, blanks visible, its id on hover."""
    title = "" if token_id is None else f' title="id {token_id}"'
    kind = "hs-chip hs-steered" if steered else "hs-chip"
    return f'<span class="{kind}"{title}>{html.escape(visible(text))}</span>'


def body(result: Any) -> str:
    """The inside of a result: its name, what it is, its values."""
    kind = type(result)
    told = (kind.__doc__ or "").strip().split("\n\n")[0].replace("`", "")
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    leading = {name: getattr(result, name) for name in kind._first} if isinstance(result, Shown) else {}
    plain = {name: value for name, value in values.items() if _is_plain(value)}
    if not leading:
        leading, plain = plain, {}
    parts = [f"<strong>{kind.__name__}</strong><p>{html.escape(told)}</p>", _grid(leading)]
    for name, value in values.items():
        if _is_table(value):
            parts.append(_named(name, table([vars(item) for item in value], len(value))))
    for rows, length in _columns(values):
        short = length <= OPEN and len(rows[0]) > 1
        name = f"{length:,} × {', '.join(rows[0])}".replace("_", " ")
        parts.append(table(rows, length) if short else _folded(name, table(rows, length)))
    parts += [_folded(name, body(value)) for name, value in values.items() if dataclasses.is_dataclass(value)]
    rest = {name: value for name, value in plain.items() if name not in leading}
    if rest:
        parts.append(_folded("all values", _grid(rest)))
    return "".join(parts)


def table(rows: Sequence[dict[str, Any]], length: int, most: int = ROWS) -> str:
    """The first `most` rows of a table with the same keys in each; `length` says how many there are in all."""
    if not rows:
        return ""
    shown = rows[:most]
    names = [n for n in shown[0] if all(_is_plain(row[n]) for row in shown)][:COLUMNS]
    numeric = {n for n in names if all(_is_number(row[n]) for row in shown)}
    cell = {True: ' class="hs-number"', False: ""}
    head = "".join(f"<th{cell[n in numeric]}>{html.escape(n.replace('_', ' '))}</th>" for n in names)
    lines = "".join(
        f"<tr>{''.join(f'<td{cell[n in numeric]}>{_value(n, row[n])}</td>' for n in names)}</tr>" for row in shown
    )
    more = f"<p>The first {len(shown)} of {length:,}.</p>" if length > len(shown) else ""
    return f'<div class="hs-wide"><table><tr>{head}</tr>{lines}</table></div>{more}'


def _folded(name: str, content: str) -> str:
    return f"<details><summary>{html.escape(name)}</summary>{content}</details>"


def _named(name: str, content: str) -> str:
    return f"<p>{html.escape(name.replace('_', ' '))}</p>{content}" if content else ""


def _grid(values: dict[str, Any]) -> str:
    cells = "".join(
        f"<div><dt>{html.escape(name.replace('_', ' '))}</dt><dd>{_value(name, value)}</dd></div>"
        for name, value in values.items()
        if value not in ("", None)
    )
    return f"<dl>{cells}</dl>" if cells else ""


def _columns(values: dict[str, Any]) -> Iterable[tuple[list[dict[str, Any]], int]]:
    """Arrays and tuples of plain values, those of one length together, as rows of a table."""
    lengths: dict[int, list[str]] = {}
    for name, value in values.items():
        if _is_column(value):
            lengths.setdefault(len(value), []).append(name)
    for length, names in sorted(lengths.items(), reverse=True):
        yield [{n: values[n][at] for n in names} for at in range(min(ROWS, length))], length


def _is_column(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and len(value) > 0
    return isinstance(value, tuple) and bool(value) and all(_is_plain(item) for item in value[:ROWS])


def _is_table(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(dataclasses.is_dataclass(item) for item in value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float | np.generic)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _value(name: str, value: Any) -> str:
    if isinstance(value, str):
        if name.removesuffix("s").endswith("token"):
            return chip(value)
        return html.escape(value if len(value) <= LONGEST else value[: LONGEST - 1] + "…")
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value)}" if name.removesuffix("s").endswith(("id", "seed")) else f"{int(value):,}"
    return words.number(float(value), 4)
