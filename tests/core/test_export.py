"""Exports against stock transformers in another process, against whole distributions, and at the moment of a crash."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from core.analysis import Analysis
from core.cli.commands import cli
from core.errors import AnalysisError, Cancelled, InputError
from core.export import place, reload, run
from core.export.place import PREFIX, check_target, scratch_beside, sweep
from core.export.result import Exported
from core.model import ModelFiles
from core.model.load import doctor
from core.settings import Settings
from core.steering import LOGIT_BIAS, Edit, Steering
from core.store import Store
from tests.tiny import tiny_gguf, tiny_model

PROMPTS = ["The river ran past the mill", "In the morning 12 people"]
SMALL = Settings(positions=600, context=64, held_out=0.5, seed=3)
RATIOS = (2.0, 0.6)

KINDS: dict[str, str | tuple[str, dict[str, Any]]] = {
    "tied": "gpt2",
    "untied, padded": "gpt_neox",
    "biased": "gptj",
    "soft-capped, tied": "gemma2",
    "multiplied, tied": "cohere",
    "divided": "granite",
    "projected": "opt",
    "divided before the head": "minicpm3",
    "bf16, tied": ("llama", {"dtype": "bfloat16", "tie_word_embeddings": True}),
    "fp16, untied": ("gpt_neox", {"dtype": "float16"}),
}
"""Architectures of `tests.tiny`; those named alone are observed once for all tests of `core`."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these only wait for each other on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


class InProcess:
    """Stands where the other process is: the same code here, for tests that are about something else."""

    def __init__(self, scratch: Path, device: str, threads: int) -> None:
        self.scratch, self.device = scratch, device

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def answer(self, progress: Callable[[str, float | None], None]) -> dict[str, Any]:
        progress("Reloading the checkpoint in another process", None)
        return reload.run_checkpoint(self.scratch, self.device)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Reloader", InProcess)


def analysis_of(folder: Path, store: Store) -> Analysis:
    return Analysis(str(folder), "sampler", SMALL, store)


def frequent(analysis: Analysis, places: tuple[int, ...]) -> list[int]:
    encoding = analysis.encoding()
    return [int(i) for i in encoding.token_ids[np.argsort(-encoding.alpha)][list(places)]]


def two_edits(analysis: Analysis) -> list[Edit]:
    return [Edit(i, r) for i, r in zip(frequent(analysis, (60, 90)), RATIOS, strict=True)]


# Many kinds of models, reloaded in one other process


def lone_keys(folder: Path) -> Path:
    """As GPT-2 lies on the Hub: saved from the base model, so that no tensor's name begins with `transformer.`"""
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def head_only(folder: Path) -> Path:
    """Tied, but stored as the head and not as the input embedding."""
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def both(folder: Path) -> Path:
    """Tied, and stored twice."""
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def sharded(folder: Path) -> Path:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="30KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def written_as_half(folder: Path) -> Path:
    """Stored in half precision and loaded in fp32, as the configuration says."""
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def gguf(folder: Path) -> Path:
    return tiny_gguf(folder.with_suffix(".gguf"), folder)


MADE: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "names without a prefix": ("gpt2", lone_keys),
    "stored as the head only": ("gpt2", head_only),
    "stored twice": ("gpt2", both),
    "sharded, tied": ("gpt2", sharded),
    "fp16 in the file": ("gpt_neox", written_as_half),
    "GGUF": ("llama", gguf),
}

