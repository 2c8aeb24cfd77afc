"""What pruning to several fractions does, as plain values: what commands, pages and the store hold. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from core.errors import AnalysisError
from core.show import Shown

DECILES = 10
"""Groups of equally many tokens, from the most frequent to the rarest."""

CLOSE_POSITIONS = 256
"""Positions on which Jensen–Shannon and the change of single tokens are measured, at most."""


@dataclass(frozen=True)
class PrunePoint(Shown):
    """One fraction of one method, judged on text that nothing was fitted on. Random order: means over its seeds.

    Attributes:
        method, removed: what was asked for. dims: dimensions (or rank) that stay.
        kl, js: mean KL(full ‖ pruned) and Jensen–Shannon divergence, nats (js on a seeded part of the positions).
        kl_low, kl_high: smallest and largest of the seeds; top1_low, top1_high: the same. One seed: the value itself.
        top1_agreement: share of contexts in which the most likely token stays.
        perplexity: of the true next token. perplexity_ratio: that over the full head's.
        kl_by_decile: [10] share of the KL, Σ p log(p/p′), from the most frequent tenth of the tokens to the rarest.
        drift_by_decile: [10] mean |log(p′/p)| over the tokens of that tenth, nats.
        kept_share: [d] how much of the mean square of every dimension of h stays, 0 to 1; a deletion keeps all or nothing.
    """

    _first: ClassVar[tuple[str, ...]] = ("method", "removed", "kl", "top1_agreement")

    method: str
    removed: float
    dims: int
    kl: float
    js: float
    top1_agreement: float
    perplexity: float
    perplexity_ratio: float
    kl_low: float
    kl_high: float
    top1_low: float
    top1_high: float
    kl_by_decile: Float64[np.ndarray, "10"]
    drift_by_decile: Float64[np.ndarray, "10"]
    kept_share: Float64[np.ndarray, "d"]


@dataclass(frozen=True)
class Pruning(Shown):
    """The curve of one method: fitted on one corpus, judged on the held-out part of the same or of another.

    Attributes:
        corpus: whose fitting part everything was computed from. judged_on: whose held-out part judged.
        positions: contexts that judged. seeds: orders averaged (1 but for `random`).
        trained: whether the factors were trained by gradients (`distilled`) and not just computed.
        order: [d] the dimensions in the order in which they leave (of the first seed); empty where all are mixed.
    """

    _first: ClassVar[tuple[str, ...]] = ("method", "corpus", "judged_on", "perplexity_full")

    method: str
    corpus: str
    judged_on: str
    positions: int
    seeds: int
    trained: bool
    perplexity_full: float
    points: tuple[PrunePoint, ...]
    order: Int64[np.ndarray, "n"]

    @property
    def close_positions(self) -> int:
        """Contexts, of those that judged, on which js, kl_by_decile and drift_by_decile were measured."""
        return min(self.positions, CLOSE_POSITIONS)


@dataclass(frozen=True)
class HeadSpeed(Shown):
    """Measured time of a pruned head against the full one, in turns.

    Attributes:
        positions: hidden states at once. seconds_full, seconds: median of one call, s. ratio: pruned over full.
    """

    positions: int
    seconds_full: float
    seconds: float
    ratio: float


@dataclass(frozen=True)
class HeadCost(Shown):
    """How large and how fast a pruned head is on this machine.

    Attributes:
        dims, dim: width that stays, of how many. bytes, bytes_full: size of the numbers of either head.
    """

    method: str
    removed: float
    dims: int
    dim: int
    bytes: int
    bytes_full: int
    speed: tuple[HeadSpeed, ...]


def largest_removable(points: Sequence[PrunePoint], agreement: float) -> float:
    """The largest fraction that can go while the top prediction stays in at least the share `agreement` of contexts.

    Agreement falls with the fraction but for noise: the answer lies before the first measured point that falls short,
    on the straight line to it from the last that does not (nothing removed agrees everywhere).

    Raises:
        AnalysisError: there are no points.
    """
    if not points:
        raise AnalysisError("There is no curve to read a fraction from.")
    removed, stays = 0.0, 1.0
    for point in sorted(points, key=lambda each: each.removed):
        if point.top1_agreement < agreement:
            fall = stays - point.top1_agreement
            share = (stays - agreement) / fall if fall > 0 else 0.0
            return removed + max(0.0, share) * (point.removed - removed)
        removed, stays = point.removed, point.top1_agreement
    return removed
