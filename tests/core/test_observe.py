"""The pass against the model's own logits, and the algebra of its sums."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import Cancelled
from core.moments import Moments, Observation
from core.observe import finished_chunks, observe, position_keys


def assert_same(a: object, b: object, rtol: float = 0.0) -> None:
    """Two results are equal field by field: to the bit, or to a relative tolerance."""
    for field in dataclasses.fields(a):  # type: ignore[arg-type]
        x, y = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(x):
            assert_same(x, y, rtol)
        elif isinstance(x, np.ndarray | float) and rtol:
            np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12, err_msg=field.name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=field.name)


def brute_force(model, plan, held_out: bool) -> dict[str, np.ndarray]:
    """The same sums from the model's own logits, window by window, all in fp64."""
    p, log_z, loss, counts = [], [], [], []
    for chunk in plan.chunks:
        if chunk.held_out != held_out:
            continue
        for inputs, targets in zip(chunk.inputs, chunk.targets, strict=True):
            length = int(np.flatnonzero(targets >= 0)[-1]) + 1
            with torch.no_grad():
                logits = model.module(torch.from_numpy(inputs[None, :length])).logits[0].double()
            logits = logits[torch.from_numpy(targets[:length] >= 0)]
            real = torch.from_numpy(targets[targets >= 0])
            p.append(logits.softmax(1))
            log_z.append(logits.logsumexp(1))
            loss.append(torch.nn.functional.cross_entropy(logits, real, reduction="none"))
            counts.append(real)
    found = {
        "sum_p": torch.cat(p).sum(0),
        "log_z": torch.cat(log_z),
        "loss": torch.cat(loss),
        "next": torch.cat(counts),
    }
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2", "cohere", "granite", "opt", "mamba"])
def test_the_sums_are_those_of_the_models_own_logits(tiny_analysis, architecture: str) -> None:
    analysis = tiny_analysis(architecture)
    observation, model = analysis.observation(), analysis.loaded()
    plan = analysis.plan(model, analysis.corpus)
    for held_out, part in ((False, observation.fit), (True, observation.held_out)):
        truth = brute_force(model, plan, held_out)
        assert part.n == len(truth["loss"])
        np.testing.assert_allclose(part.sum_p, truth["sum_p"], rtol=2e-5)
        np.testing.assert_allclose(part.sum_p.sum(), part.n, rtol=1e-6)
        np.testing.assert_allclose(part.sum_log_z, truth["log_z"].sum(), rtol=1e-6)
        np.testing.assert_allclose(part.log_z_variance, truth["log_z"].var(), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(part.sum_loss, truth["loss"].sum(), rtol=1e-5)
        np.testing.assert_array_equal(part.counts, np.bincount(truth["next"], minlength=len(part.counts)))
        np.testing.assert_allclose(np.sort(part.reservoir.log_z), np.sort(truth["log_z"]), rtol=1e-5, atol=1e-5)


def test_the_reservoir_describes_its_positions(tiny_analysis) -> None:
    analysis = tiny_analysis("gemma2")
    part, head = analysis.observation().fit, analysis.loaded().head
    sample = part.reservoir
    logits = head.logits(torch.from_numpy(sample.hidden)).double()
    np.testing.assert_allclose(logits.logsumexp(1).numpy(), sample.log_z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits.topk(16).values.numpy(), sample.top_logits, rtol=1e-5, atol=1e-4)
    assert (np.diff(sample.key.astype(np.float64)) >= 0).all()
    h = sample.hidden.astype(np.float64)  # all positions fit into the reservoir here
    np.testing.assert_allclose(part.covariance, np.cov(h.T, bias=True), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(part.mean_hidden, h.mean(0), rtol=1e-6, atol=1e-9)
    expected = ((h - h.mean(0)) * (sample.log_z - sample.log_z.mean())[:, None]).mean(0)
    np.testing.assert_allclose(part.covariance_h_log_z, expected, rtol=1e-5, atol=1e-7)


def test_parts_merge_like_one_pass(tiny_analysis) -> None:
    from core.corpus import Plan

    analysis = tiny_analysis("gpt2")
    model = analysis.loaded()
    whole = analysis.plan(model, analysis.corpus)
    fit = [c for c in whole.chunks if not c.held_out]
    held = [c for c in whole.chunks if c.held_out]

    def run(chunks: list) -> Observation:
        return observe(model, Plan(tuple(chunks), 0, 0, 1, 1), seed=3)

    one = run(fit + held)
    a, b, c = run(fit[:2] + held[:1]), run(fit[2:3] + held[1:2]), run(fit[3:] + held[2:])
    assert_same(one, dataclasses.replace(a.merge(b).merge(c), documents=1, documents_held_out=1), rtol=1e-10)
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert_same(left, right, rtol=1e-12)
    np.testing.assert_array_equal(left.fit.reservoir.key, one.fit.reservoir.key)


def test_a_bounded_reservoir_is_the_same_however_it_is_merged(tiny_analysis) -> None:
    sample = tiny_analysis("gpt2").observation().fit.reservoir
    small = dataclasses.replace(sample, capacity=50)
    halves = [
        dataclasses.replace(small, **{n: getattr(sample, n)[i::2] for n in
                                      ("key", "hidden", "log_z", "top_ids", "top_logits", "next_token")})
        for i in (0, 1)
    ]  # fmt: skip
    merged = halves[0].merge(halves[1])
    assert len(merged) == 50
    assert_same(merged, halves[1].merge(halves[0]))
    np.testing.assert_array_equal(merged.key, sample.key[:50])


class Killed(BaseException):
    """Stands for kill −9: nothing in the code may catch it."""


@pytest.mark.parametrize("after", [1, 5, 9])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tiny_analysis, tmp_path: Path, after: int) -> None:
    analysis = tiny_analysis("gpt2")
    model = analysis.loaded()
    plan = analysis.plan(model, analysis.corpus)
    assert len(plan.chunks) > 9
    once = observe(model, plan, seed=3)
    calls = 0

    def kill(phrase: str, share: float | None) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed

    partial = tmp_path / "partial"
    with pytest.raises(Killed):
        observe(model, plan, seed=3, partial=partial, progress=kill)
    assert finished_chunks(partial) == after
    told: list[float | None] = []
    again = observe(model, plan, seed=3, partial=partial, progress=lambda _, share: told.append(share))
    assert told[0] == after / len(plan.chunks)
    assert_same(once, again)
    assert not partial.exists()


def test_folding_keeps_the_bits(tiny_analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.observe.FOLD_EVERY", 4)
    test_a_killed_run_goes_on_and_ends_with_the_same_bits(tiny_analysis, tmp_path, 9)


@pytest.mark.parametrize("kind", ["damaged", "of another chunk", "of another run"])
def test_a_wrong_chunk_is_observed_again(tiny_analysis, tmp_path: Path, kind: str) -> None:
    analysis = tiny_analysis("gpt2")
    model = analysis.loaded()
    plan = analysis.plan(model, analysis.corpus)

    def cancel(phrase: str, share: float | None) -> None:
        if share is not None and share > 0.5:
            raise Cancelled("stop")

    partial = tmp_path / "partial"
    with pytest.raises(Cancelled):
        observe(model, plan, seed=3, partial=partial, progress=cancel)
    second = partial / "chunk-000001.safetensors"
    if kind == "damaged":
        second.write_bytes(second.read_bytes()[:-10] + b"0123456789")
    elif kind == "of another chunk":
        second.write_bytes((partial / "chunk-000000.safetensors").read_bytes())
    else:
        with pytest.raises(Cancelled):
            observe(tiny_analysis("llama").loaded(), plan, seed=3, partial=tmp_path / "other", progress=cancel)
        second.write_bytes((tmp_path / "other" / second.name).read_bytes())
    assert_same(observe(model, plan, seed=3), observe(model, plan, seed=3, partial=partial))


def test_position_keys_are_spread_and_seeded() -> None:
    places = (np.arange(200)[:, None] << 32) + np.arange(50)
    keys = position_keys(places.ravel(), 0)
    assert len(set(keys.tolist())) == len(keys)
    assert abs(keys.astype(np.float64).mean() / 2**64 - 0.5) < 0.02
    assert not np.array_equal(keys, position_keys(places.ravel(), 1))


def test_moments_do_not_change_when_merged(tiny_analysis) -> None:
    part: Moments = tiny_analysis("gpt2").observation().fit
    before = part.sum_p.copy()
    part.merge(part)
    np.testing.assert_array_equal(before, part.sum_p)
