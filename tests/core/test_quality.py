"""Distinct-n and repetition counted by hand; MAUVE on distributions that are known, and on texts of models."""

from __future__ import annotations

import importlib.metadata
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from core.analysis import Analysis
from core.cli.commands import cli
from core.errors import AnalysisError, Cancelled, InputError
from core.generate import encode_prompt
from core.quality import distinct, repetition, text_quality
from core.results import Sampling
from core.settings import Settings
from core.similarity import mauve
from core.similarity.mauve import mauve_scores
from core.similarity.texts import draw_samples
from core.store import Store

PROMPT = "The river"


def test_distinct_counts_by_hand() -> None:
    texts = [(1, 2, 1, 2), (1, 2), (3,)]
    assert distinct(texts, 1) == 3 / 7  # 1, 2 and 3 of seven tokens
    assert distinct(texts, 2) == 2 / 4  # 12, 21, 12 and 12: none from one text into the next
    assert distinct(texts, 3) == 1  # 121, 212
    assert math.isnan(distinct(texts, 5)) and math.isnan(distinct([], 1))


def test_repetition_counts_by_hand() -> None:
    assert repetition([(1, 2, 3, 4, 5, 6, 7, 8)]) == 0
    assert repetition([(7,) * 9]) == 5 / 6  # 7777 six times, five of them again
    assert repetition([(1, 2, 3, 4), (1, 2, 3, 4)]) == 0  # the same in another text is no repetition
    assert repetition([(7,) * 9, (1, 2, 3, 4), (1, 2, 3)]) == 5 / 12  # the text of three tokens has no 4-gram
    assert math.isnan(repetition([(1, 2, 3)]))
    found = text_quality([(7,) * 9, (1, 2, 3, 4)])
    assert (found.texts, found.tokens, found.distinct_1, found.repetition) == (2, 13, 5 / 13, 5 / 12)


def test_texts_too_short_to_repeat_themselves_say_so() -> None:
    done = CliRunner().invoke(cli, ["generate", "demo", "--prompt", PROMPT, "--samples", "2", "--new-tokens", "2"])
    assert done.exit_code == 0 and "nan" not in done.output and done.output.rstrip().endswith("–")


