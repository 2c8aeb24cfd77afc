"""Figures of training dynamics: when corpus frequency, −log alpha and the loss are learned (Cho et al., COLING 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from plotly.subplots import make_subplots

from core.dynamics import early_and_late, finding
from core.figures import words
from core.figures.look import LIGHT, Chart, Look, blank, labels, one_in_axis, template

if TYPE_CHECKING:
    from core.dynamics import Checkpoint, Dynamics


def curves(found: Dynamics, look: Look = LIGHT, current: int | None = None) -> Chart:
    """R² of corpus frequency and of −log alpha above, the loss below, over steps; `current` is marked."""
    curve = found.curve
    steps = [c.step for c in curve]
    at = {step: _place(step) for step in steps}
    table = pd.DataFrame(
        {
            "step": [c.step for c in found.checkpoints],
            "r2_corpus_frequency": [c.r2_corpus_frequency for c in found.checkpoints],
            "r2_alpha": [_or_nan(c.r2_alpha) for c in found.checkpoints],
            "loss": [_or_nan(c.loss) for c in found.checkpoints],
            "duplicate_of": [c.duplicate_of for c in found.checkpoints],
        }
    )
    x = [at[step] for step in steps]
    measured = any(c.loss is not None for c in curve)
    figure = make_subplots(rows=2 if measured else 1, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    figure.update_layout(template=template(look), height=look.height + (140 if measured else 0))
    hover = "step %{customdata:,}<br>%{fullData.name} %{y:.3f}<extra></extra>"
    line = {"mode": "lines+markers", "customdata": steps, "hovertemplate": hover}
    figure.add_scatter(
        x=x,
        y=[c.r2_corpus_frequency for c in curve],
        name="R² of corpus frequency",
        line={"color": look.ours, "width": 3},
        marker={"size": 7},
        **line,
    )
    if any(c.r2_alpha is not None for c in curve):
        figure.add_scatter(
            x=x,
            y=[c.r2_alpha for c in curve],
            name="R² of −log probability",
            line={"color": look.before, "width": 2},
            marker={"size": 6, "symbol": "square"},
            **line,
        )
    figure.update_yaxes(title_text="adjusted R²", range=[-0.05, 1.02], row=1, col=1)
    if measured:
        figure.add_scatter(
            x=x,
            y=[c.loss for c in curve],
            name="loss on held-out text",
            line={"color": look.held_out, "width": 2.5, "dash": "dash"},
            marker={"size": 7, "symbol": "diamond-open"},
            row=2,
            col=1,
            **line,
        )
        figure.update_yaxes(title_text="loss (nats)", row=2, col=1)
    marks = [(found.step_frequency_90, "90 % of R²", look.ours, 1, 0.02, "bottom")]
    if measured:
        marks.append((found.step_loss_90, "90 % of the loss", look.held_out, 2, 0.98, "top"))
    for step, text, colour, row, height, anchor in marks:
        if step is None:
            continue
        figure.add_vline(x=at[step], line={"color": colour, "width": 1.5, "dash": "dot"})
        figure.add_annotation(
            x=at[step],
            xref=f"x{row if row > 1 else ''}",
            yref=f"y{row if row > 1 else ''} domain",
            y=height,
            yanchor=anchor,
            xanchor="left" if at[step] < 0.8 * max(x) else "right",
            text=f" {text} <br> step {step:,} ",
            align="left",
            showarrow=False,
            font={"color": colour},
            bgcolor=look.paper,
            opacity=0.9,
        )
    if current is not None and current in at:
        figure.add_vline(x=at[current], line={"color": look.ink, "width": 1})
    figure.update_xaxes(**_step_axis(steps))
    figure.update_xaxes(title_text="training step", row=2 if measured else 1, col=1)
    figure.update_layout(margin_t=36)
    return Chart(figure, finding(found), table)


def _place(step: int) -> float:
    """Where a step stands on the axis: its logarithm; step 0 half a decade before step 1."""
    return float(np.log10(step)) if step > 0 else -0.5


def _step_axis(steps: list[int]) -> dict[str, object]:
    last = max(steps)
    ticks = [step for step in (0, *(10**p for p in range(12))) if step <= last and (step > 0 or 0 in steps)]
    low = min(_place(step) for step in steps)
    return {
        "tickmode": "array",
        "tickvals": [_place(step) for step in ticks],
        "ticktext": [f"{step:,}" for step in ticks],
        "range": [low - 0.15, _place(last) + 0.45],
    }


def frequency_scatter(found: Dynamics, checkpoint: Checkpoint, look: Look = LIGHT) -> Chart:
    """At one step: −log corpus frequency of every token against what the line through the embedding predicts."""
    target = found.neg_log_frequency
    low, high = float(target.min()) - 0.3, float(target.max()) + 0.3
    figure = blank(look, x="predicted from the embedding, A·E + B (nats)", y="−log corpus frequency (nats)")
    figure.add_scattergl(
        x=np.clip(checkpoint.predicted, low, high),
        y=target.astype(np.float32),
        mode="markers",
        marker={"size": 4, "color": look.ours, "opacity": 0.3},
        text=labels(found.tokens),
        customdata=found.counts,
        hovertemplate="%{text}<br>%{customdata:,} times in the text<extra></extra>",
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
    figure.add_scatter(x=[None], y=[None], yaxis="y2", showlegend=False, hoverinfo="skip")
    figure.update_layout(
        yaxis2=one_in_axis(low, high, overlaying="y", side="right", matches="y"),
        xaxis_range=[low, high],
        yaxis_range=[low, high],
        margin_t=16,
    )
    table = pd.DataFrame(
        {
            "id": found.token_ids,
            "token": found.tokens,
            "count": found.counts,
            "neg_log_frequency": target,
            "predicted": checkpoint.predicted,
            "moved": checkpoint.moved,
        }
    )
    return Chart(
        figure,
        f"Step {checkpoint.step:,}: −log corpus frequency of {len(target):,} tokens against the line's prediction; "
        f"adjusted R² {words.number(checkpoint.r2_corpus_frequency)}.",
        table,
    )


def weight_scatter(found: Dynamics, checkpoint: Checkpoint, look: Look = LIGHT) -> Chart:
    """At one step: the weight of every dimension against its weight at the last step."""
    last, now = found.curve[-1].direction, checkpoint.direction
    cosine = float(found.cosines[[c.step for c in found.curve].index(checkpoint.step)])
    figure = blank(look, x="weight A of a dimension at the last step", y=f"at step {checkpoint.step:,}")
    figure.add_scatter(
        x=last,
        y=now,
        mode="markers",
        marker={"size": 7, "color": look.ours, "opacity": 0.6},
        customdata=np.arange(len(now)),
        hovertemplate="dimension %{customdata}<br>last %{x:.3g}, now %{y:.3g}<extra></extra>",
        showlegend=False,
    )
    reach = 1.05 * float(np.abs(last).max())
    figure.add_scatter(
        x=[-reach, reach],
        y=[-reach, reach],
        mode="lines",
        line={"color": look.ink, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_layout(margin_t=16, xaxis_range=[-reach, reach])
    table = pd.DataFrame({"dim": np.arange(len(now)), "weight": now, "weight_last": last})
    return Chart(
        figure,
        f"Weights of {len(now)} dimensions at step {checkpoint.step:,} against the last step: cosine {cosine:.2f}, "
        f"length {words.number(float(np.linalg.norm(now)))} against {words.number(float(np.linalg.norm(last)))}.",
        table,
    )


def rotation(found: Dynamics, look: Look = LIGHT, current: int | None = None) -> Chart:
    """Cosine of the weights to the last ones, and how far rows of the embedding moved since the checkpoint before."""
    steps = [c.step for c in found.curve]
    moved = [float(np.median(c.moved)) if len(c.moved) else float("nan") for c in found.curve]
    table = pd.DataFrame(
        {
            "step": steps,
            "cosine_to_last": found.cosines,
            "length": [float(np.linalg.norm(c.direction)) for c in found.curve],
            "median_row_moved": moved,
        }
    )
    figure = blank(look, x="training step", y="cosine of the weights to the last ones")
    figure.add_scatter(
        x=[_place(step) for step in steps],
        y=found.cosines,
        mode="lines+markers",
        customdata=np.stack([steps, table["length"], moved], axis=1),
        line={"color": look.ours, "width": 3},
        marker={"size": 7},
        hovertemplate="step %{customdata[0]:,}<br>cosine %{y:.3f}<br>length of A %{customdata[1]:.3g}"
        "<br>median row moved %{customdata[2]:.3g}<extra></extra>",
        showlegend=False,
    )
    if current is not None and current in steps:
        figure.add_vline(x=_place(current), line={"color": look.ink, "width": 1})
    figure.update_xaxes(**_step_axis(steps))
    figure.update_yaxes(range=[min(-0.1, float(found.cosines.min()) - 0.05), 1.05])
    figure.update_layout(margin_t=16)
    half = next(step for step, cosine in zip(steps, found.cosines, strict=True) if cosine >= 0.5)
    return Chart(figure, f"The weights point within 60° of the last ones from step {half:,} on.", table)


def learned_table(found: Dynamics) -> pd.DataFrame:
    """Every token that occurs in the text, with the step from which on its frequency is read within a factor of 2."""
    return pd.DataFrame(
        {"id": found.token_ids, "token": found.tokens, "count": found.counts, "learned_at_step": found.learned}
    )


def early_late_tokens(found: Dynamics) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of `learned_table` for tokens that were learned first, and for those learned last or never."""
    table = learned_table(found)
    early, late = early_and_late(found)
    return table.iloc[early], table.iloc[late]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
