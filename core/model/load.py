"""A causal language model in memory, with its head in the open and proven to be what the model computes.

>>> model = load_model(resolve("smollm2", cache=folder))                          # doctest: +SKIP
>>> model.head.logits(model.hidden_states(ids).flatten(0, 1))                     # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float32, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from core import disk
from core.errors import AnalysisError, HeadscopeError, InputError
from core.foreign import asks_for_code, no_panics, reason
from core.model.facts import HeadCheck, HeadDescription
from core.model.files import ModelFiles, resolve
from core.model.head import Head, find_head, token_rows
from core.model.hook import HeadReached, install, stop, visiting
from core.model.memory import estimate_ram, require_ram
from core.model.probe import check_head, measure_output, probe_ids
from core.model.quiet import quiet_transformers
from core.model.stored import check_shapes
from core.model.weights import tensor_count
from core.settings import DTYPES, Progress, no_progress
from core.words import plural, short

MOST_GROWTH = 500
"""By how much a tokenizer's replacements may lengthen a text."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready to be observed. Nothing in it may be changed: threads and analyses share it.

    Attributes:
        files: where it came from.
        module: the transformers model, in `eval` mode and without gradients.
        tokenizer: its tokenizer.
        head: the output head in fp32.
        description: what the head is.
        check: how exactly `head` reproduces the model's logits.
        device: where model and head are.
    """

    files: ModelFiles
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    description: HeadDescription
    check: HeadCheck
    device: torch.device

    @property
    def longest(self) -> int:
        """Tokens that the model can see at once; a very large number where it sets no limit."""
        return getattr(self.module.config.get_text_config(), "max_position_embeddings", None) or 2**31

    def hidden_states(
        self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"] | None = None
    ) -> Float32[Tensor, "b t d"]:
        """What the head receives for token ids, on the model's device and scaled by c. The head itself is not run.

        Raises:
            InputError: more tokens than the model has positions for.
            AnalysisError: a token id is one that the model has no input embedding for.
        """
        if input_ids.shape[1] > self.longest:
            raise InputError(
                f"{self.files.name} sees {self.longest:,} tokens at once and {input_ids.shape[1]:,} were asked for: choose a "
                "smaller --context."
            )
        known = cast(Tensor, self.module.get_input_embeddings().weight).shape[0]
        if input_ids.numel() and int(input_ids.max()) >= known:
            raise AnalysisError(
                f"The tokenizer of {self.files.name} gave the token id {int(input_ids.max())} and the model knows "
                f"{known} tokens: use the tokenizer that belongs to it."
            )
        mask = None if attention_mask is None else attention_mask.to(self.device)
        hidden: Tensor | None = None
        with torch.no_grad(), visiting(stop):
            try:
                self.module(input_ids=input_ids.to(self.device), attention_mask=mask, **_options(self.module))
            except HeadReached as reached:
                hidden = reached.hidden
        if hidden is None:
            raise AnalysisError(f"{self.files.name} ran without its output head: it cannot be observed.")
        return self._scaled(hidden)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Inside, what the head receives at every call ([b, t, d] float32, scaled by c) is appended to the list.

        `generate` runs the head on the last position only, so t is 1 there, also for the prompt.
        """
        hidden: list[Tensor] = []
        with visiting(lambda received: hidden.append(self._scaled(received))):
            yield hidden

    def _scaled(self, hidden: Tensor) -> Tensor:
        hidden = hidden.detach().float()
        return hidden if self.description.logit_scale == 1 else hidden * self.description.logit_scale


def load_model(
    files: ModelFiles, *, device: str = "auto", dtype: str = "auto", progress: Progress = no_progress
) -> LoadedModel:
    """Loads a model and opens its head.

    Args:
        files: from `core.model.files.resolve`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `auto` takes a GPU where torch has one.
        dtype: precision of the model's body, one of `core.settings.DTYPES`; `auto` keeps the checkpoint's.
        progress: see `core.settings.Progress`.

    Raises:
        InputError: no such device or precision.
        AnalysisError: the model does not fit into memory, is of a kind that has no single output head, or its
            logits are not reproduced; the message says which.
    """
    place = choose_device(device)
    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype}, but it must be one of {', '.join(DTYPES)}.")
    config = read_config(files.folder, files.name)
    refuse_unsupported(config, files.name)
    _require_sizes(files, config)
    check_shapes(files.folder, files.name, config)
    require_ram(files.folder, dtype, str(place), files.name)
    progress(f"Loading {files.name}", None)
    with quiet_transformers():
        tokenizer = read_tokenizer(files.folder, files.name)
        module = _module(files, config, dtype, place)
        progress(f"Checking the head of {files.name}", None)
        model = open_head(files, module, tokenizer, place)
    progress(f"Checking the head of {files.name}", 1.0)
    return model


