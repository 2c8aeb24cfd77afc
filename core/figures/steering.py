"""Figures of steering: what was asked, what came of it on text not seen, and what else moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from plotly.subplots import make_subplots

from core.figures import words
from core.figures.look import LIGHT, Chart, Look, blank, count_axis, parts, ratio_axis, template, token_axis

if TYPE_CHECKING:
    from core.results import FewShotPoint
    from core.steering import Steering, SweepPoint


def asked_and_realised(steering: Steering, look: Look = LIGHT) -> Chart:
    """For every steered token: the ratio asked for, and the one realised on fitting text and on held-out text."""
    tokens = steering.tokens
    columns = {
        "id": [t.id for t in tokens],
        "token": [t.token for t in tokens],
        "asked": [t.target for t in tokens],
        "realised": [t.realised for t in tokens],
        "realised_held_out": [t.realised_held_out for t in tokens],
        "max_ratio": [t.max_ratio for t in tokens],
    }
    at = list(range(len(tokens)))
    traces = [
        {
            "type": "scatter",
            "x": columns["asked"],
            "y": at,
            "mode": "markers",
            "name": "asked",
            "marker": {"symbol": "line-ns", "size": 26, "line": {"width": 3, "color": look.ink}},
            "hovertemplate": "asked %{x:.4g}×<extra></extra>",
        },
        {
            "type": "scatter",
            "x": columns["realised"],
            "y": at,
            "mode": "markers",
            "name": "fitting text",
            "marker": {"symbol": "circle", "size": 11, "color": look.ours},
            "hovertemplate": "fitting text %{x:.4g}×<extra></extra>",
        },
        {
            "type": "scatter",
            "x": columns["realised_held_out"],
            "y": at,
            "mode": "markers+text",
            "name": "held-out text",
            "marker": {"symbol": "diamond-open", "size": 15, "color": look.held_out, "line": {"width": 2.5}},
            "text": [f"   {words.ratio(t.realised_held_out)}   " for t in tokens],
            # away from the mark of what was asked
            "textposition": [f"middle {'right' if t.realised_held_out >= t.target else 'left'}" for t in tokens],
            "textfont": {"color": look.held_out},
            "cliponaxis": False,
            "hovertemplate": "held-out text %{x:.4g}×<extra></extra>",
        },
    ]
    values = np.array([(t.target, t.realised, t.realised_held_out) for t in tokens]).clip(1e-6, 1e6)
    low, high = min(0.7, float(values.min()) / 3), max(1.4, float(values.max()) * 1.5)  # room for the numbers
    exact = {"type": "line", "x0": 1, "x1": 1, "xref": "x", "y0": 0, "y1": 1, "yref": "y domain"}
    figure = parts(
        look,
        traces,
        x="ratio of mean probability, after over before",
        xaxis=ratio_axis(low, high),
        yaxis=token_axis([t.token for t in tokens]),
        margin={"r": 44},  # for the number beside the last mark on a narrow screen
        shapes=[{**exact, "line": {"color": look.quiet, "width": 1, "dash": "dot"}}],
    )
    told = "; ".join(
        f"{t.token!r} asked {words.ratio(t.target)}, got {words.ratio(t.realised_held_out)} on held-out text"
        for t in tokens
    )
    return Chart(figure, told + ".", columns)


def sweep(points: Sequence[SweepPoint], steering: Steering, look: Look = LIGHT, *, now: bool = True) -> Chart:
    """Realised against asked over the whole range, for the first token of the list; `now`: the current setting marked."""
    columns: dict[str, list[float]] = {name: [getattr(point, name) for point in points] for name in vars(points[0])}
    token = steering.tokens[0]
    asked, held_out = np.array(columns["ratio"]), np.array(columns["realised_held_out"])
    low, high = float(asked.min()), float(asked.max())
    exact = {"color": look.quiet, "width": 1, "dash": "dot"}
    traces: list[dict[str, object]] = [
        {"type": "scatter", "x": [low, high], "y": [low, high], "mode": "lines", "name": "exact", "line": exact}
    ]
    solid: dict[str, object] = {"color": look.ours, "width": 2}
    dashed: dict[str, object] = {"color": look.held_out, "width": 2, "dash": "dash"}
    for column, name, line, marker in (
        ("realised", "fitting text", solid, {"size": 4, "color": look.ours}),
        ("realised_held_out", "held-out text", dashed, {"size": 8, "color": look.held_out, "symbol": "diamond-open"}),
    ):
        traces.append(
            {
                "type": "scatter",
                "x": columns["ratio"],
                "y": columns[column],
                "mode": "lines+markers",
                "line": line,
                "marker": marker,
                "name": name,
                "hovertemplate": "asked %{x:.4g}×, got %{y:.4g}×<extra>" + name + "</extra>",
            }
        )
    if now:
        traces.append(
            {
                "type": "scatter",
                "x": [token.target],
                "y": [token.realised_held_out],
                "mode": "markers+text",
                "marker": {"size": 17, "symbol": "circle-open", "color": look.after, "line": {"width": 3}},
                "text": [f" now: {words.ratio(token.target)}"],
                "textposition": "top left" if token.target >= 1 else "bottom right",
                "textfont": {"color": look.after_text},
                "showlegend": False,
                "hovertemplate": "now: asked %{x:.4g}×, got %{y:.4g}×<extra></extra>",
            }
        )
    values = np.array([columns["realised"], columns["realised_held_out"]]).clip(1e-6, 1e6)
    figure = parts(
        look,
        traces,
        x="ratio asked",
        y="ratio realised",
        xaxis=ratio_axis(low / 1.15, high * 1.15),
        yaxis=ratio_axis(min(low, float(values.min())) / 1.15, max(high, float(values.max())) * 1.15),
    )
    error = np.abs(np.log(held_out / asked))
    summary = (
        f"Realised against asked ratio of {token.token!r} from {words.ratio(low)} to {words.ratio(high)}: "
        f"on held-out text off by a factor of {words.number(float(np.exp(np.median(error))))} in the middle "
        f"and {words.number(float(np.exp(error.max())))} at worst."
    )
    return Chart(figure, summary, columns)


COSTS = (
    ("kl", "KL divergence (nats)"),
    ("js", "Jensen–Shannon divergence (nats)"),
    ("top1_changed", "contexts whose top prediction changes"),
    ("others_drift", "drift of the other tokens (nats)"),
)


def side_effects(edits: Sequence[Steering], look: Look = LIGHT) -> Chart:
    """What the edit costs on held-out text (first of `edits`), next to the baselines (the others)."""
    table = pd.DataFrame(
        {
            "method": [s.direction.replace("-", " ") for s in edits],
            "realised_held_out": [s.tokens[0].realised_held_out for s in edits],
            "kl": [s.kl for s in edits],
            "js": [s.js for s in edits],
            "top1_changed": [1 - s.top1_agreement for s in edits],
            "others_drift": [s.others_drift for s in edits],
        }
    )
    figure = make_subplots(rows=len(COSTS), cols=1, subplot_titles=[title for _, title in COSTS], vertical_spacing=0.11)
    figure.update_layout(template=template(look), height=look.height, showlegend=False, margin_t=32)
    colours = [look.after] + [look.baseline] * (len(edits) - 1)
    for row, (column, _) in enumerate(COSTS, start=1):
        values = table[column]
        shown = [words.percent(v) if column == "top1_changed" else words.number(v) for v in values]
        figure.add_bar(
            y=list(range(len(table))),
            x=values,
            orientation="h",
            marker={"color": colours},
            text=shown,
            textposition="outside",
            cliponaxis=False,
            constraintext="none",
            hovertemplate="%{x:.4g}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_xaxes(visible=False, range=[0, max(1e-9, 1.25 * float(values.max()))], row=row, col=1)
    figure.update_yaxes(
        tickvals=list(range(len(table))), ticktext=list(table["method"]), range=[len(table) - 0.4, -0.6], showgrid=False
    )
    figure.update_annotations(
        x=0, xanchor="left", font={"size": look.type_size - 1, "color": look.quiet}, yanchor="bottom"
    )
    first = table.iloc[0]
    summary = (
        f"Side effects on held-out text: KL {words.nats(first.kl)}, Jensen–Shannon {words.nats(first.js)}, the top "
        f"prediction changes in {words.percent(first.top1_changed)} of contexts, other tokens drift by "
        f"{words.nats(first.others_drift)}; baselines beside it: "
        + "; ".join(f"{row.method} KL {words.nats(row.kl)}" for row in table.iloc[1:].itertuples())
        + "."
    )
    return Chart(figure, summary, table)


def few_shot(points: Sequence[FewShotPoint], target: float, look: Look = LIGHT) -> Chart:
    """What the direction reaches when it is estimated from few positions only."""
    rows = [(p.positions, p.realised_held_out[0], p.log_error) for p in points]
    table = pd.DataFrame(rows, columns=["positions", "realised_held_out", "log_error"])
    figure = blank(look, x="positions the direction is estimated from", y="ratio realised on held-out text")
    figure.add_hline(y=target, line={"color": look.quiet, "width": 1, "dash": "dot"})
    figure.add_scatter(
        x=table["positions"],
        y=table["realised_held_out"],
        mode="lines+markers",
        line={"color": look.held_out, "width": 2, "dash": "dash"},
        marker={"size": 9, "symbol": "diamond-open", "line": {"width": 2}},
        hovertemplate="%{x:,} positions: %{y:.4g}×<extra></extra>",
        showlegend=False,
    )
    low, high = float(table["positions"].min()), float(table["positions"].max())
    figure.add_annotation(
        x=np.log10(high), y=np.log10(target), text=f"asked {words.ratio(target)}", showarrow=False, yanchor="bottom",
        xanchor="right", font={"color": look.quiet},
    )  # fmt: skip
    values = np.r_[table["realised_held_out"].to_numpy().clip(1e-6, 1e6), target]
    figure.update_xaxes(**count_axis(low, high), range=[np.log10(low / 1.3), np.log10(high * 1.3)])
    figure.update_yaxes(**ratio_axis(float(values.min()) / 1.6, float(values.max()) * 1.6))
    figure.update_layout(margin_t=16)
    first, last = table.iloc[0], table.iloc[-1]
    summary = (
        f"Estimated from {first.positions:,.0f} positions the edit reaches {words.ratio(first.realised_held_out)}, "
        f"from {last.positions:,.0f} {words.ratio(last.realised_held_out)}, uncalibrated; asked {words.ratio(target)}."
    )
    return Chart(figure, summary, table)
