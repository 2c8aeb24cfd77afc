"""Encode: a token's mean probability is written, log-linearly, into its row of the output embedding.

    −log alpha_w + b_w  ≈  A · E_w + B          (b: the head's bias, a known offset; 0 where it has none)

Ordinary least squares over the tokens, in fp64, by centred normal equations accumulated in blocks, so no fp64 copy of E
is ever held. Why it works, to first order: log p_w(x) = E_w·h(x) + b_w − log Z(x), hence −log alpha_w ≈ −E_w·mean(h) +
mean(log Z), so A ≈ −mean(h). The second cumulant adds −½ Var(E_w·h − log Z). Both predictors are reported beside the
fit. Arrays only: this file knows no model. Source: Cho et al. 2025, abstract; method §2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from core.errors import AnalysisError
from core.moments import Moments, Observation
from core.show import Shown

FOLDS = 5
BLOCK_ROWS = 4096
RANK_TOLERANCE = 1e-12
"""Eigenvalues of the correlation matrix below this share of the largest count as zero."""
CONSTANT = 1e-9
"""A column that varies by less than this share of its mean is the same for every token."""
ILL_CONDITIONED = 1e6
SPARSITY_DIMS = (
    1,
    2,
    3,
    5,
    7,
    10,
    15,
    20,
    30,
    50,
    70,
    100,
    150,
    200,
    300,
    500,
    700,
    1000,
    1500,
    2000,
    3000,
    5000,
    7000,
)


@dataclass(frozen=True)
class SparsityPoint:
    """R² with only the `dims` most salient dimensions: coefficients fitted again, or kept from the full fit."""

    dims: int
    r2_refitted: float
    r2_kept: float


@dataclass(frozen=True)
class Predictor:
    """A prediction of −log alpha, how much it explains, and how many numbers were fitted for it.

    `r2` is 1 − SSE/SST of the prediction as it stands; `squared_correlation` forgives an offset and a scale.
    """

    name: str
    r2: float
    squared_correlation: float
    fitted_numbers: int


@dataclass(frozen=True)
class Encoding(Shown):
    """The fit −log alpha_w + b_w = A·E_w + B and what surrounds it.

    Attributes:
        weights: [d] A. standard_errors, t_values, p_values: [d] of the classical linear model, two-sided.
        saliency: [d] |A_i|·std(E_·i), which does not change when a column is rescaled.
        intercept, intercept_error: B and its standard error.
        r2, r2_adjusted: of the fit on the tokens it was fitted on.
        r2_held_out_tokens: 5-fold cross-validated over tokens, pooled: 1 − SSE of unseen tokens / SST.
        r2_held_out_text: the same fit scored on −log alpha of the held-out documents.
        residual_std: sqrt(SSE / (n − rank − 1)), nats.
        condition_number: largest over smallest singular value of the centred E; inf where the rank is below d.
        rank: numerical rank of the centred, scaled E. warnings: sentences on what is degenerate.
        effective_dims: (Σs)² / Σs² over saliencies.
        token_ids: [n] the rows fitted. alpha, neg_log_alpha, predicted: [n]; counts: [n] in the fitting text.
        alpha_held_out: [n] mean probability over the held-out documents.
        tokens, kinds: their texts and kinds (`core.tokens`); empty until `named` adds them.
        pca: [n, 2] first principal components of E; pca_explained: share of variance of the first ten.
        embedding_std: [d] std(E_·i) over the tokens.
        mean_hidden: [d] mean(h), for comparison with −A.
    """

    weights: Float64[np.ndarray, "d"]
    standard_errors: Float64[np.ndarray, "d"]
    t_values: Float64[np.ndarray, "d"]
    p_values: Float64[np.ndarray, "d"]
    saliency: Float64[np.ndarray, "d"]
    embedding_std: Float64[np.ndarray, "d"]
    mean_hidden: Float64[np.ndarray, "d"]
    intercept: float
    intercept_error: float
    r2: float
    r2_adjusted: float
    r2_held_out_tokens: float
    r2_held_out_text: float
    residual_std: float
    condition_number: float
    rank: int
    effective_dims: float
    token_ids: Int64[np.ndarray, "n"]
    counts: Int64[np.ndarray, "n"]
    alpha: Float64[np.ndarray, "n"]
    alpha_held_out: Float64[np.ndarray, "n"]
    neg_log_alpha: Float64[np.ndarray, "n"]
    predicted: Float64[np.ndarray, "n"]
    pca: Float32[np.ndarray, "n 2"]
    pca_explained: Float64[np.ndarray, "k"]
    sparsity: tuple[SparsityPoint, ...]
    predictors: tuple[Predictor, ...]
    cosine_minus_mean_hidden: float
    log_z_mean: float
    log_z_std: float
    vocab_size: int
    padded_rows: int
    excluded_rows: int
    positions: int
    positions_held_out: int
    documents: int
    documents_held_out: int
    perplexity: float
    perplexity_held_out: float
    warnings: tuple[str, ...] = ()
    note: str = ""
    tokens: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    _first = (
        "r2",
        "r2_adjusted",
        "r2_held_out_tokens",
        "r2_held_out_text",
        "residual_std",
        "cosine_minus_mean_hidden",
        "log_z_std",
        "effective_dims",
        "vocab_size",
        "dim",
        "positions",
        "positions_held_out",
    )

    @property
    def residual(self) -> Float64[np.ndarray, "n"]:
        """[n] −log alpha − predicted, nats: positive where a token is rarer than its embedding says."""
        return self.neg_log_alpha - self.predicted

    @property
    def dim(self) -> int:
        return len(self.weights)

    @property
    def output_space_ratio(self) -> float:
        """V/d: how many tokens share each dimension."""
        return self.vocab_size / self.dim

    def named(self, tokens: tuple[str, ...], kinds: tuple[str, ...]) -> Encoding:
        """The same with the texts and kinds of `token_ids`."""
        return replace(self, tokens=tokens, kinds=kinds)


def encode(
    embedding: Float32[np.ndarray, "V d"],
    observation: Observation,
    *,
    bias: Float[np.ndarray, "V"] | None = None,
    is_token: Bool[np.ndarray, "V"] | None = None,
    seed: int = 0,
) -> Encoding:
    """Fit the encoding.

    Args:
        embedding: [V, d] the output embedding.
        observation: from `core.observe.observe`, of the same head.
        bias: [V] the head's bias, if it has one.
        is_token: [V] False for padding rows: they stay in the softmax and out of the fit.
        seed: of the folds.

    Raises:
        AnalysisError: fewer usable tokens than dimensions, or values that are not finite.
    """
    import scipy.linalg  # here and below: a page that shows a stored fit does not wait for scipy
    import scipy.special

    vocab, dim = embedding.shape
    fit, held_out = observation.fit, observation.held_out
    token = np.ones(vocab, dtype=bool) if is_token is None else is_token
    used = token & (fit.sum_p > 0)
    rows = np.flatnonzero(used)
    if len(rows) <= dim + 1:
        raise AnalysisError(
            f"The head has {len(rows):,} usable tokens for {dim:,} dimensions: a line through them is not determined."
        )
    offset = np.zeros(vocab) if bias is None else bias.astype(np.float64)
    neg_log_alpha = -np.log(fit.alpha[rows])
    y = neg_log_alpha + offset[rows]
    if not np.isfinite(y).all():
        raise AnalysisError("The head's bias holds values that are not finite numbers.")
    system = _accumulate(embedding, rows, y, seed)
    line = _solve(system)
    quadratic = _Quadratic(system, line, fit, embedding, rows, y)
    predicted = quadratic.linear - offset[rows]
    n = len(rows)
    sst = system.yy
    freedom = max(1, n - line.rank - 1)
    r2 = 1 - line.sse / sst
    variance = line.sse / freedom
    errors = np.sqrt(variance * np.diag(line.inverse))
    with np.errstate(divide="ignore", invalid="ignore"):
        t_values = np.where(errors > 0, line.weights / errors, 0.0)
    intercept = system.mean_y - float(system.mean_x @ line.weights)
    saliency = np.abs(line.weights) * system.std
    salient = saliency.sum()
    present = held_out.sum_p[rows] > 0
    y_held_out = np.full(n, np.nan)
    y_held_out[present] = -np.log(held_out.alpha[rows][present]) + offset[rows][present]
    eigenvalues, eigenvectors = scipy.linalg.eigh(system.gram)
    padded = int((~token).sum())
    return Encoding(
        weights=line.weights,
        standard_errors=errors,
        t_values=t_values,
        p_values=2 * scipy.special.stdtr(freedom, -np.abs(t_values)),
        saliency=saliency,
        embedding_std=system.std,
        mean_hidden=fit.mean_hidden,
        intercept=intercept,
        intercept_error=float(np.sqrt(variance * (1 / n + system.mean_x @ line.inverse @ system.mean_x))),
        r2=r2,
        r2_adjusted=1 - (1 - r2) * (n - 1) / freedom,
        r2_held_out_tokens=_cross_validated(system),
        r2_held_out_text=_r2(y_held_out[present], quadratic.linear[present]),
        residual_std=float(np.sqrt(variance)),
        condition_number=line.condition_number,
        rank=line.rank,
        effective_dims=float(salient**2 / (saliency**2).sum()) if salient > 0 else 0.0,
        token_ids=rows.astype(np.int64),
        counts=fit.counts[rows],
        alpha=fit.alpha[rows],
        alpha_held_out=held_out.alpha[rows],
        neg_log_alpha=neg_log_alpha,
        predicted=predicted,
        pca=_project(embedding, rows, system.mean_x, eigenvectors[:, :-3:-1]),
        pca_explained=eigenvalues[:-11:-1] / max(eigenvalues.sum(), np.finfo(float).tiny),
        sparsity=_sparsity(system, line, saliency),
        predictors=quadratic.predictors(r2),
        cosine_minus_mean_hidden=_cosine(line.weights, -fit.mean_hidden),
        log_z_mean=fit.log_z_mean,
        log_z_std=float(np.sqrt(fit.log_z_variance)),
        vocab_size=vocab,
        padded_rows=padded,
        excluded_rows=vocab - n - padded,
        positions=fit.n,
        positions_held_out=held_out.n,
        documents=observation.documents,
        documents_held_out=observation.documents_held_out,
        perplexity=fit.perplexity,
        perplexity_held_out=held_out.perplexity,
        warnings=_warnings(system, line, dim),
        note=observation.note,
    )


@dataclass(frozen=True)
class Line:
    """y ≈ E·A + B by least squares: weights [d] A, intercept B, and how much of y it explains."""

    weights: Float64[np.ndarray, "d"]
    intercept: float
    r2: float
    r2_adjusted: float


def fit_line(embedding: Float32[np.ndarray, "V d"], rows: Int64[np.ndarray, "n"], y: Float64[np.ndarray, "n"]) -> Line:
    """Only the line y ≈ E[rows]·A + B: for the few-shot curve and for every checkpoint of a training run.

    Raises:
        AnalysisError: no more rows than dimensions, so that every y would be met exactly.
    """
    n, dim = len(rows), embedding.shape[1]
    if n <= dim + 1:
        raise AnalysisError(f"There are {n:,} tokens for {dim:,} dimensions: a line through them is not determined.")
    system = _accumulate(embedding, rows, y, seed=0)
    line = _solve(system)
    r2 = 1 - line.sse / system.yy if system.yy > 0 else 0.0
    adjusted = 1 - (1 - r2) * (n - 1) / max(1, n - line.rank - 1)
    return Line(line.weights, system.mean_y - float(system.mean_x @ line.weights), r2, adjusted)


# --- the normal equations -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fold:
    """Sums over the tokens of one fold, about the means of all tokens."""

    n: int
    sum_x: np.ndarray  # [d]
    sum_y: float
    gram: np.ndarray  # [d, d]
    xy: np.ndarray  # [d]
    yy: float


@dataclass(frozen=True)
class _System:
    """Centred sums over all tokens, and the same by fold."""

    n: int
    mean_x: np.ndarray  # [d]
    mean_y: float
    gram: np.ndarray  # [d, d] sum of (x − mean)(x − mean)ᵀ
    xy: np.ndarray  # [d]
    yy: float
    folds: tuple[_Fold, ...]

    @property
    def std(self) -> np.ndarray:
        """[d] standard deviation of every column over the tokens (divided by n)."""
        return np.sqrt(np.diag(self.gram) / self.n)


def _blocks(embedding: np.ndarray, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(place among the rows, those rows of E in fp64), a few thousand at a time."""
    for start in range(0, len(rows), BLOCK_ROWS):
        place = slice(start, min(start + BLOCK_ROWS, len(rows)))
        yield place, embedding[rows[place]].astype(np.float64)


