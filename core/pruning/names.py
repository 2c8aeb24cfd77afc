"""The names of the methods, and how many dimensions a fraction leaves. Free of torch: bad arguments are refused at once."""

from __future__ import annotations

from core.errors import InputError
from core.words import quoted

DELETIONS = ("saliency", "random", "reverse", "std", "rms")
"""Dimensions leave one after another and the others stay as they are."""
COMPENSATED = ("compensated", "greedy")
"""Dimensions leave, and the others take over what can be predicted of them."""
ROTATIONS = ("rotated-unweighted", "rotated", "rotated-tempered", "rotated-self")
"""The head becomes a product of two thin matrices."""
METHODS = (*DELETIONS, *COMPENSATED, *ROTATIONS)
NEEDS_OWN_TEXT = ("rotated-self",)
"""Methods that let the model write first, which takes a minute or more."""
STANDARD = tuple(name for name in METHODS if name not in NEEDS_OWN_TEXT)
"""What is measured where no method is named."""

FAST_MULTIPLE = 16
"""Matrix products are fast where the width is a multiple of this."""


def check_method(method: str) -> None:
    """Refuse a method that does not exist.

    Raises:
        InputError: with the methods that do.
    """
    if method not in METHODS:
        raise InputError(f"The method is {quoted(method)}, but it must be one of {', '.join(METHODS)}.")


def check_removed(removed: float) -> None:
    """Refuse a fraction outside 0 ≤ removed < 1 (also NaN)."""
    if not 0 <= removed < 1:
        raise InputError(f"The fraction to remove is {removed:g}, but it must be from 0 (nothing) to below 1, as 0.3.")


def check_pruning(method: str | None, removed: float | None) -> None:
    """Refuse a method without a fraction, a fraction without a method, and what either may not be; neither is fine."""
    if (method is None) != (removed is None):
        raise InputError("Pruning needs both --method and --remove: give, for example, --method rotated --remove 0.3.")
    if method is not None and removed is not None:
        check_method(method)
        check_removed(removed)


def kept_dims(dim: int, removed: float, multiple: int = 1) -> int:
    """How many of `dim` dimensions stay when the fraction `removed` goes: d − round(removed·d), at least 1.

    Args:
        multiple: round what stays down to a multiple of this (`FAST_MULTIPLE` where time counts). Only where something is
            removed and something is left: removing nothing keeps all d, and below `multiple` it is not rounded.
    """
    check_removed(removed)
    kept = max(1, dim - round(removed * dim))
    return kept if kept == dim or kept < multiple else kept - kept % multiple
