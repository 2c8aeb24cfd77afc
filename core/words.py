"""Numbers as people say them: 4×, 1/20, 0.03 nats, 1 in 2,000, 93 MB, 12 s.

Three significant digits everywhere; the exact value belongs on the hover and in the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path


def number(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits: 1,240 and 0.0312; powers of ten only where zeros would be counted."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 14:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{_minus(_trimmed(mantissa))}e{_minus(str(int(power)))}"
    rounded = round(value, digits - 1 - size) if size < digits else round(value)
    return _minus(_trimmed(f"{rounded:,.{max(0, digits - 1 - size)}f}"))


def at_most(value: float, digits: int = 4) -> str:
    """A limit, rounded down: what is said to be allowed is."""
    return _cut(value, digits, math.floor)


def at_least(value: float, digits: int = 4) -> str:
    """A limit from below, rounded up."""
    return _cut(value, digits, math.ceil)


def _cut(value: float, digits: int, cut: Callable[[float], int]) -> str:
    if not 0 < value < math.inf:
        return f"{value:.{digits}g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return f"{cut(value / unit) * unit:.{digits}g}"


def ratio(value: float) -> str:
    """A factor: `20×` up, `1/20` down; between a half and one as a plain factor, `0.8×`."""
    if 0 < value <= 0.5:
        return f"1/{number(1 / value)}"
    return f"{number(value)}×"


def nats(value: float) -> str:
    return f"{number(value)} nats"


def one_in(probability: float) -> str:
    """A probability as `1 in 2,000`; a likely one as a percentage."""
    if not probability > 0:
        return "never"
    if probability > 0.5:
        return percent(probability)
    times, digits = 1 / probability, 2 if probability > 0.01 else 3
    return f"1 in {number(float(f'{times:.{digits}g}'), digits)}"


def percent(share: float) -> str:
    return f"{number(100 * share)} %"


def size(count: float) -> str:
    """A number of bytes in decimal units: 93 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{count:.0f} bytes"


def quantity(count: float) -> str:
    """A large number of things: 135 million."""
    for unit, scale in (("billion", 1e9), ("million", 1e6)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{count:,.0f}"


def duration(seconds: float) -> str:
    """A time as one reads it off a clock: 12 s, 3 min, 1 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def whole_characters(text: str) -> str:
    r"""The text with U+FFFD where it holds half a character (JSON can: `"\ud83d"`), which no tokenizer or file takes."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def harmless(text: str) -> str:
    """The text with U+FFFD for half characters and for control characters, which a terminal obeys; lines and tabs stay."""
    return re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text)


def quoted(text: str, most: int = 120) -> str:
    """A name that a user gave, as a sentence shows it: in quotes, short, without control characters."""
    return f"'{short(text, most)}'"


def short(text: str, most: int = 120) -> str:
    """The same without quotes."""
    seen = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return seen if len(seen) <= most else seen[: most - 3] + "..."


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _minus(text: str) -> str:
    return text.replace("-", "−")


def without_folders(name: str) -> str:
    """A path by its last part, every other name as it is."""
    return Path(name).name if name.startswith(("/", "~", ".")) or "\\" in name else name
