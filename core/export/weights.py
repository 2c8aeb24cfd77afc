"""A model's weight files again, with another head: every other tensor byte for byte, nothing loaded as a whole.

A safetensors file is a header and raw numbers, so a head is replaced, or one is added where the model had tied it to
its input embedding, while the rest is copied from file to file. Where another precision is asked for, each tensor is
converted in pieces on its way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import AnalysisError
from core.model.rows import tensors_in
from core.model.stored import HeadNames, find_names
from core.model.weights import BYTES, INDEX, SINGLE, StoredTensor, weight_files
from core.settings import Progress, tell_bytes

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STORED = {str(dtype).removeprefix("torch."): name for name, dtype in TORCH.items()}
"""Names of the precisions: `float32` → `F32`."""
PIECE = 1 << 22
"""Bytes that are copied or converted at once."""


@dataclass(frozen=True)
class Source:
    """A tensor that is to be written: out of a file of the model, or from memory.

    Attributes:
        dtype: in which it is written. shape: of the tensor.
        file, place: where it is now; or numbers: its bytes as they are to be written.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path | None = None
    place: StoredTensor | None = None
    numbers: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        if self.place is not None and self.place.dtype == self.dtype:
            return self.place.end - self.place.start
        return prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True)
class WrittenFile:
    """A file of the export."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Layout:
    """What the weight files of an export hold.

    Attributes:
        files: file → tensor → where its numbers come from; the head's are not there yet.
        names: of the head in the model's files. head: the tensor that will be the head.
        bytes_before: of the model's own weight files. head_bytes_before: of its head there.
    """

    files: dict[str, dict[str, Source]]
    names: HeadNames
    head: str
    bytes_before: int
    head_bytes_before: int

    @property
    def head_dtype(self) -> torch.dtype:
        return TORCH[self._head.dtype]

    @property
    def head_bytes(self) -> int:
        return self._head.bytes

    @property
    def _head(self) -> Source:
        return next(tensors[self.head] for tensors in self.files.values() if self.head in tensors)

    @property
    def bytes(self) -> int:
        """Of all numbers that will be written, and a little for the headers."""
        return sum(source.bytes + 256 for tensors in self.files.values() for source in tensors.values())


def lay_out(folder: Path, name: str, dtype: str | None = None, keep: tuple[str, ...] = ()) -> Layout:
    """Which tensors of the model in `folder` go where.

    Args:
        dtype: precision to convert to, `float32`, `bfloat16` or `float16`; None keeps that of every tensor.
        keep: tensors with one of these words in their name keep theirs all the same (transformers keeps them in fp32).

    Raises:
        AnalysisError: the files are broken, or lack the head.
    """
    files: dict[str, dict[str, Source]] = {}
    paths = weight_files(folder, name)
    for path in paths:
        files[path.name] = {}
        for tensor, place in tensors_in(path).items():
            kept = dtype is None or place.dtype not in TORCH or any(word in tensor for word in keep)
            width = place.dtype if kept or dtype is None else STORED[dtype]
            files[path.name][tensor] = Source(width, place.shape, path, place)
    file_of = {tensor: file for file, tensors in files.items() for tensor in tensors}
    names = find_names(folder, name, file_of)
    file = files[file_of[names.weight]]
    stored = file[names.weight]
    head = names.weight if names.own else names.parameters[0]
    if names.tied and names.own and names.also is None:  # stored as the head only: from now on both are
        file[names.parameters[1]] = stored
    if not names.own and head in file_of:
        raise AnalysisError(f"{name} stores {head} twice, in a way that cannot be told apart: it cannot be exported.")
    if stored.dtype not in TORCH:
        raise AnalysisError(
            f"The output head of {name} is stored as {stored.dtype}: export a copy that is not quantised."
        )
    file[head] = Source(stored.dtype, names.shape)
    before = 0 if stored.place is None else stored.place.end - stored.place.start
    return Layout(files, names, head, sum(path.stat().st_size for path in paths), before)


def write_weights(layout: Layout, head: torch.Tensor, folder: Path, progress: Progress) -> list[WrittenFile]:
    """Write the weight files, and the index if there are several; each one is on the disk when this returns.

    Args:
        head: [V, d] in the precision in which it is stored.
    """
    numbers = head.contiguous().cpu().view(torch.uint8).numpy().reshape(-1)
    total, done, written = layout.bytes, 0, []
    for name, tensors in layout.files.items():
        tensors = {
            tensor: Source(source.dtype, source.shape, numbers=numbers) if tensor == layout.head else source
            for tensor, source in tensors.items()
        }

        def told(more: int, before: int = done) -> None:
            tell_bytes(progress, "Writing the checkpoint", before + more, total)

        written.append(_write(folder / name, tensors, told))
        done += written[-1].bytes
    if SINGLE not in layout.files:
        sizes = {tensor: source.bytes for tensors in layout.files.values() for tensor, source in tensors.items()}
        where = {tensor: name for name, tensors in layout.files.items() for tensor in tensors}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(where.items()))}
        written.append(write_json(folder / INDEX, index))
    return written


def write_json(path: Path, content: Mapping[str, Any]) -> WrittenFile:
    return write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> WrittenFile:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return WrittenFile(path.name, len(content), hashlib.sha256(content).hexdigest())


def _write(path: Path, tensors: Mapping[str, Source], told: Any) -> WrittenFile:
    """One safetensors file; wide numbers first, so that every tensor begins at a multiple of its width."""
    order = sorted(tensors, key=lambda name: (-BYTES.get(tensors[name].dtype, 1), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        source = tensors[name]
        header[name] = {"dtype": source.dtype, "shape": source.shape, "data_offsets": [end, end + source.bytes]}
        end += source.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        start = (len(text).to_bytes(8, "little"), text)
        for piece in chain(start, chain.from_iterable(_pieces(tensors[name]) for name in order)):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
            told(size)
        file.flush()
        os.fsync(file.fileno())
    return WrittenFile(path.name, size, digest.hexdigest())


def _pieces(source: Source) -> Iterator[bytes | memoryview]:
    if source.numbers is not None:
        for start in range(0, len(source.numbers), PIECE):
            yield source.numbers[start : start + PIECE].data
        return
    if source.file is None or source.place is None:
        raise AnalysisError("A tensor of the export has no numbers.")  # a mistake in the layout
    place, left = source.place, source.place.end - source.place.start
    with source.file.open("rb") as file:
        file.seek(place.start)
        while left:
            piece = file.read(min(PIECE, left))
            if not piece:
                raise AnalysisError(f"{source.file.name} changed while it was read: try again.")
            left -= len(piece)
            if place.dtype == source.dtype:
                yield piece
            else:
                numbers = torch.frombuffer(bytearray(piece), dtype=TORCH[place.dtype]).to(TORCH[source.dtype])
                yield numbers.view(torch.uint8).numpy().data
