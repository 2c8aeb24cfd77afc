"""What is asked of an export: known and checked before torch is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import InputError
from core.pruning.names import check_pruning
from core.steering import LOGIT_BIAS, Edit, check_direction, check_tokens

if TYPE_CHECKING:
    from core.pruning.head import PrunedHead


@dataclass(frozen=True)
class Change:
    """What is to be done to a head: prune it, steer tokens of it, or both.

    Attributes:
        edits, names: the tokens to steer, with their texts; may be empty. direction, calibrate: see `Steerer`.
        pruned: the head pruned, or None. seed: of a random direction.
    """

    edits: Sequence[Edit]
    names: Sequence[str]
    direction: str
    calibrate: bool
    pruned: PrunedHead | None
    seed: int


def check_change(edits: Sequence[Edit], direction: str, method: str | None, removed: float | None) -> None:
    """Refuse a change that is none, that lacks half of what it needs, or that is not one of the output embedding."""
    check_direction(direction)
    if edits:
        check_tokens([edit.token_id for edit in edits])
    check_pruning(method, removed)
    if not edits and method is None:
        raise InputError(
            'No edit is given, and an export without one would be the model itself: give --token " Paris" --ratio 5, or '
            "--method and --remove."
        )
    if edits and direction == LOGIT_BIAS:
        raise InputError(
            "A logit bias is no edit of the output embedding and cannot be exported: choose minimum-variance."
        )
