"""Figures of the model's head: what share of the model it is, and whether our logits are the model's."""

from __future__ import annotations

from core.figures import words
from core.figures.look import LIGHT, Chart, Look, blank


def agreement(
    max_logit_error: float, tolerance: float, half_precision_deviation: float | None, look: Look = LIGHT
) -> Chart:
    """Largest difference between our logits and the model's, next to what is tolerated."""
    rows = [("Headscope's logits", max_logit_error, look.ours, "circle"), ("allowed", tolerance, look.quiet, "line-ns")]
    if half_precision_deviation:
        rows.append(("model in half precision", half_precision_deviation, look.baseline, "diamond"))
    floor = 1e-9
    figure = blank(look, x="largest difference of a logit", height=round(look.height / 2))
    for at, (name, value, colour, symbol) in enumerate(rows):
        figure.add_scatter(
            x=[max(value, floor)],
            y=[at],
            mode="markers+text",
            marker={"size": 13, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
            text=["  " + ("exactly equal" if value == 0 else words.number(value, 2))],
            textposition="middle right",
            cliponaxis=False,
            hovertemplate=f"{name}: {value:.3g}<extra></extra>",
            showlegend=False,
        )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=[r[0] for r in rows], range=[len(rows) - 0.5, -0.5])
    exponents = range(-9, 3)
    figure.update_xaxes(
        type="log", range=[-9.2, 2.2], tickvals=[10.0**e for e in exponents], ticktext=[_tick(e) for e in exponents]
    )
    figure.update_layout(margin_t=16)
    summary = (
        f"Our logits differ from the model's by at most {words.number(max_logit_error, 2)}; "
        f"up to {words.number(tolerance, 2)} is allowed."
    )
    return Chart(figure, summary, {"what": [r[0] for r in rows], "difference": [r[1] for r in rows]})


def _tick(exponent: int) -> str:
    if exponent % 2 == 0 and exponent <= -2:
        return f"1e−{-exponent}"
    return {0: "1", 2: "100"}.get(exponent, "")


def parameter_share(head: int, total: int, tied: bool, look: Look = LIGHT) -> Chart:
    """The head's part of all parameters, as one bar."""
    parts = [("output head" + (" (also the input embedding)" if tied else ""), head, look.ours)]
    parts.append(("everything else", total - head, look.baseline))
    figure = blank(look, x="parameters", height=round(look.height / 2))
    for name, count, colour in parts:
        figure.add_bar(
            x=[count],
            y=[0],
            orientation="h",
            marker={"color": colour},
            name=f"{name}: {words.quantity(count)}",
            hovertemplate=f"{name}: {count:,}<extra></extra>",
        )
    figure.update_layout(barmode="stack", legend_traceorder="normal")
    figure.update_yaxes(visible=False)
    figure.update_xaxes(showgrid=False)
    summary = (
        f"The head holds {words.quantity(head)} of {words.quantity(total)} parameters, {words.percent(head / total)}."
    )
    return Chart(figure, summary, {"part": [p[0] for p in parts], "parameters": [p[1] for p in parts]})
