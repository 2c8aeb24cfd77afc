"""Coupled sampling: the same noise on both sides, the right counts, and the right distribution."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.analysis import Analysis
from core.errors import Cancelled, InputError
from core.generate import MOST_CHARACTERS, generate
from core.results import Sampling
from core.settings import Settings, Texts
from core.steering import LOGIT_BIAS, Edit, Steering
from tests.core.test_steering import frequent

PROMPT = "The river"


def edit(analysis: Analysis, ratio: float) -> Steering:
    return analysis.steer([Edit(frequent(analysis, (20,))[0], ratio)])


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "cohere", "mamba"])
def test_ratio_one_gives_identical_sides(tiny_analysis, architecture: str) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    found = analysis.generate(PROMPT, edit(analysis, 1.0), Sampling(samples=6, new_tokens=30))
    assert found.before == found.after and found.before_texts == found.after_texts
    count = found.counts[0]
    assert count.before == count.after
    assert count.expected_before == pytest.approx(count.expected_after, rel=1e-5)
    assert len(set(found.before)) == 6  # and the samples differ from each other


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_removing_nothing_gives_identical_sides(tiny_analysis, architecture: str) -> None:
    """Also with a rotation, whose full-width matrices are the head only up to rounding."""
    analysis: Analysis = tiny_analysis(architecture)
    plain = analysis.generate(PROMPT, None, Sampling(samples=6, new_tokens=30))
    for method in ("rotated", "saliency"):
        for steering in (None, edit(analysis, 1.0)):
            found = analysis.generate(PROMPT, steering, Sampling(samples=6, new_tokens=30), method=method, removed=0.0)
            assert found.before == found.after == plain.before


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("gpt2", "saliency"), ("gemma2", "rotated"), ("gptj", "greedy"), ("cohere", "rotated"), ("opt", "random")],
)
def test_the_pruned_side_is_written_by_a_model_with_that_head(tiny_analysis, architecture: str, method: str) -> None:
    """A copy of the model whose head is the dense matrix, run whole for every token, with the same noise."""
    analysis: Analysis = tiny_analysis(architecture)
    sampling = Sampling(samples=4, new_tokens=12, temperature=0.8, seed=5)
    found = analysis.generate(PROMPT, None, sampling, method=method, removed=0.4)
    model = AutoModelForCausalLM.from_pretrained(analysis.files().folder, dtype=torch.float32).eval()
    prompt = analysis.loaded().tokenizer(PROMPT)["input_ids"]
    assert found.before == _written(model, prompt, sampling)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(analysis.pruned_head(method, 0.4).dense_weight())
    assert found.after == _written(model, prompt, sampling)
    assert found.before != found.after


def _written(model, prompt: list[int], sampling: Sampling) -> tuple[tuple[int, ...], ...]:
    noise = torch.Generator().manual_seed(sampling.seed)
    texts: list[list[int]] = [[] for _ in range(sampling.samples)]
    for _ in range(sampling.new_tokens):
        uniform = torch.rand(sampling.samples, model.get_output_embeddings().weight.shape[0], generator=noise)
        for text, u in zip(texts, uniform, strict=True):
            if text[-1:] == [model.config.eos_token_id]:
                continue
            with torch.no_grad():
                logits = model(torch.tensor([prompt + text])).logits[0, -1] / sampling.temperature
            text.append(int((logits.log_softmax(0) - (-u.log()).log()).argmax()))
    return tuple(map(tuple, texts))


@pytest.mark.parametrize(("architecture", "method"), [("gemma2", "rotated"), ("gptj", "saliency")])
def test_what_is_pruned_is_steered_to_ratios_of_the_model_as_it_was(
    tiny_analysis, architecture: str, method: str
) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    asked = edit(analysis, 4.0)
    pruned, solved = analysis.pruned(method, 0.3, asked)
    assert pruned is not None and solved is not None
    head, token = analysis.loaded().head, asked.token_ids[0]
    weight = pruned.dense_weight().clone()
    weight[token] += torch.from_numpy(solved.delta[0]).float()

    def p(hidden: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
        logits = hidden @ weight.T + (0 if head.bias is None else head.bias)
        cap = head.softcap
        return (logits if cap is None else cap * torch.tanh(logits / cap)).double().softmax(-1).numpy()

    hidden = torch.from_numpy(analysis.observation().fit.reservoir.hidden)
    ratio = p(hidden, weight)[:, token].mean() / p(hidden, head.weight)[:, token].mean()
    assert ratio == pytest.approx(4.0, rel=1e-3)
    found = analysis.next_token(PROMPT, asked, method=method, removed=0.3, top=400)
    at_prompt = torch.from_numpy(found.hidden).float()
    np.testing.assert_allclose(found.before, p(at_prompt, head.weight)[found.token_ids], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.after, p(at_prompt, weight)[found.token_ids], rtol=1e-4, atol=1e-9)
    assert np.isnan(found.others_factor)  # no one factor: pruning moves every token by another


def test_texts_of_a_pruned_head_are_stored_apart(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    sampling = Sampling(samples=2, new_tokens=5, seed=77)
    plain = analysis.keep_texts(PROMPT, None, sampling)
    pruned = {"method": "saliency", "removed": 0.6}
    assert analysis.stored_texts(PROMPT, None, sampling, **pruned) is None
    kept = analysis.keep_texts(PROMPT, None, sampling, **pruned)
    assert analysis.stored_texts(PROMPT, None, sampling, **pruned) == kept != plain
    for same in ({}, {"method": "rotated", "removed": 0.0}):
        assert analysis.stored_texts(PROMPT, None, sampling, **same) == plain


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"method": "saliency"}, "both"), ({"removed": 0.3}, "both"), ({"method": "no", "removed": 0.3}, "must be one of"),
     ({"method": "saliency", "removed": 1.0}, "below 1"), ({"method": "saliency", "removed": float("nan")}, "below 1")],
)  # fmt: skip
def test_wrong_pruning_gets_its_sentence(tiny_analysis, wrong: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tiny_analysis("gpt2").generate(PROMPT, None, Sampling(2, 3), **wrong)


def test_a_logit_bias_is_not_solved_on_a_pruned_head(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    bias = analysis.steer([Edit(frequent(analysis, (20,))[0], 2.0)], LOGIT_BIAS, False)
    with pytest.raises(InputError, match="minimum-variance"):
        analysis.generate(PROMPT, bias, Sampling(2, 3), method="saliency", removed=0.3)


def test_the_same_seed_gives_the_same_texts_and_another_does_not(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    one, again, other = (analysis.generate(PROMPT, None, Sampling(4, 20, seed=s)) for s in (1, 1, 2))
    assert one.before == again.before == one.after
    assert one.before != other.before


def test_texts_agree_until_the_edit_makes_a_difference(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    steering = edit(analysis, 8.0)
    found = analysis.generate(PROMPT, steering, Sampling(samples=16, new_tokens=24))
    token = steering.token_ids[0]
    firsts = 0
    for before, after in zip(found.before, found.after, strict=True):
        differing = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
        if differing is not None:  # the first difference can only be the steered token winning
            assert after[differing] == token
            firsts += 1
    assert firsts >= 3
    assert found.counts[0].after > found.counts[0].before


def test_counts_match_their_expectation(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    found = analysis.generate(
        PROMPT, edit(analysis, 6.0), Sampling(samples=64, new_tokens=60, temperature=0.9, top_p=0.98)
    )
    count = found.counts[0]
    for seen, expected in ((count.before, count.expected_before), (count.after, count.expected_after)):
        assert abs(seen - expected) < 5 * np.sqrt(expected + 1)
    assert count.low <= count.after <= count.high
    assert count.after == sum(text.count(count.id) for text in found.after)


def test_sampling_draws_from_the_models_distribution(tiny_analysis) -> None:
    """First tokens of many samples against the probabilities: a chi-square over the likeliest."""
    from scipy.stats import chisquare

    analysis: Analysis = tiny_analysis("gptj")
    steering = edit(analysis, 3.0)
    known = analysis.next_token(PROMPT, steering, top=8)
    drawn: tuple[list[int], list[int]] = ([], [])
    for seed in range(20):
        found = analysis.generate(PROMPT, steering, Sampling(samples=64, new_tokens=1, seed=seed))
        for side, texts in zip(drawn, (found.before, found.after), strict=True):
            side.extend(text[0] for text in texts)
    for side, p in zip(drawn, (known.before, known.after), strict=True):
        seen = np.array([side.count(int(i)) for i in known.token_ids] + [0])
        seen[-1] = len(side) - seen.sum()
        expected = np.append(p, 1 - p.sum()) * len(side)
        large = expected > 5
        pooled = [np.append(x[large], x[~large].sum() + 1e-9) for x in (seen, expected)]
        assert chisquare(pooled[0], pooled[1] * pooled[0].sum() / pooled[1].sum()).pvalue > 1e-4


def test_truncation_keeps_to_the_likeliest(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    greedy = analysis.generate(PROMPT, None, Sampling(samples=5, new_tokens=12, top_k=1))
    assert len(set(greedy.before)) == 1
    assert greedy.before[0][0] == analysis.next_token(PROMPT, top=1).token_ids[0]


def test_texts_end_at_the_end_token(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    end = analysis.loaded().tokenizer.eos_token_id
    found = analysis.generate(PROMPT, None, Sampling(samples=64, new_tokens=90))
    assert any(len(text) < 90 for text in found.before)
    for text in found.before:
        assert end not in text[:-1]
        assert len(text) == 90 or text[-1] == end
    assert found.steps_before == sum(map(len, found.before))


def test_texts_are_told_while_they_are_written(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    told: list[tuple[Texts, Texts]] = []
    steering, sampling = edit(analysis, 6.0), Sampling(samples=32, new_tokens=90)
    found = analysis.generate(PROMPT, steering, sampling, on_tokens=lambda *sides: told.append(sides))
    assert told[-1] == (found.before, found.after)  # end tokens and the cut behind them included
    assert len({len(text) for text in found.before}) > 1
    assert found == analysis.generate(PROMPT, steering, sampling)  # being watched changes nothing
    for number, sides in enumerate(told, start=1):
        for side, whole in zip(sides, (found.before, found.after), strict=True):
            assert side == tuple(text[:number] for text in whole)


def test_a_run_can_be_stopped_between_tokens(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    calls = 0

    def stop(phrase: str, share: float | None) -> None:
        nonlocal calls
        calls += share is not None and share > 0.2
        if calls > 2:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        generate(analysis.loaded(), PROMPT, None, Sampling(2, 30), progress=stop)
    assert calls == 3


@pytest.mark.parametrize(
    "arguments",
    [{"samples": 0}, {"samples": 10_000}, {"new_tokens": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5},
     {"top_k": -1}, {"seed": -1}, {"temperature": float("nan")}],
)  # fmt: skip
def test_sampling_settings_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        Sampling(**arguments)  # type: ignore[arg-type]


def test_prompts_that_are_too_long_get_a_sentence(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    with pytest.raises(InputError, match="50,000 characters"):
        analysis.next_token("x" * 50_000)
    with pytest.raises(InputError, match="context is 128"):
        analysis.next_token("water " * 400)
    with pytest.raises(InputError, match="context is 128"):
        analysis.generate(PROMPT, None, Sampling(1, 128))
    assert MOST_CHARACTERS < 50_000


def test_an_empty_prompt_starts_a_text(tiny_analysis) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    assert analysis.next_token("").before.sum() > 0


def test_the_chat_format_is_only_used_where_there_is_one(tiny_analysis) -> None:
    with pytest.raises(InputError, match="no chat template"):
        tiny_analysis("gpt2").next_token("hello", chat=True)


def test_a_corpus_of_the_models_own_text(store, tiny_analysis) -> None:
    from dataclasses import replace

    other: Analysis = tiny_analysis("gpt2")
    analysis = Analysis(other.model, "self:2000", replace(other.settings, positions=800), store)
    found = analysis.encoding()
    assert found.positions > 700 and found.documents > 2
    again = Analysis(other.model, "self:2000", analysis.settings, store)
    assert again.cached_encoding() is not None


def test_a_model_that_no_token_lets_begin_writes_no_text_of_its_own(store, tiny_analysis, tmp_path: Path) -> None:
    plain: Analysis = tiny_analysis("gpt2")
    folder = Path(shutil.copytree(plain.model, tmp_path / "model"))
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (path := folder / name).is_file():
            kept = {
                key: value for key, value in json.loads(path.read_text()).items() if key[:4] not in ("bos_", "eos_")
            }
            path.write_text(json.dumps(kept))
    analysis = Analysis(str(folder), "sampler", plain.settings, store)
    said = "model cannot write a text of its own, .* another text than self:N, and another method than rotated-self"
    for ask in (
        lambda: analysis.elsewhere("self:600").encoding(),
        lambda: analysis.prune(["saliency", "rotated-self"], [0.3]),
        lambda: analysis.prune(["saliency"], [0.3], judge="self:600"),
    ):
        with pytest.raises(InputError, match=said):
            ask()
    assert analysis.stored_pruning(["saliency"], [0.3]) is None  # told before any method was computed
    assert analysis.prune(["saliency"], [0.3])


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 1, "sequence_bias": [[[30], 20.0]], "min_new_tokens": 30},
        {"num_beams": 3, "stop_strings": ["a"], "return_dict_in_generate": True, "repetition_penalty": 3.0},
        {"bos_token_id": "x", "eos_token_id": ["y", 10**30, -1]},
    ],
)
def test_generation_settings_of_a_model_change_none_of_its_texts(
    tiny_analysis, tmp_path: Path, settings: dict[str, object]
) -> None:
    """Only which tokens end a text is taken from them."""
    plain: Analysis = tiny_analysis("gpt2")
    folder = Path(shutil.copytree(plain.model, tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps(settings))
    other = Analysis(str(folder), "sampler", plain.settings, plain.store)
    sampling = Sampling(samples=3, new_tokens=20)
    assert other.generate(PROMPT, None, sampling).before == plain.generate(PROMPT, None, sampling).before
    own = [
        Analysis(model, "self:600", Settings(positions=256, context=64), plain.store).encoding().r2
        for model in (plain.model, str(folder))
    ]
    assert own[0] == own[1]
