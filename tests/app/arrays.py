"""An analysis without a model: a planted head and hidden states, everything after them is the real thing.

Its tokens are as hostile as texts come: markup, formulas, numbers, equal names, blanks.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from core.analysis import Analysis
from core.encoding import Encoding, encode
from core.moments import Moments, Observation, Reservoir
from core.results import Generated, NextToken, TokenChoice, TokenCount
from core.settings import OnTokens, Progress, Settings, no_progress
from core.steering import Edit, Steering
from core.tokens import kind_of

VOCAB, DIM, POSITIONS = 240, 6, 400
HOSTILE = (
    "<script>alert(1)</script>",
    "<b>bold</b>",
    "$x$",
    ":red[no]",
    "2020",
    "`tick`",
    " ",
    "\n",
    " river",
    "river",
)
TOKENS = (*HOSTILE, *(f" word{i}" if i % 2 else f"word{i}" for i in range(VOCAB - len(HOSTILE) - 1)), " river")
RIVER = TOKENS.index(" river")


def observed(seed: int = 0) -> tuple[np.ndarray, Observation]:
    """An output embedding [V, d] and what observing it at seeded hidden states leaves."""
    random = np.random.default_rng(seed)
    embedding = random.standard_normal((VOCAB, DIM)).astype(np.float32)
    mean = random.standard_normal(DIM)
    parts = [_moments(embedding, mean + 0.4 * random.standard_normal((POSITIONS, DIM)), random) for _ in range(2)]
    return embedding, Observation(parts[0], parts[1], documents=3, documents_held_out=1)


def _moments(embedding: np.ndarray, hidden: np.ndarray, random: np.random.Generator) -> Moments:
    logits = hidden @ embedding.T.astype(np.float64)
    log_z = np.logaddexp.reduce(logits, axis=1)
    p = np.exp(logits - log_z[:, None])
    following = np.array([random.choice(VOCAB, p=row) for row in p])
    top = np.argsort(-logits, axis=1)[:, :16]
    sample = Reservoir(
        capacity=len(hidden),
        key=np.arange(len(hidden), dtype=np.uint64),
        hidden=hidden.astype(np.float32),
        log_z=log_z,
        top_ids=top.astype(np.int32),
        top_logits=np.take_along_axis(logits, top, 1).astype(np.float32),
        next_token=following.astype(np.int32),
    )
    return Moments(
        n=len(hidden),
        sum_p=p.sum(0),
        counts=np.bincount(following, minlength=VOCAB),
        sum_h=hidden.sum(0),
        sum_hh=hidden.T @ hidden,
        sum_log_z=float(log_z.sum()),
        sum_log_z2=float((log_z**2).sum()),
        sum_h_log_z=hidden.T @ log_z,
        sum_loss=float(-np.log(p[np.arange(len(p)), following]).sum()),
        reservoir=sample,
    )


@cache
def planted() -> tuple[np.ndarray, Observation, Encoding]:
    embedding, observation = observed()
    return embedding, observation, encode(embedding, observation).named(TOKENS, tuple(kind_of(t) for t in TOKENS))


class ArrayAnalysis(Analysis):
    """Answers from arrays. `stored`: whether the encoding is found on disk, so that no job is needed for it."""

    def __init__(self, stored: bool = True) -> None:
        super().__init__("planted", "sampler", Settings(positions=POSITIONS))
        self.stored = stored
        self.embedding, self._observation, self.known = planted()

    def known_files(self) -> None:
        """There are none."""

    def cached_encoding(self) -> Encoding | None:
        return self.known if self.stored else None

    def encoding(self, progress: Progress = no_progress) -> Encoding:
        progress("Observing", 0.5)
        return self.known

    def loaded(self, progress: Progress = no_progress) -> Any:
        head = SimpleNamespace(
            softcap=None, rows=lambda ids: (self.embedding[ids].astype(np.float64), np.zeros(len(ids)))
        )
        return SimpleNamespace(head=head, tokenizer=SimpleNamespace(chat_template="{{ a template }}"))

    def needs_tokenizer(self, text: str) -> bool:
        return False

    def find_token(self, text: str) -> TokenChoice:
        if text in TOKENS or text.startswith("id:"):
            return super().find_token(text)
        return TokenChoice(
            RIVER, " river", f"{text!r} is 2 tokens (' river' + 's'); its first, ' river', stands for it."
        )

    def next_token(
        self, prompt: str, steering: Steering | None = None, *, top: int = 12, chat: bool = False
    ) -> NextToken:
        ids = np.arange(10)
        before = np.linspace(0.2, 0.01, 10)
        steered = np.isin(ids, steering.token_ids if steering else [])
        after = np.where(steered, 2 * before, 0.9 * before)
        return NextToken(ids, TOKENS[:10], before, after, steered, 0.9, 2.0, 2.1, np.ones(self.embedding.shape[1]), 9.0)

    def generate(
        self,
        prompt: str,
        steering: Steering | None = None,
        sampling: Any = None,
        *,
        chat: bool = False,
        progress: Progress = no_progress,
        on_tokens: OnTokens | None = None,
    ) -> Generated:
        progress("Sampling texts", 0.5)
        before, after = (11, 0, 1, 12), (11, 0, RIVER, 2)
        if on_tokens is not None:
            on_tokens((before[:3],) * 2, (after[:3],) * 2)
        progress("Sampling texts", 0.75)
        texts = [tuple(TOKENS[i] for i in ids) for ids in (before, after)]
        counts = () if steering is None else (TokenCount(RIVER, " river", 0, 2, 0.1, 1.7, 0.0, 4.0),)
        joined = ["".join(t) for t in texts]
        return Generated(
            prompt, (before,) * 2, (after,) * 2, (texts[0],) * 2, (texts[1],) * 2, (joined[0],) * 2, (joined[1],) * 2,
            counts, 8, 8,
        )  # fmt: skip


EDITS = (Edit(RIVER, 4.0), Edit(0, 0.5))


def facts() -> Any:
    """What the Model page is told about the planted head."""
    told = SimpleNamespace(
        architecture="PlantedForCausalLM", tied=True, bias=False, softcap=30.0, logit_scale=0.5, dtype="float32",
        parameters=10 * VOCAB * DIM,
    )  # fmt: skip
    check = SimpleNamespace(max_logit_error=2e-6, tolerance=1e-4, half_precision_deviation=0.01)
    return SimpleNamespace(
        description=told, check=check, revision=None, sha256="0" * 64, ram_bytes=10**9, device="cpu", chat_template=True
    )
