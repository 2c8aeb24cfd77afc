"""Pruned heads and their curve against brute force: the model itself in float64 with its output embedding replaced."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from core.analysis import Analysis
from core.encoding import encode
from core.errors import AnalysisError, Cancelled, InputError
from core.moments import Moments, Observation
from core.pruning.basis import (
    Basis,
    compensated,
    deletion,
    find_basis,
    ridged,
    rotated,
    surgeon_order,
    token_covariance,
)
from core.pruning.curve import Judge
from core.pruning.head import cut, prune_head
from core.pruning.names import DELETIONS, METHODS, kept_dims
from core.pruning.result import largest_removable
from core.pruning.study import kept_share, token_deciles
from core.store import Store

HEADS = {
    "gpt2": "tied",
    "gptj": "biased",
    "gemma2": "soft-capped, tied",
    "cohere": "scaled, tied",
    "gpt_neox": "untied, padded",
    "opt": "projected",
}
FRACTIONS = (0.0, 0.25, 0.6)


def with_head(analysis: Analysis, weight: torch.Tensor) -> nn.Module:
    """Stock transformers in float64 with another output embedding; a tied input embedding stays."""
    model = AutoModelForCausalLM.from_pretrained(analysis.files().folder, dtype=torch.float64).eval()
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(weight.double())
    return model


def held_out_log_probabilities(analysis: Analysis, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """log p [n, V] of every held-out position, float64, and the true next tokens [n], from the model's own forward pass."""
    plan = analysis.plan(analysis.loaded(), analysis.corpus)
    found, following = [], []
    with torch.no_grad():
        for chunk in plan.chunks:
            if chunk.held_out:
                real = torch.from_numpy(chunk.targets >= 0)
                logits = model(torch.from_numpy(chunk.inputs)).logits
                found.append(logits.double().log_softmax(-1)[real])
                following.append(torch.from_numpy(chunk.targets)[real])
    return torch.cat(found), torch.cat(following).long()


def divergences(p: torch.Tensor, q: torch.Tensor, following: torch.Tensor) -> tuple[float, float, float, float]:
    """KL, top-1 agreement, perplexity before and after of log probabilities [n, V]."""
    kl = (p.exp() * (p - q)).sum(1).mean()
    same = (p.argmax(1) == q.argmax(1)).double().mean()
    losses = [-each.gather(1, following[:, None]).mean() for each in (p, q)]
    return kl.item(), same.item(), losses[0].exp().item(), losses[1].exp().item()


@pytest.mark.parametrize("architecture", HEADS, ids=list(HEADS.values()))
def test_a_point_is_what_the_model_with_zeroed_columns_gives(tiny_analysis, architecture: str) -> None:
    """Plain deletion, without any code of Headscope but the order in which dimensions leave."""
    analysis: Analysis = tiny_analysis(architecture)
    (found,) = analysis.prune(["saliency"], FRACTIONS)
    whole = AutoModelForCausalLM.from_pretrained(analysis.files().folder, dtype=torch.float64).eval()
    weight = whole.get_output_embeddings().weight.detach()
    p, following = held_out_log_probabilities(analysis, whole)
    assert len(p) == found.positions
    encoding = analysis.encoding()
    assert found.order.tolist() == np.argsort(encoding.saliency, kind="stable").tolist()
    for point in found.points:
        gone = found.order[: weight.shape[1] - point.dims]
        assert len(gone) == round(point.removed * weight.shape[1])
        zeroed = weight.clone()
        zeroed[:, gone] = 0
        q, _ = held_out_log_probabilities(analysis, with_head(analysis, zeroed))
        kl, same, before, after = divergences(p, q, following)
        assert point.kl == pytest.approx(kl, abs=1e-5)
        assert point.top1_agreement == pytest.approx(same, abs=2.5 / len(p))
        assert found.perplexity_full == pytest.approx(before, rel=1e-5)
        assert point.perplexity == pytest.approx(after, rel=1e-5)
        assert point.perplexity_ratio == pytest.approx(after / before, rel=1e-5)
    assert found.points[0].kl <= 1e-9 and found.points[0].js <= 1e-12 and found.points[0].perplexity_ratio == 1
    assert found.points[-1].kl > 0.01


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in DELETIONS])
@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2", "cohere"])
def test_a_point_is_what_the_model_with_the_dense_matrix_gives(tiny_analysis, architecture: str, method: str) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    (found,) = analysis.prune([method], FRACTIONS)
    whole = AutoModelForCausalLM.from_pretrained(analysis.files().folder, dtype=torch.float64).eval()
    p, following = held_out_log_probabilities(analysis, whole)
    head = analysis.loaded().head
    for point in found.points:
        own = analysis.own_moments(method)
        pruned = prune_head(head, analysis.encoding(), analysis.observation().fit, method, point.removed, own=own)
        assert pruned.dims == point.dims
        q, _ = held_out_log_probabilities(analysis, with_head(analysis, pruned.dense_weight()))
        kl, same, _, after = divergences(p, q, following)
        assert point.kl == pytest.approx(kl, abs=1e-5)
        assert point.top1_agreement == pytest.approx(same, abs=2.5 / len(p))
        assert point.perplexity == pytest.approx(after, rel=1e-4)
    assert found.points[0].kl <= 1e-9 and found.points[-1].kl > 1e-3


