"""Figures of the guided lesson that no other page has: one next-token distribution, the mean distribution, the two compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from core import words
from core.figures import encoding as of_encoding
from core.figures.look import Chart, Look, blank, count_axis, labels, token_axis

if TYPE_CHECKING:
    from core.encoding import Encoding
    from core.results import NextToken

DRAWN = 300
"""Points of a curve over ranks; evenly spaced in the logarithm, so none is missed where it bends."""


def next_token(choice: NextToken, look: Look, marked: int = 3) -> Chart:
    """The likeliest next tokens of the model as it is; the first `marked` stand out."""
    table = pd.DataFrame({"id": choice.token_ids, "token": list(choice.tokens), "probability": choice.before})
    at = np.arange(len(table))
    figure = blank(look, x="probability", height=_height(len(table), look))
    figure.add_bar(
        y=at,
        x=choice.before,
        width=0.6,
        orientation="h",
        marker={"color": [look.ours if i < marked else look.before for i in at]},
        text=[words.percent(float(p)) for p in choice.before],
        textposition="outside",
        textfont={"color": look.ink, "size": look.type_size},
        cliponaxis=False,
        hovertemplate="%{x:.6~%}<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(**token_axis(list(table["token"])), showgrid=False)
    figure.update_xaxes(tickformat="~%", range=[0, 1.2 * float(choice.before.max())])
    figure.update_layout(margin_t=16)
    told = ", ".join(
        f"{t!r} {words.percent(float(p))}" for t, p in zip(choice.tokens[:3], choice.before[:3], strict=True)
    )
    return Chart(figure, f"The likeliest next tokens: {told}.", table)


def mean_distribution(encoding: Encoding, look: Look, first: int) -> Chart:
    """Mean probability of every token, most probable first; the `first` of them stand out."""
    order = np.argsort(-encoding.alpha, kind="stable")
    alpha = encoding.alpha[order]
    share = np.cumsum(alpha) / alpha.sum()
    n = len(alpha)
    ranks = np.unique(np.r_[np.geomspace(1, n, DRAWN).round().astype(int), first])
    figure = blank(look, x="tokens, most probable first", y="mean probability")
    for part, name, colour, width, fill in (
        (ranks[ranks <= first], "first", look.ours, 4, "tozeroy"),
        (ranks[ranks >= first], "others", look.before, 2, None),
    ):
        at = part - 1
        figure.add_scatter(
            x=part,
            y=alpha[at],
            mode="lines+markers" if len(part) == 1 else "lines",
            line={"color": colour, "width": width},
            fill=fill,
            fillcolor=_pale(colour),
            text=labels(encoding.tokens[i] for i in order[at]),
            customdata=np.stack([1 / alpha[at], share[at]], axis=1),
            hovertemplate="%{x:,}. %{text}: 1 in %{customdata[0]:,.3r}<br>up to here %{customdata[1]:.1%}<extra></extra>",
            name=name,
            showlegend=False,
        )
    figure.add_annotation(
        x=np.log10(first),
        y=np.log10(alpha[first - 1]),
        text=f"the first {first:,}:<br><b>{words.percent(float(f'{share[first - 1]:.3g}'))}</b> of all probability",
        align="left",
        xanchor="left" if first < 0.1 * n else "right",
        yanchor="bottom",
        xshift=10 if first < 0.1 * n else -10,
        yshift=6,
        showarrow=False,
        bgcolor=look.paper,
        font={"color": look.ours},
    )
    low, high = float(alpha[-1]), float(alpha[0])
    powers = range(int(np.floor(np.log10(low))), 1)
    figure.update_xaxes(**count_axis(1, n))
    figure.update_yaxes(
        type="log",
        range=[np.log10(low) - 0.2, np.log10(high) + 0.6],
        tickmode="array",
        tickvals=[10.0**p for p in powers],
        ticktext=[words.one_in(10.0**p) for p in powers],
    )
    figure.update_layout(margin_t=16)
    table = pd.DataFrame(
        {
            "rank": np.arange(1, n + 1),
            "token": [encoding.tokens[i] for i in order],
            "mean_probability": alpha,
            "share_up_to_here": share,
        }
    )
    return Chart(
        figure,
        f"Mean probability of {n:,} tokens, most probable first: the first {first:,} have "
        f"{words.percent(float(share[first - 1]))} of it together.",
        table,
    )


def kept_dimensions(encoding: Encoding, look: Look, kept: int) -> Chart:
    """The sparsity curve with the point at `kept` dimensions marked."""
    chart = of_encoding.sparsity(encoding, look)
    point = next(p for p in encoding.sparsity if p.dims == kept)
    chart.figure.add_scatter(
        x=[kept],
        y=[point.r2_refitted],
        mode="markers+text",
        marker={"size": 15, "color": look.after, "line": {"color": look.paper, "width": 2}},
        text=[f"<b>{words.number(point.r2_refitted)}</b>"],
        textposition="bottom right" if kept < 0.6 * len(encoding.weights) else "bottom left",
        textfont={"color": look.after_text},
        hovertemplate="%{x:,} dimensions: R² %{y:.3f}<extra></extra>",
        showlegend=False,
    )
    told = f"Marked: {words.plural(kept, 'dimension')}, R² {words.number(point.r2_refitted)}."
    return Chart(chart.figure, f"{chart.summary} {told}", chart.table)


def here_and_average(choice: NextToken, encoding: Encoding, look: Look, chosen: int) -> Chart:
    """The likeliest tokens at a prompt: their probability there, and on average over the text. `chosen`: an id."""
    known = np.isin(choice.token_ids, encoding.token_ids)
    ids, here = choice.token_ids[known], choice.before[known]
    tokens = [t for t, k in zip(choice.tokens, known, strict=True) if k]
    average = encoding.alpha[np.searchsorted(encoding.token_ids, ids)]
    table = pd.DataFrame({"id": ids, "token": tokens, "here": here, "on_average": average, "times": here / average})
    at = np.arange(len(ids))
    figure = blank(look, x="probability", height=_height(len(ids), look))
    for row, (a, b) in enumerate(zip(here, average, strict=True)):
        strong = ids[row] == chosen
        figure.add_scatter(
            x=[b, a],
            y=[row, row],
            mode="lines",
            line={"color": look.ours if strong else look.baseline, "width": 4 if strong else 2},
            hoverinfo="skip",
            showlegend=False,
        )
    for name, values, symbol in (("at this prompt", here, "circle"), ("on average", average, "diamond-open")):
        figure.add_scatter(
            x=values,
            y=at,
            mode="markers",
            marker={"size": 12, "color": look.ours if symbol == "circle" else look.before, "symbol": symbol}
            | ({"line": {"width": 2.5}} if symbol != "circle" else {}),
            customdata=1 / values,
            hovertemplate="1 in %{customdata:,.3r}<extra>" + name + "</extra>",
            name=name,
        )
    axis = token_axis(tokens)
    axis["ticktext"] = [
        f"<b>▸ {text}</b>" if i == chosen else text for i, text in zip(ids, labels(tokens), strict=True)
    ]
    figure.update_yaxes(**axis, showgrid=False)
    low, high = float(min(here.min(), average.min())), float(max(here.max(), average.max()))
    powers = range(int(np.floor(np.log10(low))), 1)
    figure.update_xaxes(
        type="log",
        range=[np.log10(low) - 0.2, min(0.05, np.log10(high) + 0.3)],
        tickmode="array",
        tickvals=[10.0**p for p in powers],
        ticktext=[words.one_in(10.0**p) for p in powers],
    )
    place = int(np.flatnonzero(ids == chosen)[0])
    return Chart(
        figure,
        f"{tokens[place]!r} has {words.percent(float(here[place]))} at this prompt and comes "
        f"{words.one_in(float(average[place]))} on average.",
        table,
    )


def _height(rows: int, look: Look) -> int:
    return max(look.height, round(rows * 1.9 * look.type_size) + 80)


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.14)"
