"""Edits against a forward pass of a copy of the model whose head row was really changed, and against algebra."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from core.analysis import Analysis
from core.errors import AnalysisError, InputError
from core.settings import Settings
from core.steering import LOGIT_BIAS, Edit, Part, Steering, _direction, direction_vector, edited_prompt

HEADS = {
    "gpt2": "tied",
    "gpt_neox": "untied, padded",
    "gptj": "biased",
    "gemma2": "soft-capped, tied",
    "cohere": "scaled, tied",
    "granite": "divided",
    "opt": "projected",
    "minicpm3": "divided before the head",
}


def edited_copy(analysis: Analysis, steering: Steering) -> nn.Module:
    """Stock transformers, the head cloned (so that a tied input embedding stays) and its rows changed."""
    model = AutoModelForCausalLM.from_pretrained(analysis.files().folder, dtype=torch.float32).eval()
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        head.weight[list(steering.token_ids)] += torch.from_numpy(steering.delta).float()
    return model


def probabilities(model: nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].double().softmax(0).numpy()


def frequent(analysis: Analysis, places: tuple[int, ...]) -> list[int]:
    encoding = analysis.encoding()
    return [int(i) for i in encoding.token_ids[np.argsort(-encoding.alpha)][list(places)]]


@pytest.mark.parametrize("architecture", HEADS, ids=list(HEADS.values()))
@pytest.mark.parametrize("direction", ["minimum-variance", "saliency"])
def test_an_edit_is_what_a_changed_row_gives(tiny_analysis, architecture: str, direction: str) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    ids = frequent(analysis, (40, 90))
    steering = analysis.steer([Edit(ids[0], 1.5), Edit(ids[1], 0.6)], direction, calibrate=False)
    prompt = "The river ran past the mill"
    vocab = analysis.encoding().vocab_size
    found = analysis.next_token(prompt, steering, top=vocab)
    tokens = analysis.loaded().tokenizer(prompt)["input_ids"]
    before = probabilities(AutoModelForCausalLM.from_pretrained(analysis.files().folder).eval(), tokens)
    after = probabilities(edited_copy(analysis, steering), tokens)
    np.testing.assert_allclose(found.before, before[found.token_ids], atol=1e-5)
    np.testing.assert_allclose(found.after, after[found.token_ids], atol=1e-5)
    assert np.abs(after - before).max() > 1e-4  # the edit is seen at all


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2", "cohere"])
@pytest.mark.parametrize("direction", ["saliency", LOGIT_BIAS])
def test_a_prompt_is_edited_in_closed_form(tiny_analysis, architecture: str, direction: str) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    ids = frequent(analysis, (5, 90))
    steerer = analysis.steerer(ids, direction)
    steering = steerer.steer([1.5, 0.4], calibrate=False)
    base = analysis.next_token("The mill", top=12)
    found = edited_prompt(base, steerer, np.log([1.5, 0.4]))
    truth = analysis.next_token("The mill", steering, top=300)
    place = {int(i): at for at, i in enumerate(truth.token_ids)}
    at = [place[int(i)] for i in found.token_ids]
    np.testing.assert_allclose(found.after, truth.after[at], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.before, truth.before[at], rtol=1e-4, atol=1e-7)
    assert set(ids) <= set(found.token_ids.tolist()) and found.steered.sum() == 2
    assert found.others_factor == pytest.approx(truth.others_factor, rel=1e-4)
    assert found.entropy_after == pytest.approx(truth.entropy_after, abs=1e-3)


def test_a_curve_is_the_edit_at_each_step(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gemma2")
    ids = frequent(analysis, (40, 90))
    steerer = analysis.steerer(ids)
    steps = steerer.steps([1.5, 0.5])
    curve = steerer.curve(1, steps, np.array([-1.0, steps[1], 1.0]))
    judged = steerer.held_out.judge(steps)
    assert curve.realised[1] == pytest.approx(0.5, rel=1e-4) and curve.kl[1] == pytest.approx(judged.kl)
    assert curve.realised_held_out[1] == pytest.approx(judged.realised[1])
    assert (np.diff(curve.realised) > 0).all()


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2", "cohere"])
def test_the_judgement_is_that_of_whole_distributions(tiny_analysis, architecture: str) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    ids = frequent(analysis, (3, 40))
    edits = [Edit(ids[0], 0.3), Edit(ids[1], 3.0)]
    steering = analysis.steer(edits, "saliency", calibrate=False)
    head, sample = analysis.loaded().head, analysis.observation().held_out.reservoir
    hidden = torch.from_numpy(sample.hidden).double()
    weight = head.weight.double().clone()
    bias = 0 if head.bias is None else head.bias.double()

    def distribution() -> np.ndarray:
        z = hidden @ weight.T + bias
        return (z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)).softmax(1).numpy()

    p = distribution()
    weight[list(steering.token_ids)] += torch.from_numpy(steering.delta)
    q = distribution()
    middle = (p + q) / 2
    kl = (p * np.log(p / q)).sum(1).mean()
    js = 0.5 * ((p * np.log(p / middle)).sum(1) + (q * np.log(q / middle)).sum(1)).mean()
    others = np.setdiff1d(np.arange(p.shape[1]), ids)
    drift = np.abs(np.log(q[:, others[0]] / p[:, others[0]])).mean()
    np.testing.assert_allclose(steering.kl, kl, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(steering.js, js, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(steering.others_drift, drift, rtol=1e-3, atol=1e-7)
    assert steering.top1_agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean(), abs=2 / len(p))
    realised = q[:, ids].mean(0) / p[:, ids].mean(0)
    np.testing.assert_allclose([t.realised_held_out for t in steering.tokens], realised, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2", "granite"])
@pytest.mark.parametrize("ratios", [(2.0,), (0.5,), (1.3, 0.5, 2.0)])
def test_calibrated_edits_realise_their_ratio_exactly(
    tiny_analysis, architecture: str, ratios: tuple[float, ...]
) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    ids = frequent(analysis, (60, 90, 120)[: len(ratios)])
    steering = analysis.steer([Edit(i, r) for i, r in zip(ids, ratios, strict=True)])
    np.testing.assert_allclose([token.realised for token in steering.tokens], ratios, rtol=1e-4)
    assert steering.calibrated and steering.kl >= 0 and steering.js >= 0


@pytest.mark.parametrize("direction", ["minimum-variance", "saliency", "least-norm", "top-k:5", "random", LOGIT_BIAS])
def test_ratio_one_changes_nothing(tiny_analysis, direction: str) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    steering = analysis.steer([Edit(frequent(analysis, (10,))[0], 1.0)], direction)
    assert steering.delta_norm == 0
    np.testing.assert_allclose([steering.kl, steering.js, steering.others_drift], 0, atol=1e-12)
    assert steering.top1_agreement == 1 and steering.tokens[0].realised_held_out == pytest.approx(1, abs=1e-12)


def test_the_directions_keep_their_definition() -> None:
    rng = np.random.default_rng(0)
    weights, mean = rng.standard_normal(8), rng.standard_normal(8)
    factor = rng.standard_normal((8, 8))
    arguments = {
        "weights": weights, "saliency": np.abs(weights) * 2, "mean_hidden": mean, "covariance": factor @ factor.T
    }  # fmt: skip
    for name in ("saliency", "least-norm", "uniform", "top-k:3"):
        assert weights @ direction_vector(name, **arguments) == pytest.approx(-1)
    for name in ("minimum-variance", "random"):
        assert mean @ direction_vector(name, **arguments) == pytest.approx(1)
    assert np.count_nonzero(direction_vector("top-k:3", **arguments)) == 3
    best = direction_vector("minimum-variance", **arguments)
    for _ in range(200):  # no other direction of the same mean shift varies less
        other = rng.standard_normal(8)
        other /= mean @ other
        assert best @ factor @ factor.T @ best <= (other @ factor @ factor.T @ other) * 1.01
    least = direction_vector("least-norm", **arguments)
    assert np.linalg.norm(least) == pytest.approx(1 / np.linalg.norm(weights))


def test_weights_of_zero_are_left_alone() -> None:
    weights = np.array([0.0, 1.0, -2.0])
    u = direction_vector(
        "uniform", weights=weights, saliency=np.abs(weights), mean_hidden=np.ones(3), covariance=np.eye(3)
    )
    assert u[0] == 0 and weights @ u == pytest.approx(-1)


def test_logit_bias_shifts_the_logit_alike_everywhere(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gemma2")
    token = frequent(analysis, (50,))[0]
    steering = analysis.steer([Edit(token, 1.5)], LOGIT_BIAS, calibrate=False)
    assert steering.delta_norm == 0 and steering.logit_shift[0] == pytest.approx(np.log(1.5))
    found = analysis.next_token("The mill", steering, top=300)
    place = list(found.token_ids).index(token)
    p = found.before[place]
    assert found.after[place] == pytest.approx(1.5 * p / (1 + 0.5 * p), rel=1e-5)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((0.0,), "must be from"),
        ((-2.0,), "must be from"),
        ((float("nan"),), "must be from"),
        ((float("inf"),), "must be from"),
        ((1e5,), "impossible, at most"),
        ((2.0, 3.0), "1 tokens but 2 ratios"),
    ],
)
def test_ratios_that_cannot_be_get_a_sentence(tiny_analysis, ratios: tuple[float, ...], said: str) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    steerer = analysis.steerer(frequent(analysis, (0,)))
    with pytest.raises(InputError, match=said):
        steerer.steer(ratios)


def test_a_limit_is_said_so_that_it_holds(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    steerer = analysis.steerer(frequent(analysis, (0,)))
    most = float(steerer.largest_ratios()[0])
    for ratio in (most, most * (1 + 1e-9), 2 * most):
        with pytest.raises(InputError) as raised:
            steerer.steer([ratio])
        said = re.search(r"at most ([0-9.e+]+)×", str(raised.value))
        assert said and most * (1 - 1e-3) < float(said[1]) < most, raised.value


def test_tokens_that_would_fill_the_whole_probability_get_a_sentence(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    ids = frequent(analysis, (0, 1, 2))
    most = analysis.steerer(ids).largest_ratios()
    with pytest.raises(InputError, match="Together"):
        analysis.steer([Edit(i, 0.6 * m) for i, m in zip(ids, most, strict=True)])


@pytest.mark.parametrize("ids", [[], [5, 5], list(range(16))])
def test_lists_that_cannot_be_steered_get_a_sentence(tiny_analysis, ids: list[int]) -> None:
    with pytest.raises(InputError):
        tiny_analysis("gpt2").steerer(ids)


@pytest.mark.parametrize("token", [300, 1000, 2000, 3500, 4058])
def test_a_curve_shows_the_steps_that_are_taken(token: int) -> None:
    """Far out, a direction that pushes both ways brings the same ratios once more, by steps that nobody takes."""
    steerer = Analysis("demo", "sampler", Settings(positions=8192)).steerer([token])
    whole = steerer.curve(0, np.zeros(1), np.arange(-8.0, 12.01, 0.5))
    shown = whole.solved()
    assert (np.diff(shown.realised) > 0).all() and (np.diff(shown.steps) > 0).all()
    assert len(shown.steps) < len(whole.steps) or token == 300
    for step, ratio, held_out in zip(shown.steps, shown.realised, shown.realised_held_out, strict=True):
        steering = steerer.steer([ratio])
        assert steerer.steps([ratio])[0] == pytest.approx(step, abs=1e-6)
        assert steering.tokens[0].realised_held_out == pytest.approx(held_out, rel=1e-5)


def test_a_direction_that_cannot_reach_a_ratio_names_its_range(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    token = frequent(analysis, (30,))[0]
    rng = np.random.default_rng(0)
    mean = analysis.observation().fit.mean_hidden
    across = rng.standard_normal(len(mean))
    across -= mean * (across @ mean) / (mean @ mean)  # no mean shift at all: it cannot make a token rarer
    steerer = analysis.steerer([token], vector=across)
    with pytest.raises(InputError, match="down to"):
        steerer.steer([1e-4])


@pytest.mark.parametrize("direction", ["sideways", "top-k:", "top-k:0", "top-k:x", "top-k:K", "top-k:9999"])
def test_directions_that_do_not_exist_get_a_sentence(tiny_analysis, direction: str) -> None:
    with pytest.raises(InputError, match="direction"):
        tiny_analysis("gpt2").steerer([5], direction)


def test_a_soft_cap_bounds_the_ratio(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gemma2")
    token = frequent(analysis, (80,))[0]
    steerer = analysis.steerer([token])
    most, alpha = steerer.largest_ratios()[0], steerer.alpha[0]
    assert 1 < most < 1 / alpha
    far = steerer.fit.realised(np.array([1e4]))[0]  # every logit at the cap
    assert most == pytest.approx(far, rel=0.2) and far <= most * (1 + 1e-9)


def test_a_sweep_is_the_edit_at_each_ratio(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    edits = [Edit(frequent(analysis, (70,))[0], 2.0)]
    points = analysis.sweep(edits, [0.5, 1, 2, 1e6])
    assert [p.ratio for p in points] == [0.5, 1, 2]  # the last cannot be reached
    one = analysis.steer(edits)
    assert points[2].realised_held_out == pytest.approx(one.tokens[0].realised_held_out, rel=1e-9)
    assert points[2].kl == pytest.approx(one.kl, rel=1e-9)


def test_few_shot_with_all_positions_is_the_edit_itself(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gptj")
    edits = [Edit(frequent(analysis, (70,))[0], 2.0)]
    for direction in ("minimum-variance", "saliency", "least-norm"):
        points = analysis.few_shot(edits, [16, 10**6], direction)
        assert [p.positions for p in points] == [16, analysis.observation().fit.n]
        whole = analysis.steer(edits, direction, calibrate=False)
        assert points[-1].realised_held_out[0] == pytest.approx(whole.tokens[0].realised_held_out, rel=1e-3)


def test_extreme_logits_stay_finite() -> None:
    from core.moments import Reservoir

    hidden = np.array([[80.0, 0.0], [-80.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    log_z = np.array([80.0, 3.0, 2.0])  # in the first context the steered token has all the probability
    sample = Reservoir(
        3, np.arange(3, dtype=np.uint64), hidden, log_z, np.array([[0, 1]] * 3, dtype=np.int32),
        np.array([[80, 0], [0, -1], [1, 0]], dtype=np.float32), np.zeros(3, dtype=np.int32),
    )  # fmt: skip
    part = Part(sample, np.array([0]), np.array([[1.0, 0.0]]), np.zeros(1), np.array([1.0, 0.5]), None)
    for step in (-50.0, -1.0, 1.0, 50.0):
        judged = part.judge(np.array([step]))
        assert np.isfinite([*judged.realised, judged.kl, judged.js, judged.others_drift]).all()
        assert 0 <= judged.js <= np.log(2) + 1e-9


def test_a_token_without_any_probability_has_no_ratio_and_no_warning() -> None:
    from core.moments import Reservoir

    sample = Reservoir(
        2, np.arange(2, dtype=np.uint64), np.eye(2, dtype=np.float32), np.full(2, 900.0), np.array([[1, 2]] * 2, np.int32),
        np.array([[899, 1], [899, 1]], dtype=np.float32), np.ones(2, dtype=np.int32),
    )  # fmt: skip
    part = Part(sample, np.array([0]), np.array([[1.0, 0.0]]), np.zeros(1), np.array([1.0, 0.5]), None)
    assert np.isnan(part.judge(np.array([1.0])).realised).all()  # warnings are errors here


def test_contexts_that_do_not_differ_have_no_direction_that_varies_least() -> None:
    flat = -1e-12 * np.eye(4)  # rounding is all that is left of it
    with pytest.raises(AnalysisError, match="hidden states of all contexts are the same"):
        _direction("minimum-variance", np.ones(4), np.ones(4), np.ones(4), flat, 0)
