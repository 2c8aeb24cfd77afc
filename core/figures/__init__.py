"""Results as figures: every function takes a result (and a `Look`) and returns a `Chart` (figure, words, table).

The files are imported when they are first asked for: the dashboard's first page does without most of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from core import words
from core.figures.look import HEIGHT, Chart, Look

if TYPE_CHECKING:
    from core.figures import compare, dynamics, encoding, head, lesson, pairs, pruning, sentences, steering, texts

_FILES = ("compare", "dynamics", "encoding", "head", "lesson", "pairs", "pruning", "sentences", "steering", "texts")

__all__ = [
    "HEIGHT",
    "Chart",
    "Look",
    "compare",
    "dynamics",
    "encoding",
    "head",
    "lesson",
    "pairs",
    "pruning",
    "sentences",
    "steering",
    "texts",
    "words",
]


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return importlib.import_module(f"core.figures.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
