"""Training: what is kept, what is never trained on, the same bits after every kind of interruption, one sentence a fault."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from core.corpus import Corpus, read_corpus, split_documents
from core.errors import AnalysisError, Cancelled, InputError
from core.series import summary, train_series
from core.settings import Progress, Settings
from core.store import Store
from core.train import TrainSettings, read_frequency, read_run, train

SETTINGS = TrainSettings(vocab=400, dim=16, layers=1, heads=2, context=32, batch=4, steps=24, seed=5, threads=1)
STEPS = [0, 1, 2, 4, 8, 16, 24]
MEASURE = Settings(positions=600)

WORDS = (
    "the river of and a mill to in water was it stone that bridge for people came on slow with morning they had frost as "
    "turned were valley old white from which still nobody knew seventeen wheel by this grain but not above town after "
    "flour their one below night ran winter there no long sacks other road when more market before little carried under "
    "summer miller where houses snow never great hill cart each field down horse over while paid then spring up cattle"
)
MARKS = "ABCDEFGHIJKLMNOPQRST"
"""A letter for each document that is in no other, whatever the tokens are."""


def texts(seed: int = 0) -> list[str]:
    """Twenty documents whose words have the frequencies of Zipf's law; every tenth word is the document's own letter."""
    random, words = np.random.default_rng(seed), WORDS.split()
    share = 1 / np.arange(1, len(words) + 1)
    found = []
    for mark in MARKS:
        chosen = random.choice(words, 200, p=share / share.sum())
        found.append(" ".join(mark if place % 10 == 9 else str(word) for place, word in enumerate(chosen)))
    return found


def text_file(folder: Path, seed: int = 0) -> Path:
    """The texts as a corpus on disk, a document a line."""
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(seed)))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return read_corpus(str(text_file(tmp_path_factory.mktemp("text"))))


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted. Shared: it is never changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder, corpus, SETTINGS)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def weights(run: Path) -> dict[int, bytes]:
    """Step → the bytes of its weights, of every step folder of a run."""
    folders = {int(path.name.removeprefix("step-")): path for path in run.glob("step-*")}
    return {step: (folders[step] / "model.safetensors").read_bytes() for step in sorted(folders)}


def stopping(step: int) -> Progress:
    """A progress callback that stops a training before a step."""

    def told(phrase: str, share: float | None) -> None:
        if phrase.startswith(f"Training, step {step} "):
            raise Cancelled("Stopped.")

    return told


# What is kept


def test_the_checkpoints_are_log_spaced(run: Path, corpus: Corpus) -> None:
    assert replace(SETTINGS, steps=2).checkpoints == (0, 1, 2)
    assert replace(SETTINGS, steps=3).checkpoints == (0, 1, 2, 3)
    assert replace(SETTINGS, steps=32).checkpoints == (0, 1, 2, 4, 8, 16, 32)
    assert replace(SETTINGS, steps=33).checkpoints == (0, 1, 2, 4, 8, 16, 32, 33)
    assert replace(SETTINGS, steps=4096).checkpoints[-6:] == (512, 1024, 1536, 2048, 3072, 4096)
    assert list(weights(run)) == STEPS
    told: list[tuple[int, Path]] = []
    train(run, corpus, SETTINGS, on_checkpoint=lambda *each: told.append(each))  # nothing is left to do
    assert told == [(step, run / f"step-{step}") for step in STEPS]


def test_stock_transformers_loads_every_step(run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    losses = []
    for step in STEPS:
        model = AutoModelForCausalLM.from_pretrained(run / f"step-{step}")
        tokenizer = AutoTokenizer.from_pretrained(run / f"step-{step}")
        assert model.config.model_type == "gpt_neox" and not model.config.tie_word_embeddings
        assert model.get_output_embeddings().weight.shape == (SETTINGS.vocab, SETTINGS.dim)
        assert len(tokenizer) == SETTINGS.vocab and tokenizer.decode(tokenizer(texts()[0])["input_ids"]) == texts()[0]
        ids = torch.tensor([tokenizer(texts()[0])["input_ids"][:256]])
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert losses[0] == pytest.approx(np.log(SETTINGS.vocab), abs=0.2)  # it begins by knowing nothing
    assert losses[-1] < losses[0] - 0.3


def test_what_is_held_out_is_never_trained_on(run: Path, corpus: Corpus) -> None:
    """By the counts, and by the weights: an input embedding that no batch ever met has only decayed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "step-0")
    documents = [np.array(tokenizer(text)["input_ids"]) for text in corpus.texts]
    trained, held_out = split_documents(documents, SETTINGS.held_out, SETTINGS.seed)
    assert sorted(trained + held_out) == list(range(20)) and held_out
    frequency = read_frequency(run)
    assert frequency is not None
    expected = np.bincount(np.concatenate([documents[i] for i in trained]), minlength=SETTINGS.vocab)
    expected[tokenizer.eos_token_id] += len(trained)
    np.testing.assert_array_equal(frequency.counts, expected)
    assert frequency.tokens == expected.sum()
    first, last = (load_file(run / f"step-{step}/model.safetensors")["gpt_neox.embed_in.weight"] for step in (0, 24))
    parallel = torch.cosine_similarity(first, last).numpy() > 1 - 1e-6
    marked = {mark: [i for piece, i in tokenizer.get_vocab().items() if mark in piece] for mark in MARKS}
    for document, mark in enumerate(MARKS):
        assert (frequency.counts[marked[mark]].sum() == 0) == (document in held_out)
        if document in held_out:
            assert parallel[marked[mark]].all()
    assert not any(parallel[marked[MARKS[document]]].all() for document in trained)


