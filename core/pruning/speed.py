"""How fast and how large a pruned head is: measured in turns with the full head, so that a busy machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from core.model.head import Head
from core.pruning.head import PrunedHead
from core.pruning.result import HeadCost, HeadSpeed
from core.settings import Progress, no_progress

POSITIONS = (1, 16, 128, 512)
SECONDS = 1.0
"""Measured for about so long at every number of positions."""
LEAST_TURNS = 5


@torch.inference_mode()
def measure_cost(
    head: Head,
    pruned: PrunedHead,
    positions: Sequence[int] = POSITIONS,
    *,
    seconds: float = SECONDS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> HeadCost:
    """Time logits of `positions` hidden states by the full and by the pruned head, in turns, medians.

    Args:
        pruned: best of a width that `kept_dims` rounded down to a multiple of `FAST_MULTIPLE`.
        seconds: how long to measure at every number of positions.
        seed: of the hidden states, which are random numbers.
    """
    device = head.weight.device
    speed: list[HeadSpeed] = []
    vocab, dim = head.weight.shape
    for count in positions:
        progress("Timing the pruned head", len(speed) / len(positions))
        hidden = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).to(device)
        out = torch.empty(count, vocab, device=device)
        times: list[tuple[float, float]] = []
        started = time.perf_counter()
        while len(times) < LEAST_TURNS + 1 or time.perf_counter() - started < seconds:
            times.append((_time(head.logits, hidden, out), _time(pruned.logits, hidden, out)))
        full, less = np.median(np.array(times[1:]), axis=0)  # the first turn warms the caches
        speed.append(HeadSpeed(count, float(full), float(less), float(less / full)))
    bias = 0 if head.bias is None else head.bias.numel() * head.bias.element_size()
    size = head.weight.numel() * head.weight.element_size() + bias
    return HeadCost(pruned.method, pruned.removed, pruned.dims, dim, pruned.bytes, size, tuple(speed))


def _time(logits: Callable[..., torch.Tensor], hidden: torch.Tensor, out: torch.Tensor) -> float:
    started = time.perf_counter()
    found = logits(hidden, out=out)
    if found.device.type != "cpu":  # an accelerator answers before it is done: reading a number waits for it
        found[0, 0].item()
    return time.perf_counter() - started
