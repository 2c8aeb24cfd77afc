"""Every method of pruning as one thing: a basis of hidden-state space whose last components leave.

    logits = E·h = (E·C)·(Rᵀh),   C Rᵀ = 1        and pruned to k:   (E·C)[:, :k] · (Rᵀh)[:k]

with C (`columns`) and R (`components`) [d, d]. So one evaluation serves all methods, and a whole curve costs one product:

- *deletion*: C = R = a permutation, the dimensions that leave last come first.
- *compensated* deletion: what leaves is predicted from what stays by least squares on S = E[h hᵀ]. With the Cholesky factor
  S = L Lᵀ of the permuted dimensions, z = L⁻¹h are orthonormal and z_i needs only the first i dimensions, hence the best
  prediction of h from the first k is L[:, :k] z[:k] for every k at once: C = P L, R = P L⁻ᵀ.
- *rotated*: the best rank k for the weighting G: U the eigenvectors of G^½ S G^½, C = G^{-½} U, R = G^½ U.
- *rotated-tempered*: the same with alpha^0.7 in place of alpha: rarer tokens count more, as another text will want them.
- *rotated-self*: the same where one position in three, by weight, is of texts that the model wrote itself (`self:4096`, no
  prompt, temperature 1): what it says unasked is nearer to a text of another kind than the one at hand is.

G = Σ_w alpha_w (E_w − Ē)(E_w − Ē)ᵀ, Ē the alpha-weighted mean row: a change Δh of the hidden state moves the logits by
E Δh, of which a constant is invisible to the softmax, and tokens count by their mean probability. To second order
KL = ½ Δhᵀ F(x) Δh with the Fisher information F(x) = Σ p_w E_w E_wᵀ − (Σ p_w E_w)(Σ p_w E_w)ᵀ, and G is its mean over contexts
plus the covariance between contexts of Σ_w p_w E_w. Source: ours, method §4; the order of `greedy` is that of the optimal
brain surgeon (Hassibi and Stork 1993) for this quadratic form.

Tried at 30 % of SmolLM2-135M, 16,384 positions fitted on one text, 768 judged, KL on the same text / on the other one, nats:

| fitted on | rotated | alpha^0.8 | alpha^0.6 | S + 0.03 I | S + 0.1 I | off-diagonal Cov(h) × 0.9 | × 0.7 |
|---|---|---|---|---|---|---|---|
| python-docs | 0.052 / 0.403 | 0.048 / 0.372 | 0.046 / 0.346 | 0.066 / 0.463 | 0.091 / 0.549 | 0.060 / 0.389 | 0.083 / 0.418 |
| sampler | 0.102 / 0.280 | 0.101 / 0.253 | 0.107 / 0.263 | 0.109 / 0.319 | 0.129 / 0.392 | 0.110 / 0.301 | 0.129 / 0.361 |

Tempering helped on another text from either side (the top prediction stays a little less often); shrinking S towards the
identity, or Cov(h) towards its diagonal, did not, and is not kept. What the model's own text does, by its weight beside 1 of
the corpus, with 15,996 positions of it:

| fitted on | 0.1 | 0.25 | 0.5 | 1 | 2 | 4 |
|---|---|---|---|---|---|---|
| python-docs | 0.051 / 0.272 | 0.052 / 0.233 | 0.055 / 0.210 | 0.063 / 0.194 | 0.074 / 0.186 | 0.088 / 0.179 |
| sampler | 0.100 / 0.258 | 0.100 / 0.243 | 0.102 / 0.225 | 0.105 / 0.215 | 0.112 / 0.209 | 0.122 / 0.208 |

With 4,096 positions of it and weight 0.5: 0.059 / 0.215 and 0.106 / 0.239. The paper's order has 0.842 / 0.918 and
0.840 / 1.038 there. The own text tempered as well gained 5 to 10 % more on another text and lost as much in top predictions;
it is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
from jaxtyping import Float64, Int64

from core.encoding import Encoding
from core.moments import Moments
from core.pruning.names import DELETIONS, check_method
from core.pruning.orders import leaving_order

if TYPE_CHECKING:
    from core.model import Head

RIDGE = 1e-6
"""Added to S and G, times their mean diagonal, wherever they are inverted."""
SMALLEST = 1e-100
"""A mean diagonal below this is that of a matrix of zeros."""
TEMPER = 0.7
"""Power of alpha in the weighting of `rotated-tempered`."""
OWN_POSITIONS = 4096
"""Contexts of the model's own text that `rotated-self` needs."""
OWN_WEIGHT = 0.5
"""How much a mean over the model's own text counts in `rotated-self`, beside 1 for the mean over the fitting part."""
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Basis:
    """Coordinates of which the first k stay.

    Attributes:
        columns: [d, r] C, the output embedding in these coordinates is E·C. components: [d, r] R, the hidden state is Rᵀh.
        order: [d] the dimensions, those that leave last first; None where every component mixes all of them.
        plain: a deletion after which what stays is as it was.
    """

    columns: Float64[np.ndarray, "d r"]
    components: Float64[np.ndarray, "d r"]
    order: Int64[np.ndarray, "r"] | None
    plain: bool = False

    @property
    def width(self) -> int:
        """r"""
        return self.columns.shape[1]

    @property
    def complete(self) -> bool:
        """Whether the full width changes nothing: C Rᵀ = 1."""
        return self.width == len(self.columns)


