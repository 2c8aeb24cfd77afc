"""Results as figures: every function takes a result (and a `Look`) and returns a `Chart` (figure, words, table)."""

from core import words
from core.figures import dynamics, encoding, head, pairs, sentences, steering, texts
from core.figures.look import HEIGHT, Chart, Look

__all__ = ["HEIGHT", "Chart", "Look", "dynamics", "encoding", "head", "pairs", "sentences", "steering", "texts", "words"]
