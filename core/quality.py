"""Quality: how varied sampled texts are. Pruning that hurts shows here first: texts that say the same thing again.

    distinct-n = different n-grams / n-grams, over all texts of a side together; an n-gram never crosses two texts
    repetition = 1 − different 4-grams / 4-grams of a text, mean over texts

Distinct-n falls with the amount of text, so only sides with about the same number of tokens can be compared: texts that end
early look more varied than they are. Tokens are those of the model, a text's end token among them.

>>> text_quality([(1, 2, 1, 2, 1, 2)]).repetition        # 1212 2121 1212: one of three stood there before
0.3333333333333333

Source: distinct-n of Li et al. 2016 (NAACL), "A Diversity-Promoting Objective Function"; repetition is seq-rep-4 of Welleck
et al. 2020 (ICLR), "Neural Text Generation with Unlikelihood Training".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.results import TextQuality

REPEATED = 4
"""Length of the n-grams whose return counts as repetition."""


def text_quality(texts: Sequence[Sequence[int]]) -> TextQuality:
    """The figures of one side from its token ids; NaN where no text is as long as the n-gram."""
    return TextQuality(
        texts=len(texts),
        tokens=sum(map(len, texts)),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        distinct_3=distinct(texts, 3),
        repetition=repetition(texts),
    )


def distinct(texts: Iterable[Sequence[int]], n: int) -> float:
    """Share of the n-grams of all texts that are different ones: near 1 nothing is said twice."""
    found = [gram for text in texts for gram in _grams(text, n)]
    return len(set(found)) / len(found) if found else float("nan")


def repetition(texts: Iterable[Sequence[int]]) -> float:
    """Mean over the texts of at least 4 tokens of the share of their 4-grams that stood in the same text before."""
    grams = [found for text in texts if (found := _grams(text, REPEATED))]
    return sum(1 - len(set(found)) / len(found) for found in grams) / len(grams) if grams else float("nan")


def _grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
