"""Figures of pruning: what a fraction costs by every method, which dimensions go, whom it hits, how fast it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from core.encoding import Encoding
from core.figures import words
from core.figures.look import LIGHT, Chart, Look, blank, count_axis
from core.pruning.names import COMPENSATED, DELETIONS
from core.pruning.result import HeadCost, PrunePoint, Pruning

MEASURES = {
    "kl": "KL to the full head (nats)",
    "top1_agreement": "top prediction stays (% of contexts)",
    "perplexity_ratio": "perplexity, times that of the full head",
    "js": "Jensen–Shannon divergence (nats)",
}
"""What a curve can show, and its axis."""

NAMES = {
    "saliency": "paper's order",
    "random": "random order",
    "reverse": "most salient first",
    "std": "least spread first",
    "rms": "least rms first",
    "compensated": "compensated",
    "greedy": "greedy",
    "rotated": "rotated, Fisher",
    "rotated-unweighted": "rotated, unweighted",
    "rotated-tempered": "rotated, tempered",
    "rotated-self": "rotated, own text",
}
"""How figures and sentences call the methods, short enough for two columns on a phone; others by their own name."""


def name_of(method: str) -> str:
    return NAMES.get(method, method)


def points_table(found: Sequence[Pruning]) -> pd.DataFrame:
    """One row per method and fraction."""
    names = ("method", "removed", "dims", "kl", "kl_low", "kl_high", "js", "top1_agreement", "top1_low", "top1_high")
    more = ("perplexity", "perplexity_ratio")
    return pd.DataFrame([{n: getattr(p, n) for n in (*names, *more)} for each in found for p in each.points])


def removable_table(shares: Mapping[str, float]) -> pd.DataFrame:
    """How much can go by each method, most first. `shares`: method to fraction."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return pd.DataFrame([{"method": name_of(m), "can go (%)": 100 * share} for m, share in ranked])


def curves(
    found: Sequence[Pruning], look: Look = LIGHT, current: float | None = None, measure: str = "kl", best: str = ""
) -> Chart:
    """What every fraction costs on held-out text, a line a method; random order with the band of its seeds.

    Args:
        current: the fraction that is marked. measure: one of `MEASURES`. best: the method that is drawn on top.
    """
    figure = blank(look, x="dimensions removed (%)", y=MEASURES[measure])
    scale = 100 if measure == "top1_agreement" else 1
    for each in sorted(
        found, key=lambda each: (each.method == best, each.method == "saliency", each.method != "random")
    ):
        x = [100 * p.removed for p in each.points]
        y = [scale * float(getattr(p, measure)) for p in each.points]
        if each.method == "random" and measure in ("kl", "top1_agreement"):
            _band(figure, each, x, measure, scale, look)
        figure.add_scatter(
            x=x, y=y, name=name_of(each.method), mode="lines", line=_line(each.method, best, look),
            hovertemplate="%{x:.0f} % removed<br>%{y:.3g}<extra>" + name_of(each.method) + "</extra>",
        )  # fmt: skip
    if current is not None:
        figure.add_vline(x=100 * current, line={"color": look.ink, "width": 1})
        for each in found:
            point = at(each, current)
            if point is not None and each.method in (best, "saliency"):
                value = scale * float(getattr(point, measure))
                figure.add_scatter(
                    x=[100 * current], y=[value], mode="markers", showlegend=False, hoverinfo="skip",
                    marker={"size": 13, "symbol": "circle-open", "color": _line(each.method, best, look)["color"],
                            "line": {"width": 3}},
                )  # fmt: skip
                # on the side of the line where the curve is lower, if there is room
                left = current > (0.75 if measure == "top1_agreement" else 0.12)
                figure.add_annotation(
                    x=100 * current, y=value if measure == "top1_agreement" else np.log10(max(value, 1e-12)),
                    text=f"<b>{words.number(value)}</b>", showarrow=False, xanchor="right" if left else "left",
                    xshift=-10 if left else 10, yshift=12, bgcolor=look.paper, opacity=0.9, borderpad=1,
                )  # fmt: skip
    if measure in ("kl", "js"):
        values = [v for each in found for p in each.points if p.removed > 0 and (v := getattr(p, measure)) > 1e-5]
        low, high = max(min(values, default=1e-3), 1e-4) / 1.5, max(values, default=1.0) * 1.5
        figure.update_yaxes(**count_axis(low, high), range=[float(np.log10(low)), float(np.log10(high))])
    elif measure == "top1_agreement":
        figure.update_yaxes(range=[0, 102])
    else:
        values = [getattr(p, measure) for each in found for p in each.points]
        most = max(values, default=2.0) * 1.2
        figure.update_yaxes(**count_axis(0.9, most), range=[float(np.log10(0.9)), float(np.log10(min(most, 1e3)))])
    figure.update_layout(
        meta={"removed": current, "measure": measure},
        # two columns on a phone, where a column of names would take the place of the curves
        legend={"entrywidth": 7 * look.type_size, "font": {"size": look.type_size - 2}},
    )
    told = [
        f"{name_of(each.method)} {words.number(scale * float(getattr(point, measure)))}"
        for each in found
        if current is not None and (point := at(each, current)) is not None
    ]
    where = f" with {100 * current:.0f} % removed" if current is not None else ""
    return Chart(figure, f"{MEASURES[measure]}{where}: {', '.join(told)}.", points_table(found))