def _accumulate(embedding: np.ndarray, rows: np.ndarray, y: np.ndarray, seed: int) -> _System:
    dim = embedding.shape[1]
    total = np.zeros(dim)
    for _, x in _blocks(embedding, rows):
        total += x.sum(0)
    mean_x, mean_y = total / len(rows), float(y.mean())
    if not np.isfinite(mean_x).all():
        bad = np.flatnonzero(~np.isfinite(mean_x))
        raise AnalysisError(f"The output embedding holds values that are not finite numbers (dimension {bad[0]}).")
    fold_of = np.random.default_rng([seed, 2]).permutation(len(rows)) % FOLDS
    counts, sum_y, yy = np.zeros(FOLDS, dtype=int), np.zeros(FOLDS), np.zeros(FOLDS)
    sum_x, xy, gram = np.zeros((FOLDS, dim)), np.zeros((FOLDS, dim)), np.zeros((FOLDS, dim, dim))
    for place, block in _blocks(embedding, rows):
        block -= mean_x
        for fold in range(FOLDS):
            chosen = fold_of[place] == fold
            x, target = block[chosen], y[place][chosen] - mean_y
            counts[fold] += len(x)
            sum_x[fold] += x.sum(0)
            sum_y[fold] += target.sum()
            gram[fold] += x.T @ x
            xy[fold] += x.T @ target
            yy[fold] += target @ target
    squares = gram.sum(0).diagonal()
    constant = squares <= len(rows) * (CONSTANT * np.abs(mean_x)) ** 2  # only rounding is left of such a column
    sum_x[:, constant] = xy[:, constant] = 0.0
    gram[:, constant], gram[:, :, constant] = 0.0, 0.0
    folds = tuple(_Fold(int(counts[k]), sum_x[k], float(sum_y[k]), gram[k], xy[k], float(yy[k])) for k in range(FOLDS))
    return _System(
        len(rows),
        mean_x,
        mean_y,
        gram.sum(0),
        xy.sum(0),
        float(yy.sum()),
        folds,
    )