def find_basis(
    method: str, head: Head, encoding: Encoding, fit: Moments, seed: int = 0, own: Moments | None = None
) -> Basis:
    """The basis of a method, from the fitting part alone.

    Args:
        head: the full head. encoding: its fit (for the saliency). fit: sums over the fitting part.
        seed: of the order `random`. own: sums over the model's own text, for `rotated-self` only.

    Raises:
        InputError: there is no such method. ValueError: the method needs `own`, and there is none.
    """
    check_method(method)
    if method in DELETIONS:
        return deletion(leaving_order(method, encoding, fit, seed)[::-1].copy())
    mean_hh, alpha = fit.sum_hh / fit.n, fit.alpha
    if method == "rotated-self":
        if own is None:
            raise ValueError("rotated-self needs the sums over the model's own text")
        mean_hh = (mean_hh + OWN_WEIGHT * own.sum_hh / own.n) / (1 + OWN_WEIGHT)
        alpha = (alpha + OWN_WEIGHT * own.alpha) / (1 + OWN_WEIGHT)
    second = ridged(mean_hh)
    if method == "compensated":
        return compensated(leaving_order("saliency", encoding, fit)[::-1].copy(), second)
    if method == "rotated-unweighted":
        return rotated(np.eye(len(second)), second)
    weighting = ridged(token_covariance(head, alpha**TEMPER if method == "rotated-tempered" else alpha))
    if method == "greedy":
        return compensated(surgeon_order(weighting, second)[::-1].copy(), second)
    return rotated(weighting, second)


def token_covariance(head: Head, alpha: Float64[np.ndarray, "V"]) -> Float64[np.ndarray, "d d"]:
    """[d, d] G: covariance of the rows of the output embedding, tokens weighted by `alpha` [V]."""
    embedding = head.weight.cpu().numpy()
    weights = alpha / alpha.sum()
    mean, gram = np.zeros(embedding.shape[1]), np.zeros((embedding.shape[1],) * 2)
    for start in range(0, len(embedding), BLOCK_ROWS):
        mean += weights[start : start + BLOCK_ROWS] @ embedding[start : start + BLOCK_ROWS].astype(np.float64)
    for start in range(0, len(embedding), BLOCK_ROWS):
        centred = embedding[start : start + BLOCK_ROWS] - mean
        gram += (centred.T * weights[start : start + BLOCK_ROWS]) @ centred
    return gram


def ridged(matrix: Float64[np.ndarray, "d d"], share: float = RIDGE) -> Float64[np.ndarray, "d d"]:
    """A symmetric matrix made safely invertible: `share` of its mean diagonal is added to the diagonal."""
    scale = float(np.trace(matrix)) / len(matrix)
    scale = scale if scale > SMALLEST else 1.0  # nothing to weigh by: all directions are alike
    return (matrix + matrix.T) / 2 + share * scale * np.eye(len(matrix))


def deletion(order: Int64[np.ndarray, "d"]) -> Basis:
    """Dimensions leave, the last of `order` first, and nothing else changes."""
    permutation = np.eye(len(order))[:, order]
    return Basis(permutation, permutation, order, plain=True)


def compensated(order: Int64[np.ndarray, "d"], second: Float64[np.ndarray, "d d"]) -> Basis:
    """Dimensions leave, the last of `order` first, and are predicted from the others under the second moments of h."""
    lower = scipy.linalg.cholesky(second[np.ix_(order, order)], lower=True)
    columns, components = np.empty_like(lower), np.empty_like(lower)
    columns[order] = lower
    components[order] = scipy.linalg.solve_triangular(lower, np.eye(len(order)), lower=True).T
    return Basis(columns, components, order)


def rotated(weighting: Float64[np.ndarray, "d d"], second: Float64[np.ndarray, "d d"]) -> Basis:
    """The best rank k for every k: minimises tr(G·E[(h − ĥ)(h − ĥ)ᵀ]) over all ĥ of rank k."""
    values, vectors = scipy.linalg.eigh(weighting)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    _, axes = scipy.linalg.eigh(root @ second @ root)
    axes = axes[:, ::-1]
    return Basis(inverse @ axes, root @ axes, None)


def surgeon_order(weighting: Float64[np.ndarray, "d d"], second: Float64[np.ndarray, "d d"]) -> Int64[np.ndarray, "d"]:
    """[d] the order in which dimensions leave if each time that one goes whose loss, compensated, costs least.

    The cost of dimension j is G'_jj / [S_KK⁻¹]_jj, K what is left and G' the weighting of the compensated columns; costs
    add up, because what K cannot predict is orthogonal to K. O(d³) in all.
    """
    gram, precision = weighting.copy(), scipy.linalg.inv(second)
    left = np.ones(len(gram), dtype=bool)
    order = np.empty(len(gram), dtype=np.int64)
    for place in range(len(gram)):
        cost = np.where(left, np.diag(gram) / np.where(left, np.diag(precision), 1.0), np.inf)
        j = int(np.argmin(cost))
        order[place], left[j] = j, False
        taken = precision[j] / precision[j, j]  # column i takes over −taken_i of column j
        precision -= np.outer(precision[j], taken)
        row = gram[j] - gram[j, j] * taken  # of the Gram matrix after the columns took over, seen from column j
        gram -= np.outer(taken, row) + np.outer(gram[j], taken)
        precision[j], precision[:, j], gram[j], gram[:, j] = 0.0, 0.0, 0.0, 0.0
    return order
