"""Only the head of a checkpoint: the same numbers as stock transformers, few bytes, and one sentence for every fault."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import AnalysisError, Cancelled, HeadscopeError, InputError
from core.model import ready, resolve
from core.model.heads import HeadTensors, fetch_head, fetch_tokenizer, read_head
from tests.hub import COMMIT, TinyHub, commit_of, tiny_hub
from tests.tiny import tiny_model

DEEP = {"num_hidden_layers": 6, "intermediate_size": 256}
"""Enough layers that a head is a small part of the model."""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("gpt_neox", DEEP),
    "tied": ("gpt2", {"n_layer": 6}),
    "biased": ("phi", DEEP),
    "biased gptj": ("gptj", {"n_layer": 6}),
    "biased codegen": ("codegen", {"n_layer": 6}),
    "projected": ("opt", {"ffn_dim": 256}),
    "untied llama": ("llama", DEEP),
    "tied llama": ("llama", DEEP | {"tie_word_embeddings": True}),
    "tied bloom": ("bloom", {"n_layer": 6}),
    "tied mamba": ("mamba", {}),
    "fp16": ("gpt_neox", DEEP | {"dtype": "float16"}),
    "bf16": ("llama", DEEP | {"dtype": "bfloat16"}),
    "biased bf16": ("phi", DEEP | {"dtype": "bfloat16"}),
    "sharded": ("gpt_neox", DEEP),
    "sharded tied": ("gpt2", {"n_layer": 6}),
    "sharded biased": ("phi", DEEP),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small random model, one of `KINDS`, made when it is first asked for."""
    folders: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in folders:
            architecture, settings = KINDS[kind]
            folder = tiny_model(architecture, tmp_path_factory.mktemp("model"), **settings)
            if kind.startswith("sharded"):
                stock(folder).save_pretrained(folder, max_shard_size="100KB")
                (folder / "model.safetensors").unlink()
            folders[kind] = folder
        return folders[kind]

    return of


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TinyHub]:
    with tiny_hub(monkeypatch, tmp_path / "home") as hub:
        yield hub


def stock(folder: Path) -> Any:
    """The whole model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def assert_same(head: HeadTensors, folder: Path) -> None:
    """The head is that of stock transformers, to the last bit."""
    model = stock(folder)
    layer = model.get_output_embeddings()
    np.testing.assert_array_equal(head.weight, layer.weight.detach().float().numpy())
    assert head.weight.dtype == np.float32 and head.weight.flags.writeable
    assert (head.bias is None) == (layer.bias is None)
    if head.bias is not None:
        np.testing.assert_array_equal(head.bias, layer.bias.detach().float().numpy())
    assert head.tied == (model.get_input_embeddings().weight is layer.weight)
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    assert head.dtype == names[layer.weight.dtype]


def stored_bytes(head: HeadTensors) -> int:
    width = 4 if head.dtype == "F32" else 2
    return width * (head.weight.size + (0 if head.bias is None else head.bias.size))


def header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def no_head(name: str, cache: Path) -> HeadscopeError:
    """The error of a head that cannot be fetched: one readable sentence, after which nothing is kept of it."""
    repo, _, revision = name.partition("@")
    with pytest.raises(HeadscopeError) as caught:
        fetch_head(repo, revision or None, cache=cache)
    message = str(caught.value)
    assert message.isprintable() and "http" not in message and "127.0.0.1" not in message and len(message) < 300
    assert repo in message
    assert not list((cache / "heads").glob("*"))
    return caught.value


# Out of a folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_s_head_is_that_of_transformers(made: Callable[[str], Path], kind: str) -> None:
    folder = made(kind)
    head = read_head(folder, "model")
    assert_same(head, folder)
    assert head.revision == head.sha256[:12] and len(head.sha256) == 64


def test_the_tensor_s_name_in_the_file(made: Callable[[str], Path]) -> None:
    """GPT-NeoX stores its head under a name of its own, and the others as their modules are called."""
    names = {kind: load_file(made(kind) / "model.safetensors").keys() for kind in ("untied", "tied", "biased")}
    assert "embed_out.weight" in names["untied"] and "lm_head.bias" in names["biased"]
    assert "transformer.wte.weight" in names["tied"] and "lm_head.weight" not in names["tied"]


def changed(folder: Path, place: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of a model whose tensors are changed."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    weights = {name: tensor.contiguous() for name, tensor in change(load_file(folder / "model.safetensors")).items()}
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    return place


def test_the_prefix_of_the_base_model_may_be_missing(made: Callable[[str], Path], tmp_path: Path) -> None:
    """As in the files of gpt2 and bloom on the Hub."""
    for kind in ("tied", "tied bloom"):
        folder = changed(
            made(kind),
            tmp_path / kind.replace(" ", ""),
            lambda weights: {name.removeprefix("transformer."): tensor for name, tensor in weights.items()},
        )
        assert_same(read_head(folder, "model"), folder)


def test_a_tied_head_that_is_stored_as_well(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Equal to the input embedding it stays tied; otherwise it is the head, as transformers has it."""
    for factor in (1, 2):
        folder = changed(
            made("tied"),
            tmp_path / str(factor),
            lambda weights, factor=factor: (  # type: ignore[misc]
                weights | {"lm_head.weight": weights["transformer.wte.weight"] * factor}
            ),
        )
        head = read_head(folder, "model")
        assert_same(head, folder)
        assert head.tied == (factor == 1)


