"""The errors that a user may see, each one clear sentence: what was wrong, what is allowed, what to do.

The command line turns them into an exit code and the dashboard into a box; neither shows a traceback.
"""

from __future__ import annotations

import re

from core.words import size


class HeadscopeError(Exception):
    """Base of every error whose message is meant to be read by a user."""

    exit_code = 1


class InputError(HeadscopeError):
    """An argument or an input is wrong; the message holds the remedy (exit code 2)."""

    exit_code = 2


class AnalysisError(HeadscopeError):
    """The input was fine but the analysis cannot be done; the message holds the reason (exit code 1)."""


class Cancelled(HeadscopeError):
    """The user stopped the work; what was finished so far is kept and the next run goes on from there."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of its GPU was not enough; torch says so by a `RuntimeError`."""
    told = isinstance(error, RuntimeError) and re.search(
        "can't allocate memory|not enough memory|out of memory", str(error)
    )
    return isinstance(error, MemoryError) or bool(told)


def not_finite(what: str, *, half: bool) -> AnalysisError:
    """What is said of logits or hidden states that are no numbers; `half` if the model computes in half precision."""
    return AnalysisError(
        f"{what} are not finite numbers: its weights, or numbers of its configuration, are NaN, infinite or without sense"
        + (", or overflow in half precision: try --dtype float32." if half else ": choose another checkpoint.")
    )


def check_fits(what: str, needed: int, free: int, of: str, advice: str) -> None:
    """Raises `AnalysisError`, with both figures, if fewer bytes of memory, or of a disk, are free than something needs."""
    if needed > free:
        raise AnalysisError(f"{what} needs about {size(needed)} of {of} and {size(free)} are free: {advice}.")