@dataclass(frozen=True)
class _Line:
    weights: np.ndarray  # [d]
    inverse: np.ndarray  # [d, d] of the Gram matrix (pseudo-inverse where singular)
    sse: float
    rank: int
    condition_number: float


def _solve(system: _System) -> _Line:
    """Least squares through the eigenvectors of the correlation matrix: scaled first, so units do not matter."""
    import scipy.linalg

    scale = np.sqrt(np.diag(system.gram))
    scale = np.where(scale > 0, scale, 1.0)
    correlation = system.gram / np.outer(scale, scale)
    values, vectors = scipy.linalg.eigh(correlation)
    kept = values > RANK_TOLERANCE * max(values[-1], 0.0)
    rank = int(kept.sum())
    if rank == len(values):
        factor = scipy.linalg.cho_factor(correlation)
        inverse = scipy.linalg.cho_solve(factor, np.eye(len(values)))
        scaled = scipy.linalg.cho_solve(factor, system.xy / scale)
        # one step of refinement brings the normal equations to the accuracy of the data
        scaled += scipy.linalg.cho_solve(factor, system.xy / scale - correlation @ scaled)
    else:
        inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
        scaled = np.where(np.diag(system.gram) > 0, inverse @ (system.xy / scale), 0.0)
    weights = scaled / scale
    sse = system.yy - 2 * float(weights @ system.xy) + float(weights @ system.gram @ weights)
    spectrum = scipy.linalg.eigvalsh(system.gram)
    condition = float(np.sqrt(spectrum[-1] / spectrum[0])) if rank == len(values) and spectrum[0] > 0 else float("inf")
    return _Line(weights, inverse / np.outer(scale, scale), max(sse, 0.0), rank, condition)


