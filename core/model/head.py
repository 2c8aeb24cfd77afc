"""The output head: the last step of a causal language model, from a hidden state to the logits.

    logits = f(c·(h·Eᵀ + b)),   f(z) = z  or  cap·tanh(z / cap)

E [V, d] is the output embedding, b [V] its bias (GPT-J, CodeGen, Phi), c a scale (Cohere multiplies by it, Granite
divides), cap a soft-cap (Gemma 2). What a model does after its head is not read from its configuration, where the
same word can multiply, divide or be ignored (MPT): the model's own code is run on known numbers and c and cap are
measured, see `core.model.load`. Here c is folded into h and b, so that every later step knows one form only,
z = h·E_w + b_w and f.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int
from torch import Tensor, nn

from core.errors import AnalysisError


def finish_(
    products: Float32[Tensor, "n V"], bias: Float32[Tensor, "V"] | None, softcap: float | None
) -> Float32[Tensor, "n V"]:
    """f(products + bias) [n, V], in the place of the products h·Eᵀ."""
    if bias is not None:
        products += bias
    if softcap is not None:
        products.div_(softcap).tanh_().mul_(softcap)
    return products


@dataclass(frozen=True)
class Head:
    """logits = f(h @ weight.T + bias) in fp32, for an `h` that `LoadedModel.hidden_states` returns (scaled by c).

    Attributes:
        weight: [V, d] float32; the model's own storage if the model is fp32, so never to be written to.
        bias: [V] float32, scaled by c, or None.
        softcap: cap, or None.
        is_token: [V] bool; False for rows that are no token.
    """

    weight: Float32[Tensor, "V d"]
    bias: Float32[Tensor, "V"] | None
    softcap: float | None
    is_token: Bool[np.ndarray, "V"]

    def logits(
        self, hidden: Float32[Tensor, "n d"], out: Float32[Tensor, "n V"] | None = None
    ) -> Float32[Tensor, "n V"]:
        """Logits [n, V] float32 of hidden states [n, d] float32; `out` [n, V] is filled if it is given."""
        with torch.no_grad():
            return finish_(torch.mm(hidden, self.weight.T, out=out), self.bias, self.softcap)

    def rows(
        self, ids: Sequence[int] | Int[np.ndarray, "k"]
    ) -> tuple[Float64[np.ndarray, "k d"], Float64[np.ndarray, "k"]]:
        """Rows of E [k, d] and of the bias [k] (zeros if there is none) for `ids` [k], both float64."""
        index = torch.as_tensor(np.asarray(ids, dtype=np.int64), device=self.weight.device)
        weight = self.weight[index].cpu().numpy().astype(np.float64)
        if self.bias is None:
            return weight, np.zeros(len(weight))
        return weight, self.bias[index].cpu().numpy().astype(np.float64)


def find_head(module: nn.Module, name: str) -> nn.Linear:
    """The linear layer that makes a model's logits.

    Raises:
        AnalysisError: there is none, there are several, or it is something else; the message says which.
    """
    find = getattr(module, "get_output_embeddings", None)
    head = find() if callable(find) else None
    kind = type(module).__name__
    if isinstance(head, (nn.ModuleList, list, tuple)):
        raise AnalysisError(
            f"{name} ({kind}) has {len(head)} output heads and Headscope reads one: choose a text model with one head."
        )
    if head is None:
        raise AnalysisError(f"{name} ({kind}) has no output head: choose the causal language model of this family.")
    if not isinstance(head, nn.Linear) or head.weight.dim() != 2 or not head.weight.is_floating_point():
        raise AnalysisError(
            f"The output head of {name} ({kind}) is a {type(head).__name__} and not a plain linear layer: choose a "
            "checkpoint of this model that is not quantised."
        )
    return head


def token_rows(vocabulary: dict[str, int], rows: int) -> Bool[np.ndarray, " {rows}"]:
    """[rows] bool: which rows of the output embedding belong to a token (the tokenizer may also know more)."""
    ids = np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary))
    is_token = np.zeros(rows, dtype=bool)
    is_token[ids[(ids >= 0) & (ids < rows)]] = True
    return is_token
