"""Models: naming them, bringing their files here, loading them, and opening their output head.

`resolve` and `ready` are light; what needs torch is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from core.model.facts import HeadCheck, HeadDescription, HeadFacts
from core.model.files import ModelFiles, ready, resolve
from core.model.names import ModelSource, parse_model

if TYPE_CHECKING:
    from core.model.head import Head
    from core.model.load import LoadedModel, doctor, load_model

__all__ = [
    "Head",
    "HeadCheck",
    "HeadDescription",
    "HeadFacts",
    "LoadedModel",
    "ModelFiles",
    "ModelSource",
    "doctor",
    "load_model",
    "parse_model",
    "ready",
    "resolve",
]

_HEAVY = {"Head": "head", "LoadedModel": "load", "doctor": "load", "load_model": "load"}


def __getattr__(name: str) -> object:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"core.model.{_HEAVY[name]}"), name)
