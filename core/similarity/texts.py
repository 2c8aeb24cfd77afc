"""Samples of texts before and after an edit, drawn independently, and how alike they are.

Coupled texts (`core.generate`) show what an edit changes; a distribution is judged on texts that have nothing to do with each
other. Three samples of the same size are drawn: the model as it is, twice, and the edited model; the two of the model as it is
give the ceiling. Nothing but a running sum and the token ids is kept of a text, so memory does not grow with their number.

The feature of a text is the mean of the hidden states that the head received when its tokens were drawn: those of the loaded
model itself, the same function of the text on both sides, since an edit of the head leaves everything below it alone. (The
MAUVE paper takes the last hidden state of another, larger model, which in short texts hangs on what the last token is.) Values
are hence comparable between edits of one model at one prompt, and not between models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from core.errors import InputError
from core.generate import Edited, draw_pairs, edit_of, encode_prompt
from core.quality import text_quality
from core.results import Sampling, Similarity
from core.settings import Progress, Texts, no_progress
from core.similarity.mauve import CLUSTERINGS, check_similarity, mauve_scores
from core.steering import Steering

if TYPE_CHECKING:
    import torch

    from core.model import LoadedModel
    from core.pruning.head import PrunedHead

BATCH = 64
"""Texts that are written at once."""


@dataclass(frozen=True)
class Sample:
    """Texts of one side. `features`: [n, d], one text a row."""

    texts: Texts
    features: Float32[np.ndarray, "n d"]

    def first(self, count: int) -> Sample:
        return Sample(self.texts[:count], self.features[:count])


def compare_texts(
    model: LoadedModel,
    prompt: str,
    steering: Steering | None = None,
    sampling: Sampling | None = None,
    *,
    pruned: PrunedHead | None = None,
    texts: int = 256,
    chat: bool = False,
    progress: Progress = no_progress,
) -> Similarity:
    """MAUVE between the texts of a model as it is and as edited, with its ceiling, and how varied the texts are.

    Args:
        steering, pruned: the edit, as for `core.generate.generate`.
        sampling: length, temperature, truncation and seed; `samples` is not used.
        texts: drawn per side, three sides in all.

    Raises:
        InputError: see `check_similarity` and `encode_prompt`; or sampling that writes the same text every time.
        AnalysisError: see `mauve_scores`.
        Cancelled: from `progress`, between two tokens.
    """
    check_similarity(texts)
    sampling = sampling or Sampling()
    prompt_ids = encode_prompt(model, prompt, chat=chat, new_tokens=sampling.new_tokens)
    edit = edit_of(model, steering, pruned)

    before, after = draw_samples(model, prompt_ids, edit, sampling, texts, 0, _within(progress, 0, 2 / 3))
    halves = draw_samples(model, prompt_ids, None, sampling, (texts + 1) // 2, 1, _within(progress, 2 / 3, 1))
    again = _joined(*halves).first(texts)
    if len(set(before.texts + after.texts + again.texts)) < 2:
        raise InputError(
            "Every text is the same one with these settings, so there are no distributions to compare: raise the "
            "temperature, or keep more than the likeliest token."
        )
    scores = mauve_scores(before.features, (after.features, again.features), sampling.seed, progress)
    return Similarity(
        value=scores.values[0],
        ceiling=scores.values[1],
        value_std=scores.spreads[0],
        ceiling_std=scores.spreads[1],
        texts=texts,
        clusters=scores.clusters,
        clusterings=CLUSTERINGS,
        before=text_quality(before.texts),
        after=text_quality(after.texts),
        sampling=sampling,
    )


def draw_samples(
    model: LoadedModel,
    prompt_ids: torch.Tensor,
    edit: Edited | None,
    sampling: Sampling,
    texts: int,
    stream: int,
    progress: Progress = no_progress,
) -> tuple[Sample, Sample]:
    """`texts` texts of the model as it is and as many of the edited one; no two of all these share noise.

    Args:
        prompt_ids: [1, t]. stream: another number draws other texts with the same seed.
    """
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for start in range(0, texts, BATCH // 2):
        count = min(BATCH // 2, texts - start)
        noise = int(np.random.SeedSequence([sampling.seed, 8, stream, start]).generate_state(1)[0])
        written, draw = draw_pairs(
            model,
            prompt_ids,
            edit,
            replace(sampling, samples=count, seed=noise),
            coupled=False,
            progress=_within(progress, start / texts, (start + count) / texts),
        )
        features = draw.mean_hidden().astype(np.float32)
        sides[0].append(Sample(written[:count], features[:count]))
        sides[1].append(Sample(written[count:], features[count:]))
    return _joined(*sides[0]), _joined(*sides[1])


def _within(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part that goes from `start` to `end` of the whole."""
    return lambda phrase, share: progress(phrase, start + (end - start) * (share or 0.0))


def _joined(*parts: Sample) -> Sample:
    return Sample(
        tuple(text for part in parts for text in part.texts), np.concatenate([part.features for part in parts])
    )
