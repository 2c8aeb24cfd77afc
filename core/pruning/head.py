"""The pruned head: really smaller matrices, and the ordinary matrix that does the same.

    logits = f(z · leftᵀ + b),   z = h[:, kept]   (deletions)   or   z = h · right   (rotations)

left [V, k], right [d, k]: k·(V + d) products a position instead of V·d. f, b and the scale of h are those of the full
head (`core.model.head`). Source: method §4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int, Int64
from torch import Tensor

from core.encoding import Encoding
from core.model.head import Head, finish_
from core.moments import Moments
from core.pruning.basis import BLOCK_ROWS, Basis, find_basis
from core.pruning.names import kept_dims


@dataclass(frozen=True)
class PrunedHead:
    """An output head of k dimensions, or of rank k.

    Attributes:
        method: one of `core.pruning.names.METHODS`. removed: the fraction asked for (k may be rounded further down).
        left: [V, k] float32. right: [d, k] float32 for rotations, else None. kept: [k] the dimensions that stay, for
            deletions, else None.
        bias, softcap, is_token: as in `Head`.
    """

    method: str
    removed: float
    left: Float32[Tensor, "V k"]
    right: Float32[Tensor, "d k"] | None
    kept: Int64[Tensor, "k"] | None
    bias: Float32[Tensor, "V"] | None
    softcap: float | None
    is_token: Bool[np.ndarray, "V"]
    dim: int

    def __post_init__(self) -> None:
        if (self.right is None) == (self.kept is None):
            raise ValueError("A pruned head is either a rotation (right) or a deletion (kept).")

    @property
    def dims(self) -> int:
        """k"""
        return self.left.shape[1]

    @property
    def bytes(self) -> int:
        """Size of its numbers."""
        parts = (self.left, self.right, self.kept, self.bias)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def logits(
        self, hidden: Float32[Tensor, "n d"], out: Float32[Tensor, "n V"] | None = None
    ) -> Float32[Tensor, "n V"]:
        """Logits [n, V] float32 of hidden states [n, d] float32 (as for `Head.logits`); `out` is filled if it is given."""
        with torch.no_grad():
            small = hidden[:, self.kept] if self.right is None else hidden @ self.right
            return finish_(torch.mm(small, self.left.T, out=out), self.bias, self.softcap)

    def rows(
        self, ids: Sequence[int] | Int[np.ndarray, "k"]
    ) -> tuple[Float64[np.ndarray, "k d"], Float64[np.ndarray, "k"]]:
        """Rows of the dense weight [k, d] and of the bias [k], as `Head.rows` gives them."""
        index = torch.as_tensor(np.asarray(ids, dtype=np.int64), device=self.left.device)
        left = self.left[index].double()
        weight = left.new_zeros(len(left), self.dim)
        if self.right is not None:
            weight = left @ self.right.double().T
        else:
            weight[:, self.kept] = left
        bias = left.new_zeros(len(left)) if self.bias is None else self.bias[index].double()
        return weight.cpu().numpy(), bias.cpu().numpy()

    def dense_weight(self) -> Float32[Tensor, "V d"]:
        """[V, d] the same head as an ordinary matrix; columns of deleted dimensions are 0."""
        if self.right is not None:
            return self.left @ self.right.T
        dense = self.left.new_zeros(len(self.left), self.dim)
        dense[:, self.kept] = self.left
        return dense


def prune_head(
    head: Head,
    encoding: Encoding,
    fit: Moments,
    method: str,
    removed: float,
    seed: int = 0,
    *,
    own: Moments | None = None,
    multiple: int = 1,
) -> PrunedHead:
    """Prune a head; it is not changed.

    Args:
        head: the full head. encoding: its fit. fit: sums over the fitting part, all that is used of the corpus.
        method: one of `core.pruning.names.METHODS`. removed: the fraction of dimensions that goes, 0 ≤ removed < 1.
        seed: of the order `random`. own: sums over the model's own text, for `rotated-self` only.
        multiple: round the width down to a multiple of this, see `kept_dims`. With 1 the head is exactly that of the curve's
            point at `removed`; `FAST_MULTIPLE` is for speed.

    Raises:
        InputError: no such method, or a fraction out of range.
    """
    width = kept_dims(head.weight.shape[1], removed, multiple)
    return cut(head, find_basis(method, head, encoding, fit, seed, own), width, method, removed)


def cut(head: Head, basis: Basis, width: int, method: str, removed: float) -> PrunedHead:
    """The head of the first `width` components of a basis."""
    columns, components = basis.columns[:, :width], basis.components[:, :width]
    kept = None if basis.order is None else basis.order[:width]
    if kept is not None:  # the first k components need the first k dimensions only: they go into the left matrix
        columns = columns @ components[kept].T
    device = head.weight.device
    return PrunedHead(
        method,
        removed,
        _times(head.weight, columns),
        torch.from_numpy(components).float().to(device) if kept is None else None,
        None if kept is None else torch.from_numpy(kept).to(device),
        head.bias,
        head.softcap,
        head.is_token,
        head.weight.shape[1],
    )


def _times(weight: Tensor, columns: np.ndarray) -> Tensor:
    """[V, k] float32 of E·columns, multiplied in float64 a few thousand rows at a time."""
    factor = torch.from_numpy(np.ascontiguousarray(columns)).to(weight.device)
    product = weight.new_empty(len(weight), factor.shape[1])
    for start in range(0, len(weight), BLOCK_ROWS):
        product[start : start + BLOCK_ROWS] = weight[start : start + BLOCK_ROWS].double() @ factor
    return product
