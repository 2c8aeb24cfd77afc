"""The live sliders: one component that holds them and the figures that follow them while they are dragged.

Python sends numbers once per list of edits and prompt: what each token weighs at the prompt (the edited distribution is
closed form in the step), and how realised ratio, KL and drift grow along the step. While a slider is dragged the browser
works from these alone; on release the ratio comes here and everything is computed anew, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from app import state
from app.live.routes import PLOTLY_URL
from core.figures import Look, texts
from core.figures import steering as figures
from core.results import NextToken
from core.steering import LOGIT_BIAS, MOST_RATIO, Curve, Steerer, Steering, SweepPoint
from core.tokens import visible

_FOLDER = Path(__file__).parent
_component = st.components.v2.component(
    "headscope_knobs",
    html='<div class="knobs"></div>',
    css=(_FOLDER / "knobs.css").read_text("utf-8"),
    js=(_FOLDER / "load.js").read_text("utf-8") + (_FOLDER / "knobs.js").read_text("utf-8"),
    isolate_styles=False,
)


def knobs(data: dict[str, Any], *, moved: Callable[[int, float], None], removed: Callable[[int], None]) -> None:
    """Draw the sliders with their figures.

    Args:
        data: from `knob_data`.
        moved: called with a token's id and its new ratio when a slider is released.
        removed: called with the id of a token that is taken off the list.
    """

    def on_moved() -> None:
        match state.sent("knobs", "moved"):  # no browser of ours sends anything else
            case {"id": int(token), "ratio": int() | float() as ratio} if 1 / MOST_RATIO <= ratio <= MOST_RATIO:
                moved(token, float(ratio))

    def on_removed() -> None:
        match state.sent("knobs", "removed"):
            case int(token):
                removed(token)

    _component(key="knobs", data=data, on_moved_change=on_moved, on_removed_change=on_removed)


def knob_data(
    steerer: Steerer,
    steering: Steering,
    curves: tuple[Curve, ...],
    prompt: NextToken | None,
    options: list[tuple[float, ...]],
    look: Look,
) -> dict[str, Any]:
    """What the browser needs, as plain values.

    Args:
        steerer, steering: the tokens along their direction, and the edit as it is now, solved and judged.
        curves: of every token, from `cache.curves`.
        prompt: the edited next-token distribution (None where the prompt is refused).
        options: the ratios each slider offers.
    """
    on_logits = steering.direction == LOGIT_BIAS
    logits, shift = steerer.at_prompt(prompt.hidden) if prompt else (np.zeros(len(curves)), 0.0)
    place = {token: at for at, token in enumerate(steerer.ids)}
    before = {} if prompt is None else dict(zip(prompt.token_ids.tolist(), prompt.before.tolist(), strict=True))
    edits = [
        {
            "id": token.id,
            "token": visible(token.token),
            "alpha": token.alpha,
            "ratio": token.target,
            "step": token.step * float(np.log(token.target)) if token.target != 1 else 0.0,
            "limit": f"; at most {token.max_ratio:.3g}× is possible" if token.max_ratio < 100 else "",
            "options": list(allowed),
            "logit": float(logit),
            "p": before.get(token.id, 0.0),
            "curve": _curve(curve),
            "now": {
                "realised": token.realised,
                "heldOut": token.realised_held_out,
                "drift": steering.others_drift,
                "kl": steering.kl,
            },
        }
        for token, allowed, logit, curve in zip(steering.tokens, options, logits, curves, strict=True)
    ]
    shown = []
    if prompt is not None:
        for token_id, token, p in zip(prompt.token_ids.tolist(), prompt.tokens, prompt.before.tolist(), strict=True):
            shown.append({"id": token_id, "token": visible(token), "before": p, "edit": place.get(token_id)})
    drawn: dict[str, Any] = {}
    if prompt is not None:
        drawn["next"] = {"title": "The next token at the prompt", "summary": texts.next_token_summary(prompt)}
    return {
        "edits": edits,
        "shown": shown,
        "softcap": steerer.softcap,
        "onLogits": on_logits,
        "shift": shift,
        "calibrated": steering.calibrated,
        "figures": drawn,
        "colours": {"before": look.before, "after": look.after, "after-text": look.after_text},
        "plotly": PLOTLY_URL,
    }


def range_figure(curve: Curve, steering: Steering, look: Look) -> dict[str, Any] | None:
    """The first token over the whole range of ratios, for the figures of `knob_data`; the browser marks where it stands.

    None where the curve has no point in that range.
    """
    points = sweep_points(curve, steering)
    if not points:
        return None
    chart = figures.sweep(points, steering, look, now=False)
    return {
        "title": f"Realised against asked: {visible(steering.tokens[0].token)}",
        "summary": chart.summary,
        "figure": chart.made,
        "edit": 0,
    }


def sweep_points(curve: Curve, steering: Steering) -> tuple[SweepPoint, ...]:
    """The first token's curve from 1/100 to 100 as points of a sweep: asked ratio against realised."""
    asked = curve.realised if steering.calibrated else np.exp(curve.steps)
    return tuple(
        SweepPoint(float(a), float(r), float(h), float(kl), float("nan"), float("nan"), float(drift))
        for a, r, h, kl, drift in zip(
            asked, curve.realised, curve.realised_held_out, curve.kl, curve.others_drift, strict=True
        )
        if 0.0095 <= a <= 105
    )


def _curve(curve: Curve) -> dict[str, list[float]]:
    return {
        "steps": curve.steps.tolist(),
        "logRealised": np.log(np.maximum(curve.realised, 1e-12)).tolist(),
        "logHeldOut": np.log(np.maximum(curve.realised_held_out, 1e-12)).tolist(),
        "kl": curve.kl.tolist(),
        "drift": curve.others_drift.tolist(),
    }
