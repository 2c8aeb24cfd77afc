"""Single rows of the output embedding, read out of a model's files: an edit needs these and not the model.

Which tensors are the head is found once, when the model is loaded (`core.model.stored`), and remembered; after that no
torch is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from core.model.facts import StoredHead
from core.model.stored import KNOWN, decode, find_names
from core.model.weights import StoredTensor, readable, stored_tensors, weight_files


def find_stored_head(folder: Path, name: str) -> StoredHead:
    """Where the head of the model in `folder` stands in its files.

    Raises:
        AnalysisError: the files lack it.
    """
    file_of = {tensor: path.name for path in weight_files(folder, name) for tensor in tensors_in(path)}
    names = find_names(folder, name, file_of)
    bias = names.bias or ""
    return StoredHead(file_of[names.weight], names.weight, file_of.get(bias, ""), bias)


def read_rows(
    folder: Path, stored: StoredHead, ids: Sequence[int], scale: float
) -> tuple[Float64[np.ndarray, "k d"], Float64[np.ndarray, "k"]] | None:
    """Rows of E [k, d] and of the bias [k] (zeros if there is none), as `Head.rows` gives them.

    None if they are stored as numbers that `decode` does not know.

    Args:
        scale: c, by which the bias is multiplied.
    """
    for file, tensor in ((stored.weight_file, stored.weight), (stored.bias_file, stored.bias)):
        if tensor and tensors_in(folder / file)[tensor].dtype not in KNOWN:
            return None
    weight = np.stack([_row(folder / stored.weight_file, stored.weight, int(i)) for i in ids])
    if not stored.bias:
        return weight, np.zeros(len(weight))
    return weight, scale * np.array([_row(folder / stored.bias_file, stored.bias, int(i))[0] for i in ids])


def _row(path: Path, tensor: str, row: int) -> Float64[np.ndarray, "d"]:
    place = tensors_in(path)[tensor]
    size = (place.end - place.start) // place.shape[0]
    with readable(path), path.open("rb") as file:
        file.seek(place.start + row * size)
        return decode(np.frombuffer(file.read(size), np.uint8), place.dtype).astype(np.float64)


def tensors_in(path: Path) -> dict[str, StoredTensor]:
    """Name → place of every tensor in a safetensors file."""

    def read(start: int, end: int) -> bytes:
        file.seek(start)
        return file.read(end - start)

    with readable(path), path.open("rb") as file:
        return stored_tensors(read, path.stat().st_size, path.name)
