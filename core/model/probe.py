"""Is our head the model's head? Measured on the model itself, before any number is believed.

1. The head's output is replaced by known numbers z and the model's own code runs on: what comes out must be
   f(c·z), f the identity or cap·tanh(·/cap). The slope at 0 is c, the value at 10³⁰ is cap.
2. A short text goes through the model; the logits of `Head` must agree with the model's within 1e-4, or 1e-5 of the
   largest logit. If the model is in half precision it runs again with its head in fp32, and everything after the
   head in fp32 too; how far its own rounded logits lie away is told beside it.
3. The second half of the text is turned round: no hidden state of the first half may notice, or the model is not
   causal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from core.errors import AnalysisError, not_finite
from core.model.facts import HeadCheck
from core.model.head import Head
from core.model.hook import visiting

TEXT = "The river ran past 17 old mills, and nobody knew why; still, people came."
RANDOM_TOKENS = 8
LARGEST = 2.0**20
"""Of logits: there neighbours in single precision lie an eighth of a nat apart."""
HALF_PRECISION_SHARE = 0.05
"""Share of the largest logit by which a model's own half-precision logits may lie away from the fp32 ones."""

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Token ids [b, t] → logits [b, t, V], by the model itself."""


def probe_ids(encode: Callable[[str], list[int]], usable: int, device: torch.device) -> torch.Tensor:
    """Token ids [1, t] of a fixed sentence and a few seeded random ones, all below `usable`."""
    text = [token for token in encode(TEXT) if token < usable][:64]
    rest = np.random.default_rng(0).integers(0, usable, RANDOM_TOKENS).tolist()
    return torch.tensor([text + rest], device=device)


def measure_output(forward: Forward, layer: nn.Linear, ids: torch.Tensor, name: str) -> tuple[float, float | None]:
    """The scale c and the cap (or None) that a model applies after its head.

    Raises:
        AnalysisError: it applies something else.
    """
    rows, count = layer.weight.shape[0], ids.shape[1] * layer.weight.shape[0]
    z = torch.linspace(-80.0, 80.0, count, device=ids.device).reshape(1, ids.shape[1], rows)
    slope_at, far = 2.0**-16, 1e30
    z[0, 0, 0], z[0, 0, 1] = slope_at, far
    with replaced(layer, lambda _: z.clone()):
        seen = forward(ids).float()
    if seen.shape != z.shape:
        raise AnalysisError(
            f"{name} turns the {rows} outputs of its head into logits of shape {tuple(seen.shape)}: such a model "
            "cannot be observed."
        )
    scale = _shortest(seen[0, 0, 0].item() / slope_at)
    cap = None if not seen[0, 0, 1].isfinite() or abs(seen[0, 0, 1]) > 1e15 else _shortest(seen[0, 0, 1].item())
    expected = z * scale
    if cap:
        expected = cap * torch.tanh(expected / cap)
    error = ((seen - expected).abs() / expected.abs().clamp(min=1.0)).max().item()
    if not (scale > 0 and (cap is None or cap > 0) and error < 1e-5):
        raise AnalysisError(
            f"What {name} does to its logits after the head is neither a scale nor a soft-cap (off by {error:.1e}): "
            "such a model cannot be observed."
        )
    return scale, cap


def check_head(forward: Forward, layer: nn.Linear, head: Head, scale: float, ids: torch.Tensor, name: str) -> HeadCheck:
    """Compares `head` with the model on a probe text.

    Raises:
        AnalysisError: the head is not called exactly once, its logits are not the model's, or the model looks ahead.
    """
    seen: list[torch.Tensor] = []
    with visiting(seen.append):
        own = forward(ids).float()
    if len(seen) != 1 or seen[0].shape != (*ids.shape, layer.weight.shape[1]):
        raise AnalysisError(
            f"{name} calls its output head {len(seen)} times in one pass, not once for every position: such a model "
            "cannot be observed."
        )
    if not own.isfinite().all():
        raise not_finite(f"The logits of {name} on a plain text", half=layer.weight.dtype != torch.float32)
    ours = head.logits(seen[0].float().flatten(0, 1) * scale).view_as(own)
    largest = own.abs().max().item()
    if largest >= LARGEST:
        raise AnalysisError(
            f"The logits of {name} reach {largest:.2g}, where single precision tells no probabilities apart: its weights are "
            "damaged or of another scale, so choose another checkpoint."
        )
    tolerance = allowed_error(largest)
    error = deviation = (ours - own).abs().max().item()
    half = layer.weight.dtype != torch.float32
    if half:
        inputs: list[torch.Tensor] = []

        def in_fp32(hidden: torch.Tensor) -> torch.Tensor:
            inputs.append(hidden)
            bias = None if layer.bias is None else layer.bias.float()
            return nn.functional.linear(hidden.float(), head.weight, bias)

        with replaced(layer, in_fp32):
            reference = forward(ids).float()
        ours = head.logits(inputs[0].float().flatten(0, 1) * scale).view_as(reference)
        error = (ours - reference).abs().max().item()
    if not (error <= tolerance and deviation <= max(tolerance, HALF_PRECISION_SHARE * largest * half)):
        raise AnalysisError(
            f"The logits of {name} are not reproduced from its head (off by {max(error, deviation):.2g}, allowed is "
            f"{tolerance:.2g}): the model does more than its head shows, so no analysis of it could be trusted."
        )
    _check_causal(forward, ids, seen[0], name)
    return HeadCheck(error, tolerance, deviation if half else None)


def allowed_error(largest: float) -> float:
    """How far two computations of the same logits may lie apart, the largest of which is `largest`."""
    return 1e-4 * max(1.0, largest / 10)


def _check_causal(forward: Forward, ids: torch.Tensor, before: torch.Tensor, name: str) -> None:
    half = ids.shape[1] // 2
    changed = torch.cat([ids[:, :half], ids[:, half:].flip(1)], dim=1)
    after: list[torch.Tensor] = []
    with visiting(after.append):
        forward(changed)
    moved = (after[0][:, :half] - before[:, :half]).abs().max().item()
    noise = 1e-3 if before.dtype == torch.float32 else 2e-2
    if moved > noise * before.abs().max().item():
        raise AnalysisError(
            f"{name} looks at later tokens while it predicts (it is not causal), so it has no next-token "
            "probabilities: choose a causal language model."
        )


@contextlib.contextmanager
def replaced(layer: nn.Linear, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside, the head computes `function`. Only while a model is loaded, before anyone shares it."""
    patched: Any = layer
    patched.forward = function
    try:
        yield
    finally:
        del patched.forward


def _shortest(value: float) -> float:
    """The shortest decimal number that cannot be told from `value` in fp32: 0.1 and not 0.10000000149."""
    rounded = (float(f"{value:.{digits}g}") for digits in range(1, 8))
    return next((each for each in rounded if abs(each - value) <= 2.5e-7 * abs(value)), value)
