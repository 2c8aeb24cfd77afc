"""Figures of an edit at a prompt: the next token before and after, and how often a token came in sampled texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from core.figures import words
from core.figures.look import LIGHT, Chart, Look, drawn, labels, parts, token_axis

if TYPE_CHECKING:
    from core.results import NextToken, TokenCount


def next_token(choice: NextToken, look: Look = LIGHT) -> Chart:
    """The next-token distribution at a prompt, before and after, in pairs of bars."""
    before, after = choice.before, choice.after
    columns = {
        "id": choice.token_ids,
        "token": list(choice.tokens),
        "before": before,
        "after": after,
        "ratio": np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0),
        "steered": choice.steered,
    }
    at = np.arange(len(before))
    bars = [
        {
            "type": "bar",
            "y": at + shift,
            "x": values,
            "width": 0.36,
            "orientation": "h",
            "name": name,
            "marker": {
                "color": colour,
                "pattern": {
                    "shape": pattern,
                    "fillmode": "overlay",
                    "size": 6,
                    "solidity": 0.25,
                    "fgcolor": look.paper,
                },
            },
            "text": [words.percent(v) for v in values],
            "textposition": "outside",
            "textfont": {"color": colour, "size": look.type_size - 2},
            "cliponaxis": False,
            "constraintext": "none",
            "hovertemplate": "%{x:.6~%}<extra>" + name + "</extra>",
        }
        for name, values, colour, shift, pattern in (
            ("before", before, look.before, -0.19, ""),
            ("after", after, look.after, 0.19, "/"),
        )
    ]
    axis = token_axis(list(choice.tokens))
    axis["ticktext"] = [
        f"<b>▸ {text}</b>" if steered else text
        for steered, text in zip(choice.steered, labels(choice.tokens), strict=True)
    ]
    figure = drawn(
        look,
        bars,
        height=max(look.height, round(len(before) * 2.6 * look.type_size) + 90),
        x="probability",
        xaxis={"tickformat": "~%", "range": [0, 1.18 * float(max(before.max(), after.max()))]},
        yaxis={**axis, "showgrid": False},
    )
    return Chart(figure, next_token_summary(choice), columns)


def next_token_summary(choice: NextToken) -> str:
    """What `next_token` shows, in words."""
    shown = zip(choice.tokens, choice.before.tolist(), choice.after.tolist(), choice.steered, strict=True)
    told = [f"{token!r} {words.percent(p)} to {words.percent(q)}" for token, p, q, steered in shown if steered]
    top = int(np.argmax(choice.before))
    return (
        f"Next token after the prompt, before and after the edit: {'; '.join(told) or 'nothing is steered'}. "
        f"Most likely before: {choice.tokens[top]!r}, {words.percent(float(choice.before[top]))}."
    )


def sampled_counts(counts: Sequence[TokenCount], steps: int, look: Look = LIGHT) -> Chart:
    """How often each steered token was sampled, before and after (95 % interval), and what its probability predicts."""
    columns = {name: [getattr(c, name) for c in counts] for name in vars(counts[0])}
    at = list(range(len(counts)))
    above, below = (np.nan_to_num([abs(getattr(c, end) - c.after) for c in counts]).tolist() for end in ("high", "low"))
    traces: list[dict[str, object]] = [
        {
            "type": "scatter",
            "x": columns["expected_after"],
            "y": at,
            "mode": "markers",
            "marker": {"symbol": "line-ns", "size": 26, "line": {"width": 3, "color": look.ours}},
            "name": "expected after",
            "hovertemplate": "expected %{x:.3g}<extra></extra>",
        },
        {
            "type": "scatter",
            "x": columns["before"],
            "y": at,
            "mode": "markers",
            "marker": {"size": 14, "color": look.before, "symbol": "circle-open", "line": {"width": 2.5}},
            "name": "before",
            "hovertemplate": "%{x}<extra>before</extra>",
        },
        {
            "type": "scatter",
            "x": columns["after"],
            "y": at,
            "mode": "markers",
            "marker": {"size": 14, "color": look.after, "line": {"width": 2, "color": look.after}},
            "error_x": {
                "type": "data",
                "array": above,
                "arrayminus": below,
                "color": look.after,
                "thickness": 2,
                "width": 8,
            },
            "name": "after, 95 % interval over texts",
            "hovertemplate": "%{x}<extra>after</extra>",
        },
    ]
    most = max(1.0, float(np.nanmax([columns[name] for name in ("before", "after", "high", "expected_after")])))
    figure = parts(
        look,
        traces,
        height=max(260, 100 + 70 * len(at)),
        x=f"times among {steps:,} sampled tokens",
        xaxis={
            "range": [-0.03 * most, 1.08 * most],
            "tickformat": ",d",
            **({"dtick": 1} if most < 8 else {"nticks": 8}),
        },
        yaxis=token_axis(columns["token"]),
    )
    told = "; ".join(
        f"{c.token!r} {c.after} of {steps:,} tokens, {c.before} before; expected {words.number(c.expected_after)}"
        for c in counts
    )
    return Chart(figure, told + ".", columns)
