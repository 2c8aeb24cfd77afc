"""What a page says of a model and its head, in a few plain values: kept in the store and read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from core.show import Shown


@dataclass(frozen=True)
class HeadDescription:
    """What the head of a model is.

    Attributes:
        architecture: name of the transformers class.
        vocab_size: rows of the output embedding (V).
        tokens: rows that are tokens of the tokenizer.
        dim: columns of the output embedding (d).
        tied: the output embedding is the input embedding.
        bias: the head has a bias.
        softcap: cap of the logits, or None.
        logit_scale: c, by which the model multiplies its logits.
        padded_rows: rows that are no token (vocabularies are padded to a round number).
        dtype: precision of the model's body as loaded.
        parameters: number of parameters of the whole model, shared ones once.
    """

    architecture: str
    vocab_size: int
    tokens: int
    dim: int
    tied: bool
    bias: bool
    softcap: float | None
    logit_scale: float
    padded_rows: int
    dtype: str
    parameters: int


@dataclass(frozen=True)
class HeadCheck:
    """How exactly `Head` reproduces the model.

    Attributes:
        max_logit_error: largest absolute difference to the model's logits, its head run in fp32.
        tolerance: what was allowed: 1e-4·max(1, largest absolute logit / 10).
        half_precision_deviation: largest absolute difference to the model's own logits if these are in half
            precision, otherwise None.
    """

    max_logit_error: float
    tolerance: float
    half_precision_deviation: float | None


@dataclass(frozen=True)
class StoredHead:
    """Where the head stands in the model's files: names of the files and of the tensors; a bias of "" is none."""

    weight_file: str
    weight: str
    bias_file: str
    bias: str


@dataclass(frozen=True)
class HeadFacts(Shown):
    """A model that was loaded once, without its weights.

    Attributes:
        description, check: its head, and how exactly it is reproduced.
        stored: where its weights are. chat_template: whether its tokenizer has one.
        revision, sha256: where it came from; see `core.model.files.ModelFiles`.
        ram_bytes: memory it needs.
        device: where it ran.
    """

    description: HeadDescription
    check: HeadCheck
    stored: StoredHead
    chat_template: bool
    revision: str
    sha256: str
    ram_bytes: int
    device: str