def test_mauve_tells_distributions_apart() -> None:
    """Two samples of one distribution, one with two of six groups missing, and one that shares nothing."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((12, 24)) * 6

    def sample(groups: int, start: int = 0) -> np.ndarray:
        chosen = centres[start + random.integers(groups, size=256)]
        return (chosen + random.standard_normal(chosen.shape)).astype(np.float32)

    first, again, fewer, other = sample(6), sample(6), sample(4), sample(6, 6)
    found = mauve_scores(first, [again, fewer, other], seed=1)
    same, part, apart = found.values
    assert found.clusters == 26  # texts / 10
    assert same > 0.9 > part > apart and apart < 0.05
    assert mauve_scores(first, [again, fewer, other], seed=1) == found  # in another process too


def test_what_goes_wrong_in_the_other_process_is_told() -> None:
    with pytest.raises(AnalysisError, match="could not compare"):
        mauve_scores(np.full((64, 4), np.nan, dtype=np.float32), [np.zeros((64, 4), dtype=np.float32)])


def test_a_comparison_can_be_stopped() -> None:
    def stop(phrase: str, share: float | None) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        mauve_scores(np.eye(64, dtype=np.float32), [np.eye(64, dtype=np.float32)], progress=stop)


def test_samples_are_independent_and_their_features_those_of_the_model(tiny_analysis) -> None:
    """Against the texts run through the model once more, whole and one by one."""
    analysis: Analysis = tiny_analysis("llama")
    model = analysis.loaded()
    prompt = encode_prompt(model, PROMPT)
    told: list[float] = []
    sampling = Sampling(new_tokens=20, seed=2)
    sides = draw_samples(model, prompt, None, sampling, 40, 0, lambda _, share: told.append(share or 0.0))
    other = draw_samples(model, prompt, None, sampling, 40, 1)
    texts = [text for pair in (sides, other) for side in pair for text in side.texts]
    assert len(set(texts)) == len(texts) == 160
    assert draw_samples(model, prompt, None, sampling, 40, 0)[1].texts == sides[1].texts
    assert told == sorted(told) and told[-1] == 1.0
    for text, feature in zip(sides[0].texts, sides[0].features, strict=True):
        hidden = model.hidden_states(torch.cat([prompt, torch.tensor([text])], 1))[0, prompt.shape[1] - 1 : -1]
        assert len(hidden) == len(text)
        np.testing.assert_allclose(feature, hidden.mean(0).numpy(), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def demo() -> Analysis:
    return Analysis("demo", "sampler")


@pytest.mark.thorough
def test_pruning_shows_in_mauve(demo: Analysis) -> None:
    """The better head is closer to the model as it is; no edit at all is at the ceiling."""
    sampling = Sampling(new_tokens=16, seed=1)
    none, good, bad = (
        demo.similarity(PROMPT, None, sampling, texts=128, method=method, removed=removed)
        for method, removed in ((None, None), ("rotated", 0.1), ("reverse", 0.6))
    )
    assert none.ceiling == good.ceiling == bad.ceiling  # the same seed, the same texts of the model as it is
    assert abs(none.value - none.ceiling) < 0.1
    assert good.value > none.ceiling - 0.15
    assert bad.value < 0.6 * bad.ceiling
    assert bad.before == good.before and bad.before.texts == bad.after.texts == 128
    assert demo.similarity(PROMPT, None, sampling, texts=128, method="reverse", removed=0.6) == bad  # stored


def test_texts_that_never_differ_get_a_sentence(tiny_analysis) -> None:
    with pytest.raises(InputError, match="raise the temperature"):
        tiny_analysis("gpt2").similarity(PROMPT, None, Sampling(new_tokens=4, top_k=1), texts=32)


def test_too_few_texts_and_a_missing_package_get_a_sentence(tiny_analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="from 32"):
        tiny_analysis("gpt2").similarity(PROMPT, texts=8)

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mauve.importlib.metadata, "version", missing)
    run = CliRunner().invoke(cli, ["generate", "demo", "--prompt", PROMPT, "--mauve"])
    assert run.exit_code == 2 and 'pip install "headscope[mauve]"' in run.output


def test_the_command_tells_all_of_it(tiny_analysis, store: Store, tmp_path: Path) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    target = tmp_path / "texts.json"
    s = analysis.settings
    run = CliRunner().invoke(
        cli,
        ["generate", analysis.model, "--prompt", PROMPT, "--method", "saliency", "--remove", "0.5", "--samples", "3",
         "--new-tokens", "12", "--mauve", "--mauve-texts", "40", "--positions", str(s.positions), "--context",
         str(s.context), "--held-out", str(s.held_out), "--seed", str(s.seed), "--cache", str(store.folder), "--json",
         str(target)],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "MAUVE" in run.output and "distinct-2" in run.output
    found = json.loads(target.read_text("utf-8"))
    assert len(found["before"]) == len(found["after"]) == 3 and found["token_counts"] == []
    assert (found["method"], found["removed"]) == ("saliency", 0.5)
    assert set(found["quality"]["after"]) == {"texts", "tokens", "distinct_1", "distinct_2", "distinct_3", "repetition"}
    told = found["mauve"]
    assert 0 < told["value"] <= 1 and 0 < told["ceiling"] <= 1
    assert (told["texts"], told["new_tokens"], told["seed"], told["clusters"]) == (40, 12, s.seed, 4)
    known = analysis.similarity(
        PROMPT, None, Sampling(3, 12, seed=s.seed), texts=40, method="saliency", removed=0.5
    )  # from the store: the same result
    assert told["value"] == known.value and told["quality"]["after"]["tokens"] == known.after.tokens


@pytest.mark.thorough
def test_mauve_on_the_real_model(cache_folder: Path, smollm2_files) -> None:
    """Of a fifth of the dimensions, the paper's order loses more than the rotated head."""
    analysis = Analysis("smollm2", "sampler", Settings(positions=2048, held_out=0.1), Store(cache_folder))
    found = [
        analysis.similarity("The", None, Sampling(new_tokens=16), texts=64, method=method, removed=0.5)
        for method in ("saliency", "rotated")
    ]
    assert found[0].value < found[1].value <= found[1].ceiling + 0.1