STOCK = """
import hashlib, json, sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

def look(folder, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            rows.append(model(ids).logits[0, -1].double().softmax(0).tolist())
        text = tokenizer.decode(model.generate(ids, max_new_tokens=3)[0])
    inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return model, tokenizer, {
        "p": rows, "text": text, "inputs": digest(inputs), "head": digest(head), "tied": inputs is head,
        "dtype": str(head.dtype), "config": model.config.tie_word_embeddings,
    }

found = {}
for name, (source, folder) in json.load(open(sys.argv[1])).items():
    model, tokenizer, first = look(folder, json.loads(sys.argv[2]))
    model.save_pretrained(folder + "-again")
    tokenizer.save_pretrained(folder + "-again")
    second = look(folder + "-again", json.loads(sys.argv[2]))[2]
    found[name] = {"first": first, "second": second, "source": look(source, json.loads(sys.argv[2]))[2]}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exports(tiny_analysis, store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """Kind → (analysis, what was promised, the export, what stock transformers says of it in one other process)."""
    made: dict[str, tuple[Analysis, Steering, Exported]] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "Reloader", InProcess)
        for kind in (*KINDS, *MADE):
            place = tmp_path_factory.mktemp("model")
            if kind in MADE:
                architecture, change = MADE[kind]
                analysis = analysis_of(change(tiny_model(architecture, place / "tiny")), store)
            elif isinstance(settings := KINDS[kind], str):
                analysis = tiny_analysis(settings)
            else:
                analysis = analysis_of(tiny_model(settings[0], place / "tiny", **settings[1]), store)
            edits = two_edits(analysis)
            made[kind] = (analysis, analysis.steer(edits), analysis.export(place / "out", edits))
    table = tmp_path_factory.mktemp("stock") / "folders.json"
    folders = {kind: (str(analysis.files().folder), export.path) for kind, (analysis, _, export) in made.items()}
    table.write_text(json.dumps(folders))
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(table), json.dumps(PROMPTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return {kind: (*made[kind], said[kind]) for kind in made}


@pytest.mark.parametrize("kind", [*KINDS, *MADE])
def test_another_process_gives_what_was_promised(exports: dict[str, tuple[Any, ...]], kind: str) -> None:
    """Stock transformers, which knows nothing of Headscope, and once more after it saved and loaded the model itself."""
    analysis, steering, export, said = exports[kind]
    half = said["first"]["dtype"] != "torch.float32"
    for at, prompt in enumerate(PROMPTS):
        promised = analysis.next_token(prompt, steering, top=400)
        for save in ("first", "second"):
            p = np.array(said[save]["p"][at])[promised.token_ids]
            np.testing.assert_allclose(p, promised.after, atol=1e-3 if half else 1e-4)
            change = np.abs(promised.after - promised.before).max()
            assert half or np.abs(p - promised.after).max() < 0.02 * change  # and not only because little changes
    first, second, source = said["first"], said["second"], said["source"]
    assert first["inputs"] == second["inputs"] == source["inputs"]  # bit for bit what it was
    assert first["head"] == second["head"] != source["head"]
    assert not (first["tied"] or first["config"] or second["tied"] or export.tied)
    assert source["tied"] == export.was_tied == analysis.head_facts().description.tied
    assert first["dtype"] == source["dtype"] and first["text"] == second["text"]


@pytest.mark.parametrize("kind", [*KINDS, *MADE])
def test_only_the_steered_rows_are_others(exports: dict[str, tuple[Any, ...]], kind: str) -> None:
    analysis, steering, export, _ = exports[kind]
    before, after = (
        {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
        for folder in (analysis.files().folder, Path(export.path))
    )
    head = next(name for name in sorted(after) if name not in before or not torch.equal(after[name], before[name]))
    same = [name for name in after if name != head and name in before]
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in same)
    added = set(after) - set(before)
    assert len(added) == (1 if export.was_tied and kind != "stored twice" else 0)
    source = before.get(head, next((before[n] for n in before if before[n].shape == after[head].shape), None))
    rows = torch.unique((after[head] != source).nonzero()[:, 0]) if source is not None else []
    assert sorted(map(int, rows)) == sorted(steering.token_ids)
    assert export.head_bytes == after[head].nbytes
    assert export.model_bytes == sum(path.stat().st_size for path in Path(export.path).glob("*.safetensors"))


def test_the_numbers_are_those_of_whole_distributions(exports: dict[str, tuple[Any, ...]]) -> None:
    for kind in ("tied", "soft-capped, tied", "biased", "multiplied, tied", "bf16, tied"):
        analysis, steering, export, _ = exports[kind]
        effect, sample = export.effect, analysis.observation().held_out.reservoir
        assert effect.positions == len(sample)
        close = 0.02 if "bf16" in kind else 1e-3
        np.testing.assert_allclose(effect.realised, [t.realised_held_out for t in steering.tokens], rtol=close)
        np.testing.assert_allclose(effect.kl, steering.kl, rtol=3 * close, atol=1e-6)
        np.testing.assert_allclose(effect.js, steering.js, rtol=3 * close, atol=1e-6)
        assert effect.top1_agreement == pytest.approx(steering.top1_agreement, abs=2 / len(sample))
        assert [t.realised_held_out for t in export.tokens] == list(effect.realised)
        assert export.max_logit_error <= export.tolerance < 1e-3


def test_the_manifest_tells_where_it_comes_from(exports: dict[str, tuple[Any, ...]]) -> None:
    for kind in ("sharded, tied", "GGUF", "tied"):
        analysis, steering, export, _ = exports[kind]
        folder = Path(export.path)
        said = json.loads((folder / "headscope.json").read_text("utf-8"))
        for name, entry in said["files"].items():
            content = (folder / name).read_bytes()
            assert (len(content), sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
        assert {*said["files"], "headscope.json"} == {path.name for path in folder.iterdir()}
        files = analysis.files()
        assert said["source"]["sha256"] == files.sha256 and said["source"]["revision"] == files.revision
        for name, digest in said["source"]["files"].items():
            assert sha256((files.folder / name).read_bytes()).hexdigest() == digest
        assert "/" not in said["source"]["model"] and "pytest" not in json.dumps(said)  # no folder of this machine
        assert [token["target"] for token in said["tokens"]] == list(RATIOS)
        assert said["direction"] == steering.direction and said["settings"]["seed"] == analysis.settings.seed
        assert said["corpus"]["name"] == "sampler" and said["effect"]["kl"] == export.effect.kl
        assert said["versions"]["torch"] == torch.__version__


def test_an_export_is_a_model_here_too(exports: dict[str, tuple[Any, ...]], store: Store) -> None:
    for kind in ("tied", "GGUF"):
        analysis, _, export, _ = exports[kind]
        found = doctor(export.path, cache=store.folder)
        assert found["supported"] and not found["tied"]
        again = Analysis(export.path, "sampler", analysis.settings, store)
        ids = [token.id for token in export.tokens]
        before, after = analysis.observation().fit.alpha, again.observation().fit.alpha
        np.testing.assert_allclose(
            after[ids] / before[ids], RATIOS, rtol=1e-3
        )  # the whole model, run on the text again
        assert again.encoding().r2 > 0


# Pruned, and pruned and steered


def mean_p(analysis: Analysis, weight: torch.Tensor, ids: list[int], part: str) -> np.ndarray:
    """[k] mean probability of tokens over a sample, from whole distributions of the model with another head, in fp64."""
    head = analysis.loaded().head
    hidden = torch.from_numpy(getattr(analysis.observation(), part).reservoir.hidden).double()
    z = hidden @ weight.double().T + (0 if head.bias is None else head.bias.double())
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z.softmax(1).mean(0).numpy()[ids]


PRUNED = [("gpt2", "saliency"), ("gptj", "compensated"), ("gemma2", "rotated"), ("cohere", "rotated")]


@pytest.mark.parametrize(("architecture", "method"), PRUNED)
@pytest.mark.parametrize("direction", ["minimum-variance", "saliency"])
def test_pruned_and_steered_the_ratio_is_that_to_the_model_as_it_was(
    tiny_analysis, tmp_path: Path, in_process: None, architecture: str, method: str, direction: str
) -> None:
    analysis: Analysis = tiny_analysis(architecture)
    head = analysis.loaded().head
    ids = frequent(analysis, (60, 90))
    edits = [Edit(ids[0], 1.4), Edit(ids[1], 1.0)]  # the second brings back what pruning took or gave
    export = analysis.export(tmp_path / "out", edits, direction, method=method, removed=0.25)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weight = weights["lm_head.weight"]
    for part, close in (("fit", 1e-4), ("held_out", 0.2)):
        ratio = mean_p(analysis, weight, ids, part) / mean_p(analysis, head.weight, ids, part)
        np.testing.assert_allclose(ratio, [1.4, 1.0], rtol=close)
    np.testing.assert_allclose(export.effect.realised, ratio, rtol=1e-4)
    np.testing.assert_allclose([token.realised for token in export.tokens], [1.4, 1.0], rtol=1e-4)
    assert export.pruning is not None and export.pruning.dims == 24 and export.pruning.dim == 32
    values = torch.linalg.svdvals(weight.double())
    assert values[24] < 1e-4 * values[0] < values[23]  # what was pruned stays pruned, also in the steered rows
    if method != "rotated":
        assert int((weight == 0).all(0).sum()) == 8


@pytest.mark.parametrize(("architecture", "method"), PRUNED)
def test_a_pruned_export_is_the_pruned_head(
    tiny_analysis, tmp_path: Path, in_process: None, architecture: str, method: str
) -> None:
    from core.pruning.head import prune_head

    analysis: Analysis = tiny_analysis(architecture)
    model, observation = analysis.loaded(), analysis.observation()
    pruned = prune_head(model.head, analysis.encoding(), observation.fit, method, 0.25, analysis.settings.seed)
    export = analysis.export(tmp_path / "out", method=method, removed=0.25)
    ids = torch.tensor([model.tokenizer(PROMPTS[0])["input_ids"]])
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(export.path).eval()(ids).logits[0]
    torch.testing.assert_close(stock, pruned.logits(model.hidden_states(ids)[0]), atol=1e-4, rtol=1e-4)
    hidden = torch.from_numpy(observation.held_out.reservoir.hidden)
    p, q = (each.logits(hidden).double().log_softmax(1) for each in (model.head, pruned))
    middle = torch.logaddexp(p, q) - np.log(2)
    assert export.effect.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    js = 0.5 * ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)).mean()
    assert export.effect.js == pytest.approx(float(js), rel=1e-3)
    assert export.effect.top1_agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    following = torch.from_numpy(observation.held_out.reservoir.next_token).long()[:, None]
    assert export.effect.perplexity == pytest.approx(float((-q.gather(1, following)).mean().exp()), rel=1e-4)
    assert export.effect.perplexity_before == pytest.approx(float((-p.gather(1, following)).mean().exp()), rel=1e-4)
    assert export.tokens == () and export.direction == ""
    said = json.loads((tmp_path / "out" / "headscope.json").read_text())
    assert said["pruning"] == {"method": method, "removed": 0.25, "dims": 24, "dim": 32} and "dense" in said["note"]


def test_the_loaded_model_is_not_changed(tiny_analysis, tmp_path: Path, in_process: None) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    module = analysis.loaded().module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    analysis.export(tmp_path / "out", two_edits(analysis))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.config.tie_word_embeddings


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_another_precision(
    tiny_analysis, store: Store, tmp_path: Path, in_process: None, dtype: str, stored: torch.dtype
) -> None:
    folder = tiny_analysis("gpt_neox").files().folder
    settings = Settings(positions=600, context=64, held_out=0.5, dtype=dtype)
    analysis = Analysis(str(folder), "sampler", settings, store)
    export = analysis.export(tmp_path / "out", two_edits(analysis))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {stored}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype == export.dtype
    assert export.half_precision_deviation is not None
    np.testing.assert_allclose(export.effect.realised, RATIOS, rtol=0.25)


def test_the_copy_that_was_loaded_first_may_be_gone(store: Store, tmp_path: Path, in_process: None) -> None:
    first = analysis_of(tiny_model("gpt2", tmp_path / "first", seed=9), store)
    edits = two_edits(first)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    analysis_of(tmp_path / "second", store).export(tmp_path / "out", edits)
    assert json.loads((tmp_path / "out" / "headscope.json").read_text())["source"]["model"] == "second"


# The command


def arguments(folder: Path, out: Path, cache: Path, *more: str) -> list[str]:
    small = ["--positions", "600", "--context", "64", "--held-out", "0.5", "--seed", "3", "--cache", str(cache)]
    return ["export", str(folder), "--out", str(out), *small, *more]


STEER = ("--token", "id:70", "--ratio", "2", "--token", "id:80", "--ratio", "0.5")


def test_the_command_reloads_in_another_process(tiny_analysis, store: Store, tmp_path: Path) -> None:
    folder = tiny_analysis("gpt2").files().folder
    out = tmp_path / "new" / "out"
    done = CliRunner().invoke(cli, [*arguments(folder, out, store.folder, *STEER), "--json", "-"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["path"] == str(out) and found["tied"] is False and found["was_tied"] is True
    assert 0 <= found["max_logit_error"] <= 1e-4 and found["generated"] >= 1
    assert [token["id"] for token in found["tokens"]] == [70, 80]
    assert list(out.parent.iterdir()) == [out]
    again = CliRunner().invoke(cli, arguments(folder, out, store.folder, *STEER))
    assert again.exit_code == 2 and "exists already" in again.stderr and "Traceback" not in again.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "No edit is given"),
        (["--ratio", "2"], "No token is named"),
        (["--method", "rotated"], "both --method and --remove"),
        (["--remove", "0.3"], "both --method and --remove"),
        (["--token", "id:70", "--ratio", "2", "--direction", LOGIT_BIAS], "A logit bias is no edit"),
        (["--method", "magic", "--remove", "0.3"], "method is 'magic'"),
        (["--method", "rotated", "--remove", "1.5"], "remove is 1.5"),
        (["--token", "id:70", "--ratio", "0"], "ratio is 0"),
        (["--token", "id:70", "--ratio", "1000000"], "impossible, at most"),
        (["--token", "id:70", "--token", "id:70", "--ratio", "2"], "twice"),
    ],
)
def test_what_cannot_be_asked_gets_a_sentence(
    tiny_analysis, store: Store, tmp_path: Path, more: list[str], said: str
) -> None:
    folder = tiny_analysis("gpt2").files().folder
    done = CliRunner().invoke(cli, arguments(folder, tmp_path / "out", store.folder, *more))
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


# Where it goes


def test_places_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, said in (
        (tmp_path / "file", "exists already"),
        (tmp_path / "folder", "exists already"),
        (tmp_path / "link", "exists already"),
        (tmp_path / "file" / "out", "is a file"),
        (tmp_path / "file" / "deeper" / "out", "is a file"),
        ("", "has no name"),
        ("x" * 5000, "cannot be a path"),
        ("a\0b", "cannot be a path"),
    ):
        with pytest.raises(InputError, match=said):
            check_target(out)
    assert (
        check_target(tmp_path / "a" / "b")
        == check_target(tmp_path / "nosuch" / ".." / "a" / "b")
        == tmp_path / "a" / "b"
    )
    with pytest.raises(InputError, match="exists already"):
        check_target(tmp_path / "nosuch" / ".." / "folder")
    if os.geteuid() == 0:  # root may write anywhere, so the system's answer is put in its mouth
        monkeypatch.setattr(os, "access", lambda *_: False)
    else:
        (tmp_path / "folder").chmod(0o555)
    with pytest.raises(InputError, match="cannot be written to"):
        check_target(tmp_path / "folder" / "out")


def test_no_export_from_a_server_for_strangers(tiny_analysis, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="writes no folders"):
        Analysis("demo", local_paths=False).export(tmp_path / "out", [Edit(1, 2.0)])


def test_room_is_looked_for_before_any_work(tiny_analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 4096, 4096))
    with pytest.raises(AnalysisError, match=r"needs about [\d.]+ MB of disk and 4\.1 kB are free") as caught:
        analysis.export(tmp_path / "out", two_edits(analysis))
    assert caught.value.exit_code == 1 and not list(tmp_path.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB in this process: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_links_that_lead_out_of_the_model_are_not_followed(tiny_analysis, tmp_path: Path) -> None:
    """An exported model is given away. A Hub's cache is made of links, though, to its own files."""
    plain: Analysis = tiny_analysis("llama")
    (tmp_path / "secret").write_text("not for others")
    folder = Path(shutil.copytree(plain.model, tmp_path / "model"))
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="LICENSE of the model is a link that leads out of its folder"):
        run._side_files(folder)
    blobs, snapshot = tmp_path / "models--org--name" / "blobs", tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1234").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(Path("..", "..", "blobs", "1234"))
    assert [path.name for path in run._side_files(snapshot)] == ["tokenizer.json"]