def open_head(
    files: ModelFiles, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> LoadedModel:
    """Finds a model's head, describes it and checks it against the model; see `core.model.probe`."""
    module.eval().requires_grad_(False)
    layer = find_head(module, files.name)
    module.generation_config = _first_and_last(module, layer.weight.shape[0])
    install(layer)
    rows, dim = layer.weight.shape
    if rows < 2:
        raise AnalysisError(f"{files.name} knows a single token, which is always the next: choose another model.")
    options = _options(module)

    def forward(token_ids: Tensor) -> Tensor:
        with torch.no_grad():
            return module(input_ids=token_ids, **options).logits

    try:
        inputs = cast(Tensor, module.get_input_embeddings().weight)
        with no_panics(files.name):
            ids = probe_ids(lambda text: tokenizer.encode(text), min(rows, inputs.shape[0]), device)
        scale, softcap = measure_output(forward, layer, ids, files.name)
        bias = None if layer.bias is None else layer.bias.detach().float() * scale
        is_token = token_rows(tokenizer.get_vocab(), rows)
        head = Head(layer.weight.detach().float(), bias, softcap, is_token)
        check = check_head(forward, layer, head, scale, ids, files.name)
    except HeadscopeError:
        raise
    except Exception as error:  # a model's own code can fail in any way on a plain text
        raise AnalysisError(
            f"{files.name} cannot run on a plain text ({reason(error)}): choose another model."
        ) from error
    description = HeadDescription(
        architecture=type(module).__name__,
        vocab_size=rows,
        tokens=int(is_token.sum()),
        dim=dim,
        tied=inputs.data_ptr() == layer.weight.data_ptr(),
        bias=bias is not None,
        softcap=softcap,
        logit_scale=scale,
        padded_rows=int((~is_token).sum()),
        dtype=str(layer.weight.dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )
    return LoadedModel(files, module, tokenizer, head, description, check, device)


def _first_and_last(module: PreTrainedModel, rows: int) -> GenerationConfig:
    """The tokens that begin, end and fill a text of the model, of its generation settings.

    The others (penalties, biases, lengths, beams, …) would change what is drawn, and this is about the model's own
    distribution.
    """

    def tokens(name: str) -> list[int]:
        given = getattr(getattr(module, "generation_config", None), name, None)
        return [i for i in (given if isinstance(given, list) else [given]) if type(i) is int and 0 <= i < rows]

    first, ends, fill = tokens("bos_token_id"), tokens("eos_token_id"), tokens("pad_token_id")
    return GenerationConfig(
        bos_token_id=next(iter(first), None), eos_token_id=ends or None, pad_token_id=next(iter(fill), None)
    )


def choose_device(device: str) -> torch.device:
    """The torch device for a name in `core.settings.DEVICES`, or an `InputError` if this machine has none such."""
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "auto":
        return torch.device(gpu)
    kind, _, index = device.partition(":")
    available = ("cpu",) if gpu == "cpu" else ("cpu", gpu)
    fine = kind in available and (not index or (kind == "cuda" and index.isdecimal()))
    if not fine or (index and int(index) >= torch.cuda.device_count()):
        raise InputError(f"--device is {device}, but this machine has {' and '.join(available)}: choose one of them.")
    return torch.device(device)


def read_config(folder: Path, name: str) -> PreTrainedConfig:
    """A model's configuration, never by code that comes with it."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise AnalysisError(
            f"transformers cannot read the configuration of {name} ({reason(error)}): use the config.json "
            "that belongs to its weights, or choose a model that transformers supports."
        ) from error


def refuse_unsupported(config: PreTrainedConfig, name: str) -> None:
    """Raises `AnalysisError` for kinds of model that have no head of their own for the next token."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False):
        raise AnalysisError(
            f"{name} is an encoder–decoder ({config.model_type}), whose next token depends on a second text: choose "
            "a causal (decoder-only) language model."
        )
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if causal is None:
        raise AnalysisError(
            f"{name} is of type '{config.model_type}', for which transformers has no causal language model: choose "
            "a causal (decoder-only) language model."
        )
    named = getattr(config, "architectures", None) or []
    saved = [entry for entry in named if isinstance(entry, str)] if isinstance(named, list) else []
    known = {entry for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for entry in _names(names)}
    if saved and all(hasattr(transformers, entry) and entry not in known for entry in saved):
        raise AnalysisError(
            f"{name} was saved as {saved[0]}, which has no output head for the next token: choose a checkpoint saved "
            f"as {_names(causal)[0]}."
        )


def _require_sizes(files: ModelFiles, config: PreTrainedConfig) -> None:
    """Raises `AnalysisError` if the model sees no token, or has more layers than weights, before they are built one by one."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions < 0:
        raise AnalysisError(
            f"The configuration of {files.name} speaks of {short(f'{positions:,}', 30)} positions that the model sees: use "
            "the config.json that belongs to its weights."
        )
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    tensors = tensor_count(files.folder, files.name)
    if isinstance(layers, int) and layers > max(tensors, 1000):
        raise AnalysisError(
            f"The configuration of {files.name} speaks of {short(f'{layers:,}', 30)} layers and its files hold {tensors:,} "
            "tensors: use the config.json that belongs to them."
        )


def _names(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry


def read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `folder`, never by code that comes with it."""
    from transformers import AutoTokenizer

    _require_bounded(folder / "tokenizer.json", name)
    try:
        with no_panics(name):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except HeadscopeError:
        raise
    except Exception as error:
        there = sorted(path.name for path in folder.glob("*.json") if TOKENIZER.match(path.name) and path.is_file())
        why = reason(error)
        if asks_for_code(error):
            remedy = "choose a model whose tokenizer needs none"
        elif there and not why.startswith("Couldn't instantiate the backend tokenizer"):
            remedy = f"copy its {', '.join(there)} again"
        else:
            why = f"there is no tokenizer.json{', only ' + ', '.join(there) if there else ''}"
            remedy = "save one beside the model"
        raise AnalysisError(f"The tokenizer of {name} cannot be loaded ({why}): {remedy}.") from error
    merges: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(merges, "dropout", None):
        merges.dropout = None  # or else no text would be the same tokens twice
    return tokenizer


TOKENIZER = re.compile("tokenizer|special_tokens|added_tokens|vocab")
"""How the names of files begin that are a tokenizer's."""


def _require_bounded(path: Path, name: str) -> None:
    """Raises `AnalysisError` if what a tokenizer puts in the place of characters can make a text hundreds of times longer."""
    try:
        given = json.loads(disk.content(path))
    except (OSError, ValueError, RecursionError):  # none, or one that the tokenizer's own reader will refuse
        return
    for part in ("normalizer", "decoder"):
        growth, steps = 1, [given.get(part) if isinstance(given, dict) else None]
        while steps:
            step = steps.pop()
            if not isinstance(step, dict):
                continue
            for inner in (step.get("normalizers"), step.get("decoders")):
                steps += inner if isinstance(inner, list) else []
            growth *= max(1, len(str(step.get("content", "")))) if step.get("type") == "Replace" else 1
        if growth > MOST_GROWTH:
            raise AnalysisError(
                f"The tokenizer.json of {name} can make a text {growth:,} times longer, which would fill the memory: choose "
                "a model whose tokenizer does not."
            )


def _module(files: ModelFiles, config: PreTrainedConfig, dtype: str, device: torch.device) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    options |= {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    try:
        module, report = loader.from_pretrained(files.folder, config=config, output_loading_info=True, **options)
        module = module.to(device)
    except Exception as error:
        raise AnalysisError(
            f"transformers cannot load {files.name} ({reason(error)}): choose a model that it supports."
        ) from error
    kind = type(module).__name__
    if missing := sorted(report["missing_keys"]):
        raise AnalysisError(
            f"The files of {files.name} lack {plural(len(missing), 'weight')} of {kind} ({missing[0]}): it has no complete "
            "output head or is damaged, so choose the causal language model of this family."
        )
    if left := _left_out(module, report["unexpected_keys"]):
        raise AnalysisError(
            f"The files of {files.name} hold {plural(len(left), 'weight')} for which {kind}, as its config.json describes it, "
            f"has no place ({left[0]}): without them it is another model, so give the config.json that it was saved with."
        )
    return module


def _left_out(module: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Stored weights of the head, of layers, or biases, that the module does not have; what else lies beside them may."""
    places = dict(module.named_modules())
    head = next((name for name, each in places.items() if each is module.get_output_embeddings()), None)
    found = []
    for key in sorted(unexpected):
        layer = re.match(r"(.+)\.\d+\.", key)
        of_a_layer = layer is not None and layer[1] in places and layer[0].rstrip(".") not in places
        weighs = isinstance(getattr(places.get(key.removesuffix(".bias")), "weight", None), Tensor)
        of_a_part = weighs and key.endswith(".bias")  # of parts without weights it is what masks the future
        if of_a_layer or of_a_part or (head is not None and key.startswith(f"{head}.")):
            found.append(key)
    return found


def _options(module: PreTrainedModel) -> dict[str, bool]:
    """Arguments of a forward pass that save work, where the model knows them."""
    known = inspect.signature(module.forward).parameters
    return {"use_cache": False} if "use_cache" in known else {}


def doctor(
    name: str,
    *,
    cache: Path,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = no_progress,
    local_paths: bool = True,
) -> dict[str, object]:
    """What a model's head is and whether it is reproduced exactly, as the JSON object of `headscope doctor`.

    Raises:
        InputError, AnalysisError: the model's files cannot be had. A model whose head is not supported raises
            nothing: `supported` is False and `reason` says why.
    """
    files = resolve(name, cache=cache, progress=progress, local_paths=local_paths)
    keys = ("architecture", "vocab_size", "tokens", "dim", "tied", "bias", "softcap", "logit_scale", "padded_rows")
    answer: dict[str, object] = {"model": files.name, "revision": files.revision}
    answer |= dict.fromkeys((*keys, "dtype", "parameters", "ram_bytes", "max_logit_error"))
    answer |= {"tolerance": None, "half_precision_deviation": None, "device": None, "supported": False, "reason": None}
    try:
        answer["ram_bytes"] = estimate_ram(files.folder, dtype)
        model = load_model(files, device=device, dtype=dtype, progress=progress)
    except AnalysisError as error:
        return answer | {"reason": str(error)}
    answer |= vars(model.description) | vars(model.check)
    return answer | {"device": str(model.device), "supported": True}
