"""Figures of the comparison: the rows side by side, told apart by symbol and dash; colours keep their meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from core import words
from core.compare import RATIOS, Row, cosines, names
from core.figures.look import LIGHT, Chart, Look, blank, label, ratio_axis

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,2px", "8px,2px")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "hexagon", "triangle-down")


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row: what is compared."""
    lines = []
    for row in rows:
        line: dict[str, object] = {
            "model": row.model,
            "text": row.corpus,
            "positions": row.positions,
            "tokens": row.vocab_size,
            "dims": row.dim,
            "r2": row.r2,
            "r2_held_out_tokens": row.r2_held_out_tokens,
            "r2_held_out_text": row.r2_held_out_text,
            "spread_nats": row.residual_std,
            "effective_dims": row.effective_dims,
            "cosine_a_minus_mean_h": row.cosine_minus_mean_hidden,
            "log_z_spread": row.log_z_std,
            "perplexity_held_out": row.perplexity_held_out,
        }
        if row.steering is not None:
            line["factor_off_at_20x"] = float(np.exp(row.steering.held_out[RATIOS.index(20.0)]))
        for each in row.pruning:
            at = [p for p in each.points if p.removed == 0.3]
            if at:
                line[f"top1_kept_{each.method}_30"] = at[0].top1_agreement
        lines.append(line)
    return pd.DataFrame(lines)


def _height(rows: Sequence[Row], look: Look) -> int:
    return max(look.height, round(len(rows) * 3.2 * look.type_size) + 130)


def _rows_axis(told: Sequence[str]) -> dict[str, object]:
    return {
        "tickmode": "array",
        "tickvals": list(range(len(told))),
        "ticktext": [_wrapped(name) for name in told],
        "range": [len(told) - 0.4, -0.6],
        "showgrid": False,
    }


def _wrapped(name: str) -> str:
    """A name whose parts stand below one another, each escaped and cut where it is long."""
    return "<br>".join(label(part, 26).replace("␣", " ") for part in name.split(" · "))


def fit(rows: Sequence[Row], look: Look = LIGHT) -> Chart:
    """R² of every row, on what was fitted and on what was not."""
    told = names(rows)
    at = list(range(len(rows)))
    figure = blank(look, x="R²: share of −log α that a line explains", height=_height(rows, look))
    for name, colour, symbol, size, values in (
        ("fitted tokens", look.ours, "circle", 13, [row.r2 for row in rows]),
        ("held-out tokens", look.held_out, "diamond-open", 13, [row.r2_held_out_tokens for row in rows]),
        ("held-out text", look.held_out, "circle-open", 17, [row.r2_held_out_text for row in rows]),
    ):
        figure.add_scatter(
            x=values,
            y=at,
            mode="markers+text" if name == "held-out text" else "markers",
            text=[words.number(v) if np.isfinite(v) else "" for v in values],
            textposition="top center",
            textfont={"color": look.held_out},
            marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 2.5, "color": colour}},
            name=name,
            hovertemplate="%{x:.4f}<extra>" + name + "</extra>",
        )
    figure.update_yaxes(**_rows_axis(told))
    known = [v for row in rows for v in (row.r2, row.r2_held_out_tokens, row.r2_held_out_text) if np.isfinite(v)]
    figure.update_xaxes(
        range=[min(0.0, max(-1.0, min(known, default=0.0))) - 0.02, 1.09], tickvals=np.arange(0, 1.01, 0.2)
    )
    parts = [f"{name} {words.number(row.r2_held_out_text)}" for name, row in zip(told, rows, strict=True)]
    columns = ["model", "text", "r2", "r2_held_out_tokens", "r2_held_out_text"]
    return Chart(figure, f"R² on held-out text: {'; '.join(parts)}.", table(rows)[columns])


def _line(figure: go.Figure, number: int, name: str, colour: str, **more: object) -> None:
    """One row's curve: its symbol and dash are the same in every figure."""
    figure.add_scatter(
        mode="lines+markers",
        line={"color": colour, "width": 2.5, "dash": DASHES[number % len(DASHES)]},
        marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8, "color": colour},
        name=label(name, 60).replace("␣", " "),
        **more,
    )


