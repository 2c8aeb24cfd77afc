"""Heads of every shape and kind: the identities of the method hold on them, or one sentence says why there is no number."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from core.analysis import Analysis
from core.encoding import Encoding, encode
from core.errors import AnalysisError, HeadscopeError
from core.head_pass import HeadPass
from core.model import Head
from core.moments import Moments, Observation, Reservoir
from core.observe import hidden_sums, position_keys, seen_through
from core.pruning.curve import Judge
from core.pruning.study import prune_curve
from core.settings import Settings
from core.steering import DIRECTIONS, Edit, Steerer, Steering
from core.store import Store
from tests.ledger import attempt, refuse
from tests.properties.texts import FIXED
from tests.tiny import tiny_model

KINDS = (
    *(
        "random",
        "constant column",
        "zero column",
        "twin columns",
        "twin rows",
        "zero rows",
        "all rows alike",
        "rank one",
    ),
    *("huge", "tiny", "half precision", "beyond half precision", "one hot", "one token dominates", "far from zero"),
    *("nan", "inf", "-inf", "nan bias", "inf bias"),
)
NO_NUMBERS = {"nan", "inf", "-inf", "nan bias", "inf bias"}


def weights(kind: str, vocab: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """[vocab, dim] an output embedding of a kind."""
    e = rng.standard_normal((vocab, dim))
    row, column = int(rng.integers(vocab)), int(rng.integers(dim))
    match kind:
        case "constant column":
            e[:, column] = 0.7
        case "zero column":
            e[:, column] = 0
        case "twin columns":
            e[:, column] = e[:, 0]
        case "twin rows":
            e[row] = e[0]
        case "zero rows":
            e[:: 2 + row % 3] = 0
        case "all rows alike":
            e[:] = e[0]
        case "rank one":
            e = np.outer(e[:, 0], e[0])
        case "huge":
            e *= 300
        case "tiny":
            e *= 1e-12
        case "half precision":
            e = e.astype(np.float16)
        case "beyond half precision":
            with np.errstate(over="ignore"):
                e = (e * 60_000).astype(np.float16)  # some of it becomes inf
        case "one hot":
            e[:] = 0
            e[np.arange(vocab), np.arange(vocab) % dim] = 1
        case "one token dominates":
            e[row] *= 50
        case "far from zero":
            e += 30
        case "nan" | "inf" | "-inf":
            e[row, column] = float(kind)
    return e.astype(np.float32)


@st.composite
def heads(draw: st.DrawFn) -> tuple[str, Head, np.random.Generator]:
    kind = draw(st.sampled_from(KINDS))
    vocab = draw(st.sampled_from([1, 2, 3, 5, 17, 40, 90]))
    dim = draw(st.sampled_from([1, 2, 4, 9, 24]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    bias = torch.from_numpy(rng.standard_normal(vocab).astype(np.float32)) if draw(st.booleans()) else None
    if kind.endswith(" bias"):
        bias = torch.zeros(vocab)
        bias[0] = float(kind.split()[0])
    softcap = draw(st.sampled_from([None, None, 3.0, 30.0]))
    is_token = np.ones(vocab, dtype=bool)
    if vocab > 3 and draw(st.booleans()):
        is_token[-2:] = False
    return kind, Head(torch.from_numpy(weights(kind, vocab, dim, rng)), bias, softcap, is_token), rng


def observed(head: Head, rng: np.random.Generator, count: int = 60, at: int = 0) -> Moments:
    """What a pass over `count` positions with random hidden states leaves; none is dropped from the reservoir."""
    vocab, dim = head.weight.shape
    hidden = torch.from_numpy((rng.standard_normal((count, dim)) + 0.5).astype(np.float32))
    targets = torch.from_numpy(rng.integers(vocab, size=count))
    found = HeadPass(head)(hidden, targets)
    log_z = found.log_z.numpy()
    key = position_keys(np.arange(at, at + count), 0)
    order = np.argsort(key)
    reservoir = Reservoir(
        256,
        key[order],
        hidden.numpy()[order],
        log_z[order],
        found.top_ids.numpy()[order],
        found.top_logits.numpy()[order],
        targets.numpy()[order].astype(np.int32),
    )
    counts = np.bincount(targets.numpy(), minlength=vocab).astype(np.int64)
    sum_h, sum_hh, sum_h_log_z = hidden_sums(hidden, log_z)
    sums = sum_h, sum_hh, float(log_z.sum()), float((log_z**2).sum()), sum_h_log_z, float(found.loss.sum())
    return Moments(count, found.sum_p.numpy(), counts, *sums, reservoir)


def softmax(head: Head, moments: Moments) -> np.ndarray:
    """[m, V] probabilities at the kept positions, in fp64 from the definition."""
    logits = moments.reservoir.hidden.astype(np.float64) @ head.weight.double().numpy().T
    if head.bias is not None:
        logits += head.bias.double().numpy()
    if head.softcap is not None:
        logits = head.softcap * np.tanh(logits / head.softcap)
    logits -= logits.max(1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def made(head: Head, rng: np.random.Generator) -> tuple[Observation, Encoding]:
    seen = Observation(observed(head, rng), observed(head, rng, 30, 1000), 4, 2)
    bias = None if head.bias is None else head.bias.double().numpy()
    return seen, encode(head.weight.numpy(), seen, bias=bias, is_token=head.is_token)


# --- observe ----------------------------------------------------------------------------------------------------------


@FIXED
@given(heads())
def test_probabilities(case: tuple[str, Head, np.random.Generator]) -> None:
    kind, head, rng = case

    def are_right(found: Moments) -> None:
        if head.softcap is not None and (kind in NO_NUMBERS or not head.weight.isfinite().all()):
            return  # a soft-cap makes numbers of infinite logits, as the model does; the fit refuses the weights
        assert kind not in NO_NUMBERS and head.weight.isfinite().all()
        assert found.sum_p.sum() / found.n == pytest.approx(1, abs=1e-5) and (found.sum_p >= 0).all()
        right = softmax(head, found)
        np.testing.assert_allclose(found.alpha, right.mean(0), rtol=2e-3, atol=1e-6)
        rounding = 1e-6 * (1 + np.abs(found.reservoir.top_logits).max())  # of logits in fp32
        assert np.log(found.perplexity) >= -rounding and found.log_z_variance >= 0

    attempt(lambda: observed(head, rng), are_right)


@FIXED
@given(heads(), st.tuples(*[st.integers(1, 40)] * 3))
def test_merging_is_associative(case: tuple[str, Head, np.random.Generator], counts: tuple[int, int, int]) -> None:
    _, head, rng = case

    def shards() -> list[Moments]:
        return [observed(head, rng, count, 1000 * place) for place, count in enumerate(counts)]

    def merge(parts: list[Moments]) -> None:
        a, b, c = parts
        left, right, other = a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)
        for one in (right, other):
            assert one.n == left.n == sum(counts)
            for name in ("sum_p", "sum_h", "sum_hh", "sum_log_z", "sum_log_z2", "sum_h_log_z", "sum_loss"):
                np.testing.assert_allclose(getattr(one, name), getattr(left, name), rtol=1e-9, atol=1e-9)
            np.testing.assert_array_equal(one.counts, left.counts)
            np.testing.assert_array_equal(one.reservoir.key, left.reservoir.key)
            np.testing.assert_array_equal(one.reservoir.hidden, left.reservoir.hidden)

    attempt(shards, merge)


# --- encode -----------------------------------------------------------------------------------------------------------


@FIXED
@given(heads())
def test_the_fit(case: tuple[str, Head, np.random.Generator]) -> None:
    kind, head, rng = case

    def is_right(result: tuple[Observation, Encoding]) -> None:
        found = result[1]
        assert head.weight[found.token_ids].isfinite().all() and (kind not in NO_NUMBERS or head.softcap is not None)
        for name in ("weights", "intercept", "saliency", "alpha", "neg_log_alpha", "predicted", "r2", "effective_dims"):
            assert np.isfinite(getattr(found, name)).all(), name
        assert max(found.r2, found.r2_held_out_tokens, *(p.r2_refitted for p in found.sparsity)) <= 1 + 1e-9
        assert found.r2 >= -1e-6 and (found.alpha > 0).all()
        assert ((found.p_values >= 0) & (found.p_values <= 1)).all() and 0 <= found.effective_dims <= found.dim + 1e-9
        assert not set(found.token_ids) & set(np.flatnonzero(~head.is_token))
        if found.rank == found.dim and found.condition_number < 1e4:
            ones = np.column_stack([head.weight.double().numpy()[found.token_ids], np.ones(len(found.token_ids))])
            offset = 0 if head.bias is None else head.bias.double().numpy()[found.token_ids]
            best = ones @ np.linalg.lstsq(ones, found.neg_log_alpha + offset, rcond=None)[0] - offset
            scale = 1 + np.abs(found.neg_log_alpha).max()
            np.testing.assert_allclose(found.predicted, best, atol=1e-5 * scale)
        elif found.rank < found.dim:
            assert found.warnings and found.condition_number == float("inf")

    attempt(lambda: made(head, rng), is_right)


# --- steer ------------------------------------------------------------------------------------------------------------


@settings(FIXED, max_examples=60)
@given(heads(), st.data())
def test_steering(case: tuple[str, Head, np.random.Generator], data: st.DataObject) -> None:
    _, head, rng = case
    try:
        seen, encoding = made(head, rng)
    except HeadscopeError:
        return
    count = min(data.draw(st.integers(1, 3)), len(encoding.token_ids))
    ids = sorted(data.draw(st.permutations(encoding.token_ids.tolist()))[:count])
    direction = data.draw(st.sampled_from(DIRECTIONS)).replace(":K", ":1")
    calibrate = data.draw(st.booleans())
    ratios = [data.draw(st.sampled_from([1.0, 1.0, 0.5, 2.0, 20.0, 0.001, 1e6])) for _ in ids]
    rows, bias = head.rows(ids)

    def edit() -> tuple[Steerer, Steering]:
        steerer = Steerer(
            seen.fit, seen.held_out, encoding, ids, rows, bias, [f"t{i}" for i in ids],
            softcap=head.softcap, direction=direction,
        )  # fmt: skip
        return steerer, steerer.steer(ratios, calibrate)

    def is_right(result: tuple[Steerer, Steering]) -> None:
        found = result[1]
        for value in (found.kl, found.js, found.top1_agreement, found.others_drift, found.delta_norm):
            assert np.isfinite(value) and value >= 0
        assert found.js <= np.log(2) + 1e-9 and found.top1_agreement <= 1 and np.isfinite(found.delta).all()
        if all(ratio == 1 for ratio in ratios):
            assert found.kl < 1e-9 and found.top1_agreement == 1 and not found.delta.any()
            assert all(abs(t.realised - 1) < 1e-9 and abs(t.realised_held_out - 1) < 1e-9 for t in found.tokens)
        if found.calibrated:
            for token in found.tokens:
                assert token.realised == pytest.approx(token.target, rel=2e-4)
        edited = replace(head, weight=head.weight.clone())
        edited.weight[ids] += torch.from_numpy(found.delta.astype(np.float32))
        if edited.weight.abs().max() < 1e3 and np.abs(found.delta).max() < 1e3 and head.weight.abs().max() < 1e2:
            before, after = softmax(head, seen.held_out)[:, ids], softmax(edited, seen.held_out)[:, ids]
            realised = [token.realised_held_out for token in found.tokens]
            np.testing.assert_allclose(realised, after.mean(0) / before.mean(0), rtol=5e-3, atol=1e-6)

    with np.errstate(over="ignore"):
        attempt(edit, is_right)


# --- prune ------------------------------------------------------------------------------------------------------------


@settings(FIXED, max_examples=60)
@given(heads(), st.sampled_from(["saliency", "random", "rms", "compensated", "greedy", "rotated"]))
def test_pruning(case: tuple[str, Head, np.random.Generator], method: str) -> None:
    _, head, rng = case
    try:
        seen, encoding = made(head, rng)
    except HeadscopeError:
        return

    def curve() -> Any:
        sample = seen_through(head, seen.held_out.reservoir)
        return prune_curve(head, encoding, seen.fit, Judge(head, sample), method, [0.0, 0.3, 0.8], seeds=[0])

    def is_right(found: Any) -> None:
        for point in found.points:
            assert np.isfinite(point.kl) and point.kl > -1e-5 and 0 <= point.top1_agreement <= 1
            assert 0 <= point.js <= np.log(2) + 1e-6 and point.perplexity >= 1 - 1e-6
        whole = found.points[0]
        assert whole.dims == encoding.dim and whole.kl < 1e-6 and whole.top1_agreement == 1

    attempt(curve, is_right)


# --- whole models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("llama"), tie_word_embeddings=False)


def changed(folder: Path, place: Path, change: Any, **config: Any) -> str:
    """A copy of the model with other numbers in its head."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    tensors = load_file(place / "model.safetensors")
    tensors["lm_head.weight"] = change(tensors["lm_head.weight"]).contiguous()
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    if config:
        known = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(known | config))
    return str(place)