def sample_of(analysis: Analysis):
    return analysis.observation().held_out.reservoir


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2"])
@pytest.mark.parametrize("method", ["rms", "compensated", "rotated"])
def test_the_curve_equals_separate_evaluations(tiny_analysis, architecture: str, method: str) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    head, fit, sample = analysis.loaded().head, analysis.observation().fit, sample_of(analysis)
    basis = find_basis(method, head, analysis.encoding(), fit)
    found = Judge(head, sample, close=100).measure(basis, [30, 9, 17, 32])
    assert found.widths == (30, 9, 17, 32)
    hidden, following = torch.from_numpy(sample.hidden), torch.from_numpy(sample.next_token).long()
    p = head.logits(hidden).double().log_softmax(1)
    for place, width in enumerate(found.widths):
        q = cut(head, basis, width, method, 0.5).logits(hidden).double().log_softmax(1)
        kl, same, before, after = divergences(p, q, following)
        assert found.kl[place] == pytest.approx(kl, abs=1e-5)
        assert found.top1[place] == pytest.approx(same, abs=1.5 / len(p))
        assert np.exp(found.loss[place]) == pytest.approx(after, rel=1e-5)
        assert np.exp(found.loss_full) == pytest.approx(before, rel=1e-5)
        close, pruned = p[:100], q[:100]
        middle = torch.logaddexp(close, pruned) - np.log(2)
        js = ((close.exp() * (close - middle)).sum(1) + (pruned.exp() * (pruned - middle)).sum(1)).mean().item() / 2
        assert found.js[place] == pytest.approx(js, abs=1e-6)
        share = (close.exp() * (close - pruned)).mean(0).numpy()
        np.testing.assert_allclose(found.token_kl[place], share, atol=1e-6)
        np.testing.assert_allclose(found.token_drift[place], (pruned - close).abs().mean(0).numpy(), atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2"])
def test_a_basis_of_few_components_is_judged_against_the_full_head(tiny_analysis, architecture: str) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    head, sample = analysis.loaded().head, sample_of(analysis)
    basis = find_basis("rotated", head, analysis.encoding(), analysis.observation().fit)
    few = Basis(basis.columns[:, :20], basis.components[:, :20], None)
    judge = Judge(head, sample, close=64)
    whole, part = judge.measure(basis, [12, 20]), judge.measure(few, [12, 20])
    np.testing.assert_allclose(part.kl, whole.kl, atol=1e-5)
    np.testing.assert_allclose(part.js, whole.js, atol=1e-6)
    assert part.loss_full == pytest.approx(whole.loss_full, abs=1e-5)


def test_compensation_is_least_squares(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    fit, head = analysis.observation().fit, analysis.loaded().head
    hidden = fit.reservoir.hidden.astype(np.float64)
    assert len(hidden) == fit.n  # the reservoir is the whole fitting part here
    order = np.random.default_rng(5).permutation(32)
    basis = compensated(order, fit.sum_hh / fit.n)
    weight = head.weight.double().numpy()
    for width in (5, 20, 31):
        kept, gone = order[:width], order[width:]
        taken, *_ = np.linalg.lstsq(hidden[:, kept], hidden[:, gone], rcond=None)
        expected = weight[:, kept] + weight[:, gone] @ taken.T
        pruned = cut(head, basis, width, "compensated", 0.5)
        np.testing.assert_array_equal(pruned.kept.numpy(), kept)
        np.testing.assert_allclose(pruned.left.numpy(), expected, rtol=1e-4, atol=1e-4)


def spread(rows: int, dim: int, seed: int) -> np.ndarray:
    """[d, d] second moments of correlated columns of unequal size."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, dim)) @ random.standard_normal((dim, dim)) * np.geomspace(1, 9, dim)
    return x.T @ x / rows


def loss(basis: Basis, width: int, weighting: np.ndarray, second: np.ndarray) -> float:
    """tr(G·E[(h − ĥ)(h − ĥ)ᵀ]) of the first `width` components."""
    left = np.eye(len(second)) - basis.columns[:, :width] @ basis.components[:, :width].T
    return float(np.trace(weighting @ left @ second @ left.T))


def test_the_surgeon_takes_the_cheapest_dimension_each_time() -> None:
    weighting, second = spread(50, 9, 1), spread(60, 9, 2)
    order = surgeon_order(weighting, second)
    left = list(range(9))
    for taken in order[:-1]:
        costs = {}
        for candidate in left:
            kept = [i for i in left if i != candidate]
            gone = [i for i in range(9) if i not in kept]
            predict = second[np.ix_(gone, kept)] @ np.linalg.inv(second[np.ix_(kept, kept)])
            rest = second[np.ix_(gone, gone)] - predict @ second[np.ix_(kept, gone)]
            costs[candidate] = np.trace(weighting[np.ix_(gone, gone)] @ rest)
        assert taken == min(costs, key=costs.__getitem__)
        left.remove(taken)
        assert loss(compensated(order[::-1], second), len(left), weighting, second) == pytest.approx(costs[taken])


def test_no_projection_of_that_rank_loses_less_than_the_rotation() -> None:
    weighting, second = spread(50, 9, 3), spread(60, 9, 4)
    basis = rotated(weighting, second)
    np.testing.assert_allclose(basis.columns @ basis.components.T, np.eye(9), atol=1e-9)
    values = np.linalg.eigvals(weighting @ second).real
    random = np.random.default_rng(0)
    for width in (2, 5, 8):
        least = loss(basis, width, weighting, second)
        assert least == pytest.approx(np.sort(values)[: 9 - width].sum(), rel=1e-9)
        order = surgeon_order(weighting, second)[::-1].copy()
        assert least <= loss(compensated(order, second), width, weighting, second) + 1e-9
        for _ in range(20):
            near = Basis(
                basis.columns + 0.02 * random.standard_normal((9, 9)),
                basis.components + 0.02 * random.standard_normal((9, 9)),
                None,
            )
            assert least < loss(near, width, weighting, second)


def test_the_weighting_is_the_covariance_of_the_rows(tiny_analysis) -> None:
    head, alpha = tiny_analysis("gpt_neox").loaded().head, np.random.default_rng(0).random(320)
    found = token_covariance(head, alpha)
    np.testing.assert_allclose(found, np.cov(head.weight.double().numpy().T, aweights=alpha, bias=True), rtol=1e-9)


def other_numbers(part: Moments, seed: int) -> Moments:
    """Another text altogether: every sum and every position is drawn anew."""
    random = np.random.default_rng(seed)
    drawn = {
        name: (getattr(part, name) * (0.5 + random.random(getattr(part, name).shape))).astype(getattr(part, name).dtype)
        for name in ("sum_p", "counts", "sum_h", "sum_h_log_z")
    }
    drawn["sum_hh"] = part.sum_hh + np.diag(np.diag(part.sum_hh) * 9 * random.random(len(part.sum_hh)))
    sample = part.reservoir
    moved = dataclasses.replace(
        sample, hidden=sample.hidden * 2 + 1, log_z=sample.log_z + 1, key=sample.key + np.uint64(1)
    )
    return dataclasses.replace(part, **drawn, n=part.n + 7, sum_log_z=0.0, sum_loss=1.0, reservoir=moved)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_computed_from_the_judged_positions(tiny_analysis, method: str) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    head, true, own = analysis.loaded().head, analysis.observation(), analysis.own_moments(method)
    embedding = head.weight.numpy()

    def arrays(observation: Observation) -> list[np.ndarray]:
        encoding = encode(embedding, observation, is_token=head.is_token, seed=3)
        pruned = prune_head(head, encoding, observation.fit, method, 0.4, seed=3, own=own)
        return [np.asarray(part) for part in (pruned.left, pruned.right, pruned.kept) if part is not None]

    before = arrays(true)
    after = arrays(dataclasses.replace(true, held_out=other_numbers(true.held_out, 1)))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    if method not in ("random", "std"):  # these two know no text at all
        moved = arrays(dataclasses.replace(true, fit=other_numbers(true.fit, 2)))
        assert not all(np.array_equal(a, b) for a, b in zip(before, moved, strict=True))


@pytest.mark.parametrize("method", ["saliency", "greedy", "rotated"])
def test_a_pruned_head_is_smaller_and_the_same_as_its_dense_matrix(tiny_analysis, method: str) -> None:
    analysis: Analysis = tiny_analysis("gptj")
    head, sample = analysis.loaded().head, sample_of(analysis)
    untouched = head.weight.clone()
    pruned = prune_head(head, analysis.encoding(), analysis.observation().fit, method, 0.3, multiple=8)
    assert pruned.dims == 16 and pruned.left.shape == (300, 16)
    hidden = torch.from_numpy(sample.hidden[:50])
    dense = hidden @ pruned.dense_weight().T + head.bias
    torch.testing.assert_close(pruned.logits(hidden), dense, rtol=1e-4, atol=1e-4)
    out = torch.empty(50, 300)
    assert pruned.logits(hidden, out=out) is out
    assert pruned.bytes <= 4 * (300 * 16 + 32 * 16 + 300) and (pruned.kept is None) == (method == "rotated")
    assert torch.equal(head.weight, untouched)


def test_the_models_own_text_counts_half_as_much(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    head, fit = analysis.loaded().head, analysis.observation().fit
    own = analysis.own_moments("rotated-self")
    assert own is not None and own.n > 2048 and analysis.own_moments("rotated") is None
    by_hand = rotated(
        ridged(token_covariance(head, (2 * fit.alpha + own.alpha) / 3)),
        ridged((2 * fit.sum_hh / fit.n + own.sum_hh / own.n) / 3),
    )
    basis = find_basis("rotated-self", head, analysis.encoding(), fit, own=own)
    for width in (9, 20):  # the signs of the axes are free: what they span is not
        np.testing.assert_allclose(
            basis.columns[:, :width] @ basis.components[:, :width].T,
            by_hand.columns[:, :width] @ by_hand.components[:, :width].T,
            atol=1e-8,
        )
    with pytest.raises(ValueError, match="own text"):
        find_basis("rotated-self", head, analysis.encoding(), fit)
    assert analysis.own_moments("rotated-self").sum_loss == own.sum_loss  # type: ignore[union-attr]


def test_random_orders_have_a_band(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    (several,) = analysis.prune(["random"], [0.3, 0.5], seeds=3)
    assert several.seeds == 3
    head, fit = analysis.loaded().head, analysis.observation().fit
    judge = Judge(head, sample_of(analysis))
    alone = [
        judge.measure(find_basis("random", head, analysis.encoding(), fit, seed), [kept_dims(32, 0.3)]).kl[0]
        for seed in (3, 4, 5)
    ]
    assert len(set(alone)) == 3
    point = several.points[0]
    assert point.kl == pytest.approx(np.mean(alone), abs=1e-6)
    assert (point.kl_low, point.kl_high) == pytest.approx((min(alone), max(alone)), abs=1e-6)


def test_frequent_and_rare_tokens_and_what_stays_of_each_dimension(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt_neox")
    (found,) = analysis.prune(["rms"], [0.5])
    point, fit = found.points[0], analysis.observation().fit
    deciles = token_deciles(fit.alpha, analysis.loaded().head.is_token)
    assert (deciles == -1).sum() == 20 and np.bincount(deciles[deciles >= 0]).tolist() == [30] * 10
    assert fit.alpha[deciles == 0].min() > fit.alpha[deciles == 9].max()
    assert np.isfinite(point.drift_by_decile).all() and (point.drift_by_decile > 0).all()
    assert point.kept_share[found.order[:16]].max() == 0 and point.kept_share[found.order[16:]].min() == 1
    basis = rotated(spread(50, 32, 3), fit_like := spread(60, 32, 4))
    moments = dataclasses.replace(fit, sum_hh=fit_like * fit.n)
    left = basis.columns[:, :6] @ basis.components[:, :6].T
    share = np.diag(left @ fit_like @ left.T) / np.diag(fit_like)
    np.testing.assert_allclose(kept_share(basis, moments, 6), share, rtol=1e-6)


def test_results_are_stored_and_read_without_the_model(tiny_analysis, monkeypatch) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    first = analysis.prune(["std", "rotated"], [0.3])
    again = Analysis(analysis.model, analysis.corpus_name, analysis.settings, analysis.store)
    monkeypatch.setattr(again, "loaded", lambda *_: pytest.fail("the model was loaded"))
    for a, b in zip(first, again.prune(["std", "rotated"], [0.3]), strict=True):
        assert a.points[0].kl == b.points[0].kl and np.array_equal(a.order, b.order)
        assert np.array_equal(a.points[0].kl_by_decile, b.points[0].kl_by_decile)


def test_another_corpus_judges(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    (own,) = analysis.prune(["rotated"], [0.5])
    (other,) = analysis.prune(["rotated"], [0.5], judge="python-docs")
    assert (other.corpus, other.judged_on) == ("sampler", "python-docs") and own.judged_on == "sampler"
    assert other.perplexity_full != own.perplexity_full and other.points[0].kl != own.points[0].kl
    judge = Judge(analysis.loaded().head, sample_of(analysis.elsewhere("python-docs")))
    basis = find_basis("rotated", analysis.loaded().head, analysis.encoding(), analysis.observation().fit)
    assert judge.measure(basis, [16]).kl[0] == pytest.approx(other.points[0].kl, abs=1e-7)


def test_cancelling_stops_between_tiles_and_keeps_what_is_done(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("opt")
    analysis.encoding()
    seen: list[str] = []

    def stop(phrase: str, share: float | None) -> None:
        seen.append(phrase)
        if phrase == "Pruning by reverse":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        analysis.prune(["rms", "reverse"], [0.2], progress=stop)
    assert "Pruning" in seen and "Measuring the full head" in seen
    seen.clear()
    analysis.prune(["rms"], [0.2], progress=stop)
    assert "Pruning" not in seen


def test_fractions_become_widths() -> None:
    assert [kept_dims(576, f) for f in (0, 0.1, 0.3, 0.5)] == [576, 518, 403, 288]
    assert [kept_dims(576, f, 16) for f in (0, 0.1, 0.3, 0.5)] == [576, 512, 400, 288]
    assert kept_dims(570, 0, 16) == 570 and kept_dims(32, 0.9, 16) == 3 and kept_dims(32, 0.999) == 1


@pytest.mark.parametrize("removed", [-0.1, 1.0, 1.5, float("nan")])
def test_a_bad_fraction_is_refused(tiny_analysis, removed: float) -> None:
    with pytest.raises(InputError, match=r"from 0 .nothing. to below 1"):
        tiny_analysis("gpt2").prune(["rms"], [removed])


def test_a_bad_method_is_refused_with_the_good_ones(tiny_analysis) -> None:
    with pytest.raises(InputError, match="'magic', but it must be one of saliency, random"):
        tiny_analysis("gpt2").prune(["magic"], [0.1])
    with pytest.raises(InputError, match="at least one"):
        tiny_analysis("gpt2").prune([], [0.1])


def test_the_largest_fraction_that_keeps_the_top_prediction(tiny_analysis) -> None:
    (found,) = tiny_analysis("gpt2").prune(["rotated"], [0.0, 0.2, 0.4, 0.8])
    points = [dataclasses.replace(p, top1_agreement=t) for p, t in zip(found.points, (1, 0.9, 0.7, 0.8), strict=True)]
    assert largest_removable(points, 0.8) == pytest.approx(0.3)
    assert largest_removable(points, 0.9) == pytest.approx(0.2)
    assert largest_removable(points, 1.0) == 0.0
    assert largest_removable(points, 0.1) == pytest.approx(0.8)
    with pytest.raises(AnalysisError):
        largest_removable([], 0.5)


def test_deleting_keeps_what_stays() -> None:
    basis = deletion(np.array([2, 0, 1]))
    assert basis.complete and np.array_equal(basis.columns @ basis.components.T, np.eye(3))
    assert np.array_equal(np.array([10.0, 11, 12]) @ basis.components[:, :2], [12, 10])


def test_no_cache_still_prunes(tiny_analysis, tmp_path) -> None:
    known: Analysis = tiny_analysis("gpt2")
    analysis = Analysis(known.model, known.corpus_name, known.settings, Store(tmp_path, enabled=False))
    analysis.adopt(known.observation())
    assert analysis.prune(["std"], [0.3])[0].points[0].kl == pytest.approx(known.prune(["std"], [0.3])[0].points[0].kl)


def test_a_result_bears_the_names_that_were_asked_for(tiny_analysis, tmp_path: Path) -> None:
    """The store knows a text by what it holds, whatever it was called when it was stored."""
    plain = tiny_analysis("llama")
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("\n\n".join(plain.corpus.texts[:40]), "utf-8")
        analysis = type(plain)(plain.model, str(tmp_path / name), plain.settings, plain.store)
        found = analysis.prune(("rms",), (0.3,))[0]
        assert found.corpus == found.judged_on == str(tmp_path / name)
