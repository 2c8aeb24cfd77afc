"""What an observation is: sums over positions, and a bounded sample of them. Everything here merges by addition.

alpha_w = (1/N) sum_x p_w(x) and every later quantity comes from these sums. Symbols: V tokens, d dimensions, N positions;
h is what the output head receives (times the logit scale), log Z the log of its sum of exponentials. Source: method §1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt64

from core.show import Shown


@dataclass(frozen=True)
class Reservoir(Shown):
    """A seeded sample of positions: those with the smallest keys, so samples merge and do not depend on the order.

    Attributes:
        capacity: positions kept at most.
        key: [m] pseudo-random number of each position, ascending.
        hidden: [m, d] what the head receives (times the logit scale).
        log_z: [m] log sum exp of the logits, nats.
        top_ids, top_logits: [m, 16] the largest logits, descending.
        next_token: [m] the token that follows in the corpus.
    """

    capacity: int
    key: UInt64[np.ndarray, "m"]
    hidden: Float32[np.ndarray, "m d"]
    log_z: Float64[np.ndarray, "m"]
    top_ids: Int32[np.ndarray, "m top"]
    top_logits: Float32[np.ndarray, "m top"]
    next_token: Int32[np.ndarray, "m"]

    def __len__(self) -> int:
        return len(self.key)

    def merge(self, other: Reservoir) -> Reservoir:
        """The sample of both together."""
        capacity = min(self.capacity, other.capacity)
        key = np.concatenate([self.key, other.key])
        chosen = np.argsort(key, kind="stable")[:capacity]
        return Reservoir(
            capacity,
            key[chosen],
            *(
                np.concatenate([getattr(self, name), getattr(other, name)])[chosen]
                for name in ("hidden", "log_z", "top_ids", "top_logits", "next_token")
            ),
        )

    def first(self, n: int) -> Reservoir:
        """The n positions with the smallest keys: a random sample of the sample."""
        names = ("key", "hidden", "log_z", "top_ids", "top_logits", "next_token")
        return Reservoir(self.capacity, *(getattr(self, name)[:n] for name in names))


@dataclass(frozen=True)
class Moments(Shown):
    """Sums over the positions of one part of the corpus. Two of them merge by addition.

    Attributes:
        n: positions.
        sum_p: [V] sum of next-token probabilities.
        counts: [V] how often each token follows in the corpus.
        sum_h, sum_hh: [d], [d, d] sums of h and h hᵀ (h: the head's input times the logit scale).
        sum_log_z, sum_log_z2, sum_h_log_z: sums of log Z, its square, and h·log Z [d].
        sum_loss: sum of −log p(true next token), nats.
        reservoir: a sample of the positions.
    """

    n: int
    sum_p: Float64[np.ndarray, "V"]
    counts: Int64[np.ndarray, "V"]
    sum_h: Float64[np.ndarray, "d"]
    sum_hh: Float64[np.ndarray, "d d"]
    sum_log_z: float
    sum_log_z2: float
    sum_h_log_z: Float64[np.ndarray, "d"]
    sum_loss: float
    reservoir: Reservoir

    _first = ("n", "log_z_mean", "log_z_variance", "perplexity")

    def merge(self, other: Moments) -> Moments:
        """The sums over both; neither is changed."""
        names = ("sum_p", "counts", "sum_h", "sum_hh", "sum_log_z", "sum_log_z2", "sum_h_log_z", "sum_loss")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Moments(n=self.n + other.n, reservoir=self.reservoir.merge(other.reservoir), **sums)

    @property
    def alpha(self) -> Float64[np.ndarray, "V"]:
        """[V] mean next-token probability of every token."""
        return self.sum_p / self.n

    @property
    def mean_hidden(self) -> Float64[np.ndarray, "d"]:
        return self.sum_h / self.n

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """[d, d] Cov(h) between contexts."""
        return self.sum_hh / self.n - np.outer(self.mean_hidden, self.mean_hidden)

    @property
    def log_z_mean(self) -> float:
        return self.sum_log_z / self.n

    @property
    def log_z_variance(self) -> float:
        return max(0.0, self.sum_log_z2 / self.n - self.log_z_mean**2)

    @property
    def covariance_h_log_z(self) -> Float64[np.ndarray, "d"]:
        """[d] Cov(h, log Z)."""
        return self.sum_h_log_z / self.n - self.mean_hidden * self.log_z_mean

    @property
    def perplexity(self) -> float:
        """exp of the mean −log p(true next token)."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.sum_loss / self.n))


@dataclass(frozen=True)
class Observation(Shown):
    """What a pass over a corpus leaves: the part that fits and the part that only judges."""

    fit: Moments
    held_out: Moments
    documents: int
    documents_held_out: int
    note: str = ""

    def merge(self, other: Observation) -> Observation:
        """One observation of both corpora (or shards of one)."""
        return Observation(
            self.fit.merge(other.fit),
            self.held_out.merge(other.held_out),
            self.documents + other.documents,
            self.documents_held_out + other.documents_held_out,
            self.note or other.note,
        )