def _cross_validated(system: _System) -> float:
    """R² on held-out tokens: every fold is predicted by a line fitted on the others; all from the same sums."""
    sse = 0.0
    for fold in system.folds:
        n = system.n - fold.n
        mean_x, mean_y = -fold.sum_x / n, -fold.sum_y / n  # of the training tokens, about the overall means
        gram = system.gram - fold.gram - n * np.outer(mean_x, mean_x)
        xy = system.xy - fold.xy - n * mean_x * mean_y
        weights = _solve(_System(n, mean_x, mean_y, gram, xy, 0.0, ())).weights
        shift = mean_y - float(mean_x @ weights)
        sse += (
            fold.yy
            - 2 * float(weights @ fold.xy)
            - 2 * shift * fold.sum_y
            + float(weights @ fold.gram @ weights)
            + 2 * shift * float(weights @ fold.sum_x)
            + fold.n * shift**2
        )
    return 1 - sse / system.yy


def _sparsity(system: _System, line: _Line, saliency: np.ndarray) -> tuple[SparsityPoint, ...]:
    order = np.argsort(-saliency, kind="stable")
    dim = len(order)
    points = []
    for dims in sorted({*(k for k in SPARSITY_DIMS if k < dim), dim}):
        best = order[:dims]
        gram, xy, kept = system.gram[np.ix_(best, best)], system.xy[best], line.weights[best]
        again = _solve(_System(system.n, system.mean_x[best], 0.0, gram, xy, system.yy, ()))
        sse_kept = system.yy - 2 * float(kept @ xy) + float(kept @ gram @ kept)
        points.append(SparsityPoint(dims, 1 - again.sse / system.yy, 1 - sse_kept / system.yy))
    return tuple(points)