def sparsity(rows: Sequence[Row], look: Look = LIGHT) -> Chart:
    """R² when only the most salient dimensions are used, over the share of all dimensions."""
    told = names(rows)
    figure = blank(look, x="dimensions used, most salient first, % of all", y="R², refitted", height=look.height + 40)
    records, least = [], 1.0
    parts = []
    for number, (row, name) in enumerate(zip(rows, told, strict=True)):
        if not row.sparsity:
            continue
        share = [100 * p.dims / row.dim for p in row.sparsity]
        values = [p.r2_refitted for p in row.sparsity]
        least = min(least, share[0])
        _line(
            figure,
            number,
            name,
            look.ours,
            x=share,
            y=values,
            customdata=[p.dims for p in row.sparsity],
            hovertemplate="%{customdata:,} dimensions (%{x:.2g} %): R² %{y:.3f}<extra>%{fullData.name}</extra>",
        )
        records += [
            {"model": row.model, "text": row.corpus, "dims": p.dims, "share": s / 100, "r2": p.r2_refitted}
            for s, p in zip(share, row.sparsity, strict=True)
        ]
        enough = next((s for s, v in zip(share, values, strict=True) if v >= 0.9 * values[-1]), 100.0)
        parts.append(f"{name} {words.number(enough, 2)} %")
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t >= least / 1.3]
    figure.update_xaxes(
        type="log",
        range=[np.log10(least / 1.2), np.log10(115)],
        tickmode="array",
        tickvals=ticks,
        ticktext=[f"{words.number(t)} %" for t in ticks],
    )
    figure.update_yaxes(range=[-0.02, 1.02])
    summary = f"Share of the dimensions that reaches 90 % of the full R²: {'; '.join(parts) or 'not known'}."
    return Chart(figure, summary, pd.DataFrame(records))


def accuracy(rows: Sequence[Row], look: Look = LIGHT) -> Chart:
    """By how large a factor the realised ratio is off on held-out text, over the asked ratio."""
    told = names(rows)
    figure = blank(look, x="ratio asked", y="off by a factor of, held-out text", height=look.height + 40)
    records, parts, most = [], [], 1.1
    for number, (row, name) in enumerate(zip(rows, told, strict=True)):
        if row.steering is None:
            continue
        factors = np.exp(row.steering.held_out)
        most = max(most, float(np.nanmax(factors)))
        _line(
            figure,
            number,
            name,
            look.held_out,
            x=list(row.steering.ratios),
            y=factors,
            hovertemplate="asked %{x:.4g}×: off by a factor of %{y:.3g}<extra>%{fullData.name}</extra>",
        )
        records += [
            {"model": row.model, "text": row.corpus, "ratio": r, "log_error": e, "factor": f, "reached": reached}
            for r, e, f, reached in zip(
                row.steering.ratios, row.steering.held_out, factors, row.steering.reached, strict=True
            )
        ]
        parts.append(f"{name} {words.number(float(factors[RATIOS.index(20.0)]))}")
    for trace in figure.data:  # held-out: always hollow
        trace.marker.symbol = f"{trace.marker.symbol}-open"
        trace.marker.line = {"width": 2.5}
    figure.add_hline(y=1, line={"color": look.quiet, "width": 1, "dash": "dot"})
    figure.update_xaxes(**ratio_axis(0.035, 140))
    ticks = [t for t in (1, 1.02, 1.05, 1.1, 1.2) if t <= 1.05 * most]
    if most > 1.3:
        ticks = [t for t in (1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 30, 100, 1000) if t <= 1.05 * most]
    figure.update_yaxes(
        type="log",
        range=[-0.012, np.log10(most * 1.06)],
        tickmode="array",
        tickvals=ticks,
        ticktext=["exact" if t == 1 else f"{t:g}×" for t in ticks],
    )
    summary = (
        f"Asked 20×, the median token is off on held-out text by a factor of: {'; '.join(parts) or 'not measured'}."
    )
    return Chart(figure, summary, pd.DataFrame(records))