def _band(figure: go.Figure, each: Pruning, x: list[float], measure: str, scale: float, look: Look) -> None:
    low, high = ("kl_low", "kl_high") if measure == "kl" else ("top1_low", "top1_high")
    edge = [scale * getattr(p, high) for p in each.points] + [scale * getattr(p, low) for p in reversed(each.points)]
    figure.add_scatter(
        x=[*x, *reversed(x)], y=edge, fill="toself", mode="lines", line={"width": 0}, fillcolor=look.baseline,
        opacity=0.45, hoverinfo="skip", name=f"random, {each.seeds} orders", showlegend=False,
    )  # fmt: skip


def _line(method: str, best: str, look: Look) -> dict[str, object]:
    """Ours blue, the paper's order slate, baselines grey; dashes tell the kinds apart."""
    if method == best:
        return {"color": look.ours, "width": 4}
    if method == "saliency":
        return {"color": look.before, "width": 3, "dash": "solid"}
    if method in DELETIONS:
        dashes = {"random": "solid", "reverse": "dashdot", "std": "dot", "rms": "dash"}
        return {"color": look.baseline, "width": 2, "dash": dashes.get(method, "solid")}
    if method in COMPENSATED:
        return {"color": look.before, "width": 2, "dash": "dot" if method == "greedy" else "dash"}
    dashes = {"rotated": "dash", "rotated-unweighted": "dot", "rotated-tempered": "dashdot"}
    return {"color": look.ours, "width": 2, "dash": dashes.get(method, "longdash")}


def at(found: Pruning, removed: float) -> PrunePoint | None:
    """The measured point at a fraction, if there is one."""
    return next((p for p in found.points if abs(p.removed - removed) < 1e-9), None)