class _Quadratic:
    """The predictions that need E_w Σ E_wᵀ: both cumulant predictors and the fit with one more regressor.

    Attributes:
        linear: [n] A·E_w + B, on the scale of −log alpha + b.
    """

    def __init__(
        self, system: _System, line: _Line, fit: Moments, embedding: np.ndarray, rows: np.ndarray, y: np.ndarray
    ) -> None:
        n, covariance = len(rows), fit.covariance
        self.y, self.line, self.system = y, line, system
        first, spread, linear = np.empty(n), np.empty(n), np.empty(n)
        quadratic = np.empty(n)
        for place, x in _blocks(embedding, rows):
            first[place] = -x @ fit.mean_hidden + fit.log_z_mean
            quadratic[place] = ((x @ covariance) * x).sum(1)
            spread[place] = quadratic[place] - 2 * x @ fit.covariance_h_log_z + fit.log_z_variance
            linear[place] = (x - system.mean_x) @ line.weights + system.mean_y
        self.linear, self.first, self.second = linear, first, first - 0.5 * spread
        centred = quadratic - quadratic.mean()
        xq = np.zeros(embedding.shape[1])
        for place, x in _blocks(embedding, rows):
            xq += (x - system.mean_x).T @ centred[place]
        # Frisch-Waugh: what the quadratic term adds is its part that E does not explain, on the fit's residuals.
        left = float(centred @ centred - xq @ line.inverse @ xq)
        residual = y - linear
        gain = float(centred @ residual - (line.inverse @ xq) @ (system.xy - system.gram @ line.weights))
        self.sse_quadratic = line.sse - (gain**2 / left if left > 1e-9 * float(centred @ centred) else 0.0)

    def predictors(self, r2: float) -> tuple[Predictor, ...]:
        dim = len(self.line.weights)
        r2_quadratic = 1 - self.sse_quadratic / self.system.yy
        return (
            Predictor("first order", _r2(self.y, self.first), _squared_correlation(self.y, self.first), 0),
            Predictor("second order", _r2(self.y, self.second), _squared_correlation(self.y, self.second), 0),
            Predictor("linear fit", r2, r2, dim + 1),
            Predictor("linear + quadratic", r2_quadratic, r2_quadratic, dim + 2),
        )


def _project(embedding: np.ndarray, rows: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    projected = np.zeros((len(rows), 2), dtype=np.float32)
    for place, x in _blocks(embedding, rows):
        projected[place, : axes.shape[1]] = (x - mean) @ axes
    return projected


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    centred = y - y.mean() if len(y) else y
    total = float(centred @ centred)
    return 1 - float(((y - predicted) ** 2).sum()) / total if total > 0 else float("nan")


def _squared_correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(a @ a) * float(b @ b)
    return float(a @ b) ** 2 / scale if scale > 0 else 0.0


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0


def _warnings(system: _System, line: _Line, dim: int) -> tuple[str, ...]:
    sentences = []
    constant = np.flatnonzero(system.std == 0)
    if len(constant):
        names = ", ".join(str(i) for i in constant[:5]) + (" …" if len(constant) > 5 else "")
        sentences.append(f"{len(constant)} dimensions are the same for every token ({names}); their weight is 0.")
    if line.rank < dim:
        sentences.append(
            f"The output embedding has rank {line.rank} of {dim}: the weights are the smallest of many that fit equally "
            "well, and standard errors of single dimensions mean little."
        )
    elif line.condition_number > ILL_CONDITIONED:
        sentences.append(
            f"The output embedding is badly conditioned ({line.condition_number:.3g}): single weights are uncertain."
        )
    return tuple(sentences)
