"""The claims on the real model, SmolLM2-135M, as the issue and the README state them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from core.analysis import Analysis
from core.results import Sampling
from core.settings import Settings
from core.steering import Edit
from core.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def analysis(cache_folder: Path, smollm2_files) -> Analysis:
    """The model at the settings whose figures are stated: 16,384 positions of Python's help topics."""
    return Analysis("smollm2", "python-docs", Settings(positions=16384), Store(cache_folder))


def test_the_fit(analysis: Analysis) -> None:
    found = analysis.encoding()
    assert found.positions == 16384 and found.positions_held_out == 4096
    assert found.r2 > 0.8
    assert abs(found.r2_held_out_tokens - found.r2) < 0.02
    assert found.r2_held_out_text > 0.7
    assert found.cosine_minus_mean_hidden > 0.9
    assert found.log_z_std > 3  # "concentrated logits" does not hold here, and the encoding does


def test_the_fit_is_that_of_statsmodels(analysis: Analysis) -> None:
    found = analysis.encoding()
    embedding = analysis.loaded().head.weight.numpy()[found.token_ids].astype(np.float64)
    truth = sm.OLS(found.neg_log_alpha, sm.add_constant(embedding, has_constant="add")).fit(method="qr")
    np.testing.assert_allclose(found.weights, truth.params[1:], rtol=1e-8, atol=1e-8 * np.abs(truth.params[1:]).max())
    np.testing.assert_allclose(found.standard_errors, truth.bse[1:], rtol=1e-8)
    assert found.intercept == pytest.approx(truth.params[0], rel=1e-8)
    assert found.r2 == pytest.approx(truth.rsquared, rel=1e-8)


def test_an_edit_is_a_forward_pass_of_the_edited_model(analysis: Analysis) -> None:
    tokens = [analysis.find_token(text).id for text in (" river", " the")]
    steering = analysis.steer([Edit(tokens[0], 20), Edit(tokens[1], 0.25)])
    prompt = "They crossed the bridge over the"
    found = analysis.next_token(prompt, steering, top=49152)
    model = AutoModelForCausalLM.from_pretrained(analysis.files().folder, dtype=torch.float32).eval()
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        head.weight[tokens] += torch.from_numpy(steering.delta).float()
        ids = analysis.loaded().tokenizer(prompt, return_tensors="pt")["input_ids"]
        p = model(ids).logits[0, -1].double().softmax(0).numpy()
    np.testing.assert_allclose(found.after, p[found.token_ids], atol=1e-5)


def test_minimum_variance_steering(analysis: Analysis) -> None:
    """60 tokens of rank 200 to 5,000, r = 20: the uncalibrated error on held-out text, and beside it the paper's."""
    ids = analysis.tokens_of_rank(200, 5000, 60)
    assert len(ids) == 60
    rows = analysis.compare_directions(ids, [20.0], ("minimum-variance", "saliency", "least-norm"))
    error = {(row.direction, row.calibrated): row for row in rows}
    ours = error["minimum-variance", False].held_out[0]
    assert ours <= 0.15
    assert ours < error["saliency", False].held_out[0] and ours < error["least-norm", False].held_out[0]
    assert error["minimum-variance", True].fit[0] <= 0.001


def test_samples_with_ratio_one_are_identical_and_steered_ones_are_counted(analysis: Analysis) -> None:
    token = analysis.find_token(" the").id
    same = analysis.generate("The river", analysis.steer([Edit(token, 1.0)]), Sampling(8, 24))
    assert same.before == same.after
    found = analysis.generate("The river", analysis.steer([Edit(token, 3.0)]), Sampling(32, 32))
    count = found.counts[0]
    assert count.after > count.before
    for seen, expected in ((count.before, count.expected_before), (count.after, count.expected_after)):
        assert abs(seen - expected) < 5 * np.sqrt(expected + 1)


def test_words_of_several_tokens_are_explained(analysis: Analysis) -> None:
    choice = analysis.find_token(" Headscope")
    assert "tokens" in choice.note and choice.token.startswith(" ")
    assert analysis.find_token(" river").note == ""
    assert "is 300 tokens (' river' + ' river' + ' river' + ' river' + ' river' + ' river' + …); its first" in (
        analysis.find_token(" river" * 300).note
    )
