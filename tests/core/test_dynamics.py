"""The fits over checkpoints against statsmodels, and what is read off the curves, on planted numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import statsmodels.api as sm

from core.dynamics import Builder, Checkpoint, Dynamics, early_and_late, finding, without_arrays
from core.errors import AnalysisError

VOCAB, DIM = 300, 10


def embedding(seed: int = 0, vocab: int = VOCAB, dim: int = DIM) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((vocab, dim)) + random.standard_normal(dim)).astype(np.float32)


def planted_counts() -> np.ndarray:
    """Counts that lie along a direction of `embedding()`, with noise; a tenth of the tokens never occurs."""
    random = np.random.default_rng(1)
    log = 4 + embedding() @ random.standard_normal(DIM) * 0.5 + 0.3 * random.standard_normal(VOCAB)
    counts = np.round(np.exp(log)).astype(np.int64)
    counts[::10] = 0
    return counts


def checkpoint(
    step: int,
    r2: float = 0.5,
    loss: float | None = None,
    *,
    duplicate_of: int | None = None,
    weights: Sequence[float] = (1.0, 0.0),
    alpha: Sequence[float] | None = None,
    predicted: Sequence[float] = (),
) -> Checkpoint:
    values = np.array(predicted, np.float32)
    return Checkpoint(
        step, f"step {step}", f"{step}", duplicate_of, r2, None, loss, np.array(weights, float),
        None if alpha is None else np.array(alpha, float), values, None, np.zeros_like(values),
    )  # fmt: skip


def series(*checkpoints: Checkpoint, counts: Sequence[int] = ()) -> Dynamics:
    ids = np.arange(len(counts), dtype=np.int64)
    tokens = tuple(f"t{i}" for i in ids)
    return Dynamics("planted", "text", False, ids, tokens, np.array(counts, np.int64), 0, checkpoints)


# The fits


@pytest.mark.parametrize("biased", [False, True])
def test_the_fits_against_statsmodels(biased: bool) -> None:
    random = np.random.default_rng(2)
    counts, alpha = planted_counts(), random.dirichlet(np.ones(VOCAB))
    bias = random.standard_normal(VOCAB).astype(np.float32) if biased else None
    builder = Builder(counts)
    occur = np.flatnonzero(counts)
    np.testing.assert_array_equal(builder.rows, occur)
    np.testing.assert_array_equal(builder.counts, counts[occur])
    offset = bias[occur].astype(float) if bias is not None else 0.0
    for step, seed in ((0, 5), (1, 0)):
        head = embedding(seed)
        found = builder.add(step, f"step {step}", head, f"{seed}", bias=bias, alpha=alpha, loss=3.0, samples=["a"])
        x = sm.add_constant(head[occur].astype(float))
        frequency = sm.OLS(-np.log(counts[occur] / counts.sum()) + offset, x).fit()
        alphas = sm.OLS(-np.log(alpha[occur]) + offset, x).fit()
        assert found.r2_corpus_frequency == pytest.approx(frequency.rsquared_adj, abs=1e-8)
        assert found.r2_alpha == pytest.approx(alphas.rsquared_adj, abs=1e-8)
        np.testing.assert_allclose(found.weights, frequency.params[1:], rtol=1e-8)
        np.testing.assert_allclose(found.weights_alpha, alphas.params[1:], rtol=1e-8)
        np.testing.assert_allclose(found.direction, alphas.params[1:], rtol=1e-8)
        np.testing.assert_allclose(found.predicted, frequency.predict(x) - offset, rtol=1e-5)
        np.testing.assert_allclose(found.neg_log_alpha, -np.log(alpha[occur]), rtol=1e-6)
        assert (found.loss, found.samples, found.duplicate_of) == (3.0, ("a",), None)
    first, second = builder.checkpoints
    assert biased or first.r2_corpus_frequency + 0.8 < second.r2_corpus_frequency
    assert not first.moved.any()
    np.testing.assert_allclose(second.moved, np.linalg.norm(embedding(0) - embedding(5), axis=1)[occur], rtol=1e-6)


def test_a_head_alone() -> None:
    found = Builder(planted_counts()).add(0, "step 0", embedding(), "a")
    assert found.r2_alpha is found.loss is found.weights_alpha is found.neg_log_alpha is None
    np.testing.assert_array_equal(found.direction, found.weights)


def test_rows_beyond_the_counts_do_not_matter() -> None:
    """A head that is padded: its last rows belong to no token."""
    counts = planted_counts()
    one = Builder(counts).add(0, "step 0", embedding(), "a")
    padded = np.concatenate([embedding(), embedding(9)[:20]])
    two = Builder(np.concatenate([counts, np.zeros(20, np.int64)])).add(0, "step 0", padded, "a")
    assert one.r2_corpus_frequency == pytest.approx(two.r2_corpus_frequency, abs=1e-12)


def test_a_token_whose_probability_underflows() -> None:
    alpha = np.full(VOCAB, 1 / VOCAB)
    alpha[1] = 0.0
    found = Builder(planted_counts()).add(0, "step 0", embedding(), "a", alpha=alpha)
    assert found.r2_alpha is not None and np.isfinite(found.r2_alpha)
    assert found.neg_log_alpha is not None and np.isfinite(found.neg_log_alpha).all()


def test_the_same_head_twice() -> None:
    """Marked with the step where it was first, and the distances are between the heads that count."""
    builder = Builder(planted_counts())
    for step, seed in ((0, 0), (1, 1), (2, 0), (4, 0), (8, 2)):
        builder.add(step, f"step {step}", embedding(seed), f"hash {seed}")
    assert [c.duplicate_of for c in builder.checkpoints] == [None, None, 0, 0, None]
    found = series(*builder.checkpoints)
    assert [c.step for c in found.curve] == [0, 1, 8]
    expected = np.linalg.norm(embedding(2) - embedding(1), axis=1)[builder.rows]
    np.testing.assert_allclose(found.curve[-1].moved, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(VOCAB, DIM + 1), (VOCAB - 50, DIM)])
def test_a_head_of_another_shape(shape: tuple[int, int]) -> None:
    builder = Builder(planted_counts())
    builder.add(0, "step 0", embedding(), "a")
    with pytest.raises(AnalysisError, match=rf"The head of step 1 is {shape[0]} × {shape[1]}, unlike the others\."):
        builder.add(1, "step 1", embedding(1, *shape), "b")
    builder.add(2, "step 2", embedding(2), "c")
    assert [c.step for c in builder.checkpoints] == [0, 2]


def test_counts_that_cannot_be_fitted() -> None:
    with pytest.raises(AnalysisError, match="holds no token of this model"):
        Builder(np.zeros(VOCAB, np.int64))
    counts = np.zeros(VOCAB, np.int64)
    counts[: DIM + 1] = 1
    with pytest.raises(AnalysisError, match="11 tokens for 10 dimensions"):
        Builder(counts).add(0, "step 0", embedding(), "a")
    broken = embedding()
    broken[1, 3] = np.nan
    with pytest.raises(AnalysisError, match="not finite"):
        Builder(planted_counts()).add(0, "step 0", broken, "a")


# What is read off the curves


def test_the_steps_at_which_90_percent_are_reached() -> None:
    found = series(
        checkpoint(0, 0.0, 8.0),
        checkpoint(1, 0.71, 7.0),
        checkpoint(2, 0.721, 4.39),  # of 0.72 and 4.4
        checkpoint(4, 0.7, 4.41),
        checkpoint(8, 0.9, 4.3),
        checkpoint(16, 0.8, 4.0),
    )
    assert (found.step_frequency_90, found.step_loss_90) == (2, 2)
    later = series(*found.checkpoints[:2], checkpoint(2, 0.7, 4.41), *found.checkpoints[3:])
    assert (later.step_frequency_90, later.step_loss_90) == (8, 8)


def test_duplicates_have_no_place_in_the_curve() -> None:
    found = series(
        checkpoint(0, 0.0, 8.0),
        checkpoint(1, 0.9, 3.0, duplicate_of=0),
        checkpoint(2, 0.9, 4.0),
        checkpoint(4, 0.1, 9.0, duplicate_of=0),
    )
    assert [c.step for c in found.curve] == [0, 2]
    assert (found.step_frequency_90, found.step_loss_90) == (2, 2)
    assert len(found.cosines) == 2


def test_steps_that_are_not_reached() -> None:
    assert series().step_frequency_90 is series().step_loss_90 is None
    assert series(checkpoint(0, 0.5), checkpoint(1, 0.0)).step_frequency_90 is None
    assert series(checkpoint(0), checkpoint(1)).step_loss_90 is None
    assert series(checkpoint(0, loss=5.0), checkpoint(1)).step_loss_90 is None
    assert series(checkpoint(0, loss=5.0), checkpoint(1, loss=5.0)).step_loss_90 is None
    partly = series(checkpoint(0, loss=5.0), checkpoint(1), checkpoint(2, loss=4.0), checkpoint(4))
    assert partly.step_loss_90 == 2


def test_cosines_to_the_last_weights() -> None:
    found = series(
        checkpoint(0, weights=(0, 0)), checkpoint(1, weights=(0, 2)), checkpoint(2, weights=(-3, 0)),
        checkpoint(4, weights=(1, 1)), checkpoint(8, weights=(5, 0)),
    )  # fmt: skip
    np.testing.assert_allclose(found.cosines, [0, 0, -1, np.sqrt(0.5), 1], atol=1e-12)
    both = series(checkpoint(0, alpha=(0, 1)), checkpoint(1, weights=(0, 1), alpha=(2, 0)))
    np.testing.assert_allclose(both.cosines, [0, 1], atol=1e-12)  # those of −log alpha where they are known
    assert series().cosines.shape == (0,)


def test_when_a_token_is_learned() -> None:
    """From the step on after which the prediction never leaves a factor of 2 again."""
    counts = (50, 25, 20, 5)
    truth = -np.log(np.array([0.5, 0.25, 0.2, 0.05]))
    near, far = 0.6, 0.8  # nats; a factor of 2 is 0.693
    offsets = [  # the first is there from the start, the second comes and goes and comes, the third never does
        (0.0, near, far, far),
        (near, far, far, far),
        (-near, -near, -far, near),
        (near, 0.0, far, far),
        (0.0, near, -far, near),
    ]
    steps = (0, 1, 2, 4, 8)
    found = series(
        *(checkpoint(step, predicted=truth + each) for step, each in zip(steps, offsets, strict=True)), counts=counts
    )
    np.testing.assert_allclose(found.neg_log_frequency, truth)
    assert found.learned.tolist() == [0, 2, -1, 8]
    dup = checkpoint(16, predicted=truth + far, duplicate_of=2)
    assert series(*found.checkpoints, dup, counts=counts).learned.tolist() == [0, 2, -1, 8]
    # the first was not learned, the last is too rare
    assert early_and_late(found) == ([1, 2], [2, 1])
    assert early_and_late(found, most=1) == ([1], [2])
    assert early_and_late(series()) == ([], [])


def test_without_arrays_the_curves_are_the_same() -> None:
    builder = Builder(planted_counts())
    for step in (0, 1, 2):
        builder.add(step, f"step {step}", embedding(step), f"{step}", alpha=np.full(VOCAB, 1 / VOCAB), loss=5.0 - step)
    found = series(*builder.checkpoints)
    light = without_arrays(found)
    assert (light.step_frequency_90, light.step_loss_90) == (found.step_frequency_90, found.step_loss_90)
    np.testing.assert_array_equal(light.cosines, found.cosines)
    assert not any(len(c.predicted) or len(c.moved) or c.neg_log_alpha is not None for c in light.checkpoints)


@pytest.mark.parametrize(
    ("checkpoints", "said"),
    [
        ((), "One checkpoint is no curve yet."),
        ((checkpoint(0), checkpoint(1, duplicate_of=0)), "One checkpoint is no curve yet."),
        (
            (checkpoint(0, 0.0), checkpoint(1, -0.02)),
            "The embedding does not hold the corpus's token frequencies in this run (R² -0.02).",
        ),
        (
            (checkpoint(0, 0.0), checkpoint(1024, 0.91)),
            "R² of corpus frequency reaches 90 % of its final 0.91 at step 1,024; the loss was not measured.",
        ),
        (
            (checkpoint(0, 0.0, 4.0), checkpoint(8, 0.91, 5.0)),
            "R² of corpus frequency reaches 90 % of its final 0.91 at step 8; the loss has not fallen.",
        ),
        (
            (checkpoint(0, 0.0, 8.0), checkpoint(128, 0.9, 7.0), checkpoint(2048, 0.9, 4.0)),
            "R² of corpus frequency reaches 90 % of its final 0.90 at step 128; 90 % of the fall of the loss is done at "
            "step 2,048, 16 times as late.",
        ),
        (
            (checkpoint(0, 0.9, 8.0), checkpoint(8, 0.9, 4.0)),
            "R² of corpus frequency reaches 90 % of its final 0.90 at step 0; 90 % of the fall of the loss is done at "
            "step 8.",
        ),
        (
            (checkpoint(0, 0.0, 8.0), checkpoint(8, 0.2, 4.0), checkpoint(16, 0.9, 3.9)),
            "R² of corpus frequency reaches 90 % of its final 0.90 at step 16, and 90 % of the fall of the loss is done at "
            "step 8: here frequency was not earlier than the loss.",
        ),
    ],
)
def test_the_finding(checkpoints: tuple[Checkpoint, ...], said: str) -> None:
    assert finding(series(*checkpoints)) == said
