"""What pruning costs, as ratios of two times taken in turns in one run: `python -m tests.benchmarks.pruning`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import torch

from core.analysis import Analysis
from core.model import Head
from core.moments import Reservoir
from core.pruning.basis import Basis, find_basis
from core.pruning.curve import Judge
from core.pruning.head import PrunedHead, cut
from core.pruning.names import kept_dims

CURVE_LIMIT, HEAD_LIMIT = 0.4, 0.85
FRACTIONS = tuple(place / 20 for place in range(20))


@torch.inference_mode()
def separate_evaluations(
    head: Head,
    heads: Iterable[PrunedHead],
    sample: Reservoir,
    block: int = 512,
    dtype: torch.dtype = torch.float32,
) -> list[tuple[float, float]]:
    """(KL, top-1 agreement) of every pruned head from its own product and softmax; the full head's once for all."""
    heads, sums = list(heads), None
    for start in range(0, len(sample), block):
        hidden = torch.from_numpy(sample.hidden[start : start + block])
        log_p = head.logits(hidden).log_softmax(1, dtype=dtype)
        p, top = log_p.exp(), log_p.argmax(1)
        found = []
        for pruned in heads:
            log_q = pruned.logits(hidden).log_softmax(1, dtype=dtype)
            found.append(((p * (log_p - log_q)).sum().item(), (log_q.argmax(1) == top).sum().item()))
        sums = np.array(found) if sums is None else sums + found
    return [(kl / len(sample), same / len(sample)) for kl, same in (sums if sums is not None else [])]


def curve_ratio(analysis: Analysis, *, method: str = "saliency", positions: int = 1024, rounds: int = 3) -> float:
    """Time of a 20-point curve with KL and top-1, what the full head costs included, over 20 separate evaluations.

    Raises:
        AssertionError: the two do not give the same numbers.
    """
    head, fit = analysis.loaded().head, analysis.observation().fit
    sample = analysis.observation().held_out.reservoir.first(positions)
    basis = find_basis(method, head, analysis.encoding(), fit)
    widths = [kept_dims(head.weight.shape[1], fraction) for fraction in FRACTIONS]
    heads = [cut(head, basis, width, method, fraction) for width, fraction in zip(widths, FRACTIONS, strict=True)]

    def block_wise() -> np.ndarray:
        found = Judge(head, sample, close=0).measure(basis, widths)
        return np.stack([found.kl, found.top1], 1)

    def one_by_one() -> np.ndarray:
        return np.array(separate_evaluations(head, heads, sample))

    # single precision is off by 2e-5 of the KL in a softmax over so many tokens, which is right for a time and not for this
    exact = np.array(separate_evaluations(head, heads, sample, 256, torch.float64))
    np.testing.assert_allclose(block_wise()[:, 0], exact[:, 0], atol=1e-5)
    return in_turns(block_wise, one_by_one, rounds)


def head_ratio(head: Head, basis: Basis, positions: int, *, method: str, removed: float = 0.3) -> float:
    """Time of a pruned head, its width a multiple of 16, over the full head's."""
    from core.pruning.names import FAST_MULTIPLE
    from core.pruning.speed import measure_cost

    width = kept_dims(head.weight.shape[1], removed, FAST_MULTIPLE)
    return measure_cost(head, cut(head, basis, width, method, removed), [positions], seconds=2.0).speed[0].ratio


def in_turns(ours: Callable[[], object], baseline: Callable[[], object], rounds: int) -> float:
    """Median time of `ours` over median time of `baseline`, alternating."""
    times = np.array([(_time(ours), _time(baseline)) for _ in range(rounds)])
    return float(np.median(times[:, 0]) / np.median(times[:, 1]))


def _time(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    analysis = Analysis("smollm2", "python-docs")
    for method in ("saliency", "rotated"):
        print(f"20-point curve, {method}: {curve_ratio(analysis, method=method):.3f} (limit {CURVE_LIMIT})")
    head, fit = analysis.loaded().head, analysis.observation().fit
    for method in ("saliency", "rotated"):
        basis = find_basis(method, head, analysis.encoding(), fit)
        for positions in (1, 16, 128, 512):
            ratio = head_ratio(head, basis, positions, method=method)
            print(f"head without 30 %, {method}, {positions} positions: {ratio:.3f} (limit {HEAD_LIMIT})")


if __name__ == "__main__":
    main()
