"""Encode: a token's mean probability is written, log-linearly, into its row of the output embedding.

    −log alpha_w + b_w  ≈  A · E_w + B          (b: the head's bias, a known offset; 0 where it has none)

Ordinary least squares over the tokens, in fp64, by centred normal equations accumulated in blocks, so no fp64 copy of E
is ever held. Why it works, to first order: log p_w(x) = E_w·h(x) + b_w − log Z(x), hence −log alpha_w ≈ −E_w·mean(h) +
mean(log Z), so A ≈ −mean(h). The second cumulant adds −½ Var(E_w·h − log Z). Both predictors are reported beside the
fit. Arrays only: this file knows no model. Source: Cho et al. 2025, abstract; method §2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from core.errors import AnalysisError
from core.least_squares import Solved, System, accumulate, blocks, cross_validated, dot, nested, times
from core.moments import Moments, Observation
from core.show import Shown

ILL_CONDITIONED = 1e6
MANY_LEFT_OUT = 0.01
"""Share of the tokens without a probability above which that is said."""
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
        AnalysisError: fewer usable tokens than dimensions, the same probability for all, or values that are not finite.
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
            f"The head has {len(rows):,} usable tokens for {dim:,} dimensions, and a line through them is not determined: "
            "choose a model with more tokens than dimensions."
        )
    offset = np.zeros(vocab) if bias is None else bias.astype(np.float64)
    neg_log_alpha = -np.log(fit.alpha[rows])
    y = neg_log_alpha + offset[rows]
    if not np.isfinite(y).all():
        raise AnalysisError("The head's bias holds values that are not finite numbers: choose another checkpoint.")
    system = accumulate(embedding, rows, y, seed)
    if system.constant_target:
        raise AnalysisError(
            "All tokens have the same mean probability, as in a model that was never trained: there is nothing to explain."
        )
    line = Solved(system)
    spectrum = scipy.linalg.eigvalsh(system.gram)
    axes = scipy.linalg.eigh(system.gram, subset_by_index=[max(0, dim - 2), dim - 1])[1][:, ::-1]
    quadratic = _Quadratic(system, line, fit, embedding, rows, y, axes)
    predicted = quadratic.linear - offset[rows]
    n = len(rows)
    sst = system.yy
    freedom = max(1, n - line.rank - 1)
    r2 = 1 - line.sse / sst
    variance = line.sse / freedom
    errors = np.sqrt(variance * np.diag(line.inverse))
    with np.errstate(divide="ignore", invalid="ignore"):
        t_values = np.where(errors > 0, line.weights / errors, 0.0)
    intercept = system.mean_y - dot(system.mean_x, line.weights)
    saliency = np.abs(line.weights) * system.std
    salient = saliency.sum()
    present = held_out.sum_p[rows] > 0
    y_held_out = np.full(n, np.nan)
    y_held_out[present] = -np.log(held_out.alpha[rows][present]) + offset[rows][present]
    condition = float(np.sqrt(spectrum[-1] / spectrum[0])) if line.rank == dim and spectrum[0] > 0 else float("inf")
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
        intercept_error=float(np.sqrt(variance * (1 / n + dot(system.mean_x, times(line.inverse, system.mean_x))))),
        r2=r2,
        r2_adjusted=1 - (1 - r2) * (n - 1) / freedom,
        r2_held_out_tokens=cross_validated(system),
        r2_held_out_text=_r2(y_held_out[present], quadratic.linear[present]),
        residual_std=float(np.sqrt(variance)),
        condition_number=condition,
        rank=line.rank,
        effective_dims=float(salient**2 / (saliency**2).sum()) if salient > 0 else 0.0,
        token_ids=rows.astype(np.int64),
        counts=fit.counts[rows],
        alpha=fit.alpha[rows],
        alpha_held_out=held_out.alpha[rows],
        neg_log_alpha=neg_log_alpha,
        predicted=predicted,
        pca=quadratic.projected,
        pca_explained=spectrum[:-11:-1] / max(spectrum.sum(), np.finfo(float).tiny),
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
        warnings=(*_left_out(vocab - n - padded, vocab - padded), *_warnings(system, line, condition)),
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
    system = accumulate(embedding, rows, y, seed=0)
    line = Solved(system)
    r2 = 0.0 if system.constant_target else 1 - line.sse / system.yy
    adjusted = 1 - (1 - r2) * (n - 1) / max(1, n - line.rank - 1)
    return Line(line.weights, system.mean_y - dot(system.mean_x, line.weights), r2, adjusted)


# --- what surrounds the line ----------------------------------------------------------------------------------------


def _sparsity(system: System, line: Solved, saliency: np.ndarray) -> tuple[SparsityPoint, ...]:
    dim = len(saliency)
    sizes = sorted({*(k for k in SPARSITY_DIMS if k < dim), dim})
    again, kept = nested(system, line, np.argsort(-saliency, kind="stable"), sizes)
    return tuple(SparsityPoint(*point) for point in zip(sizes, again, kept, strict=True))


class _Quadratic:
    """The second pass over the rows: the predictions that need E_w Σ E_wᵀ, the fitted values, the principal components.

    Attributes:
        linear: [n] A·E_w + B, on the scale of −log alpha + b. projected: [n, 2] on the two `axes` [d, 2].
    """

    def __init__(
        self,
        system: System,
        line: Solved,
        fit: Moments,
        embedding: np.ndarray,
        rows: np.ndarray,
        y: np.ndarray,
        axes: np.ndarray,
    ) -> None:
        from scipy.linalg import blas

        n, mean, covariance = len(rows), system.mean_x, fit.covariance
        self.y, self.line, self.system = y, line, system
        along_mean = times(covariance, mean)
        directions = np.array([fit.mean_hidden, fit.covariance_h_log_z, line.weights, along_mean, *axes.T]).T
        scores, quadratic = np.empty((n, directions.shape[1])), np.empty(n)
        xq = np.zeros(len(mean))
        spread_of = _quadratic_form(covariance)
        for place, x in blocks(embedding, rows, mean):
            scores[place] = blas.dgemm(1.0, directions, x.T, trans_a=1).T
            quadratic[place] = spread_of(x) + 2 * scores[place, 3] + dot(along_mean, mean)
            xq += blas.dgemv(1.0, x.T, quadratic[place])  # the mean of x is 0: centring q as well changes nothing
        first = fit.log_z_mean - scores[:, 0] - dot(mean, fit.mean_hidden)
        spread = quadratic - 2 * (scores[:, 1] + dot(mean, fit.covariance_h_log_z)) + fit.log_z_variance
        self.linear, self.first, self.second = scores[:, 2] + system.mean_y, first, first - 0.5 * spread
        self.projected = np.zeros((n, 2), dtype=np.float32)
        self.projected[:, : axes.shape[1]] = scores[:, 4:]
        centred = quadratic - quadratic.mean()
        # Frisch-Waugh: what the quadratic term adds is its part that E does not explain, on the fit's residuals.
        left = dot(centred, centred) - dot(xq, times(line.inverse, xq))
        residual = y - self.linear
        gain = dot(centred, residual) - dot(times(line.inverse, xq), system.xy - times(system.gram, line.weights))
        self.sse_quadratic = line.sse - (gain**2 / left if left > 1e-9 * dot(centred, centred) else 0.0)

    def predictors(self, r2: float) -> tuple[Predictor, ...]:
        dim = len(self.line.weights)
        r2_quadratic = 1 - self.sse_quadratic / self.system.yy
        return (
            Predictor("first order", _r2(self.y, self.first), _squared_correlation(self.y, self.first), 0),
            Predictor("second order", _r2(self.y, self.second), _squared_correlation(self.y, self.second), 0),
            Predictor("linear fit", r2, r2, dim + 1),
            Predictor("linear + quadratic", r2_quadratic, r2_quadratic, dim + 2),
        )


def _quadratic_form(covariance: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """x [n, d] ↦ x Σ xᵀ row by row [n]: through the triangular root of Σ, which takes half the products of Σ itself."""
    from scipy.linalg import blas, lapack

    lower, failed = lapack.dpotrf(covariance, lower=1, clean=1)
    if failed:  # fewer positions than dimensions
        return lambda x: (blas.dgemm(1.0, covariance, x.T).T * x).sum(1)

    def of(x: np.ndarray) -> np.ndarray:
        along = blas.dtrmm(1.0, lower, x.T, lower=1, trans_a=1)
        return np.square(along, out=along).sum(0)

    return of


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    centred = y - y.mean() if len(y) else y
    total = dot(centred, centred)
    return 1 - float(((y - predicted) ** 2).sum()) / total if total > 0 else float("nan")


def _squared_correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = dot(a, a) * dot(b, b)
    return dot(a, b) ** 2 / scale if scale > 0 else 0.0


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return dot(a, b) / scale if scale > 0 else 0.0


def _left_out(excluded: int, tokens: int) -> tuple[str, ...]:
    if excluded <= MANY_LEFT_OUT * tokens:
        return ()
    return (
        f"{excluded:,} of {tokens:,} tokens are left out of the fit: their mean probability is 0 in 64-bit numbers, so the "
        "line says nothing of them.",
    )


def _warnings(system: System, line: Solved, condition: float) -> tuple[str, ...]:
    sentences, dim = [], len(line.weights)
    constant = np.flatnonzero(system.std == 0)
    if len(constant):
        names = ", ".join(str(i) for i in constant[:5]) + (" …" if len(constant) > 5 else "")
        sentences.append(f"{len(constant)} dimensions are the same for every token ({names}); their weight is 0.")
    if line.rank < dim:
        sentences.append(
            f"The output embedding has rank {line.rank} of {dim}: the weights are the smallest of many that fit equally "
            "well, and standard errors of single dimensions mean little."
        )
    elif condition > ILL_CONDITIONED:
        sentences.append(f"The output embedding is badly conditioned ({condition:.3g}): single weights are uncertain.")
    return tuple(sentences)
