"""From a method's name to its curve: find the bases, judge every fraction, put the numbers into plain values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from core.encoding import Encoding
from core.model.head import Head
from core.moments import Moments
from core.pruning.basis import Basis, find_basis
from core.pruning.curve import Judge, Measured
from core.pruning.names import kept_dims
from core.pruning.result import DECILES, PrunePoint, Pruning
from core.settings import Progress, no_progress


def prune_curve(
    head: Head,
    encoding: Encoding,
    fit: Moments,
    judge: Judge,
    method: str,
    removed: Sequence[float],
    *,
    seeds: Sequence[int] = (0,),
    own: Moments | None = None,
    corpus: str = "",
    judged_on: str = "",
    progress: Progress = no_progress,
) -> Pruning:
    """Prune to every fraction of `removed` and judge.

    Args:
        head, encoding, fit, own: as for `prune_head`; the method sees nothing else. judge: holds the positions that judge.
        seeds: of the order `random`; other methods take the first only.
        progress: called at every tile of the vocabulary; may raise `Cancelled`.
    """
    used = list(seeds) if method == "random" else list(seeds)[:1]
    widths = [kept_dims(head.weight.shape[1], fraction) for fraction in removed]
    deciles = token_deciles(fit.alpha, head.is_token)
    bases, found = [], []
    for seed in used:
        progress(f"Pruning by {method}", None)
        bases.append(find_basis(method, head, encoding, fit, seed, own))
        found.append(judge.measure(bases[-1], widths, progress))
    first = bases[0]
    points = tuple(
        _point(method, fraction, place, found, deciles, kept_share(first, fit, widths[place]))
        for place, fraction in enumerate(removed)
    )
    return Pruning(
        method=method,
        corpus=corpus,
        judged_on=judged_on,
        positions=len(judge.hidden),
        seeds=len(used),
        trained=False,
        perplexity_full=_exp(found[0].loss_full),
        points=points,
        order=np.zeros(0, dtype=np.int64) if first.order is None else first.order[::-1].copy(),
    )


def _point(
    method: str,
    removed: float,
    place: int,
    found: Sequence[Measured],
    deciles: Int64[np.ndarray, "V"],
    share: Float64[np.ndarray, "d"],
) -> PrunePoint:
    """Means over the seeds. Perplexities are averaged as losses."""
    kl = np.array([each.kl[place] for each in found])
    top1 = np.array([each.top1[place] for each in found])
    loss = float(np.mean([each.loss[place] for each in found]))
    tokens = deciles >= 0
    many = np.maximum(np.bincount(deciles[tokens], minlength=DECILES), 1)

    def by_decile(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.bincount(deciles[tokens], np.mean(values, axis=0)[tokens], minlength=DECILES)

    return PrunePoint(
        method=method,
        removed=float(removed),
        dims=found[0].widths[place],
        kl=float(kl.mean()),
        js=float(np.mean([each.js[place] for each in found])),
        top1_agreement=float(top1.mean()),
        perplexity=_exp(loss),
        perplexity_ratio=_exp(loss - found[0].loss_full),
        kl_low=float(kl.min()),
        kl_high=float(kl.max()),
        top1_low=float(top1.min()),
        top1_high=float(top1.max()),
        kl_by_decile=by_decile([each.token_kl[place] for each in found]),
        drift_by_decile=by_decile([each.token_drift[place] for each in found]) / many,
        kept_share=share,
    )


def _exp(loss: float) -> float:
    """Infinite where the true token has no probability left."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def token_deciles(alpha: Float64[np.ndarray, "V"], is_token: np.ndarray) -> Int64[np.ndarray, "V"]:
    """[V] the tenth that a token belongs to, 0 the most frequent by `alpha`; −1 for rows that are no token."""
    tokens = np.flatnonzero(is_token)
    ranked = tokens[np.argsort(-alpha[tokens], kind="stable")]
    deciles = np.full(len(alpha), -1, dtype=np.int64)
    deciles[ranked] = np.arange(len(ranked)) * DECILES // max(len(ranked), 1)
    return deciles


def kept_share(basis: Basis, fit: Moments, width: int) -> Float64[np.ndarray, "d"]:
    """[d] share of E[h_i²] that the first `width` components carry.

    Components are uncorrelated in all bases but plain deletions, where a dimension is one component; so squares add up.
    """
    second = fit.sum_hh / fit.n
    strength = basis.columns**2 * (basis.components * (second @ basis.components)).sum(0)
    total = strength.sum(1)
    return np.clip(strength[:, :width].sum(1) / np.where(total > 0, total, 1.0), 0.0, 1.0)
