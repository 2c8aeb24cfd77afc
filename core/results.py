"""What the steps that need the model take from and hand on to figures, commands and pages: plain values, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from core.errors import InputError
from core.show import Shown

MOST_SAMPLES = 64
MOST_NEW_TOKENS = 1024


@dataclass(frozen=True)
class TokenChoice(Shown):
    """A token that a user named. `note` explains a word of several tokens (its first stands for it), else ""."""

    id: int
    token: str
    note: str = ""


@dataclass(frozen=True)
class NextToken(Shown):
    """The next-token distribution at a prompt, for the likeliest tokens and the steered ones, likeliest first.

    Attributes:
        token_ids, tokens: [k]. before, after: [k] probabilities. steered: [k] whether the token is edited.
        others_factor: by which every token that is not steered was multiplied.
        entropy_before, entropy_after: of the whole distribution, nats.
        hidden, log_z: [d] what the head received at the prompt (times the logit scale), and log Z there: with them an edit
            is worked out without the model (`core.steering.edited_prompt`).
    """

    token_ids: Int64[np.ndarray, "k"]
    tokens: tuple[str, ...]
    before: Float64[np.ndarray, "k"]
    after: Float64[np.ndarray, "k"]
    steered: Bool[np.ndarray, "k"]
    others_factor: float
    entropy_before: float
    entropy_after: float
    hidden: Float64[np.ndarray, "d"]
    log_z: float


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn.

    Attributes:
        samples: texts per side. new_tokens: longest continuation.
        temperature: of the softmax, above 0. top_k: 0 keeps all. top_p: 1 keeps all.
        seed: of the noise.
    """

    samples: int = 8
    new_tokens: int = 40
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, fine, allowed in (
            ("number of samples", self.samples, 1 <= self.samples <= MOST_SAMPLES, f"from 1 to {MOST_SAMPLES}"),
            (
                "number of new tokens",
                self.new_tokens,
                1 <= self.new_tokens <= MOST_NEW_TOKENS,
                f"1 to {MOST_NEW_TOKENS}",
            ),
            ("temperature", self.temperature, 0.01 <= self.temperature <= 10, "from 0.01 to 10"),
            ("top-k", self.top_k, self.top_k >= 0, "0 (keep all) or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (keep all)"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295"),
        ):
            if not fine:
                raise InputError(f"The {name} is {value}, but it must be {allowed}.")


@dataclass(frozen=True)
class TokenCount(Shown):
    """How often a steered token was drawn, and how often it should have been.

    Attributes:
        before, after: occurrences in all texts of a side.
        expected_before, expected_after: sum of its probability over the drawn steps, after temperature and truncation.
        low, high: 95 % interval of `after` by bootstrap over texts (NaN for a single text).
    """

    id: int
    token: str
    before: int
    after: int
    expected_before: float
    expected_after: float
    low: float
    high: float


@dataclass(frozen=True)
class Generated(Shown):
    """Texts sampled before and after an edit with the same noise.

    Attributes:
        before, after: token ids of each continuation, its end token among them.
        before_tokens, after_tokens: the text of every token; before_texts, after_texts: decoded whole.
        counts: one entry per steered token. steps_before, steps_after: tokens drawn per side.
    """

    prompt: str
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    before_tokens: tuple[tuple[str, ...], ...]
    after_tokens: tuple[tuple[str, ...], ...]
    before_texts: tuple[str, ...]
    after_texts: tuple[str, ...]
    counts: tuple[TokenCount, ...]
    steps_before: int
    steps_after: int


@dataclass(frozen=True)
class TextQuality(Shown):
    """How varied the texts of one side are; worked out by `core.quality`, where the definitions stand.

    Attributes:
        texts, tokens: how many there are.
        distinct_1, distinct_2, distinct_3: share of the n-grams of all texts that are different ones.
        repetition: mean over texts of the share of their 4-grams that stood in the same text before.
    """

    texts: int
    tokens: int
    distinct_1: float
    distinct_2: float
    distinct_3: float
    repetition: float


@dataclass(frozen=True)
class Similarity(Shown):
    """How alike texts before and after an edit are as distributions, from samples drawn independently of each other.

    Attributes:
        value: MAUVE of the model as it is and the edited one, 0 to 1, mean over `clusterings` runs of k-means.
        ceiling: the same of two samples of the model as it is: what no edit at all would get.
        value_std, ceiling_std: spread over the runs of k-means.
        texts: per side. clusters: k. before, after: how varied the texts are.
        sampling: how they were drawn; its `samples` plays no part.
    """

    _first = ("value", "ceiling", "texts")

    value: float
    ceiling: float
    value_std: float
    ceiling_std: float
    texts: int
    clusters: int
    clusterings: int
    before: TextQuality
    after: TextQuality
    sampling: Sampling


@dataclass(frozen=True)
class FewShotPoint(Shown):
    """Steering whose direction was estimated from `positions` positions only, judged on held-out text.

    Attributes:
        realised_held_out: [k] of each token. log_error: median over tokens of |log(realised / target)|.
    """

    positions: int
    realised_held_out: tuple[float, ...]
    log_error: float


@dataclass(frozen=True)
class DirectionRow(Shown):
    """One line of the comparison of directions: median |log(realised / target)| over tokens for each ratio.

    Attributes:
        held_out, fit: median over the tokens on held-out text and on the fitting part. reached: share of tokens for
            which the calibration found a root (1.0 where nothing was calibrated).
    """

    direction: str
    calibrated: bool
    ratios: tuple[float, ...]
    held_out: tuple[float, ...]
    fit: tuple[float, ...]
    reached: tuple[float, ...]


def plain(value: Any) -> Any:
    """A result as JSON can hold it: lists and objects of plain values, null where a number is not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value