def test_a_disk_that_fills_up_meanwhile(tiny_analysis, tmp_path: Path, in_process: None, small_files: None) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    with pytest.raises(AnalysisError, match=r"broke off \(.*nothing of it was left"):
        analysis.export(tmp_path / "deep" / "out", two_edits(analysis))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["Editing", "Measuring", "Writing", "Reloading", "Moving"])
def test_a_cancelled_export_leaves_nothing(tiny_analysis, tmp_path: Path, in_process: None, step: str) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    seen = []

    def cancel(phrase: str, share: float | None) -> None:
        seen.append(phrase)
        if phrase.startswith(step):
            assert list(tmp_path.glob(f"{PREFIX}*"))
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        analysis.export(tmp_path / "out", two_edits(analysis), progress=cancel)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_came_meanwhile_is_left_alone(tiny_analysis, tmp_path: Path, in_process: None) -> None:
    analysis: Analysis = tiny_analysis("gpt2")

    def another(phrase: str, share: float | None) -> None:
        if phrase.startswith("Moving"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(InputError, match="exists already"):
        analysis.export(tmp_path / "out", two_edits(analysis), progress=another)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda weights, head: weights[head][9].mul_(1.1), "gives other logits"),
        (lambda weights, head: weights.pop(head), "cannot use the exported checkpoint"),
        (lambda weights, head: weights["transformer.wte.weight"][7].add_(1e-3), "ties the head"),
    ],
)
def test_a_checkpoint_that_is_not_what_was_promised_never_appears(
    tiny_analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[..., Any], said: str
) -> None:
    analysis: Analysis = tiny_analysis("gpt2")

    class Damaged(InProcess):
        def answer(self, progress: Any) -> dict[str, Any]:
            path = self.scratch / "model" / "model.safetensors"
            weights = load_file(path)
            damage(weights, "lm_head.weight")
            save_file(weights, path, {"format": "pt"})
            reload.write_answer(self.scratch, self.device)
            return reload.Reloader.answer(self, progress)  # type: ignore[arg-type]

        process = type("Process", (), {"stdin": None})()

    monkeypatch.setattr(run, "Reloader", Damaged)
    with pytest.raises(AnalysisError, match=said):
        analysis.export(tmp_path / "out", two_edits(analysis))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: x (os error 28)")]
)
def test_a_disk_that_fills_while_an_export_is_reloaded(
    tiny_analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The other process tells by its code, for it could not write a report; the disk is named, not the memory."""

    def full(*_: object) -> None:
        raise error

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(reload, "run_checkpoint", full)
        patched.setattr("sys.stdin", io.StringIO("go\n"))
        with pytest.raises(SystemExit) as ended:
            reload.main(scratch, "cpu", torch.get_num_threads())
    assert not scratch.exists()

    class Full(InProcess):
        def answer(self, progress: Any) -> dict[str, Any]:
            return reload.Reloader.answer(self, progress)  # type: ignore[arg-type]

        process = type("Process", (), {"stdin": None, "poll": lambda self: ended.value.code})()

    monkeypatch.setattr(run, "Reloader", Full)
    analysis: Analysis = tiny_analysis("gpt2")
    with pytest.raises(AnalysisError, match=r"broke off \(No space left on device\) .*free some space"):
        analysis.export(tmp_path / "out", two_edits(analysis))
    assert not list(tmp_path.iterdir())


def test_leftovers_are_swept_and_running_exports_are_not(tmp_path: Path) -> None:
    for name in ("dead", "alive"):
        (tmp_path / f"{PREFIX}{name}" / "model").mkdir(parents=True)
    with FileLock(tmp_path / f"{PREFIX}alive" / "lock"):
        sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}alive"]
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_export_swept_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several that begin at once: what one has just made, and not yet locked, looks left over to the others."""
    taken = []

    class Raced(FileLock):
        def acquire(self, *arguments: Any, **options: Any) -> Any:
            folder = Path(self.lock_file).parent
            taken.append(folder)
            if len(taken) == 1:  # gone while the lock's file is being made
                shutil.rmtree(folder)
                raise FileNotFoundError(2, "No such file or directory", self.lock_file)
            held = super().acquire(*arguments, **options)
            if len(taken) == 2:  # gone while its lock was waited for
                shutil.rmtree(folder)
            return held

    monkeypatch.setattr(place, "FileLock", Raced)
    with scratch_beside(tmp_path / "out") as scratch:
        assert len(set(taken)) == 3 and list(tmp_path.iterdir()) == [scratch] == taken[2:]
        sweep(tmp_path)
        assert scratch.is_dir()
    assert not list(tmp_path.iterdir())


def test_an_export_killed_with_9_leaves_nothing(tiny_analysis, store: Store, tmp_path: Path) -> None:
    """kill −9 while the folder is there in full but not yet compared: the other process removes it."""
    folder = tiny_analysis("gpt2").files().folder
    command = [sys.executable, "-m", "core.cli", *arguments(folder, tmp_path / "out", store.folder, *STEER)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"{PREFIX}*/model/model.safetensors")):
        assert started.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "out").exists()
    while list(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# The real model


@pytest.mark.thorough
def test_the_real_model_out_of_a_gguf_file(cache_folder: Path, smollm2_files: ModelFiles, tmp_path: Path) -> None:
    """Steered, exported and reloaded; then stock transformers alone gives the promised distribution and writes a text."""
    analysis = Analysis("smollm2", "python-docs", Settings(positions=16384), Store(cache_folder))
    edits = [Edit(analysis.find_token(text).id, ratio) for text, ratio in ((" river", 20.0), (" the", 0.5))]
    prompts = ["They crossed the bridge over the", "The"]
    steering = analysis.steer(edits)
    export = analysis.export(tmp_path / "out", edits)
    assert export.was_tied and not export.tied and export.max_logit_error <= 1e-4
    np.testing.assert_allclose(export.effect.realised, [t.realised_held_out for t in steering.tokens], rtol=1e-3)
    table = tmp_path / "folders.json"
    table.write_text(json.dumps({"smollm2": [str(smollm2_files.folder), export.path]}))
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(table), json.dumps(prompts)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["smollm2"]
    for at, prompt in enumerate(prompts):
        promised = analysis.next_token(prompt, steering, top=49152)
        for save in ("first", "second"):
            np.testing.assert_allclose(np.array(said[save]["p"][at])[promised.token_ids], promised.after, atol=1e-5)
    assert said["first"]["inputs"] == said["second"]["inputs"] == said["source"]["inputs"]
    assert said["first"]["head"] == said["second"]["head"] != said["source"]["head"]
    assert said["first"]["text"].startswith("The") and said["first"]["text"] == said["second"]["text"]
