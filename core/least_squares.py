"""Ordinary least squares of one target on the columns of a tall matrix, from centred sums: fp64, one pass over the rows.

    y ≈ X·A + B,   A = (Σ (x − x̄)(x − x̄)ᵀ)⁻¹ Σ (x − x̄)(y − ȳ)

The sums are kept by fold, so that cross-validation costs no second pass, and about a provisional mean that is put right
at the end. They are solved by Cholesky after scaling to correlations; only where that is nearly singular through
eigenvectors, for which the rank is known by name. Arrays only.

What a profile taught (V = 49,152, d = 576, two cores): a third of the time went into eigenvalues that only told that the
rank was full, which the condition estimate of the Cholesky factor does as well; blocks of 1,024 rows stay in the cache
and one of 4,096 does not; numpy and scipy each bring a BLAS whose threads, while they wait for work, take the cores of
the other's, so all products here are scipy's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from core.errors import AnalysisError

FOLDS = 5
BLOCK_ROWS = 1024
"""Rows in fp64 at a time: few enough to stay in the cache between the steps that read them."""
RANK_TOLERANCE = 1e-12
"""Eigenvalues of the correlation matrix below this share of the largest count as zero."""
SURELY_REGULAR = 1e-9
"""Reciprocal condition numbers of the correlation matrix above this need no eigenvalues to know that the rank is full."""
CONSTANT = 1e-9
"""A column that varies by less than this share of its mean is the same for every row."""


@dataclass(frozen=True)
class Fold:
    """Sums over the rows of one fold, about the means of all rows."""

    n: int
    sum_x: np.ndarray  # [d]
    sum_y: float
    gram: np.ndarray  # [d, d]
    xy: np.ndarray  # [d]
    yy: float


@dataclass(frozen=True)
class System:
    """Centred sums over all rows, and the same by fold."""

    n: int
    mean_x: np.ndarray  # [d]
    mean_y: float
    gram: np.ndarray  # [d, d] sum of (x − mean)(x − mean)ᵀ
    xy: np.ndarray  # [d]
    yy: float
    folds: tuple[Fold, ...] = ()

    @property
    def std(self) -> np.ndarray:
        """[d] standard deviation of every column over the rows (divided by n)."""
        return np.sqrt(np.diag(self.gram) / self.n)

    @property
    def constant_target(self) -> bool:
        """Whether y is the same for every row but for rounding."""
        return self.yy <= self.n * (CONSTANT * abs(self.mean_y)) ** 2


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Σ a·b, without a library's threads."""
    return float((a * b).sum())


