"""Dynamics: the fit over the checkpoints of a pre-training run, and when each thing is learned.

At every checkpoint two lines are fitted over the tokens that occur in the corpus, both on the output embedding E there:

    −log(corpus frequency_w)  ≈  A · E_w + B          and          −log alpha_w  ≈  A' · E_w + B'

The claim to see: frequency is in E long before the loss has converged. So two steps are compared, the first at which the
adjusted R² of corpus frequency reaches 90 % of its last value, and the first at which 90 % of the fall of the loss is
done. Arrays only: this file knows no model and no file. Source: Cho et al. 2025, abstract; method §5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from core.encoding import fit_line
from core.errors import AnalysisError
from core.show import Shown
from core.words import quoted

SHARE = 0.9
"""Share of the final R², or of the fall of the loss, at which something counts as reached."""
WITHIN = np.log(2)
"""A token's frequency is read off its embedding when the prediction is within a factor of 2, nats."""


@dataclass(frozen=True)
class Checkpoint(Shown):
    """What was measured at one step.

    Attributes:
        step: optimiser steps. name: as the source calls it.
        head_sha256: of the output embedding as stored.
        duplicate_of: an earlier step with the same head, byte for byte; such a checkpoint has no place in the curves.
        r2_corpus_frequency, r2_alpha: adjusted R² of the two fits; the second is None where only the head was read.
        loss: mean −log p of the true next token on held-out text, nats; None where only the head was read.
        weights: [d] A of corpus frequency. weights_alpha: [d] A' or None.
        predicted: [n] −log frequency as the line predicts it, nats.
        neg_log_alpha: [n] or None.
        moved: [n] length of E_w − E_w of the checkpoint before in the curve; 0 at the first.
        samples: texts written at this step, the same noise at every step.
    """

    step: int
    name: str
    head_sha256: str
    duplicate_of: int | None
    r2_corpus_frequency: float
    r2_alpha: float | None
    loss: float | None
    weights: Float64[np.ndarray, "d"]
    weights_alpha: Float64[np.ndarray, "d"] | None
    predicted: Float32[np.ndarray, "n"]
    neg_log_alpha: Float32[np.ndarray, "n"] | None
    moved: Float32[np.ndarray, "n"]
    samples: tuple[str, ...] = ()

    @property
    def direction(self) -> Float64[np.ndarray, "d"]:
        """[d] the weights that are compared over steps: those of −log alpha where they are known."""
        return self.weights if self.weights_alpha is None else self.weights_alpha


@dataclass(frozen=True)
class Missing:
    """A checkpoint that could not be read, and the sentence that says why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Dynamics(Shown):
    """The checkpoints of one run, in the order of their steps.

    Attributes:
        source: as the user named it. corpus: whose token frequencies are compared.
        stand_in: the corpus is not known to be the one the model was trained on.
        token_ids, counts: [n] the tokens that occur in the corpus, and how often. tokens: their texts.
        unseen: tokens of the vocabulary that never occur and leave the fit.
        prompt: that the samples continue.
        missing: checkpoints that could not be read.
        note: what a reader should know, or "".
    """

    source: str
    corpus: str
    stand_in: bool
    token_ids: Int64[np.ndarray, "n"]
    tokens: tuple[str, ...]
    counts: Int64[np.ndarray, "n"]
    unseen: int
    checkpoints: tuple[Checkpoint, ...]
    missing: tuple[Missing, ...] = ()
    prompt: str = ""
    note: str = ""

    _first = ("source", "corpus", "step_frequency_90", "step_loss_90", "unseen")

    @property
    def curve(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that count: each head once."""
        return tuple(c for c in self.checkpoints if c.duplicate_of is None)

    @property
    def neg_log_frequency(self) -> Float64[np.ndarray, "n"]:
        """[n] −log of each token's share of the corpus, nats."""
        return -np.log(self.counts / self.counts.sum())

    @property
    def step_frequency_90(self) -> int | None:
        """The first step whose R² of corpus frequency reaches 90 % of the last one's."""
        curve = self.curve
        if not curve or curve[-1].r2_corpus_frequency <= 0:
            return None
        least = SHARE * curve[-1].r2_corpus_frequency
        return next(c.step for c in curve if c.r2_corpus_frequency >= least)

    @property
    def step_loss_90(self) -> int | None:
        """The first step at which 90 % of the fall from the first to the last loss is done."""
        losses = [(c.step, c.loss) for c in self.curve if c.loss is not None]
        if len(losses) < 2 or losses[-1][1] >= losses[0][1]:
            return None
        enough = losses[0][1] + SHARE * (losses[-1][1] - losses[0][1])
        return next(step for step, loss in losses if loss <= enough)

    @property
    def cosines(self) -> Float64[np.ndarray, "c"]:
        """[c] cosine of the weights at every checkpoint of the curve to the last one's."""
        directions = [c.direction for c in self.curve]
        return np.array([_cosine(d, directions[-1]) for d in directions])

    @property
    def learned(self) -> Int64[np.ndarray, "n"]:
        """[n] the step from which on a token's frequency is read off its embedding within a factor of 2; −1: never.

        A token that is near the average is there from the start, without any learning.
        """
        target, learned = self.neg_log_frequency, np.full(len(self.counts), -1, dtype=np.int64)
        holds = np.ones(len(target), dtype=bool)
        for checkpoint in reversed(self.curve):  # from the end backwards, as long as it holds
            holds &= np.abs(checkpoint.predicted - target) <= WITHIN
            learned[holds] = checkpoint.step
        return learned


