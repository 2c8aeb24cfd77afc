"""Results as plain values: the JSON objects of the commands, which pages download and a sweep keeps row by row.

Keys are the contract with programs that read them; `core.results.plain` makes them fit for JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from core.encoding import Encoding
from core.model.facts import HeadFacts
from core.pruning.result import HeadCost, Pruning, largest_removable
from core.quality import text_quality
from core.results import FewShotPoint, Generated, NextToken, Similarity
from core.steering import Steering, SweepPoint


def fit(
    found: Encoding, *, model: str, corpus: str, revision: str = "", seconds: float = 0.0, cached: bool = False
) -> dict[str, Any]:
    """The JSON object of `headscope fit`.

    Args:
        model, corpus, revision: as they are named. seconds, cached: how long it took, and whether it was known before.
    """
    return {
        "model": model,
        "revision": revision,
        "corpus": corpus,
        "positions": found.positions,
        "positions_held_out": found.positions_held_out,
        "documents": found.documents,
        "documents_held_out": found.documents_held_out,
        "vocab_size": found.vocab_size,
        "dim": found.dim,
        "rows_fitted": len(found.token_ids),
        "padded_rows": found.padded_rows,
        "excluded_rows": found.excluded_rows,
        "r2": found.r2,
        "r2_adjusted": found.r2_adjusted,
        "r2_held_out_tokens": found.r2_held_out_tokens,
        "r2_held_out_text": found.r2_held_out_text,
        "residual_std": found.residual_std,
        "intercept": found.intercept,
        "condition_number": found.condition_number,
        "rank": found.rank,
        "cosine_minus_mean_hidden": found.cosine_minus_mean_hidden,
        "log_z_mean": found.log_z_mean,
        "log_z_std": found.log_z_std,
        "effective_dims": found.effective_dims,
        "perplexity": found.perplexity,
        "perplexity_held_out": found.perplexity_held_out,
        "predictors": [vars(predictor) for predictor in found.predictors],
        "sparsity": [{"dims": p.dims, "r2": p.r2_refitted, "r2_kept": p.r2_kept} for p in found.sparsity],
        "warnings": list(found.warnings),
        "note": found.note,
        "seconds": seconds,
        "cached": cached,
    }


def head(found: HeadFacts, *, model: str) -> dict[str, Any]:
    """The JSON object of `headscope doctor`, of a model that loaded."""
    return {
        "model": model,
        "revision": found.revision,
        **vars(found.description),
        **vars(found.check),
        "ram_bytes": found.ram_bytes,
        "device": found.device,
        "supported": True,
        "reason": None,
    }


def edit(found: Steering) -> dict[str, Any]:
    """One edit, solved and judged."""
    return {
        "direction": found.direction,
        "calibrated": found.calibrated,
        "tokens": [vars(token) for token in found.tokens],
        "kl": found.kl,
        "js": found.js,
        "top1_agreement": found.top1_agreement,
        "others_drift": found.others_drift,
        "delta_norm": found.delta_norm,
    }


def steer(
    found: Steering,
    *,
    model: str,
    corpus: str,
    baselines: Sequence[Steering] = (),
    sweep: Sequence[SweepPoint] | None = None,
    few_shot: Sequence[FewShotPoint] | None = None,
    at_prompt: NextToken | None = None,
) -> dict[str, Any]:
    """The JSON object of `headscope steer`; what was not asked for is left out."""
    result = {"model": model, "corpus": corpus, **edit(found), "baselines": [edit(each) for each in baselines]}
    if sweep is not None:
        result["sweep"] = [vars(point) for point in sweep]
    if few_shot is not None:
        result["few_shot"] = [vars(point) for point in few_shot]
    if at_prompt is not None:
        result["next_token"] = next_token(at_prompt)
    return result


def next_token(found: NextToken) -> dict[str, Any]:
    """The next token at a prompt, before and after."""
    columns = (found.token_ids, found.tokens, found.before, found.after, found.steered)
    names = ("id", "token", "before", "after", "steered")
    return {
        "tokens": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
        "others_factor": found.others_factor,
        "entropy_before": found.entropy_before,
        "entropy_after": found.entropy_after,
    }


def texts(
    found: Generated,
    *,
    model: str,
    method: str | None = None,
    removed: float | None = None,
    mauve: Similarity | None = None,
) -> dict[str, Any]:
    """The JSON object of `headscope generate`.

    Args:
        method, removed: how the head was pruned. mauve: see `similarity`; left out where it was not asked for.
    """
    result = {
        "model": model,
        "prompt": found.prompt,
        "before": list(found.before_texts),
        "after": list(found.after_texts),
        "token_counts": [vars(count) for count in found.counts],
        "steps_before": found.steps_before,
        "steps_after": found.steps_after,
        "method": method,
        "removed": removed,
        "quality": {"before": vars(text_quality(found.before)), "after": vars(text_quality(found.after))},
    }
    return result if mauve is None else result | {"mauve": similarity(mauve)}


def similarity(found: Similarity) -> dict[str, Any]:
    """MAUVE and its ceiling, and how varied the texts it was measured on are (`quality`)."""
    told = asdict(found)
    settings = told.pop("sampling")
    settings.pop("samples")
    return {**told, **settings, "quality": {"before": told.pop("before"), "after": told.pop("after")}}


POINT_KEYS = ("method", "removed", "dims", "kl", "js", "top1_agreement", "perplexity", "perplexity_ratio")


def prune(
    found: Sequence[Pruning],
    others: Sequence[Pruning] = (),
    *,
    model: str,
    costs: Sequence[HeadCost] = (),
    keep_top1: float | None = None,
) -> dict[str, Any]:
    """The JSON object of `headscope prune`.

    Args:
        found: judged on the corpus's own held-out part. others: the same methods, judged on another corpus's.
        costs: measured times and sizes. keep_top1: agreement for which the largest fraction is read off every curve.
    """
    result = {"model": model, **_curve(found), "other": _curve(others) if others else None}
    if keep_top1 is not None:
        result["keep_top1"] = keep_top1
        result["largest_removed"] = {each.method: largest_removable(each.points, keep_top1) for each in found}
    if costs:
        result["cost"] = [asdict(cost) for cost in costs]
    return result


def _curve(found: Sequence[Pruning]) -> dict[str, Any]:
    """The points of several methods that were judged on the same text, one after another."""
    first = found[0]
    return {
        "corpus": first.corpus,
        "judged_on": first.judged_on,
        "positions": first.positions,
        "close_positions": first.close_positions,
        "perplexity_full": first.perplexity_full,
        "curve": [
            {name: getattr(point, name) for name in POINT_KEYS}
            | {"trained": each.trained, "seeds": each.seeds}
            | {name: getattr(point, name) for name in ("kl_low", "kl_high", "top1_low", "top1_high")}
            | {"kl_by_decile": point.kl_by_decile.tolist(), "drift_by_decile": point.drift_by_decile.tolist()}
            for each in found
            for point in each.points
        ],
    }