def pruning(rows: Sequence[Row], method: str, look: Look = LIGHT) -> Chart:
    """In how many contexts the top prediction stays, over the share of dimensions removed by one method."""
    told = names(rows)
    figure = blank(look, x="dimensions removed, %", y="contexts whose top prediction stays, %", height=look.height + 40)
    records, parts = [], []
    for number, (row, name) in enumerate(zip(rows, told, strict=True)):
        curve = next((each for each in row.pruning if each.method == method), None)
        if curve is None:
            continue
        removed, kept = [100 * p.removed for p in curve.points], [100 * p.top1_agreement for p in curve.points]
        _line(
            figure,
            number,
            name,
            look.ours if method.startswith("rotated") else look.before,
            x=[0, *removed],
            y=[100, *kept],
            hovertemplate="%{x:.0f} % removed: stays in %{y:.1f} %<extra>%{fullData.name}</extra>",
        )
        records += [
            {
                "model": row.model,
                "text": row.corpus,
                "method": method,
                "removed": p.removed,
                "kl": p.kl,
                "top1_agreement": p.top1_agreement,
                "perplexity_ratio": p.perplexity_ratio,
            }
            for p in curve.points
        ]
        third = next((p.top1_agreement for p in curve.points if p.removed == 0.3), None)
        if third is not None:
            parts.append(f"{name} {words.number(100 * third, 2)} of 100 contexts")
    figure.update_yaxes(range=[-2, 103])
    figure.update_xaxes(range=[-2, 95])
    summary = f"With 30 % of the dimensions gone ({method}) the top prediction stays in: {'; '.join(parts) or 'not measured'}."
    return Chart(figure, summary, pd.DataFrame(records))


def weights(rows: Sequence[Row], look: Look = LIGHT) -> Chart:
    """The cosine between the fitted directions of every two rows of the same width."""
    told, found = names(rows), cosines(rows)
    at = list(range(len(rows)))
    figure = blank(look, height=_height(rows, look))
    figure.add_heatmap(
        z=found,
        x=at,
        y=at,
        zmin=-1,
        zmax=1,
        colorscale=[[0, look.baseline], [0.5, look.paper], [1, look.ours]],
        xgap=3,
        ygap=3,
        hovertemplate="cosine %{z:.4f}<extra></extra>",
        colorbar={"thickness": 10, "outlinewidth": 0, "title": {"text": "cosine"}, "tickfont": {"color": look.quiet}},
    )
    for i in at:
        for j in at:
            value = found[i, j]
            strong = np.isfinite(value) and abs(value) > 0.6
            figure.add_annotation(
                x=j,
                y=i,
                text=f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–",
                showarrow=False,
                font={"color": ("#FFFFFF" if not look.dark else "#0B1118") if strong else look.ink},
            )
    figure.update_yaxes(**_rows_axis(told))
    figure.update_xaxes(
        tickmode="array", tickvals=at, ticktext=[_wrapped(name) for name in told], showgrid=False, side="top",
        range=[-0.5, len(rows) - 0.5],
    )  # fmt: skip
    figure.update_layout(margin_t=70)
    pairs = [found[i, j] for i in at for j in at if i < j and np.isfinite(found[i, j])]
    records = [
        {"row": told[i], "other": told[j], "cosine": found[i, j]} for i in at for j in at if np.isfinite(found[i, j])
    ]
    summary = (
        f"Cosine between the fitted directions: {_span(pairs)}, {words.plural(len(pairs), 'pair')} of equal width."
        if pairs
        else "No two rows have embeddings of the same width, so their directions cannot be compared."
    )
    return Chart(figure, summary, pd.DataFrame(records, columns=["row", "other", "cosine"]))


def _span(values: Sequence[float]) -> str:
    low, high = (words.number(float(f(values)), 2) for f in (min, max))
    return low if low == high else f"{low} to {high}"
