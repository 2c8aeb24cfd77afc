"""The head of every kind of model, proven against the model; and those that must be refused."""

from __future__ import annotations

import json
import os
import resource
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from core.analysis import Analysis
from core.errors import AnalysisError, HeadscopeError, InputError
from core.model import LoadedModel, ModelFiles, doctor, load_model, memory, resolve
from core.model.head import Head, find_head, token_rows
from core.model.load import choose_device, open_head
from core.settings import DTYPES, Settings
from core.steering import Edit
from core.store import Store
from core.words import size
from tests.ledger import attempt
from tests.tiny import ARCHITECTURES, VOCAB, save, tiny_config, tiny_model, tiny_tokenizer

SCALES = {"cohere": 0.25, "cohere2": 0.0625, "granite": 1 / 7, "hyperclovax": 0.3, "falcon_h1": 0.7}
CAPS = {"gemma2": 5.0, "nanochat": 8.0}
BIASES = {"gptj", "codegen", "phi"}


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(resolve(str(folder), cache=folder.parent / "cache"), **options)


def ids(rows: int = 3, length: int = 17, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def own_logits(model: LoadedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model.module(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def our_logits(model: LoadedModel, tokens: torch.Tensor) -> torch.Tensor:
    hidden = model.hidden_states(tokens, torch.ones_like(tokens))
    return model.head.logits(hidden.flatten(0, 1)).unflatten(0, tokens.shape)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(tiny_model("llama", tmp_path_factory.mktemp("llama") / "model"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_is_reproduced(architecture: str, tmp_path: Path) -> None:
    model = load(tiny_model(architecture, tmp_path / "model"))
    head, about = model.head, model.description
    assert model.check.max_logit_error < model.check.tolerance and model.check.half_precision_deviation is None
    own = own_logits(model, ids())
    assert own.std() > 0.05, "logits that hardly vary would prove nothing"
    assert (our_logits(model, ids()) - own).abs().max() < 1e-5
    assert torch.equal(own_logits(model, ids()), own), "stopping at the head left a trace"
    assert about.logit_scale == pytest.approx(SCALES.get(architecture, 1.0), rel=1e-6)
    assert about.softcap == head.softcap == CAPS.get(architecture)
    assert about.bias == (head.bias is not None) == (architecture in BIASES)
    assert about.vocab_size == len(head.weight) == len(head.is_token) == own.shape[-1]
    assert about.dim == head.weight.shape[1] == (24 if architecture == "opt" else 32)
    assert (about.tokens, about.padded_rows) == (VOCAB, 20 if architecture == "gpt_neox" else 0)
    assert about.dtype == "float32" and about.architecture == type(model.module).__name__
    assert about.parameters == sum(parameter.numel() for parameter in model.module.parameters())
    layer = model.module.get_output_embeddings()
    assert head.weight.data_ptr() == layer.weight.data_ptr(), "an fp32 head is not copied"
    assert about.tied == (model.module.get_input_embeddings().weight is layer.weight)
    assert not model.module.training and not any(each.requires_grad for each in model.module.parameters())
    if head.bias is not None:
        assert head.bias.abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "phi", "mamba"])
@pytest.mark.parametrize("saved", ["bfloat16", "float16"])
def test_half_precision_is_reproduced_in_fp32(architecture: str, saved: str, tmp_path: Path) -> None:
    model = load(tiny_model(architecture, tmp_path / "model", dtype=saved))
    assert model.description.dtype == saved
    assert model.head.weight.dtype == model.hidden_states(ids()).dtype == torch.float32
    assert model.check.max_logit_error < model.check.tolerance
    assert model.check.half_precision_deviation is not None and 0 < model.check.half_precision_deviation < 0.1
    assert (our_logits(model, ids()) - own_logits(model, ids())).abs().max() < 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_precision_can_be_chosen(dtype: str, tmp_path: Path) -> None:
    model = load(tiny_model("llama", tmp_path / "model", dtype="bfloat16"), dtype=dtype)
    assert model.description.dtype == ("bfloat16" if dtype == "auto" else dtype)


def test_padded_sequences(llama: LoadedModel) -> None:
    short, long = ids(1, 9), ids(1, 14, seed=1)
    batch = torch.cat([torch.nn.functional.pad(short, (0, 5), value=2), long])
    mask = torch.ones_like(batch)
    mask[0, 9:] = 0
    hidden = llama.hidden_states(batch, mask)
    assert torch.allclose(hidden[0, :9], llama.hidden_states(short)[0], atol=1e-5)
    assert torch.allclose(hidden[1], llama.hidden_states(long)[0], atol=1e-5)


def test_the_forward_stops_at_the_head_and_leaves_no_trace(llama: LoadedModel) -> None:
    layer, calls = llama.module.get_output_embeddings(), []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    before = own_logits(llama, ids())
    assert len(calls) == 1
    llama.hidden_states(ids())
    handle.remove()
    assert len(calls) == 1, "the logits were computed"
    assert torch.equal(own_logits(llama, ids()), before)
    assert len(layer._forward_pre_hooks) == 1


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "mamba"])
def test_many_threads_share_a_model(architecture: str, tmp_path: Path) -> None:
    model = load(tiny_model(architecture, tmp_path / "model"))
    inputs = [ids(2, 11, seed) for seed in range(24)]
    serial = [model.hidden_states(each) for each in inputs]
    start = threading.Barrier(4)

    def work(part: int) -> list[bool]:
        start.wait()
        fine = []
        for number in range(part, 24, 4):
            if number % 3 == 0:  # some go on to the logits, some record, all at once
                with model.recording() as seen:
                    logits = own_logits(model, inputs[number])
                fine.append(torch.equal(seen[0], serial[number]) and len(seen) == 1)
                expected = model.head.logits(serial[number].flatten(0, 1)).view_as(logits)
                fine.append(torch.allclose(logits, expected, atol=1e-5))
            else:
                fine.append(torch.equal(model.hidden_states(inputs[number]), serial[number]))
        return fine

    with ThreadPoolExecutor(4) as pool:
        assert all(all(part) for part in pool.map(work, range(4)))


def test_recording_sees_what_generate_sends_to_the_head(llama: LoadedModel) -> None:
    module: Any = llama.module
    mask = torch.ones(1, 5, dtype=torch.long)
    with llama.recording() as seen:
        tokens = module.generate(ids(1, 5), attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, 9) and len(seen) == 4
    logits = llama.head.logits(torch.cat(seen, dim=1)[0])
    again = llama.hidden_states(tokens[:, :-1])[0, 4:]
    assert torch.allclose(logits, llama.head.logits(again), atol=1e-4)
    llama.hidden_states(ids())
    assert len(seen) == 4, "the list is closed"


def test_a_token_the_model_does_not_know(llama: LoadedModel) -> None:
    with pytest.raises(AnalysisError, match="gave the token id 307 and the model knows 300"):
        llama.hidden_states(torch.tensor([[VOCAB + 7]]))


def test_a_failing_forward_leaves_the_hook_quiet(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(llama.module.model.norm, "forward", broken)
        with pytest.raises(ZeroDivisionError):
            llama.hidden_states(ids())
    assert own_logits(llama, ids()).shape == (3, 17, VOCAB)


def test_head_logits_and_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, hidden = (torch.randn(*size, generator=generator) for size in [(7, 3), (7,), (5, 3)])
    head = Head(weight, bias, 2.0, np.ones(7, dtype=bool))
    expected = 2 * torch.tanh((hidden @ weight.T + bias) / 2)
    out = torch.empty(5, 7)
    assert head.logits(hidden, out=out).data_ptr() == out.data_ptr()
    assert torch.allclose(out, expected) and torch.allclose(head.logits(hidden), expected)
    rows, offsets = head.rows([6, 0, 6])
    assert rows.dtype == offsets.dtype == np.float64
    assert np.array_equal(rows, weight[[6, 0, 6]].numpy()) and np.array_equal(offsets, bias[[6, 0, 6]].numpy())
    assert not Head(weight, None, None, np.ones(7, dtype=bool)).rows(np.array([1, 2]))[1].any()


def test_rows_that_are_no_token() -> None:
    assert token_rows({"a": 0, "b": 2, "far": 9}, 4).tolist() == [True, False, True, False]
    assert token_rows({}, 2).tolist() == [False, False]


def test_a_tokenizer_that_knows_more_than_the_model(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model", vocab_size=280)
    model = load(folder)
    assert (model.description.tokens, model.description.padded_rows) == (280, 0)


# --- what is refused ----------------------------------------------------------------------------------------------


def bert(**more: Any) -> Any:
    return transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, **more
    )


def t5() -> Any:
    config = transformers.T5Config(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


def musicgen_decoder() -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "num_codebooks": 4,
    }
    sizes |= {"pad_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 0}
    return transformers.MusicgenForCausalLM(transformers.MusicgenDecoderConfig(vocab_size=VOCAB, **sizes))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an encoder-decoder": (t5, "encoder–decoder"),
    "a decoder for sound": (musicgen_decoder, "musicgen_decoder"),
    "a bare GPT-2": (
        lambda: transformers.GPT2Model(tiny_config("gpt2")),
        "saved as GPT2Model, which has no output head",
    ),
    "a bare Llama": (
        lambda: transformers.LlamaModel(tiny_config("llama")),
        "choose a checkpoint saved as LlamaForCausal",
    ),
    "a classifier": (
        lambda: transformers.LlamaForSequenceClassification(tiny_config("llama")),
        "LlamaForSequenceClassification",
    ),
    "two heads": (lambda: transformers.GPT2DoubleHeadsModel(tiny_config("gpt2", num_labels=1)), "GPT2DoubleHeads"),
    "a masked language model": (lambda: transformers.BertForMaskedLM(bert()), "BertForMaskedLM"),
    "a bare encoder": (lambda: transformers.BertModel(bert()), "BertModel"),
    "one that looks ahead": (lambda: transformers.BertLMHeadModel(bert()), "not causal"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name_and_doctor_says_so(kind: str, tmp_path: Path) -> None:
    build, says = REFUSED[kind]
    folder = save(build(), tmp_path / "model")
    with pytest.raises(AnalysisError) as caught:
        load(folder)
    message = str(caught.value)
    assert says in message and "choose" in message and message.isprintable() and len(message) < 400
    answer = doctor(str(folder), cache=tmp_path / "cache")
    assert answer["supported"] is False and answer["reason"] == message
    assert isinstance(answer["ram_bytes"], int) and answer["max_logit_error"] is None


def test_a_causal_bert_is_supported(tmp_path: Path) -> None:
    model = load(save(transformers.BertLMHeadModel(bert(is_decoder=True)), tmp_path / "model"))
    assert model.description.bias and (our_logits(model, ids()) - own_logits(model, ids())).abs().max() < 1e-5


def test_several_heads_and_heads_that_are_not_linear() -> None:
    with pytest.raises(AnalysisError, match="4 output heads"):
        find_head(musicgen_decoder(), "it")
    with pytest.raises(AnalysisError, match="no output head"):
        find_head(transformers.GPT2Model(tiny_config("gpt2")), "it")
    with pytest.raises(AnalysisError, match="no output head"):
        find_head(torch.nn.Linear(2, 2), "it")
    model = transformers.LlamaForCausalLM(tiny_config("llama"))
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(AnalysisError, match="Sequential and not a plain linear"):
        find_head(model, "it")


def llama_that(forward: Callable[..., Any]) -> Any:
    """A Llama whose forward pass is followed by `forward(model, output)`."""

    class Other(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return forward(self, super().forward(*args, **kwargs))

    return Other(tiny_config("llama"))


def squares(_: Any, output: Any) -> Any:
    output.logits = output.logits + 0.01 * output.logits**2
    return output


def cuts(_: Any, output: Any) -> Any:
    output.logits = output.logits[..., :200]
    return output


def calls_twice(model: Any, output: Any) -> Any:
    model.lm_head(torch.zeros(1, 1, 32))
    return output


def adds(model: Any, output: Any) -> Any:
    output.logits = output.logits + model.model.norm.weight.sum()
    return output


def negates(_: Any, output: Any) -> Any:
    output.logits = -output.logits
    return output


def fails(*_: Any) -> Any:
    raise RuntimeError("needs an image")


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (squares, "neither a scale nor a soft-cap"),
        (adds, "neither a scale nor a soft-cap"),
        (negates, "neither a scale nor a soft-cap"),
        (cuts, "into logits of shape"),
        (calls_twice, "calls its output head 2 times"),
        (fails, "needs an image"),
    ],
)
def test_a_model_that_does_more_than_its_head_shows(after: Callable[..., Any], says: str, llama: LoadedModel) -> None:
    with pytest.raises(AnalysisError, match=says):
        open_head(llama.files, llama_that(after), tiny_tokenizer(), torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_computes_something_else_is_not_reproduced(dtype: torch.dtype, llama: LoadedModel) -> None:
    class Doubling(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden) * 2

    model: Any = transformers.LlamaForCausalLM(tiny_config("llama"))
    model.lm_head = Doubling(32, VOCAB, bias=False)
    with pytest.raises(AnalysisError, match="not reproduced from its head"):
        open_head(llama.files, model.to(dtype), tiny_tokenizer(), torch.device("cpu"))


@pytest.mark.parametrize(("cap", "scale"), [(30.0, 1.0), (0.5, 1.0), (7.0, 0.3), (None, 12.5), (15.0, 4.0)])
def test_a_cap_and_a_scale_together_are_measured(cap: float | None, scale: float, llama: LoadedModel) -> None:
    def after(_: Any, output: Any) -> Any:
        logits = output.logits * scale
        output.logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return output

    module = llama_that(after)
    module.load_state_dict(llama.module.state_dict())
    model = open_head(llama.files, module, tiny_tokenizer(), torch.device("cpu"))
    assert (model.description.softcap, model.description.logit_scale) == (cap, scale)
    assert (our_logits(model, ids()) - own_logits(model, ids())).abs().max() < 1e-4


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = save(transformers.LlamaModel(tiny_config("llama")), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(AnalysisError, match=r"lack 1 weight of LlamaForCausalLM \(lm_head\.weight\)"):
        load(folder)


@pytest.mark.parametrize("layers", [0, 1])
def test_layers_that_the_config_leaves_out_are_refused(layers: int, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers, "layer_types": None}))
    with pytest.raises(
        AnalysisError, match=rf"weights for which LlamaForCausalLM.* \(model\.layers\.{layers}\..*config"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("layers", "shown"), [(10**7, "10,000,000"), (10**4000, r"10,000,.*\.\.\.")], ids=["many", "absurdly many"]
)
def test_more_layers_than_weights_are_refused_before_they_are_made(layers: int, shown: str, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers, "layer_types": None}))
    with pytest.raises(AnalysisError, match=rf"speaks of {shown} layers and its files hold 2\d tensors"):
        load(folder)


def test_a_head_whose_bytes_are_called_integers(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    place = raw.index(b'"dtype":"F32"', raw.index(b"embed_tokens.weight"))
    file.write_bytes(raw[:place] + b'"dtype":"I32"' + raw[place + 13 :])
    with pytest.raises(AnalysisError, match=r"hold .*embed_tokens.weight as integers \(I32\)"):
        load(folder)


def test_classes_without_number_are_refused_before_they_are_named(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for odd in ({"num_labels": 10**9}, {"text_config": {"num_labels": 10**9}}):
        (folder / "config.json").write_text(json.dumps(config | odd))
        with pytest.raises(InputError, match=r"speaks of more than 1,000,000 classes \(num_labels\)"):
            load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
)
def test_a_model_beside_a_pipe_or_a_device(name: str, tmp_path: Path) -> None:
    """Neither is waited for, nor read to an end that it does not have."""
    folder = tiny_model("llama", tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=f"The {name} of .* is no ordinary file: "):
        load(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"The {name} of .* is no ordinary file"):
        load(folder)


def test_biases_for_which_the_configuration_has_no_place(tmp_path: Path) -> None:
    """transformers drops them with a line in its log, and it is another model."""
    folder = tiny_model("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    bias = "model.layers.0.self_attn.q_proj.bias"
    tensors[bias] = torch.ones(len(tensors["model.layers.0.self_attn.q_proj.weight"]))
    tensors["model.layers.0.self_attn.bias"] = torch.ones(1, 1, 8, 8)  # as old files hold what masks the future
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(AnalysisError, match=rf"hold 1 weight for which LlamaForCausalLM.* has no place \({bias}\)"):
        load(folder)
    del tensors[bias]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    load(folder)


def test_a_folder_in_the_place_of_a_tokenizer(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(AnalysisError, match=r"there is no tokenizer\.json, only tokenizer_config\.json"):
        load(folder)


def test_a_model_that_sees_less_than_nothing(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": -5}))
    with pytest.raises(AnalysisError, match=r"speaks of -5 positions .* use the config.json that belongs"):
        load(folder)


@pytest.mark.parametrize(("sees", "told"), [(20, "at once and --context is 64: choose a --context of at most 20"),
                                           (1, "sees 1 token at once, too few to observe anything")])  # fmt: skip
def test_a_model_that_sees_less_than_a_window(tmp_path: Path, sees: int, told: str) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": sees}))
    analysis = Analysis(str(folder), "sampler", Settings(positions=400, context=64), Store(tmp_path, enabled=False))
    with pytest.raises(HeadscopeError, match=told):
        analysis.encoding()


def test_names_of_architectures_that_are_no_names(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for odd in ([5], [None, "LlamaForCausalLM"], "LlamaForCausalLM", {"a": 1}):
        (folder / "config.json").write_text(json.dumps(config | {"architectures": odd}))
        attempt(lambda: load(folder))


def test_a_stored_bias_that_the_head_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = tiny_model("gpt_neox", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head_of_a_value_model.weight"] = torch.zeros(3)  # nothing to do with the next token
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert not load(folder).description.bias
    weights["embed_out.bias"] = torch.ones(VOCAB)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        AnalysisError, match=r"hold 1 weight for which GPTNeoXForCausalLM.*\((embed_out|lm_head)\.bias\)"
    ):
        load(folder)


def test_weights_of_another_size_and_a_missing_tokenizer(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps(json.loads(config) | {"intermediate_size": 48}))
    with pytest.raises(
        AnalysisError, match=r"describes .*proj.weight as .* and its files hold .*: use the config.json that"
    ):
        load(folder)
    for key, far_too_many in (("head_dim", 10**7), ("vocab_size", 10**9), ("intermediate_size", 10**12)):
        (folder / "config.json").write_text(json.dumps(json.loads(config) | {key: far_too_many}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(AnalysisError, match=r"describes .*: use the config.json that belongs"):
            load(folder)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kB"
    (folder / "config.json").write_text(config)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(AnalysisError, match="tokenizer"):
        load(folder)


def test_no_code_that_comes_with_a_model_is_run(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    trap = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "mine.py").write_text(trap + "class Mine: ...\n")
    for name, entry in [("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")]:
        content = json.loads((folder / name).read_text())
        mine = ["mine.Mine", "mine.Mine"] if entry == "AutoTokenizer" else "mine.Mine"
        (folder / name).write_text(json.dumps(content | {"auto_map": {entry: mine, "AutoConfig": "mine.Mine"}}))
    load(folder)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(content | {"tokenizer_class": "Mine"}))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(AnalysisError, match="tokenizer") as caught:
        load(folder)
    assert not (tmp_path / "ran").exists() and str(tmp_path) not in str(caught.value).replace(str(folder), "")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_attention_heads": 7}, r"hidden size \(32\) is not a multiple of the number of attention heads \(7\)"),
        ({"hidden_size": "x"}, "Field 'hidden_size' expected int, got str"),
        ({"hidden_act": "nothing"}, "'nothing' is not known"),
        ({"hidden_size": -4}, "negative dimension -4"),
    ],
)
def test_a_configuration_that_cannot_be_is_told_why(tmp_path: Path, change: dict[str, object], why: str) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(AnalysisError, match=rf"\(.*{why}.*\): use the config\.json that belongs to its weights"):
        load(folder)


def test_a_tokenizer_that_asks_for_code_has_a_remedy_that_helps(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    content = json.loads((folder / "tokenizer_config.json").read_text())
    asks = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    (folder / "tokenizer_config.json").write_text(json.dumps(content | asks))
    with pytest.raises(AnalysisError, match=r"never run here.*: choose a model whose tokenizer needs none"):
        load(folder)


# --- memory, devices, noise ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    files = resolve(str(folder), cache=tmp_path / "cache")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**8})())
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    needed = size(memory.estimate_ram(folder))
    with pytest.raises(AnalysisError, match=rf"needs about {needed} of memory and 100 MB are free"):
        load_model(files)
    answer = doctor(str(folder), cache=tmp_path / "cache")
    assert answer["supported"] is False and answer["ram_bytes"] == memory.estimate_ram(folder)


def test_the_estimate_counts_weights_and_the_copy_of_the_head(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model", dtype="bfloat16")
    model = load(folder)
    rest = memory.estimate_ram(folder, "float32") - 4 * model.description.parameters
    half = 2 * model.description.parameters + 4 * model.head.weight.numel() + rest
    assert memory.estimate_ram(folder, "auto") == memory.estimate_ram(folder, "float16") == half
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert memory.estimate_ram(folder, "auto") == half, "told by the weights where the configuration does not"


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for wrong in ("cuda:99", "tpu", "cpu:1", "cuda:x", ""):
        with pytest.raises(InputError, match=r"--device is .*choose one of them"):
            choose_device(wrong)


def test_a_wrong_precision_is_named(llama: LoadedModel) -> None:
    with pytest.raises(InputError, match="--dtype is int8"):
        load_model(llama.files, dtype="int8")


def test_loading_prints_nothing_and_changes_no_switch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    def switches() -> tuple[object, ...]:
        filters = list(warnings.filters)
        return logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled(), filters

    folder = tiny_model("mamba", tmp_path / "model")
    capfd.readouterr()
    before = switches()
    told: list[tuple[str, float | None]] = []
    load(folder, progress=lambda *step: told.append(step))
    assert switches() == before
    assert capfd.readouterr() == ("", "")
    assert told and told[-1][1] == 1.0


def test_doctor_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    folder = tiny_model("gpt_neox", tmp_path / "model", dtype="bfloat16")
    answer = doctor(str(folder), cache=tmp_path / "cache")
    keys = (
        "model architecture vocab_size tokens dim tied bias softcap logit_scale padded_rows dtype parameters ram_bytes "
        "max_logit_error supported reason"
    )
    assert set(keys.split()) <= set(answer)
    assert json.loads(json.dumps(answer)) == answer
    assert answer["supported"] is True and answer["reason"] is None and answer["padded_rows"] == 20
    assert answer["half_precision_deviation"] and answer["model"] == str(folder)


@pytest.mark.slow
def test_the_real_model(smollm2: LoadedModel, smollm2_files: ModelFiles) -> None:
    about = smollm2.description
    assert (about.architecture, about.vocab_size, about.dim, about.tied) == ("LlamaForCausalLM", 49152, 576, True)
    assert about.parameters == 134_515_008 and about.padded_rows == 0 and smollm2.check.max_logit_error < 1e-4
    tokens = torch.tensor([smollm2.tokenizer.encode("The capital of France is")])
    logits = smollm2.head.logits(smollm2.hidden_states(tokens)[0])
    assert smollm2.tokenizer.decode([int(logits[-1].argmax())]) == " Paris"


def test_a_tokenizer_that_rolls_dice_does_not(tmp_path: Path) -> None:
    """Dropout of merges, which would make other tokens of the same text each time."""
    folder = tiny_model("llama", tmp_path)
    text = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    text["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(text), "utf-8")
    tokenizer = load_model(resolve(str(folder), cache=tmp_path)).tokenizer
    words = "The old mills along the river were standing there"
    assert len({tuple(tokenizer.encode(words)) for _ in range(8)}) == 1


def test_a_panic_of_a_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    """Its Rust code breaks off when a template names a token that is not there."""
    folder = tiny_model("llama", tmp_path)
    text = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    piece = {"SpecialToken": {"id": "<missing>", "type_id": 0}}
    text["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    (folder / "tokenizer.json").write_text(json.dumps(text), "utf-8")
    with pytest.raises(AnalysisError, match=r"okenizer of .* (breaks off|cannot be loaded)"):
        load_model(resolve(str(folder), cache=tmp_path))


def test_what_rust_prints_of_a_panic_is_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A regular expression that never comes to an end, in a normalizer."""
    folder = tiny_model("llama", tmp_path)
    text = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    text["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(([a-z ])+.)+[A-Z]([a-z ])+$"}, "content": "a"}
    (folder / "tokenizer.json").write_text(json.dumps(text), "utf-8")
    capfd.readouterr()
    with pytest.raises(AnalysisError, match=r"breaks off on a text \(Onig: .*never comes to an end"):
        load_model(resolve(str(folder), cache=tmp_path))
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        AnalysisError, match=r"there is no tokenizer\.json, only tokenizer_config\.json\): save one beside"
    ):
        load_model(resolve(str(folder), cache=tmp_path))


@pytest.mark.parametrize(("scale", "said"), [(1e30, "where single precision tells no probabilities apart"), (10.0, "")])
def test_logits_that_are_too_large_for_single_precision(tmp_path: Path, scale: float, said: str) -> None:
    folder = tiny_model("llama", tmp_path, tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= scale
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    report = doctor(str(folder), cache=tmp_path)
    assert report["supported"] is (not said) and said in str(report["reason"] or "")


def test_a_token_of_probability_0_is_no_number_out_of_range(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model", tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 5000
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    analysis = Analysis(str(folder), "sampler", Settings(positions=256, context=64), Store(tmp_path / "store"))
    left_out = sorted(set(range(VOCAB)) - set(map(int, analysis.encoding().token_ids)))
    assert left_out
    for token in (left_out[0], left_out[-1]):
        with pytest.raises(InputError, match=f"^Token {token} of this model cannot be steered"):
            analysis.find_token(f"id:{token}")
    with pytest.raises(InputError, match=f"from 0 to {analysis.encoding().vocab_size - 1}"):
        analysis.find_token(f"id:{analysis.encoding().vocab_size}")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_edit_of_a_head_stored_in_any_precision(tmp_path: Path, dtype: str) -> None:
    """Rows are read out of the files where that can be done without torch, else out of the loaded head."""
    folder = tiny_model("llama", tmp_path / "model")
    path = folder / "model.safetensors"
    save_file({k: v.to(getattr(torch, dtype)) for k, v in load_file(path).items()}, path, {"format": "pt"})
    analysis = Analysis(str(folder), "sampler", Settings(positions=256, context=64), Store(tmp_path / "store"))
    analysis.head_facts()
    steering = analysis.steer([Edit(30, 2.0)])
    assert steering.tokens[0].realised == pytest.approx(2.0, rel=1e-3)


def test_a_vocabulary_beyond_counting(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10**400}))
    with pytest.raises(AnalysisError):
        load_model(resolve(str(folder), cache=tmp_path))


def test_a_tokenizer_that_would_fill_the_memory(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    text = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    step = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 1000}
    text["normalizer"] = {"type": "Sequence", "normalizers": [step, {"type": "Sequence", "normalizers": [step, step]}]}
    (folder / "tokenizer.json").write_text(json.dumps(text), "utf-8")
    with pytest.raises(AnalysisError, match="1,000,000,000 times longer"):
        load_model(resolve(str(folder), cache=tmp_path))
