"""What an export gives back: plain values, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from core.show import Shown
from core.steering import SteeredToken


@dataclass(frozen=True)
class ExportEffect:
    """What the exported head does on held-out text, its numbers as they are stored, against the model as it is.

    Attributes:
        positions: contexts that judged.
        realised: [k] mean probability of each steered token over that of the model as it is.
        kl, js: mean KL(model ‖ export) and Jensen–Shannon divergence, nats.
        top1_agreement: share of contexts in which the most likely token stays.
        perplexity, perplexity_before: of the true next token there, of the export and of the model as it is.
    """

    positions: int
    realised: tuple[float, ...]
    kl: float
    js: float
    top1_agreement: float
    perplexity: float
    perplexity_before: float


@dataclass(frozen=True)
class ExportedPruning:
    """How the head was pruned. `removed`: the share asked for. `dims`: of `dim` dimensions those that are left."""

    method: str
    removed: float
    dims: int
    dim: int


@dataclass(frozen=True)
class Exported(Shown):
    """A checkpoint that was written, reloaded by stock transformers in a process of its own, and compared.

    Attributes:
        path: of the folder. model, revision: what it was made from.
        dtype: precision in which the head is stored.
        tied: whether input and output embedding of the export are one; was_tied: of the model.
        direction, calibrated: of the steering; "" and False without one.
        tokens: the steered tokens; `realised` is on the fitting part before rounding, `realised_held_out` after it.
        pruning: or None. A pruned export is a dense matrix [V, d] nevertheless: transformers knows no factored head.
        effect: on held-out text.
        max_logit_error: largest difference between the logits that stock transformers gave and those promised, on a
            probe text, the head run in fp32. tolerance: what was allowed.
        half_precision_deviation: the same for the logits in half precision, or None.
        head_bytes, head_bytes_before: of the output embedding as stored (shared with the input embedding if tied).
        model_bytes, model_bytes_before: of all weight files.
        generated: tokens that stock transformers went on with after the probe text.
        seconds: all of it took.
    """

    path: str
    model: str
    revision: str
    dtype: str
    tied: bool
    was_tied: bool
    direction: str
    calibrated: bool
    tokens: tuple[SteeredToken, ...]
    pruning: ExportedPruning | None
    effect: ExportEffect
    max_logit_error: float
    tolerance: float
    half_precision_deviation: float | None
    head_bytes: int
    head_bytes_before: int
    model_bytes: int
    model_bytes_before: int
    generated: int
    seconds: float

    _first = ("path", "max_logit_error", "head_bytes", "head_bytes_before", "model_bytes", "model_bytes_before")
