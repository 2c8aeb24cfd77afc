"""Results as figures: every function takes a result (and a `Look`) and returns a `Chart` (figure, words, table)."""

from core import words
from core.figures import compare, dynamics, encoding, head, pairs, pruning, sentences, steering, texts
from core.figures.look import HEIGHT, Chart, Look

__all__ = [
    "HEIGHT",
    "Chart",
    "Look",
    "compare",
    "dynamics",
    "encoding",
    "head",
    "pairs",
    "pruning",
    "sentences",
    "steering",
    "texts",
    "words",
]
