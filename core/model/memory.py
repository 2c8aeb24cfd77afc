"""How much memory a model will take, told before any of it is taken.

    bytes = parameters · width(dtype)  +  V·d·4 (the head in fp32, where the body is not)  +  working memory

The figures come from the headers of the safetensors files, so the answer is exact in its first two parts and takes
milliseconds. Working memory is one block of fp32 logits with its softmax, and what torch itself needs.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from core.errors import check_fits
from core.model.weights import parameter_bytes, read_header, read_json, weight_files

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCK_POSITIONS = 1024
TORCH_BYTES = 300 << 20
CLOSE = "close other programs or choose a smaller model"


def estimate_ram(folder: Path, dtype: str = "auto") -> int:
    """Bytes of memory that loading and observing the model in `folder` takes.

    Args:
        folder: a model folder with safetensors weights.
        dtype: of the model's body, as in `Settings`; `auto` keeps the checkpoint's.

    Raises:
        AnalysisError: a weight file is broken.
    """
    config = read_json(folder / "config.json", folder.name)
    nested = config.get("text_config")
    sizes = nested if isinstance(nested, dict) and "vocab_size" not in config else config
    head = _number(sizes, "vocab_size") * (_number(sizes, "hidden_size") or _number(sizes, "n_embd"))
    _, weights = parameter_bytes(folder, folder.name, WIDTH.get(dtype))
    head_copy = 0 if _loaded_dtype(folder, config, dtype) in ("float32", "F32") else 4 * head
    logits = 3 * 4 * BLOCK_POSITIONS * _number(sizes, "vocab_size")
    return weights + head_copy + logits + TORCH_BYTES


def require_ram(folder: Path, dtype: str, device: str, name: str) -> None:
    """Raises `AnalysisError`, with the figures, if the model does not fit into the memory that is free now."""
    narrower = ", or try --dtype bfloat16 for half of it" if dtype in ("auto", "float32") else ""
    require_free(estimate_ram(folder, dtype), name, device, CLOSE + narrower)


def require_free(needed: int, what: str, device: str = "cpu", advice: str = CLOSE) -> None:
    """Raises `AnalysisError`, with the figures, if `needed` bytes of memory are not free now for `what`."""
    free, kind = psutil.virtual_memory().available, "memory"
    if device.startswith("cuda"):
        import torch

        free, kind = torch.cuda.mem_get_info(device)[0], "GPU memory"
    check_fits(what, needed, free, kind, advice)


def _number(config: dict[str, object], key: str) -> int:
    value = config.get(key)
    return max(0, min(value, 10**12)) if isinstance(value, int) else 0


def _loaded_dtype(folder: Path, config: dict[str, object], dtype: str) -> str:
    """The precision in which the body will be: asked for, named in the configuration, or that of the weights."""
    named = config.get("dtype") or config.get("torch_dtype")
    if dtype != "auto":
        return dtype
    if isinstance(named, str):
        return named
    first = next(iter(read_header(weight_files(folder, folder.name)[0]).values()), ("F32", ()))
    return first[0]
