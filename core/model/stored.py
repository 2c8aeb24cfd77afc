"""Which of the tensors in a model's files are its output head, and how their bytes become numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from core.errors import AnalysisError
from core.foreign import reason
from core.model.quiet import quiet_transformers
from core.model.weights import read_header, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
"""Types of stored numbers that no weight of a model that is not quantised has."""


@dataclass(frozen=True)
class HeadNames:
    """Names of the stored tensors that are the head.

    Attributes:
        weight: of the output embedding.
        also: of the input embedding, if that is stored beside it although the configuration ties the two.
        bias: or None.
        shape: (V, d) of the weight.
        tied: as the configuration has it.
        own: `weight` is stored as the head's, and not only as the input embedding's.
        parameters: names of the weights of the output and of the input embedding in the model.
    """

    weight: str
    also: str | None
    bias: str | None
    shape: tuple[int, int]
    tied: bool
    own: bool
    parameters: tuple[str, str]


def find_names(folder: Path, name: str, stored: Collection[str]) -> HeadNames:
    """Asks the model's class, which is built from the configuration in `folder`, which of the tensors are its head."""
    from core.model.head import find_head
    from core.model.load import read_config, refuse_unsupported

    config = read_config(folder, name)
    refuse_unsupported(config, name)
    module = _without_numbers(config, name)
    layer = find_head(module, name)
    inputs: Any = module.get_input_embeddings()
    paths = {id(part): path for path, part in module.named_modules()}
    sources = _sources(module, stored)
    parameters = (f"{paths[id(layer)]}.weight", f"{paths[id(inputs)]}.weight")
    weight = sources.get(parameters[0])
    tied = inputs.weight is layer.weight
    embedding = sources.get(parameters[1]) if tied else None
    bias = None if layer.bias is None else sources.get(f"{paths[id(layer)]}.bias")
    if (weight or embedding) is None or (bias is None) != (layer.bias is None):
        raise AnalysisError(
            f"The files of {name} lack the output head of {type(module).__name__}: choose the causal language model of "
            "this family."
        )
    rows, dim = layer.weight.shape
    also = embedding if weight else None
    return HeadNames(weight or embedding or "", also, bias, (rows, dim), tied, weight is not None, parameters)


def check_shapes(folder: Path, name: str, config: PreTrainedConfig) -> None:
    """Compare the weights in a model's files with what its configuration describes, before memory is taken for either.

    Weights that transformers converts as it loads them, and those of quantised models, are not compared.

    Raises:
        AnalysisError: a weight has another shape than the configuration gives it, or is stored as integers.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    stored = {tensor: found for file in weight_files(folder, name) for tensor, found in read_header(file).items()}
    module = _without_numbers(config, name)
    parameters = module.state_dict()
    for parameter, tensor in _sources(module, stored).items():
        if parameter not in parameters:
            continue
        described, (dtype, shape) = parameters[parameter], stored[tensor]
        if tuple(described.shape) != shape:
            raise AnalysisError(
                f"The config.json of {name} describes {parameter} as {_size(described.shape)} numbers and its files hold "
                f"{_size(shape)}: use the config.json that belongs to the weights."
            )
        if described.is_floating_point() and dtype in INTEGERS:
            raise AnalysisError(
                f"The files of {name} hold {parameter} as integers ({dtype}), which such weights never are: copy or download "
                "the model again."
            )


def _size(shape: Sequence[int]) -> str:
    return " × ".join(f"{length:,}" for length in shape) or "1"


def _without_numbers(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise AnalysisError(
            f"transformers cannot build {name} from its configuration ({reason(error)}): use the config.json that belongs "
            "to its weights, or choose a model that transformers supports."
        ) from error


def _sources(module: PreTrainedModel, stored: Collection[str]) -> dict[str, str]:
    """Parameter → stored tensor, by the renaming that transformers does when it loads a model.

    Tensors that are converted and not only renamed are left out.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(module)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    prefix, parameters = module.base_model_prefix, module.state_dict()
    sources: dict[str, str] = {}
    for tensor in sorted(stored, key=dot_natural_key):
        parameter, converted = rename_source_key(tensor, renamings, converters, prefix, parameters)
        if parameter not in parameters and tensor in parameters:
            parameter, converted = rename_source_key(tensor, [], [], prefix, parameters)
        if converted is None:
            sources.setdefault(parameter, tensor)
    return sources


KNOWN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Types of stored numbers that `decode` knows, and how numpy reads them."""


def decode(raw: UInt8[np.ndarray, "w"], dtype: str) -> Float32[np.ndarray, "n"]:
    """Little-endian numbers of a type in `KNOWN` as float32."""
    numbers = raw.view(KNOWN[dtype])
    if dtype == "BF16":  # the upper half of a float32
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32)