def put(value: float) -> Any:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.clone()
        weight[7, 3] = value
        return weight

    return change


MODELS = {
    "nan": (put(float("nan")), True),
    "inf": (put(float("inf")), True),
    "overflow": (lambda w: w * 1e38, True),
    "all zero": (lambda w: w * 0, True),
    "all rows alike": (lambda w: w[:1].expand(w.shape).clone(), True),
    "constant column": (lambda w: torch.cat([w[:, :-1], torch.ones(len(w), 1)], 1), False),
    "twin columns": (lambda w: torch.cat([w[:, :-1], w[:, :1]], 1), False),
    "large": (lambda w: w * 1e3, False),
}


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_models_with_odd_heads(tmp_path: Path, folder: Path, kind: str) -> None:
    change, is_refused = MODELS[kind]
    name = changed(folder, tmp_path / "model", change)
    analysis = Analysis(name, "sampler", Settings(positions=200, context=32), Store(tmp_path / "store"))

    def is_right(found: Encoding) -> None:
        assert np.isfinite(found.predicted).all() and found.r2 <= 1
        assert found.rank == found.dim or found.warnings

    if is_refused:
        refuse(lambda: analysis.encoding(), AnalysisError)
    else:
        attempt(lambda: analysis.encoding(), is_right)


@pytest.mark.parametrize(("vocab", "width"), [(1, 32), (2, 32), (20, 32)])
def test_models_with_few_tokens(tmp_path: Path, vocab: int, width: int) -> None:
    """The tokenizer knows 300: what the model does not is never looked up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = str(tiny_model("llama", tmp_path / "model", vocab_size=vocab, pad_token_id=None, eos_token_id=0))
    analysis = Analysis(name, "sampler", Settings(positions=64, context=8), Store(tmp_path / "store"))
    refuse(lambda: analysis.encoding(), AnalysisError)


def test_a_model_that_overflows_in_half_precision(tmp_path: Path) -> None:
    """Numbers that fp16 cannot hold: refused with the remedy; in fp32 the same files would do."""
    name = tiny_model("llama", tmp_path / "model", dtype="float16")
    tensors = load_file(name / "model.safetensors")
    for key in [key for key in tensors if "mlp" in key]:
        tensors[key] = (tensors[key].float() * 300).half()
    save_file(tensors, name / "model.safetensors", {"format": "pt"})
    settings = Settings(positions=64, context=8)
    said = refuse(lambda: Analysis(str(name), "sampler", settings, Store(tmp_path / "store")).encoding(), AnalysisError)
    assert "float32" in said or "finite" in said


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.999, 1.001, 2, 3])
def test_a_head_so_steep_that_small_steps_change_nothing(tmp_path: Path, folder: Path, ratio: float) -> None:
    """What larger steps do is looked for too."""
    name = changed(folder, tmp_path / "model", lambda weight: weight * 1000)
    analysis = Analysis(name, "sampler", Settings(positions=400, context=32), Store(tmp_path / "store"))
    token = int(np.argmax(analysis.encoding().alpha))
    assert analysis.steer([Edit(token, ratio)]).tokens[0].realised == pytest.approx(ratio, rel=1e-6)


def test_a_token_whose_embedding_is_no_number(tmp_path: Path, folder: Path) -> None:
    """Only texts that hold the token are concerned: each says so, and none is sampled from what is no probability."""
    name = Path(changed(folder, tmp_path / "model", lambda weight: weight))
    analysis = Analysis(str(name), "sampler", Settings(positions=64, context=8), Store(tmp_path / "store"))
    token = analysis.loaded().tokenizer("&")["input_ids"][-1]
    tensors = load_file(name / "model.safetensors")
    tensors["model.embed_tokens.weight"][token, 5] = float("nan")
    save_file(tensors, name / "model.safetensors", {"format": "pt"})
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"word {number} & another word of many" for number in range(400)))

    def of(corpus: str) -> Analysis:
        return Analysis(str(name), corpus, Settings(positions=64, context=8), Store(tmp_path / "store"))

    assert of("sampler").encoding().dim > 0
    for work in (lambda: of("sampler").next_token("a & b"), lambda: of("sampler").generate("a & b")):
        said = refuse(work, AnalysisError)
        assert "at this prompt are not finite numbers" in said and "float32" not in said
    said = refuse(lambda: of(str(text)).encoding(), AnalysisError)
    assert "on this text are not finite numbers" in said and "another checkpoint" in said and "float32" not in said
