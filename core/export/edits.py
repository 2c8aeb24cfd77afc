"""The edited head: prune first, then steer what is left to ratios of the model as it was, then round.

A pruned head reads k features of a hidden state instead of d numbers. Its steering stays among these features, so that
what was pruned stays pruned: A, μ and Σ are taken through the same map, and the step is solved on the pruned head's own
probabilities. The target is r times what the *unedited* model gave. Source: method §3 and §4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64

from core.encoding import Encoding
from core.export.change import Change
from core.moments import Observation
from core.observe import seen_through
from core.settings import Progress
from core.steering import Part, Steerer, Steering, direction_vector

if TYPE_CHECKING:
    from core.model import Head
    from core.pruning.head import PrunedHead


@dataclass(frozen=True)
class EditedHead:
    """A head after a change.

    Attributes:
        stored: [V, d] the output embedding in the precision in which it is stored.
        head: the head with these very numbers, as they are when the model is loaded, in fp32.
        steering: what was solved, or None.
    """

    stored: Float[torch.Tensor, "V d"]
    head: Head
    steering: Steering | None


def edit_head(
    head: Head,
    observation: Observation,
    encoding: Encoding,
    change: Change,
    stored_dtype: torch.dtype,
    loaded_dtype: torch.dtype,
    progress: Progress,
) -> EditedHead:
    """Prune, round, steer what was rounded, and round the rows that were steered.

    Args:
        head: of the model; it is not changed.
        observation, encoding: of the model.
        stored_dtype, loaded_dtype: in which the head will be stored, and in which the model then loads it.

    Raises:
        InputError: a ratio that no edit reaches.
    """
    pruned = change.pruned
    dense = head.weight if pruned is None else pruned.dense_weight()
    stored = dense.detach().to("cpu", loaded_dtype).to(stored_dtype, copy=True)

    def loaded() -> Head:
        return replace(head, weight=stored.to(loaded_dtype).float().to(head.weight.device))

    steering = None
    if change.edits:
        base = head if pruned is None else loaded()
        steerer = _steerer(head, base, observation, encoding, change, progress)
        steering = steerer.steer([edit.ratio for edit in change.edits], change.calibrate)
        rows = torch.from_numpy(steerer.rows + steering.delta)
        stored[list(steering.token_ids)] = rows.to(loaded_dtype).to(stored_dtype)
    return EditedHead(stored, loaded(), steering)


def steer_pruned(
    head: Head, observation: Observation, encoding: Encoding, change: Change, progress: Progress
) -> Steering:
    """The steering of a change, solved on its pruned head as `edit_head` does, with nothing rounded.

    Raises:
        InputError: a ratio that no edit reaches.
    """
    base = head
    if change.pruned is not None:
        base = replace(head, weight=torch.as_tensor(change.pruned.dense_weight()))
    steerer = _steerer(head, base, observation, encoding, change, progress)
    return steerer.steer([edit.ratio for edit in change.edits], change.calibrate)


def _steerer(
    head: Head, base: Head, observation: Observation, encoding: Encoding, change: Change, progress: Progress
) -> Steerer:
    ids = [edit.token_id for edit in change.edits]
    rows, bias = base.rows(ids)
    fit, held_out, means, vector = observation.fit, observation.held_out, None, None
    if change.pruned is not None:
        own_rows, own_bias = head.rows(ids)
        before = [
            Part(part.reservoir, np.asarray(ids), own_rows, own_bias, None, head.softcap) for part in (fit, held_out)
        ]
        means = (before[0].mean_p, before[1].mean_p)
        fit, held_out = (
            replace(part, reservoir=seen_through(base, part.reservoir, progress)) for part in (fit, held_out)
        )
        vector = direction_within(change.pruned, observation, encoding, change.direction, change.seed)
    return Steerer(
        fit,
        held_out,
        encoding,
        ids,
        rows,
        bias,
        change.names,
        softcap=head.softcap,
        direction=change.direction,
        seed=change.seed,
        vector=vector,
        relative_to=means,
    )


def direction_within(
    pruned: PrunedHead, observation: Observation, encoding: Encoding, direction: str, seed: int
) -> Float64[np.ndarray, "d"]:
    """[d] a direction that the pruned head can take: found for its features g = Rᵀh, and brought back as R·u.

    With E ≈ L·Rᵀ the encoding A·E_w is (RᵀA)·L_w, so RᵀA are the weights of the features.
    """
    right = _features(pruned, len(encoding.weights))
    left = pruned.left.cpu().numpy()[pruned.is_token]
    weights = right.T @ encoding.weights
    return right @ direction_vector(
        direction,
        weights=weights,
        saliency=np.abs(weights) * left.std(0, dtype=np.float64),
        mean_hidden=right.T @ observation.fit.mean_hidden,
        covariance=right.T @ observation.fit.covariance @ right,
        seed=seed,
    )


def _features(pruned: PrunedHead, dim: int) -> Float64[np.ndarray, "d k"]:
    """[d, k] R: the features that a pruned head reads; columns of the identity where dimensions were deleted."""
    if pruned.right is not None:
        return pruned.right.cpu().numpy().astype(np.float64)
    if pruned.kept is None:  # it has the one or the other
        return np.eye(dim)
    return np.eye(dim)[:, pruned.kept.cpu().numpy()]