# The same bits


def test_the_same_seed_gives_the_same_bytes(run: Path, corpus: Corpus, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(tmp_path / "same", corpus, SETTINGS)
    train(tmp_path / "other", corpus, replace(SETTINGS, seed=6))
    assert torch.equal(before, torch.random.get_rng_state())
    once, other = weights(run), weights(tmp_path / "other")
    assert weights(tmp_path / "same") == once
    assert other.keys() == once.keys() and all(other[step] != once[step] for step in STEPS)


@pytest.mark.parametrize("step", [0, 1, 11, 16, 23])
def test_a_cancelled_run_goes_on_to_the_same_bits(run: Path, corpus: Corpus, tmp_path: Path, step: int) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(Cancelled):
        train(tmp_path / "run", corpus, SETTINGS, progress=stopping(step))
    assert list(weights(tmp_path / "run")) == [each for each in STEPS if each <= step]
    assert torch.get_num_threads() == threads
    told: list[int] = []
    train(tmp_path / "run", corpus, replace(SETTINGS, threads=0), on_checkpoint=lambda step, _: told.append(step))
    assert told == STEPS and weights(tmp_path / "run") == weights(run)


def test_a_state_is_kept_when_a_run_is_cancelled(run: Path, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        train(tmp_path / "run", corpus, SETTINGS, progress=stopping(22))
    assert goes_on_at(tmp_path / "run", corpus) == 22
    assert weights(tmp_path / "run") == weights(run)


@pytest.mark.parametrize(
    ("steps", "seconds", "share", "kept"), [(5, 1e6, 1, 20), (256, 0, 1e6, 21), (256, 0, 1e-9, 16)]
)
def test_states_between_the_checkpoints(
    run: Path,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    seconds: float,
    share: float,
    kept: int,
) -> None:
    """For a run that is killed: every so many steps, or seconds, but not where writing it takes most of the time."""
    monkeypatch.setattr("core.train.KEEP_STATE_EVERY", steps)
    monkeypatch.setattr("core.train.KEEP_STATE_SECONDS", seconds)
    monkeypatch.setattr("core.train.KEEP_STATE_SHARE", share)

    def killed(phrase: str, _: float | None) -> None:
        if phrase.startswith("Training, step 21 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", corpus, SETTINGS, progress=killed)
    assert goes_on_at(tmp_path / "run", corpus) == kept
    assert weights(tmp_path / "run") == weights(run)


def goes_on_at(run: Path, corpus: Corpus) -> int:
    """The step of the state, and that the run goes on there, to its end."""
    step = int(load_file(run / "state.safetensors")["step"].item())
    phrases: list[str] = []
    train(run, corpus, SETTINGS, progress=lambda phrase, _: phrases.append(phrase))
    assert next(phrase for phrase in phrases if "step" in phrase).startswith(f"Training, step {step} ")
    return step


def test_stopped_between_a_checkpoint_and_its_state(
    run: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step's folder is there and the state is an older one: the step is told and kept as any other."""
    from core import train as module

    keep = module._State.keep

    def stopped(state: module._State, step: int) -> None:
        if step == 16:
            raise Cancelled("Stopped.")
        keep(state, step)

    monkeypatch.setattr(module._State, "keep", stopped)
    with pytest.raises(Cancelled):
        train(tmp_path / "run", corpus, SETTINGS)
    monkeypatch.setattr(module._State, "keep", keep)
    told: list[int] = []
    with pytest.raises(Cancelled):
        train(
            tmp_path / "run", corpus, SETTINGS, progress=stopping(17), on_checkpoint=lambda step, _: told.append(step)
        )
    assert told == STEPS[:-1]
    assert load_file(tmp_path / "run/state.safetensors")["step"].item() == 17
    train(tmp_path / "run", corpus, SETTINGS)
    assert weights(tmp_path / "run") == weights(run)


KILLED = """
import os, signal, sys
from pathlib import Path

import torch
import transformers

from core import corpus, series, settings, store, train

torch.set_num_threads(int(sys.argv[5]))
where, text, folder, cache = sys.argv[1:5]

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def told(phrase, share):
    if phrase.startswith(f"Training, step {where} "):
        kill()

if where == "writing":  # the weights of a step are written, its tokenizer is not
    transformers.PreTrainedTokenizerFast.save_pretrained = lambda self, at: kill()

series.train_series(
    corpus.read_corpus(text), train.TrainSettings(**train.read_run(Path(folder))["settings"]), Path(folder),
    settings.Settings(positions=600), store.Store(cache), progress=told,
)
"""


@pytest.mark.thorough
def test_a_run_killed_with_9_goes_on_to_the_same_bits(
    run: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two kept states, gone on, killed while a step is written, gone on: nobody can tell."""
    folder = tmp_path / "killed" / "run"
    folder.mkdir(parents=True)
    shutil.copy(run / "run.json", folder)  # begun, and not a step done
    for where, steps in (("11", STEPS[:5]), ("writing", STEPS[:5])):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, where, corpus.name, str(folder), str(tmp_path / "cache"),
             str(torch.get_num_threads())], capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert list(weights(folder)) == steps
        assert load_file(folder / "state.safetensors")["step"].item() == 8
    assert len(list(folder.glob(".writing-*"))) == 1
    found = train_series(corpus, SETTINGS, folder, MEASURE, Store(tmp_path / "cache"))
    once = train_series(corpus, SETTINGS, tmp_path / "once" / "run", MEASURE, Store(tmp_path / "other cache"))
    assert weights(folder) == weights(run) == weights(tmp_path / "once" / "run")
    assert json.dumps(summary(found)) == json.dumps(summary(once))
    assert [each.samples for each in found.checkpoints] == [each.samples for each in once.checkpoints]
    assert not list((tmp_path / "killed").rglob(".writing-*"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in run.iterdir())


# One sentence a fault


def says(error: BaseException) -> str:
    message = str(error)
    assert message.isprintable() and message.endswith(".") and len(message) < 300
    return message


@pytest.mark.parametrize(
    "change", [{"dim": 32}, {"seed": 6}, {"steps": 25}, {"held_out": 0.5}, {"learning_rate": 1e-3}, {"batch": 5}]
)
def test_a_folder_of_other_settings(copy: Path, corpus: Corpus, change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="holds another training run") as caught:
        train(copy, corpus, replace(SETTINGS, **change))  # type: ignore[arg-type]
    assert "'copy'" in says(caught.value)


def test_a_folder_of_another_text(run: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds another training run") as caught:
        train(copy, read_corpus(str(text_file(tmp_path, seed=1))), SETTINGS)
    says(caught.value)
    assert weights(copy) == weights(run)


def test_a_folder_of_something_else(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear all,")
    with pytest.raises(InputError, match="not empty and holds no training run") as caught:
        train(tmp_path, corpus, SETTINGS)
    says(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(AnalysisError, match="cannot be kept") as caught:
        train(tmp_path / "letter.txt", corpus, SETTINGS)
    says(caught.value)


def test_what_is_left_of_a_run_that_was_killed_at_once(run: Path, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / ".writing-x1y2z3").write_text("{")
    train(tmp_path, corpus, SETTINGS)
    assert weights(tmp_path) == weights(run) and not list(tmp_path.glob(".writing-*"))


def no_step(path: Path) -> None:
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "step"}, path)


def other_shapes(path: Path) -> None:
    save_file(
        {name: torch.cat([tensor] * 2) if tensor.dim() > 1 else tensor for name, tensor in load_file(path).items()},
        path,
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize("damage", [cut, emptied, overwritten, no_step, other_shapes])
def test_a_damaged_state(run: Path, copy: Path, corpus: Corpus, damage: Callable[[Path], None]) -> None:
    damage(copy / "state.safetensors")
    with pytest.raises(AnalysisError, match=r"damaged: remove its state\.safetensors") as caught:
        train(copy, corpus, SETTINGS)
    says(caught.value)
    assert weights(copy) == weights(run)


def test_after_a_damaged_state_is_removed(run: Path, copy: Path, corpus: Corpus) -> None:
    """As the sentence says: it starts again, to the same bits, and every step is told."""
    (copy / "state.safetensors").unlink()
    shutil.rmtree(copy / "step-8")
    told: list[int] = []
    train(copy, corpus, SETTINGS, on_checkpoint=lambda step, _: told.append(step))
    assert told == STEPS and weights(copy) == weights(run)
    assert load_file(copy / "state.safetensors")["step"].item() == 24


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"settings": 3}', b'{"settings": {"vocab": "many"}}', b"null"]
)
def test_a_damaged_run_json(copy: Path, corpus: Corpus, content: bytes) -> None:
    (copy / "run.json").write_bytes(content)
    with pytest.raises(InputError, match="holds no training run that can be read") as caught:
        train(copy, corpus, SETTINGS)
    says(caught.value)
    with pytest.raises(InputError, match="holds no training run that can be read"):
        read_run(copy)


def test_too_little_text(tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "One mill."}\n{"text": "Two mills and a bridge."}\n')
    with pytest.raises(AnalysisError, match="a few thousand words are the least") as caught:
        train(tmp_path / "few", read_corpus(str(few)), SETTINGS)
    says(caught.value)
    few.write_text('{"text": "One mill."}\n')
    with pytest.raises(AnalysisError, match="is one document of") as caught:
        train(tmp_path / "one", read_corpus(str(few)), SETTINGS)
    says(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 3}, "--heads is 3, but .* with --dim 16 there can be 1 or 2"),
        ({"heads": 4}, "--heads is 4, but each head takes a multiple of 8"),
        ({"heads": 0}, "--heads is 0"),
        ({"vocab": 257}, "--vocab is 257"),
        ({"dim": 4}, "--dim is 4"),
        ({"layers": 0}, "--layers is 0"),
        ({"steps": 1}, "--steps is 1"),
        ({"batch": 0}, "--batch is 0"),
        ({"context": 8}, "--context is 8"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        replace(SETTINGS, **change)  # type: ignore[arg-type]
    says(caught.value)


def test_a_loss_that_is_no_number(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="The training loss is no number at step") as caught:
        train(tmp_path / "run", corpus, replace(SETTINGS, learning_rate=1e30))
    says(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk(
    run: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What was kept is complete, and with space the run goes on."""

    def full(*_: object, **__: object) -> None:
        raise error

    with pytest.raises(Cancelled):
        train(tmp_path / "run", corpus, SETTINGS, progress=stopping(11))
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        with pytest.raises(AnalysisError, match=r"No space left on device.*what was kept so far is complete") as caught:
            train(tmp_path / "run", corpus, SETTINGS)
    says(caught.value)
    assert not list(tmp_path.rglob(".writing-*"))
    train(tmp_path / "run", corpus, SETTINGS)
    assert weights(tmp_path / "run") == weights(run)


def test_a_folder_whose_name_is_not_utf8(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'tr\\?' lies at a path that is not UTF-8") as caught:
        train(tmp_path / "tr\udce9", corpus, SETTINGS)
    says(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_memory_does_not_hold(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known before anything is made; and where the memory goes meanwhile, that is a sentence too."""
    most = replace(SETTINGS, vocab=65536, batch=1024, context=2048)
    with pytest.raises(AnalysisError, match=r"Training this model needs about .* GB .* smaller --batch") as caught:
        train(tmp_path / "run", corpus, most)
    says(caught.value)
    assert not list(tmp_path.iterdir())

    def failing(said: str) -> Progress:
        def progress(phrase: str, share: float | None) -> None:
            if phrase.startswith("Training"):
                raise RuntimeError(said)

        return progress

    with pytest.raises(AnalysisError, match="not enough memory to train: choose a smaller --batch") as caught:
        train(tmp_path / "run", corpus, SETTINGS, progress=failing("DefaultCPUAllocator: can't allocate memory"))
    says(caught.value)
    with pytest.raises(RuntimeError, match="shapes"):
        train(tmp_path / "run", corpus, SETTINGS, progress=failing("shapes"))


@pytest.mark.parametrize(
    "name", ["two\nlines", "x" * 300, "x" * 250 + "/" + "y" * 250 + "/" + "z" * 250 + "/" + "w" * 250]
)
def test_a_folder_that_could_not_be_named_afterwards(corpus: Corpus, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        InputError, match=r"cannot be written, its path (is too long|has characters that cannot be printed)"
    ) as caught:
        train(tmp_path / name, corpus, SETTINGS)
    says(caught.value)
    assert not list(tmp_path.iterdir())


def test_sizes_that_no_line_could_be_fitted_to(corpus: Corpus, tmp_path: Path) -> None:
    """It is said before the training, not after it."""
    with pytest.raises(InputError, match="--vocab 320 is too small for --dim 328") as caught:
        replace(SETTINGS, vocab=320, dim=328, heads=1)
    says(caught.value)
    steps = []
    with pytest.raises(
        AnalysisError, match=r"Only \d+ of the tokens stand in the text, too few for --dim 312"
    ) as failed:
        train(
            tmp_path / "run", corpus, replace(SETTINGS, vocab=320, dim=312, heads=1),
            progress=lambda phrase, share: steps.append(phrase),
        )  # fmt: skip
    says(failed.value)
    assert not [each for each in steps if each.startswith("Training")]