class Builder:
    """Adds checkpoints one by one; only two heads are in memory at any time.

    Args:
        counts: [V] how often each token occurs in the corpus.

    Raises:
        AnalysisError: the corpus holds none of the tokens.
    """

    def __init__(self, counts: Int64[np.ndarray, "V"]) -> None:
        self.rows = np.flatnonzero(counts > 0)
        if not len(self.rows):
            raise AnalysisError("The corpus holds no token of this model: give a longer text.")
        self.counts = counts[self.rows]
        self.checkpoints: list[Checkpoint] = []
        self._before: np.ndarray | None = None

    def add(
        self,
        step: int,
        name: str,
        embedding: Float32[np.ndarray, "V d"],
        head_sha256: str,
        *,
        bias: Float[np.ndarray, "V"] | None = None,
        alpha: Float64[np.ndarray, "V"] | None = None,
        loss: float | None = None,
        samples: Sequence[str] = (),
    ) -> Checkpoint:
        """Fit one checkpoint; steps come in ascending order.

        Args:
            embedding: [V, d] its output embedding; bias: [V] of the head, a known offset.
            alpha: [V] mean token probabilities; loss: nats per token on held-out text; None where they are not known.

        Raises:
            AnalysisError: another shape than the checkpoints before, too few tokens for its dimensions, no finite numbers.
        """
        rows = self.rows
        if rows[-1] >= len(embedding) or (self._before is not None and self._before.shape[1] != embedding.shape[1]):
            raise AnalysisError(
                f"The head of {name} is {embedding.shape[0]} × {embedding.shape[1]}, unlike the others."
            )
        offset = np.zeros(len(rows)) if bias is None else bias[rows].astype(np.float64)
        frequency = fit_line(embedding, rows, -np.log(self.counts / self.counts.sum()) + offset)
        chosen = embedding[rows]
        neg_log_alpha = None if alpha is None else -np.log(np.maximum(alpha[rows], np.finfo(float).tiny))
        line = None if neg_log_alpha is None else fit_line(embedding, rows, neg_log_alpha + offset)
        found = Checkpoint(
            step=step,
            name=name,
            head_sha256=head_sha256,
            duplicate_of=next((c.step for c in self.checkpoints if c.head_sha256 == head_sha256), None),
            r2_corpus_frequency=frequency.r2_adjusted,
            r2_alpha=None if line is None else line.r2_adjusted,
            loss=loss,
            weights=frequency.weights,
            weights_alpha=None if line is None else line.weights,
            predicted=(chosen @ frequency.weights + frequency.intercept - offset).astype(np.float32),
            neg_log_alpha=None if neg_log_alpha is None else neg_log_alpha.astype(np.float32),
            moved=np.zeros(len(rows), np.float32)
            if self._before is None
            else np.linalg.norm(chosen - self._before, axis=1).astype(np.float32),
            samples=tuple(samples),
        )
        if found.duplicate_of is None:
            self._before = chosen
        self.checkpoints.append(found)
        return found


def early_and_late(found: Dynamics, most: int = 12) -> tuple[list[int], list[int]]:
    """Places among `token_ids` of tokens whose frequency was learned first, and of those learned last or never.

    Only tokens that occur at least 20 times count, and those that the untrained embedding already predicts do not.
    Among equals the more frequent come first.
    """
    first = found.curve[0].step if found.curve else 0
    learned = np.where(found.learned < 0, np.iinfo(np.int64).max, found.learned)
    places = np.flatnonzero((found.counts >= 20) & (learned > first))
    early = sorted(places, key=lambda i: (learned[i], -found.counts[i]))[:most]
    late = sorted(places, key=lambda i: (-learned[i], -found.counts[i]))[:most]
    return [int(i) for i in early], [int(i) for i in late]


def without_arrays(found: Dynamics) -> Dynamics:
    """The same with only the numbers of every checkpoint: for the curves, where per-token arrays would be a burden."""
    nothing = np.zeros(0, np.float32)
    light = [replace(c, predicted=nothing, neg_log_alpha=None, moved=nothing) for c in found.checkpoints]
    return replace(found, checkpoints=tuple(light))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0


def stand_in(corpus: str) -> str:
    """What a reader has to know of frequencies that are not those of the training text."""
    return f"The frequencies are those of {quoted(corpus)}, a stand-in: the text this model was trained on is not known here."


def finding(found: Dynamics) -> str:
    """What was measured about the claim, in one or two sentences."""
    if len(found.curve) < 2:
        return "One checkpoint is no curve yet."
    last = found.curve[-1]
    frequency, loss = found.step_frequency_90, found.step_loss_90
    if frequency is None:
        return f"The embedding does not hold the corpus's token frequencies in this run (R² {last.r2_corpus_frequency:.2f})."
    told = f"R² of corpus frequency reaches 90 % of its final {last.r2_corpus_frequency:.2f} at step {frequency:,}"
    if loss is None:
        return told + "; the loss was not measured." if last.loss is None else told + "; the loss has not fallen."
    end = f"90 % of the fall of the loss is done at step {loss:,}"
    if loss > frequency:
        times = f", {loss / frequency:.3g} times as late" if frequency else ""
        return f"{told}; {end}{times}."
    return f"{told}, and {end}: here frequency was not earlier than the loss."
