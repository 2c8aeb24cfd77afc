"""Figures of the encoding: −log alpha_w ≈ A·E_w + B (Cho et al., COLING 2025), and why it works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float32

from core.figures import words
from core.figures.look import LIGHT, MONO, Chart, Look, blank, count_axis, label, labels, one_in_axis
from core.tables import token_table, weight_table

if TYPE_CHECKING:
    from core.encoding import Encoding

CONFIDENCE = 1.96
"""Half width of a 95 % interval in standard errors."""


def fit_scatter(encoding: Encoding, look: Look = LIGHT, chosen: Sequence[int] = (), found: Sequence[int] = ()) -> Chart:
    """Measured against predicted −log probability of every token; on top the `chosen` ids, steered, and those `found`."""
    predicted, measured = encoding.predicted, encoding.neg_log_alpha
    low, high = (float(v) for v in np.quantile(np.r_[predicted, measured], [0.0002, 0.9998]))
    margin = 0.03 * (high - low)
    low, high = max(0.0, min(low, float(measured.min())) - margin), high + margin
    figure = blank(look, x="predicted from the embedding, A·E + B (nats)", y="measured −log probability (nats)")
    figure.add_scattergl(
        x=predicted.astype(np.float32),
        y=measured.astype(np.float32),
        mode="markers",
        marker={"size": 3, "color": look.ours, "opacity": 0.14},
        text=labels(encoding.tokens),
        customdata=_one_in_points(encoding, slice(None)),
        hovertemplate=_POINT,
        showlegend=False,
    )
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": look.ink, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    ticks = one_in_axis(low, high, overlaying="y", side="right", matches="y")
    figure.add_scatter(x=[None], y=[None], yaxis="y2", showlegend=False, hoverinfo="skip")
    places = {int(i): at for at, i in enumerate(encoding.token_ids)}
    others = [i for i in found if i not in set(chosen)]
    for ids, colour, symbol, side in ((chosen, look.after, "circle", -1), (others, look.ink, "diamond", 1)):
        at = [places[i] for i in ids if i in places]
        if at:
            _mark(figure, encoding, look, at, colour, symbol, side, low, high)
    figure.update_layout(yaxis2=ticks, xaxis_range=[low, high], yaxis_range=[low, high], margin_t=16)
    summary = (
        f"{len(measured):,} tokens: measured against predicted −log probability. They lie along the diagonal; "
        f"R² {words.number(encoding.r2)}, spread around it {words.nats(encoding.residual_std)}."
    )
    return Chart(figure, summary, token_table(encoding))


_POINT = (
    "%{text} · id %{customdata[0]:d}<br>measured 1 in %{customdata[1]:,.3r}, predicted 1 in %{customdata[2]:,.3r}"
    "<br>%{y:.2f} and %{x:.2f} nats<extra></extra>"
)
"""The hover of one token. Its numbers travel as 12 bytes: for 50,000 tokens much less than the same as text."""


def _one_in_points(encoding: Encoding, at: slice | list[int]) -> Float32[np.ndarray, "n 3"]:
    """Id, and one in how many, measured and predicted."""
    with np.errstate(over="ignore"):  # one in more than there are numbers for: infinite
        columns = (encoding.token_ids, np.exp(encoding.neg_log_alpha), np.exp(encoding.predicted))
        return np.stack([column[at] for column in columns], axis=1).astype(np.float32)


def _mark(
    figure: go.Figure,
    encoding: Encoding,
    look: Look,
    at: list[int],
    colour: str,
    symbol: str,
    side: int,
    low: float,
    high: float,
) -> None:
    """Tokens on top of the cloud with their labels: above and to the left (`side` -1), or below and to the right."""
    names = labels([encoding.tokens[i] for i in at])
    figure.add_scattergl(  # drawn after the points, hence on top of them
        x=encoding.predicted[at],
        y=encoding.neg_log_alpha[at],
        mode="markers",
        marker={"size": 13, "symbol": symbol, "color": colour, "line": {"color": look.paper, "width": 2}},
        text=names,
        customdata=_one_in_points(encoding, at),
        hovertemplate=_POINT,
        showlegend=False,
    )
    stand = {"xanchor": "center", "ax": 46 * side, "ay": 38 * side}
    stands = [stand] * len(at) if side < 0 or len(at) == 1 else _column(encoding, at, low, high)
    for place, name, where in zip(at, names, stands, strict=True):
        figure.add_annotation(
            x=encoding.predicted[place],
            y=encoding.neg_log_alpha[place],
            text=name,
            font={"color": colour, "family": MONO},
            bgcolor=look.paper,
            opacity=0.95,
            arrowcolor=colour,
            arrowwidth=1,
            arrowhead=0,
            **where,
        )


def _column(encoding: Encoding, at: list[int], low: float, high: float) -> list[dict[str, object]]:
    """Where the labels of several tokens stand: in a column under the cloud, highest token first, so that none overlap."""
    span, line = high - low, 0.075 * (high - low)
    right = max(float(encoding.predicted[at].max()) + 0.1 * span, low + len(at) * line + 0.3 * span)
    x = min(right, low + 0.74 * span)
    top = max(x - 0.25 * span, low + len(at) * line)
    rank = np.argsort(np.argsort(-encoding.neg_log_alpha[at], kind="stable"))
    return [{"xanchor": "left", "axref": "x", "ayref": "y", "ax": x, "ay": float(top - line * place)} for place in rank]


def weights(
    encoding: Encoding, look: Look = LIGHT, what: Literal["weight", "saliency"] = "weight", ordered: bool = True
) -> Chart:
    """The fitted direction, one mark per dimension with its 95 % interval."""
    table = weight_table(encoding)
    value = encoding.weights if what == "weight" else encoding.saliency
    error = CONFIDENCE * encoding.standard_errors * (1 if what == "weight" else encoding.embedding_std)
    order = np.argsort(-encoding.saliency, kind="stable") if ordered else np.arange(len(value))
    clear = np.abs(encoding.t_values[order]) > CONFIDENCE
    x = np.arange(1, len(value) + 1)
    title = "weight A (nats per unit)" if what == "weight" else "saliency |A|·std(E) (nats)"
    figure = blank(look, x="dimension, most salient first" if ordered else "dimension of the embedding", y=title)
    for name, mask, colour, symbol in (
        ("distinguishable from zero", clear, look.ours, "circle"),
        ("not distinguishable", ~clear, look.baseline, "circle-open"),
    ):
        figure.add_scattergl(
            x=x[mask] if ordered else x[mask] - 1,
            y=value[order][mask],
            error_y={"array": error[order][mask], "width": 0, "thickness": 1, "color": colour},
            mode="markers",
            marker={"size": 4, "color": colour, "symbol": symbol},
            customdata=np.c_[order[mask], error[order][mask]],
            hovertemplate="dimension %{customdata[0]}: %{y:.4g} ± %{customdata[1]:.2g}<extra></extra>",
            name=f"{name} ({int(mask.sum())})",
        )
    if ordered:
        figure.update_xaxes(**count_axis(1, len(value)))
    figure.update_layout(legend_itemsizing="constant")
    summary = (
        f"The {len(value)} weights of the fitted line with 95 % intervals. {int(clear.sum())} differ from zero; "
        f"the strongest is dimension {int(np.argmax(encoding.saliency))}. "
        f"Effectively {words.number(encoding.effective_dims)} dimensions carry it."
    )
    return Chart(figure, summary, table.iloc[order] if ordered else table)


def sparsity(encoding: Encoding, look: Look = LIGHT) -> Chart:
    """R² when only the k most salient dimensions are used, refitted and as fitted once."""
    points = encoding.sparsity
    table = pd.DataFrame(
        {
            "dims": [p.dims for p in points],
            "r2_refitted": [p.r2_refitted for p in points],
            "r2_kept": [p.r2_kept for p in points],
        }
    )
    figure = blank(look, x="dimensions used, most salient first", y="R²")
    for column, name, dash, colour in (
        ("r2_refitted", "refitted", "solid", look.ours),
        ("r2_kept", "weights kept as they are", "dash", look.before),
    ):
        figure.add_scatter(
            x=table["dims"],
            y=table[column],
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 5},
            name=name,
            hovertemplate="%{x:,} dimensions: R² %{y:.3f}<extra>" + name + "</extra>",
        )
    figure.add_vline(x=encoding.effective_dims, line={"color": look.quiet, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=np.log10(encoding.effective_dims),
        y=0.02,
        xanchor="right",
        yanchor="bottom",
        text=f"effective number {words.number(encoding.effective_dims)} ",
        showarrow=False,
        font={"color": look.quiet},
        bgcolor=look.paper,
        opacity=0.9,
    )
    figure.update_xaxes(**count_axis(1, len(encoding.weights)))
    figure.update_yaxes(range=[min(0.0, max(-0.5, float(table[["r2_refitted", "r2_kept"]].min().min()))) - 0.02, 1.02])
    few = next((p for p in points if p.r2_refitted >= 0.8 * encoding.r2), points[-1])
    summary = (
        f"R² as only the most salient dimensions are used: {few.dims:,} of {len(encoding.weights):,} reach "
        f"{words.number(few.r2_refitted)}, all of them {words.number(encoding.r2)}."
    )
    return Chart(figure, summary, table)


def predictors(encoding: Encoding, look: Look = LIGHT) -> Chart:
    """How well each formula predicts −log alpha, from no fitted number at all to the fitted line and beyond."""
    items = encoding.predictors
    table = pd.DataFrame(
        {
            "predictor": [p.name for p in items],
            "fitted_numbers": [p.fitted_numbers for p in items],
            "squared_correlation": [p.squared_correlation for p in items],
            "r2": [p.r2 for p in items],
        }
    )
    at = list(range(len(items)))
    figure = blank(look, x="share of the variance explained")
    figure.add_bar(
        y=at,
        x=table["squared_correlation"],
        width=0.5,
        orientation="h",
        marker={"color": [look.ours if p.fitted_numbers else look.before for p in items]},
        text=[words.number(p.squared_correlation) for p in items],
        textposition="inside",
        insidetextanchor="start",
        textfont={"color": look.paper},
        customdata=[p.r2 for p in items],
        hovertemplate="squared correlation %{x:.4f}, R² %{customdata:.4f}<extra></extra>",
        showlegend=False,
    )
    line = [i + 0.4 for i, p in enumerate(items) if p.name == "linear fit"]  # just under its bar
    for value, name, symbol in (
        (encoding.r2_held_out_tokens, "held-out tokens", "diamond-open"),
        (encoding.r2_held_out_text, "held-out text", "circle-open"),
    ):
        figure.add_scatter(
            y=line,
            x=[value] * len(line),
            mode="markers",
            marker={"symbol": symbol, "size": 12, "color": look.held_out, "line": {"width": 2.5}},
            name=f"{name} {words.number(value)}",
            hovertemplate="R² %{x:.4f}<extra>" + name + "</extra>",
        )
    ticks = [f"{p.name}<br>{words.plural(p.fitted_numbers, 'fitted number')}" for p in items]
    figure.update_yaxes(tickvals=at, ticktext=ticks, range=[len(items) - 0.5, -0.5], showgrid=False)
    figure.update_xaxes(range=[0, 1.02])
    told = ", ".join(f"{p.name} {words.number(p.squared_correlation)}" for p in items)
    return Chart(figure, f"Share of the variance explained: {told}.", table)


def output_space(encoding: Encoding, look: Look = LIGHT) -> Chart:
    """The output embedding on its two main axes, coloured by how probable each token is."""
    rank = np.argsort(np.argsort(encoding.alpha))
    percentile = 100 * rank / max(1, len(rank) - 1)
    first, second = encoding.pca_explained[0], encoding.pca_explained[1]
    figure = blank(
        look,
        x=f"1st principal axis ({words.percent(float(first))} of the variance)",
        y=f"2nd principal axis ({words.percent(float(second))})",
    )
    figure.add_scattergl(
        x=encoding.pca[:, 0].astype(np.float32),
        y=encoding.pca[:, 1].astype(np.float32),
        mode="markers",
        marker={
            "size": 3,
            "opacity": 0.5,
            "color": percentile.astype(np.float32),
            "colorscale": "Cividis",
            "reversescale": not look.dark,
            "colorbar": {
                "title": {
                    "text": "probability<br>percentile<br>\u00a0",
                    "font": {"color": look.quiet, "size": look.type_size - 1},
                },
                "thickness": 10,
                "outlinewidth": 0,
                "tickfont": {"color": look.quiet, "size": look.type_size - 1},
            },
        },
        text=[f"{name} · {words.one_in(float(a))}" for name, a in _named(encoding)],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(margin_t=16)
    table = pd.DataFrame({"token": list(encoding.tokens), "axis_1": encoding.pca[:, 0], "axis_2": encoding.pca[:, 1]})
    correlation = [abs(float(np.corrcoef(encoding.pca[:, k], encoding.neg_log_alpha)[0, 1])) for k in (0, 1)]
    summary = (
        f"The output embedding on its two main axes, coloured by probability; −log probability correlates with the "
        f"first by {words.number(correlation[0], 2)} and with the second by {words.number(correlation[1], 2)} "
        "(absolute values)."
    )
    return Chart(figure, summary, table)


def _named(encoding: Encoding) -> list[tuple[str, float]]:
    return [(label(t), float(a)) for t, a in zip(encoding.tokens, encoding.alpha, strict=True)]
