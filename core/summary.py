"""Results as plain values: the JSON objects of the commands, which pages download and a sweep keeps row by row.

Keys are the contract with programs that read them; `core.results.plain` makes them fit for JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.encoding import Encoding
from core.model.facts import HeadFacts
from core.results import FewShotPoint, Generated, NextToken
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


def texts(found: Generated, *, model: str) -> dict[str, Any]:
    """The JSON object of `headscope generate`."""
    return {
        "model": model,
        "prompt": found.prompt,
        "before": list(found.before_texts),
        "after": list(found.after_texts),
        "token_counts": [vars(count) for count in found.counts],
        "steps_before": found.steps_before,
        "steps_after": found.steps_after,
    }