def leaving(found: Pruning, encoding: Encoding, removed: float, look: Look = LIGHT) -> Chart:
    """Which dimensions go: by weight and by spread over the tokens. A rotation keeps a share of each."""
    point = at(found, removed)
    share = np.ones(encoding.dim) if point is None else point.kept_share
    weight, spread = np.abs(encoding.weights), encoding.embedding_std
    figure = blank(look, x="spread over the tokens, std(E)", y="weight, |A|")
    gone = share < 0.5
    for there, name, marker in (
        (~gone, "stays", {"color": look.ours, "size": 8, "opacity": 0.75}),
        (
            gone,
            "goes",
            {"color": look.before, "size": 9, "symbol": "x-thin", "line": {"width": 1.5, "color": look.before}},
        ),
    ):
        figure.add_scatter(
            x=spread[there], y=weight[there], mode="markers", name=f"{name}: {int(there.sum()):,}", marker=marker,
            customdata=np.stack([np.flatnonzero(there), 100 * share[there]], axis=1),
            hovertemplate="dimension %{customdata[0]:.0f}<br>keeps %{customdata[1]:.0f} %<extra></extra>",
        )  # fmt: skip
    for axis, values in (("x", spread), ("y", weight)):
        positive = values[values > 0]
        if len(positive):
            low, high = float(np.quantile(positive, 0.01)) / 1.3, float(positive.max()) * 1.3
            getattr(figure, f"update_{axis}axes")(**count_axis(low, high), range=[np.log10(low), np.log10(high)])
    table = pd.DataFrame({"dim": np.arange(encoding.dim), "weight": encoding.weights, "std": spread,
                          "saliency": encoding.saliency, "kept_share": share})  # fmt: skip
    how = "go" if set(np.unique(share)) <= {0.0, 1.0} else "keep less than half of their mean square"
    told = f"{int(gone.sum()):,} of {encoding.dim:,} dimensions {how}."
    return Chart(figure, told, table)


def by_frequency(found: Sequence[Pruning], removed: float, look: Look = LIGHT, best: str = "") -> Chart:
    """How far the probability of tokens moves, from the most frequent tenth to the rarest."""
    rows = [(each.method, point) for each in found if (point := at(each, removed)) is not None]
    figure = blank(look, x="tenth of the tokens, 1 the most frequent", y="mean change of log probability (nats)")
    labels = [str(tenth + 1) for tenth in range(10)]
    for method, point in rows:
        ours = method == best
        figure.add_bar(
            x=list(range(10)), y=point.drift_by_decile, name=name_of(method),
            marker={"color": look.ours if ours else look.before, "pattern": {"shape": "" if ours else "/"}},
            hovertemplate="%{y:.3g} nats<extra>" + name_of(method) + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(tickmode="array", tickvals=list(range(10)), ticktext=labels)
    table = pd.DataFrame(
        [
            {
                "method": method,
                "tenth": tenth + 1,
                "drift": point.drift_by_decile[tenth],
                "kl": point.kl_by_decile[tenth],
            }
            for method, point in rows
            for tenth in range(10)
        ]
    )
    told = "; ".join(
        f"{name_of(method)}: the most frequent tenth moves by {words.nats(float(point.drift_by_decile[0]))}, the rarest by "
        f"{words.nats(float(point.drift_by_decile[-1]))}, and the most frequent tenth makes up "
        f"{words.percent(float(point.kl_by_decile[0] / max(point.kl, 1e-12)))} of the KL"
        for method, point in rows
    )
    return Chart(figure, told + ".", table)


def cost(found: HeadCost, look: Look = LIGHT) -> Chart:
    """Time of the pruned head over that of the full one, by how many positions are multiplied at once."""
    figure = blank(look, x="positions at once", y="time, pruned over full")
    figure.add_bar(
        x=list(range(len(found.speed))), y=[s.ratio for s in found.speed], marker={"color": look.ours},
        text=[f"{s.ratio:.2f}×" for s in found.speed], textposition="outside",
        customdata=[[1000 * s.seconds, 1000 * s.seconds_full] for s in found.speed],
        hovertemplate="%{customdata[0]:.3g} ms, full head %{customdata[1]:.3g} ms<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=1, line={"color": look.quiet, "width": 1, "dash": "dot"})
    figure.update_xaxes(
        tickmode="array", tickvals=list(range(len(found.speed))), ticktext=[f"{s.positions:,}" for s in found.speed]
    )
    figure.update_yaxes(range=[0, max(1.15, 1.15 * max(s.ratio for s in found.speed))])
    told = (
        f"{found.dims} of {found.dim} dimensions: {words.size(found.bytes)} instead of {words.size(found.bytes_full)}; time "
        + ", ".join(f"{s.ratio:.2f}× at {words.plural(s.positions, 'position')}" for s in found.speed)
        + "."
    )
    return Chart(figure, told, pd.DataFrame([vars(s) for s in found.speed]))