def test_the_hash_is_of_the_head_alone(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Other layers do not matter; another number, precision or bias does."""
    folder = made("biased")
    hashes = [
        read_head(changed(folder, tmp_path / str(index), change), "model").sha256
        for index, change in enumerate(
            (
                lambda weights: weights,
                lambda weights: weights | {"model.embed_tokens.weight": weights["model.embed_tokens.weight"] * 2},
                lambda weights: weights | {"lm_head.bias": weights["lm_head.bias"] * 2},
                lambda weights: weights | {"lm_head.weight": weights["lm_head.weight"] * 2},
                lambda weights: weights | {"lm_head.weight": weights["lm_head.weight"].half()},
            )
        )
    ]
    assert hashes[0] == hashes[1] == read_head(folder, "model").sha256
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights | {"lm_head.weight": weights["lm_head.weight"][:-1]}, "of another model"),
        (lambda weights: weights | {"lm_head.weight": weights["lm_head.weight"].to(torch.int8)}, "not quantised"),
        (lambda weights: {n: t for n, t in weights.items() if n != "lm_head.weight"}, "lack the output head"),
        (lambda weights: {n: t for n, t in weights.items() if n != "lm_head.bias"}, "lack the output head"),
    ],
)
def test_a_head_that_cannot_be_read(
    made: Callable[[str], Path], tmp_path: Path, change: Callable[..., Any], says: str
) -> None:
    with pytest.raises(AnalysisError, match=says):
        read_head(changed(made("biased"), tmp_path / "model", change), "model")


def test_models_without_a_head_of_their_own(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(made("tied"), tmp_path / "model", lambda weights: weights)
    (folder / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    with pytest.raises(AnalysisError, match="encoder–decoder"):
        read_head(folder, "model")
    with pytest.raises(InputError, match=r"config\.json"):
        (folder / "config.json").unlink()
        read_head(folder, "model")


def test_an_index_that_is_wrong(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed_index(made("sharded"), tmp_path / "model")
    with pytest.raises(AnalysisError, match=r"lacks embed_out\.weight"):
        read_head(folder, "model")


def changed_index(folder: Path, place: Path) -> Path:
    """A copy of a model in several files whose index places the head in another of them."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    table = index["weight_map"]
    table["embed_out.weight"] = next(file for file in table.values() if file != table["embed_out.weight"])
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


# From the Hub


@pytest.mark.parametrize(
    "kind", ["untied", "tied", "biased", "sharded", "sharded tied", "sharded biased", "fp16", "bf16"]
)
@pytest.mark.parametrize("redirect", [False, True])
def test_only_the_head_is_transferred(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, kind: str, redirect: bool
) -> None:
    folder = made(kind)
    hub.add("org/model", folder)
    hub.switches["org/model"] = {"redirect"} if redirect else set()
    told: list[str] = []
    head = fetch_head("org/model", None, cache=tmp_path, progress=lambda phrase, _: told.append(phrase))
    assert_same(head, folder)
    assert (head.sha256, head.revision) == (read_head(folder, "model").sha256, COMMIT)
    headers = sum(header_bytes(folder / name) for name in hub.files_sent() if name.endswith(".safetensors"))
    assert hub.weights_sent() == headers + stored_bytes(head)
    assert hub.weights_sent() < 0.4 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert any(phrase.startswith("Reading the head of org/model: ") for phrase in told)
    assert any("/cdn/" in path for _, path, _ in hub.asked) == redirect
    assert not list(tmp_path.glob("home/hub/**/*.safetensors"))


def test_a_series_of_revisions(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path) -> None:
    """Each has its own commit and head; those with the same file cost no bytes and have the same hash."""
    for revision, kind in (("step0", "untied"), ("step1", "untied"), ("step512", "fp16")):
        hub.add("org/model", made(kind), revision)
    heads, bytes_sent = {}, {}
    for revision in ("step0", "step1", "step512"):
        hub.sent.clear()
        heads[revision] = fetch_head("org/model", revision, cache=tmp_path)
        bytes_sent[revision] = hub.weights_sent()
        assert heads[revision].revision == commit_of("org/model", revision)
    assert bytes_sent["step0"] > 0 and bytes_sent["step1"] == 0 and bytes_sent["step512"] > 0
    assert heads["step0"].sha256 == heads["step1"].sha256 != heads["step512"].sha256
    np.testing.assert_array_equal(heads["step0"].weight, heads["step1"].weight)
    assert_same(heads["step512"], made("fp16"))
    assert len(list((tmp_path / "heads").glob("head-*"))) == 2


def test_what_was_read_is_kept(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time by its name, by its commit, offline and while the Hub is ill, but not against its word."""
    from huggingface_hub import constants

    hub.add("org/model", made("biased"), "step1")
    commit = commit_of("org/model", "step1")
    first = fetch_head("org/model", "step1", cache=tmp_path)
    hub.sent.clear()

    def again(revision: str) -> None:
        head = fetch_head("org/model", revision, cache=tmp_path)
        np.testing.assert_array_equal(head.weight, first.weight)
        np.testing.assert_array_equal(head.bias, first.bias)
        assert (head.sha256, head.dtype, head.tied, head.revision) == (first.sha256, "F32", False, commit)
        assert not hub.sent

    again("step1")
    again(commit)
    hub.fault = "503"
    again("step1")
    hub.fault = ""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    again("step1")
    again(commit)
    assert not hub.asked
    with pytest.raises(AnalysisError, match="HF_HUB_OFFLINE forbids"):
        fetch_head("org/model", "step2", cache=tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.fault = "gated"
    with pytest.raises(AnalysisError, match="accept its terms"):
        fetch_head("org/model", "step1", cache=tmp_path)


def test_a_damaged_copy_is_read_again(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("org/model", made("tied"))
    fetch_head("org/model", None, cache=tmp_path)
    kept = next((tmp_path / "heads").glob("head-*"))
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    assert_same(fetch_head("org/model", None, cache=tmp_path), made("tied"))
    assert "damaged" in caplog.text


def test_a_model_that_is_here_already_is_read_here(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    for kind in ("untied", "sharded"):
        hub.add(f"org/{kind}", made(kind))
        resolve(f"org/{kind}", cache=tmp_path)
        hub.sent.clear()
        assert_same(fetch_head(f"org/{kind}", None, cache=tmp_path / "one"), made(kind))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        head = fetch_head(f"org/{kind}", None, cache=tmp_path / "other")
        assert_same(head, made(kind))
        assert head.revision == COMMIT and not hub.sent
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_server_without_ranges(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path) -> None:
    hub.add("org/model", made("tied"))
    hub.switches["org/model"] = {"no ranges", "truncated once"}
    assert_same(fetch_head("org/model", None, cache=tmp_path), made("tied"))


@pytest.mark.parametrize("fault", ["truncated once", "weights 500 once", "weights 503 once"])
@pytest.mark.parametrize("redirect", [False, True])
def test_a_broken_transfer_goes_on(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, fault: str, redirect: bool
) -> None:
    hub.add("org/model", made("untied"))
    hub.switches["org/model"] = {fault} | ({"redirect"} if redirect else set())
    head = fetch_head("org/model", None, cache=tmp_path)
    assert_same(head, made("untied"))
    assert hub.weights_sent() == header_bytes(made("untied") / "model.safetensors") + stored_bytes(head)


def test_it_goes_on_within_the_tensor(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path) -> None:
    """Half of the tensor arrives, then the connection breaks: only the other half is asked for again."""
    hub.add("org/model", made("untied"))

    def cut(phrase: str, share: float | None) -> None:
        spans = [span for _, path, span in hub.asked if path.endswith(".safetensors") and span]
        if len(spans) == 2 and not hub.switches:  # the header is being read, so the tensor comes next
            hub.switches["org/model"] = {"truncated once"}

    head = fetch_head("org/model", None, cache=tmp_path, progress=cut)
    assert_same(head, made("untied"))
    starts, ends = zip(*(span[6:].split("-") for _, _, span in hub.asked if span), strict=True)
    assert len(starts) == 4 and ends[2] == ends[3]
    assert int(starts[3]) == int(starts[2]) + stored_bytes(head) // 2


def test_the_token_is_for_the_hub_alone(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add("org/model", made("tied"))
    hub.switches["org/model"] = {"redirect"}
    fetch_head("org/model", None, cache=tmp_path)
    assert any("model.safetensors" in path for path in hub.authorized)
    assert any("/cdn/" in path for _, path, _ in hub.asked) and not any("/cdn/" in path for path in hub.authorized)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("gated", "accept its terms"),
        ("weights gated", "accept its terms"),
        ("unauthorized", "HF_TOKEN"),
        ("weights unauthorized", "HF_TOKEN"),
        ("forbidden", "denies access"),
        ("weights forbidden", "denies access"),
        ("weights 404", "404"),
        ("429", "too many requests"),
        ("weights 429", "too many requests"),
        ("500", "answered 500"),
        ("weights 500", "answered 500"),
        ("weights 503", "answered 503"),
        ("truncated", "broke off"),
        ("other bytes", "not what the Hub lists"),
        ("longer", "not what the Hub lists"),
        ("weights 416", "not what the Hub lists"),
    ],
)
@pytest.mark.parametrize("redirect", [False, True])
def test_one_sentence_for_every_fault(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, fault: str, says: str, redirect: bool
) -> None:
    """Of that revision alone; afterwards it can be read as if nothing had been."""
    hub.add("org/model", made("tied"), "step1")
    hub.add("org/model", made("untied"), "step2")
    hub.switches["org/model@step1"] = {fault} | ({"redirect"} if redirect else set())
    error = no_head("org/model@step1", tmp_path)
    assert type(error) is AnalysisError and says in str(error) and "step1" in str(error)
    asked = [path for method, path, _ in hub.asked if method == "GET" and "model.safetensors" in path]
    assert len(asked) <= (10 if redirect else 5)
    assert_same(fetch_head("org/model", "step2", cache=tmp_path), made("untied"))
    hub.switches.clear()
    assert_same(fetch_head("org/model", "step1", cache=tmp_path), made("tied"))


def test_what_is_not_there(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path) -> None:
    hub.add("org/model", made("tied"), "step1")
    error = no_head("org/model@step9", tmp_path)
    assert isinstance(error, InputError) and "no revision 'step9'" in str(error)
    error = no_head("org/nothing", tmp_path)
    assert isinstance(error, InputError) and "no model org/nothing" in str(error)
    hub.repos["org/pickled"] = {"pytorch_model.bin": b"x", "config.json": b"{}"}
    error = no_head("org/pickled", tmp_path)
    assert isinstance(error, InputError) and "pickles (pytorch_model.bin)" in str(error)
    hub.repos["org/code"] = {"model.safetensors": b"x", "config.json": b'{"model_type": "mine", "auto_map": {}}'}
    assert "auto_map" in str(no_head("org/code", tmp_path))
    assert hub.weights_sent() == 0


def test_nobody_answers(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "could not be reached" in str(no_head("org/model", tmp_path))


def weights_with(start: int, end: int) -> bytes:
    """A safetensors file of 8 bytes of numbers, whose header places a tensor at [start, end) of them."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [start, end]}
    header = json.dumps({"lm_head.weight": entry, "other": entry | {"data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"12345678"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"{}more",
        b"\x10" + b"\0" * 40,
        weights_with(-8, 0),
        weights_with(8, 0),
        weights_with(0, 16),
    ],
)
def test_broken_weights(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, content: bytes) -> None:
    hub.add("org/model", made("tied"))
    hub.repos["org/model"]["model.safetensors"] = content
    with pytest.raises(AnalysisError, match="broken or incomplete"):
        fetch_head("org/model", None, cache=tmp_path)


def test_shards_that_are_not_there(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path) -> None:
    hub.add("org/model", made("sharded"))
    del hub.repos["org/model"][min(name for name in hub.repos["org/model"] if name.endswith(".safetensors"))]
    assert "which its model.safetensors.index.json names" in str(no_head("org/model", tmp_path))
    assert hub.weights_sent() == 0


def test_a_cache_that_cannot_be_written(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path) -> None:
    hub.add("org/model", made("tied"))
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(AnalysisError, match="cannot be kept"):
        fetch_head("org/model", None, cache=tmp_path / "cache")


def test_a_transfer_can_be_cancelled(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path) -> None:
    def cancel(phrase: str, share: float | None) -> None:
        if share is not None:
            raise Cancelled("stopped")

    hub.add("org/model", made("tied"))
    with pytest.raises(Cancelled):
        fetch_head("org/model", None, cache=tmp_path, progress=cancel)
    assert not list((tmp_path / "heads").glob("*"))
    assert_same(fetch_head("org/model", None, cache=tmp_path), made("tied"))


def test_configuration_and_tokenizer_without_weights(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from transformers import AutoTokenizer

    hub.add("org/model", made("tied"), "step1")
    folder = fetch_tokenizer("org/model", "step1")
    assert {path.name for path in folder.iterdir()} >= {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not list(folder.glob("*.safetensors")) and hub.weights_sent() == 0
    assert AutoTokenizer.from_pretrained(folder).encode("river") == AutoTokenizer.from_pretrained(made("tied")).encode(
        "river"
    )
    assert ready("org/model@step1", cache=tmp_path) is None
    hub.fault = "503"
    assert fetch_tokenizer("org/model", "step1") == folder
    hub.fault = ""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_tokenizer("org/model", "step1") == folder
    with pytest.raises(AnalysisError, match="HF_HUB_OFFLINE"):
        fetch_tokenizer("org/model", "step2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="no revision 'step9'"):
        fetch_tokenizer("org/model", "step9")
    hub.repos["org/empty"] = {"README.md": b"x"}
    with pytest.raises(InputError, match=r"no config\.json"):
        fetch_tokenizer("org/empty", None)


def test_a_configuration_alone_is_no_tokenizer(hub: TinyHub, made: Callable[[str], Path], tmp_path: Path) -> None:
    hub.add("org/model", made("tied"))
    hub.repos["org/model"] = {name: data for name, data in hub.repos["org/model"].items() if "token" not in name}
    fetch_tokenizer("org/model", None)
    hub.fault = "503"
    with pytest.raises(AnalysisError, match="503"):
        fetch_tokenizer("org/model", None)


# Whole models


@pytest.mark.parametrize("kind", ["tied", "sharded"])
def test_a_download_that_is_not_what_the_hub_lists(
    hub: TinyHub, made: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """Not even if the server's own label is right; the bad file goes, and the next try is a fresh one."""
    hub.add("org/model", made(kind))
    hub.switches["org/model"] = {"other bytes silently"}
    with pytest.raises(AnalysisError, match="not what the Hub lists, and it was thrown away"):
        resolve("org/model", cache=tmp_path)
    assert ready("org/model", cache=tmp_path) is None
    assert not list(tmp_path.glob("home/hub/**/*.safetensors"))
    largest = max(path.stat().st_size for path in tmp_path.glob("home/hub/*/blobs/*"))
    assert largest < max(path.stat().st_size for path in made(kind).glob("*.safetensors"))
    hub.switches.clear()
    files = resolve("org/model", cache=tmp_path)
    for path in made(kind).glob("*.safetensors"):
        assert (files.folder / path.name).read_bytes() == path.read_bytes()
