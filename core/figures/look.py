"""One look for every figure: colours with a fixed meaning, a light and a dark template, tokens as labels.

before = slate, after an edit = orange, held-out = teal and always dashed or hollow, ours or fitted = blue,
baseline = grey, warning = amber. A figure function takes a result and a `Look` and returns a `Chart`: the
figure, what it shows in words for those who do not see it, and its numbers as a table.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from core.figures import words
from core.tokens import visible

if TYPE_CHECKING:
    import pandas as pd

HEIGHT = 420
"""Every figure of a page has this height (pixels at normal type), so that nothing jumps."""

FONT = '"Source Sans", "Source Sans Pro", "Segoe UI", system-ui, sans-serif'
MONO = '"Source Code Pro", ui-monospace, Menlo, Consolas, monospace'


@dataclass(frozen=True)
class Chart:
    """A figure ready to be shown; in a notebook it shows itself.

    Attributes:
        made: a Plotly figure, or its JSON from `parts`.
        summary: one or two sentences that say what it shows, with numbers.
        columns: the numbers behind it by column, one row per mark.
    """

    made: go.Figure | Mapping[str, object]
    summary: str
    columns: pd.DataFrame | Mapping[str, Sequence[object]]

    @cached_property
    def figure(self) -> go.Figure:
        """The Plotly figure, with its own template. Made from JSON when it is asked for: Plotly checks every value."""
        return self.made if isinstance(self.made, go.Figure) else go.Figure(self.made)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The numbers behind the figure, one row per mark. Made when it is asked for: a page that stands needs none."""
        import pandas as pd

        return pd.DataFrame(self.columns)

    def show(self) -> None:
        """Open the figure: in the notebook, or from a script in the browser."""
        self.figure.show()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return self.figure._repr_mimebundle_(include, exclude)


@dataclass(frozen=True)
class Look:
    """Light or dark, and how large the type is (pixels; 20 and more for a class room)."""

    dark: bool = False
    type_size: int = 14

    @property
    def before(self) -> str:
        return "#9FB0C3" if self.dark else "#5B6B7F"

    @property
    def after(self) -> str:
        return "#F28C38" if self.dark else "#D55E00"

    @property
    def after_text(self) -> str:
        """The colour `after` for words and numbers: dark enough to be read in small type (contrast 5.0 on white)."""
        return self.after if self.dark else "#B85000"

    @property
    def held_out(self) -> str:
        return "#2DBE9C" if self.dark else "#00836A"

    @property
    def ours(self) -> str:
        return "#56B4E9" if self.dark else "#0072B2"

    @property
    def baseline(self) -> str:
        return "#5D6875" if self.dark else "#BAC2CC"

    @property
    def warning(self) -> str:
        return "#F2C14E" if self.dark else "#9A6A00"

    @property
    def ink(self) -> str:
        return "#E6EBF1" if self.dark else "#1B2430"

    @property
    def quiet(self) -> str:
        return "#A7B2BF" if self.dark else "#566270"

    @property
    def grid(self) -> str:
        return "#2B343F" if self.dark else "#E4E8ED"

    @property
    def paper(self) -> str:
        return "#12161C" if self.dark else "#FFFFFF"

    @property
    def height(self) -> int:
        return round(HEIGHT * max(1.0, self.type_size / 16))


LIGHT = Look()
"""What a figure looks like where nothing else is said."""


@lru_cache(maxsize=8)
def template(look: Look) -> go.layout.Template:
    axis = {
        "gridcolor": look.grid,
        "zerolinecolor": look.grid,
        "linecolor": look.quiet,
        "tickfont": {"color": look.quiet, "size": look.type_size - 1},
        "title": {"font": {"color": look.quiet, "size": look.type_size}, "standoff": 8},
        "automargin": True,
        "ticks": "outside",
        "ticklen": 6,
        "tickcolor": "rgba(0,0,0,0)",
        "zeroline": False,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": look.type_size, "color": look.ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": [look.ours, look.after, look.held_out, look.before, look.warning, look.baseline],
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": look.paper,
                "bordercolor": look.grid,
                "font": {"family": FONT, "color": look.ink, "size": look.type_size},
            },
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.01,
                "yanchor": "bottom",
                "font": {"color": look.quiet, "size": look.type_size - 1},
                "bgcolor": "rgba(0,0,0,0)",
            },
            "margin": {"l": 8, "r": 8, "t": 44, "b": 8},
            "hovermode": "closest",
            "dragmode": "zoom",
            "bargap": 0.35,
            "bargroupgap": 0.08,
        }
    )