def times(symmetric: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """A symmetric matrix times a vector."""
    from scipy.linalg import blas

    return blas.dgemv(1.0, symmetric.T, vector)


def blocks(matrix: np.ndarray, rows: np.ndarray, about: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(place among the rows, those rows of the matrix minus `about` in fp64), some at a time, in one buffer."""
    size = max(1, min(BLOCK_ROWS, len(rows)))
    taken, centred = np.empty((size, matrix.shape[1]), matrix.dtype), np.empty((size, matrix.shape[1]))
    for start in range(0, len(rows), size):
        place = slice(start, min(start + size, len(rows)))
        count = place.stop - start
        np.take(matrix, rows[place], axis=0, out=taken[:count], mode="clip")  # "raise" would make a copy first
        with np.errstate(invalid="ignore"):  # infinite values are found by who adds up
            centred[:count] = taken[:count]  # by itself: a subtraction that also converts is three times as slow
            centred[:count] -= about
        yield place, centred[:count]


def accumulate(matrix: np.ndarray, rows: np.ndarray, y: np.ndarray, seed: int) -> System:
    """The sums over `rows` of `matrix` [V, d] and their targets y [n]; folds are drawn by the seed.

    Raises:
        AnalysisError: values that are not finite.
    """
    from scipy.linalg import blas

    dim, mean_y = matrix.shape[1], float(y.mean())
    with np.errstate(invalid="ignore"):  # ∞ − ∞; told below
        about = matrix[rows[:BLOCK_ROWS]].mean(0, dtype=np.float64)  # near the mean, which is not known yet
    fold_of = np.random.default_rng([seed, 2]).permutation(len(rows)) % FOLDS
    counts, sum_y, yy = np.zeros(FOLDS, dtype=int), np.zeros(FOLDS), np.zeros(FOLDS)
    sum_x, xy = np.zeros((FOLDS, dim)), np.zeros((FOLDS, dim))
    gram = np.zeros((FOLDS, dim, dim))
    for fold in range(FOLDS):
        members = np.flatnonzero(fold_of == fold)
        targets = y[members] - mean_y
        counts[fold], sum_y[fold], yy[fold] = len(members), targets.sum(), dot(targets, targets)
        upper = np.zeros((dim, dim), order="F")
        for place, x in blocks(matrix, rows[members], about):
            sums = x.sum(0)
            if not np.isfinite(sums).all():
                bad = int(np.flatnonzero(~np.isfinite(sums))[0])
                raise AnalysisError(
                    f"The output embedding holds values that are not finite numbers (dimension {bad}): choose another "
                    "checkpoint."
                )
            sum_x[fold] += sums
            upper = blas.dsyrk(1.0, x.T, beta=1.0, c=upper, overwrite_c=1)
            xy[fold] += blas.dgemv(1.0, x.T, targets[place])
        gram[fold] = np.triu(upper) + np.triu(upper, 1).T
    shift = sum_x.sum(0) / len(rows)
    mean_x = about + shift
    for fold in range(FOLDS):  # from about the provisional mean to about the mean
        cross = np.outer(shift, sum_x[fold])
        gram[fold] += counts[fold] * np.outer(shift, shift) - cross - cross.T
        xy[fold] -= shift * sum_y[fold]
        sum_x[fold] -= counts[fold] * shift
    constant = gram.sum(0).diagonal() <= len(rows) * (CONSTANT * np.abs(mean_x)) ** 2  # only rounding is left of it
    sum_x[:, constant] = xy[:, constant] = 0.0
    gram[:, constant], gram[:, :, constant] = 0.0, 0.0
    folds = tuple(Fold(int(counts[k]), sum_x[k], float(sum_y[k]), gram[k], xy[k], float(yy[k])) for k in range(FOLDS))
    return System(len(rows), mean_x, mean_y, gram.sum(0), xy.sum(0), float(yy.sum()), folds)


class Solved:
    """The solution of a system.

    Attributes:
        weights: [d] A. sse: the sum of squared residuals. rank: numerical rank of the centred, scaled matrix.
        scale: [d] length of every centred column (1 where it is constant).
        lower: [d, d] Cholesky factor of the correlation matrix, or None where that is nearly singular.
    """

    def __init__(self, system: System) -> None:
        import scipy.linalg

        self._gram, scale = system.gram, np.sqrt(np.diag(system.gram))
        self.scale = np.where(scale > 0, scale, 1.0)
        correlation = system.gram / self.scale[:, None] / self.scale
        target = system.xy / self.scale
        self.lower = _cholesky(correlation)
        if self.lower is not None:
            self.rank = len(target)
            scaled = scipy.linalg.cho_solve((self.lower, True), target)
            # one step of refinement brings the normal equations to the accuracy of the data
            scaled += scipy.linalg.cho_solve((self.lower, True), target - times(correlation, scaled))
        else:
            values, vectors = scipy.linalg.eigh(correlation)
            kept = values > RANK_TOLERANCE * max(values[-1], 0.0)
            self.rank = int(kept.sum())
            half = vectors[:, kept] / np.sqrt(values[kept])
            self._pseudo = scipy.linalg.blas.dgemm(1.0, half, half, trans_b=1)
            scaled = np.where(np.diag(system.gram) > 0, times(self._pseudo, target), 0.0)
            if self.rank == len(target):
                scaled += times(self._pseudo, target - times(correlation, scaled))
        self.weights: np.ndarray = scaled / self.scale
        sse = system.yy - 2 * dot(self.weights, system.xy) + dot(self.weights, times(system.gram, self.weights))
        self.sse = max(sse, 0.0)

    @cached_property
    def inverse(self) -> np.ndarray:
        """[d, d] inverse of the Gram matrix, pseudo-inverse where it is singular."""
        import scipy.linalg

        if self.lower is None:
            return self._pseudo / self.scale[:, None] / self.scale
        lower = np.tril(scipy.linalg.lapack.dpotri(self.lower, lower=1)[0])
        return (lower + np.tril(lower, -1).T) / self.scale[:, None] / self.scale


def _cholesky(correlation: np.ndarray) -> np.ndarray | None:
    """The lower factor with zeros above it; None unless the matrix is surely regular."""
    import scipy.linalg

    norm = float(np.abs(correlation).sum(0).max())
    lower, failed = scipy.linalg.lapack.dpotrf(correlation, lower=1, clean=1)
    if failed or not norm > 0:
        return None
    reciprocal, _ = scipy.linalg.lapack.dpocon(lower, norm, uplo="L")
    return lower if reciprocal > SURELY_REGULAR else None


def cross_validated(system: System) -> float:
    """R² on held-out rows: every fold is predicted by a line fitted on the others; all from the same sums."""
    sse = 0.0
    for fold in system.folds:
        n = system.n - fold.n
        mean_x, mean_y = -fold.sum_x / n, -fold.sum_y / n  # of the training rows, about the overall means
        gram = system.gram - fold.gram - n * np.outer(mean_x, mean_x)
        xy = system.xy - fold.xy - n * mean_x * mean_y
        constant = gram.diagonal() <= RANK_TOLERANCE * system.gram.diagonal()  # varies in this fold alone
        gram[constant], gram[:, constant], xy[constant] = 0.0, 0.0, 0.0
        weights = Solved(System(n, mean_x, mean_y, gram, xy, 0.0)).weights
        shift = mean_y - dot(mean_x, weights)
        sse += (
            fold.yy
            - 2 * dot(weights, fold.xy)
            - 2 * shift * fold.sum_y
            + dot(weights, times(fold.gram, weights))
            + 2 * shift * dot(weights, fold.sum_x)
            + fold.n * shift**2
        )
    return 1 - sse / system.yy


def nested(system: System, solved: Solved, order: np.ndarray, sizes: list[int]) -> tuple[list[float], list[float]]:
    """R² with only the first k columns of `order`, for every k of `sizes`: fitted again, and with the full fit's weights.

    All k are refitted by one Cholesky factor L: its leading blocks are those of the leading columns, and what the k-th
    column takes off the squared residuals is the square of the k-th entry of L⁻¹ Σ (x − x̄)(y − ȳ).
    """
    import scipy.linalg

    gram, xy, weights = system.gram[np.ix_(order, order)], system.xy[order], solved.weights[order]
    scale = solved.scale[order]
    kept = []
    for k in sizes:
        first = weights[:k]
        kept.append(system.yy - 2 * dot(first, xy[:k]) + dot(first, times(gram[:k, :k], first)))
    if solved.lower is not None:
        lower = scipy.linalg.lapack.dpotrf(gram / scale[:, None] / scale, lower=1, clean=1)[0]
        steps = scipy.linalg.solve_triangular(lower, xy / scale, lower=True)
        taken = np.cumsum(steps**2)
        again = [system.yy - float(taken[k - 1]) for k in sizes]
    else:
        again = [
            Solved(System(system.n, system.mean_x[order[:k]], 0.0, gram[:k, :k], xy[:k], system.yy)).sse for k in sizes
        ]
    return [1 - max(sse, 0.0) / system.yy for sse in again], [1 - sse / system.yy for sse in kept]
