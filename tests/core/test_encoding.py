"""The fit against statsmodels, scikit-learn and planted weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from core.encoding import Encoding, encode, fit_line
from core.errors import AnalysisError
from core.least_squares import FOLDS
from core.moments import Moments, Observation, Reservoir


def observation(alpha: np.ndarray, dim: int, rng: np.random.Generator, noise: float = 0.05) -> Observation:
    """An observation with given mean probabilities and random moments of the hidden states."""
    vocab = len(alpha)
    h = rng.standard_normal((500, dim)) @ rng.standard_normal((dim, dim)) * 0.3 + rng.standard_normal(dim)
    log_z = 5 + h @ rng.standard_normal(dim) * 0.2
    empty = Reservoir(
        1, np.zeros(0, np.uint64), np.zeros((0, dim), np.float32), np.zeros(0), np.zeros((0, 16), np.int32),
        np.zeros((0, 16), np.float32), np.zeros(0, np.int32),
    )  # fmt: skip

    def part(a: np.ndarray) -> Moments:
        n = len(h)
        return Moments(
            n, a * n, np.ones(vocab, np.int64), h.sum(0), h.T @ h, float(log_z.sum()), float((log_z**2).sum()),
            h.T @ log_z, 3.0 * n, empty,
        )  # fmt: skip

    held_out = alpha * np.exp(noise * rng.standard_normal(vocab))
    return Observation(part(alpha), part(held_out), 2, 2)


def planted(
    vocab: int = 900, dim: int = 12, seed: int = 0, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Observation]:
    rng = np.random.default_rng(seed)
    embedding = (rng.standard_normal((vocab, dim)) * np.geomspace(0.1, 3, dim) + rng.standard_normal(dim)).astype(
        np.float32
    )
    weights = rng.standard_normal(dim)
    y = embedding @ weights + 9 + noise * rng.standard_normal(vocab)
    return embedding, weights, y, observation(np.exp(-y), dim, rng)


def test_against_statsmodels() -> None:
    embedding, _, y, seen = planted()
    found = encode(embedding, seen)
    truth = sm.OLS(y, sm.add_constant(embedding.astype(np.float64))).fit()
    np.testing.assert_allclose(found.weights, truth.params[1:], rtol=1e-8)
    np.testing.assert_allclose(found.intercept, truth.params[0], rtol=1e-8)
    np.testing.assert_allclose(found.standard_errors, truth.bse[1:], rtol=1e-8)
    np.testing.assert_allclose(found.intercept_error, truth.bse[0], rtol=1e-8)
    np.testing.assert_allclose(found.t_values, truth.tvalues[1:], rtol=1e-8)
    np.testing.assert_allclose(found.p_values, truth.pvalues[1:], rtol=1e-6, atol=1e-300)
    np.testing.assert_allclose([found.r2, found.r2_adjusted], [truth.rsquared, truth.rsquared_adj], rtol=1e-8)
    np.testing.assert_allclose(found.residual, truth.resid, atol=1e-8)
    np.testing.assert_allclose(found.residual_std, np.sqrt(truth.mse_resid), rtol=1e-8)


def test_cross_validation_is_that_of_refitting() -> None:
    embedding, _, y, seen = planted(seed=1)
    x = embedding.astype(np.float64)
    fold = np.random.default_rng([7, 2]).permutation(len(y)) % FOLDS
    sse = 0.0
    for k in range(FOLDS):
        line = LinearRegression().fit(x[fold != k], y[fold != k])
        sse += ((y[fold == k] - line.predict(x[fold == k])) ** 2).sum()
    expected = 1 - sse / ((y - y.mean()) ** 2).sum()
    assert encode(embedding, seen, seed=7).r2_held_out_tokens == pytest.approx(expected, rel=1e-9)


def test_planted_weights_are_found_and_scale_does_not_matter() -> None:
    embedding, weights, _, seen = planted(noise=0.0)
    found = encode(embedding, seen)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6)
    assert found.r2 == pytest.approx(1, abs=1e-9)
    scale = np.geomspace(1e-4, 1e4, embedding.shape[1]).astype(np.float32)
    scaled = encode(embedding * scale, seen)
    np.testing.assert_allclose(scaled.weights * scale, weights, rtol=1e-4)
    np.testing.assert_allclose(scaled.saliency, found.saliency, rtol=1e-4)
    assert scaled.effective_dims == pytest.approx(found.effective_dims, rel=1e-4)


def test_a_bias_is_a_known_offset() -> None:
    embedding, weights, y, _ = planted(noise=0.0)
    rng = np.random.default_rng(5)
    bias = rng.standard_normal(len(y))
    seen = observation(np.exp(-(y - bias)), embedding.shape[1], rng)
    found = encode(embedding, seen, bias=bias)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6)
    np.testing.assert_allclose(found.predicted, y - bias, atol=1e-6)


def test_padding_and_impossible_tokens_stay_out() -> None:
    embedding, _, y, seen = planted()
    is_token = np.ones(len(y), dtype=bool)
    is_token[-40:] = False
    alpha = seen.fit.sum_p.copy()
    alpha[3] = 0.0
    seen = dataclasses.replace(seen, fit=dataclasses.replace(seen.fit, sum_p=alpha))
    found = encode(embedding, seen, is_token=is_token)
    assert (found.padded_rows, found.excluded_rows, len(found.token_ids)) == (40, 1, len(y) - 41)
    assert 3 not in found.token_ids and found.token_ids.max() == len(y) - 41
    used = np.flatnonzero(is_token & (np.arange(len(y)) != 3))
    line = LinearRegression().fit(embedding[used].astype(np.float64), y[used])
    np.testing.assert_allclose(found.weights, line.coef_, rtol=1e-8)


def test_sparsity_refits_the_most_salient() -> None:
    embedding, _, y, seen = planted()
    found = encode(embedding, seen)
    x = embedding.astype(np.float64)
    order = np.argsort(-found.saliency)
    for point in found.sparsity:
        best = order[: point.dims]
        assert point.r2_refitted == pytest.approx(LinearRegression().fit(x[:, best], y).score(x[:, best], y), rel=1e-8)
        kept = (x[:, best] - x[:, best].mean(0)) @ found.weights[best] + y.mean()
        assert point.r2_kept == pytest.approx(1 - ((y - kept) ** 2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-8)
    assert found.sparsity[-1].r2_refitted == pytest.approx(found.r2)
    assert all(a.r2_refitted <= b.r2_refitted + 1e-12 for a, b in zip(found.sparsity, found.sparsity[1:], strict=False))


def test_the_predictors_are_the_cumulants() -> None:
    embedding, _, y, seen = planted()
    found, x, fit = encode(embedding, seen), embedding.astype(np.float64), seen.fit
    first = -x @ fit.mean_hidden + fit.log_z_mean
    spread = np.einsum("wi,ij,wj->w", x, fit.covariance, x) - 2 * x @ fit.covariance_h_log_z + fit.log_z_variance
    by_name = {p.name: p for p in found.predictors}
    for name, value in (("first order", first), ("second order", first - spread / 2)):
        expected = 1 - ((y - value) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        assert by_name[name].r2 == pytest.approx(expected, rel=1e-8)
        assert by_name[name].squared_correlation == pytest.approx(np.corrcoef(y, value)[0, 1] ** 2, rel=1e-8)
    quadratic = np.einsum("wi,ij,wj->w", x, fit.covariance, x)
    wide = np.column_stack([x, quadratic])
    assert by_name["linear + quadratic"].r2 == pytest.approx(LinearRegression().fit(wide, y).score(wide, y), rel=1e-8)


def test_pca_is_that_of_scikit_learn() -> None:
    embedding, _, _, seen = planted()
    found = encode(embedding, seen)
    truth = PCA(10).fit(embedding.astype(np.float64))
    np.testing.assert_allclose(found.pca_explained, truth.explained_variance_ratio_, rtol=1e-6)
    projected = truth.transform(embedding.astype(np.float64))[:, :2]
    np.testing.assert_allclose(np.abs(found.pca), np.abs(projected), rtol=1e-3, atol=1e-4)


def test_degenerate_embeddings_are_named() -> None:
    embedding, _, y, seen = planted()
    twice = embedding.copy()
    twice[:, 5] = twice[:, 4]
    twice[:, 7] = 0.1
    found = encode(twice, seen)
    assert found.rank == 10 and found.condition_number == float("inf")
    assert any("rank 10 of 12" in s for s in found.warnings) and any(
        "same for every token (7)" in s for s in found.warnings
    )
    line = LinearRegression().fit(twice.astype(np.float64), y)
    np.testing.assert_allclose(found.predicted, line.predict(twice.astype(np.float64)), atol=1e-6)
    assert found.weights[7] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    embedding, _, _, seen = planted()
    embedding[3, 2] = value
    with pytest.raises(AnalysisError, match="not finite"):
        encode(embedding, seen)


def test_more_dimensions_than_tokens_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(AnalysisError, match="20 usable tokens for 30 dimensions"):
        encode(rng.standard_normal((20, 30)).astype(np.float32), observation(np.full(20, 0.05), 30, rng))


def test_held_out_text_is_scored_on_its_own_probabilities() -> None:
    embedding, _, _, seen = planted()
    found = encode(embedding, seen)
    y = -np.log(seen.held_out.alpha)
    expected = 1 - ((y - found.predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert found.r2_held_out_text == pytest.approx(expected, rel=1e-9)


def test_fit_line_is_the_fit() -> None:
    embedding, _, y, seen = planted()
    line = fit_line(embedding, np.arange(len(y)), y)
    weights, intercept = line.weights, line.intercept
    found = encode(embedding, seen)
    np.testing.assert_allclose(weights, found.weights, rtol=1e-9)
    assert intercept == pytest.approx(found.intercept, rel=1e-9)


def test_an_encoding_survives_the_store(tmp_path, tiny_analysis) -> None:
    from core.store import read_result, write_result

    found = tiny_analysis("gpt2").encoding()
    write_result(tmp_path / "e.safetensors", found)
    again = read_result(tmp_path / "e.safetensors", Encoding)
    assert again is not None and again.tokens == found.tokens and again.sparsity == found.sparsity
    np.testing.assert_array_equal(again.weights, found.weights)
    assert again.predictors == found.predictors and again.warnings == found.warnings