@lru_cache(maxsize=8)
def _template_json(look: Look) -> dict[str, object]:
    """The same as Plotly's JSON has it, shared by figures: not to be changed."""
    found: dict[str, object] = template(look).to_plotly_json()
    return found


def blank(look: Look, *, height: int | None = None, x: str = "", y: str = "") -> go.Figure:
    """An empty figure with the house's template, height and axis titles."""
    return drawn(look, (), height=height, x=x, y=y)


def drawn(
    look: Look,
    traces: Sequence[dict[str, object]],
    **settings: Any,
) -> go.Figure:
    """A figure made in one go: Plotly checks every change of a figure, which costs ten times as much."""
    return go.Figure(parts(look, traces, **settings))


def parts(
    look: Look,
    traces: Sequence[dict[str, object]],
    *,
    height: int | None = None,
    x: str = "",
    y: str = "",
    xaxis: Mapping[str, object] | None = None,
    yaxis: Mapping[str, object] | None = None,
    **layout: object,
) -> dict[str, object]:
    """A figure as Plotly's JSON has it, unchecked.

    Args:
        traces: as Plotly's JSON has them, each with its type.
        xaxis, yaxis: settings of the axes beside their titles. layout: further settings.
    """
    settings = {
        "template": _template_json(look),
        "height": height or look.height,
        "xaxis": {"title": {"text": x}, **(xaxis or {})},
        "yaxis": {"title": {"text": y}, **(yaxis or {})},
        **layout,
    }
    return {"data": list(traces), "layout": settings}


def label(text: str, longest: int = 22) -> str:
    """A token as a Plotly label: blanks visible, cut where it is long, and never read as markup."""
    shown = visible(text)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return html.escape(shown, quote=False)


def labels(texts: Iterable[str]) -> list[str]:
    return [label(text) for text in texts]


def token_axis(texts: Sequence[str]) -> dict[str, object]:
    """Axis settings that put tokens at numeric positions 0, 1, …, so that equal or odd ones keep their places."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(texts))),
        "ticktext": labels(texts),
        "tickfont": {"family": MONO},
        "range": [len(texts) - 0.5, -0.5],
    }


RATIO_TICKS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10000)


def ratio_axis(low: float, high: float) -> dict[str, object]:
    """A logarithmic axis of factors, labelled 1/20, 1×, 20×."""
    ticks = [t for t in RATIO_TICKS if low / 1.001 <= t <= high * 1.001]
    if math.log10(high / low) > 2.6:
        ticks = [t for t in ticks if f"{t:e}"[0] == "1"]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [words.ratio(t) for t in ticks],
    }


def count_axis(low: float, high: float, most: int = 8) -> dict[str, object]:
    """A logarithmic axis of whole numbers in plain figures: 1, 10, 100, 1,000."""
    powers = range(math.floor(math.log10(max(low, 1e-12))), math.ceil(math.log10(max(high, 1e-12))) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low / 1.01 <= m * 10.0**p <= high * 1.01]
    if len(ticks) > most:
        ticks = [10.0**p for p in powers]
    return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [words.number(t) for t in ticks]}


def one_in_axis(lowest: float, highest: float, **more: object) -> dict[str, object]:
    """The second scale of a −log axis: where a probability is 1 in 10, 1 in 100, …"""
    powers = range(max(0, math.ceil(lowest / math.log(10))), math.floor(highest / math.log(10)) + 1)
    return {
        "tickmode": "array",
        "tickvals": [p * math.log(10) for p in powers],
        "ticktext": [f"1 in {_power(p)}" for p in powers],
        "showgrid": False,
        **more,
    }


def _power(power: int) -> str:
    for unit, size in (("billion", 9), ("million", 6)):
        if power >= size:
            return f"{10 ** (power - size):,} {unit}"
    return f"{10**power:,}"
