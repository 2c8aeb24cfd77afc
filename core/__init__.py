"""Headscope: how a language model's token probabilities are written into its output embedding.

The paper's pipeline, one room per step, in reading order:

    model, corpus -> observe -> encoding -> steering -> generate,  all behind `Analysis`

>>> from core import Analysis, Edit
>>> analysis = Analysis("smollm2", "sampler")
>>> analysis.encoding().r2                                  # doctest: +SKIP
0.86
>>> analysis.steer([Edit(analysis.find_token(" river").id, 20)]).tokens[0].realised_held_out  # doctest: +SKIP
19.6

Source: Cho et al., "Understanding Token Probability Encoding in Output Embeddings", COLING 2025.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without `typing`: whoever starts a command and stops it at once waits for nothing
if TYPE_CHECKING:
    from typing import Any

    from core.analysis import Analysis
    from core.encoding import Encoding
    from core.errors import AnalysisError, Cancelled, HeadscopeError, InputError
    from core.moments import Observation
    from core.results import Sampling
    from core.settings import Settings
    from core.steering import Edit, Steering
    from core.store import Store

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "core.analysis",
    "AnalysisError": "core.errors",
    "Cancelled": "core.errors",
    "Edit": "core.steering",
    "Encoding": "core.encoding",
    "HeadscopeError": "core.errors",
    "InputError": "core.errors",
    "Observation": "core.moments",
    "Sampling": "core.results",
    "Settings": "core.settings",
    "Steering": "core.steering",
    "Store": "core.store",
}
__all__ = [  # noqa: RUF022  (in the order of the pipeline)
    "Analysis",
    "Settings",
    "Store",
    "Observation",
    "Encoding",
    "Edit",
    "Steering",
    "Sampling",
    "HeadscopeError",
    "InputError",
    "AnalysisError",
    "Cancelled",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import core` stays free of torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'core' has no attribute {name!r}")
