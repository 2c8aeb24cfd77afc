"""Only the output head of a checkpoint: one tensor, and its bias, out of the model's files.

A series of checkpoints (org/name at step0, step1, step512 …) can so be compared without downloading a model for each.
Of a safetensors file the header is read and then that tensor's bytes, on the Hub by HTTP range. Which tensor it is
the model's class tells: it is built from its configuration without any numbers (torch's meta device), and
transformers' own renaming of stored tensors is asked. Heads from the Hub are kept, one for all revisions whose weights
are the same file.

    >>> read_head(Path("checkpoint-512"), "checkpoint-512").weight.shape               # doctest: +SKIP
    (50304, 512)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from core.errors import AnalysisError, InputError
from core.model.fetch import writing_to
from core.model.hub import (
    Listing,
    check_kept,
    downloaded,
    list_files,
    read_part,
    refused,
    shown_as,
    side_files,
    small_file,
)
from core.model.stored import decode, find_names
from core.model.weights import (
    INDEX,
    SINGLE,
    StoredTensor,
    check_config,
    check_folder,
    check_names,
    read_json,
    readable,
    shard_names,
    stored_tensors,
    weight_files,
)
from core.settings import Progress, no_progress, tell_bytes
from core.store import read_result, write_result

if TYPE_CHECKING:
    pass

ReadPart = Callable[[str, int, int], bytes]
"""File name, first byte, end → those bytes."""

BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class HeadTensors:
    """The output head of one checkpoint.

    Attributes:
        weight: [V, d] float32, the output embedding E.
        bias: [V] float32, or None.
        sha256: of the stored bytes, with their dtype and shape: the same for two checkpoints with the same head.
        dtype: as stored: `F32`, `F16` or `BF16`.
        tied: the head is the input embedding too.
        revision: commit on the Hub; for a folder the first 12 digits of `sha256`.
    """

    weight: Float32[np.ndarray, "V d"]
    bias: Float32[np.ndarray, "V"] | None
    sha256: str
    dtype: str
    tied: bool
    revision: str


def read_head(folder: Path, name: str) -> HeadTensors:
    """The head of a model in a folder that save_pretrained wrote; nothing else of its weights is read.

    Raises:
        InputError: the folder is not a complete model that can be read.
        AnalysisError: it has no head of its own for the next token, or its files are broken.
    """
    check_folder(folder, name)

    def read(file: str, start: int, end: int) -> bytes:
        return _part(folder / file, start, end)

    sizes = {path.name: path.stat().st_size for path in weight_files(folder, name)}
    kept = _read(folder, folder / INDEX, name, sizes, read)
    return _decoded(kept, revision=None)


def fetch_head(repo: str, revision: str | None, *, cache: Path, progress: Progress = no_progress) -> HeadTensors:
    """The head of a model on the Hub; of its weights only the head's bytes are transferred, and those once.

    Args:
        repo: org/name.
        revision: branch, tag or commit; None takes the newest.
        cache: what is read is kept below its folder `heads`.
        progress: see `core.settings.Progress`.

    Raises:
        InputError: there is no such repository or revision, or it holds no model that can be read.
        AnalysisError: the Hub, the network or the disk does not allow it; what was sent is not what the Hub lists;
            or the model has no head of its own for the next token.
    """
    try:
        listing = list_files(repo, revision, progress)
    except (InputError, AnalysisError) as error:
        if not refused(error) and (found := _on_disk(repo, revision, cache)):
            return found
        raise
    known = _known(repo, listing.commit, cache)
    if known and (kept := _kept(known.head, cache)):
        _note(repo, revision, known, cache)
        return _decoded(kept, known.commit)
    check_names(listing.sizes, listing.shown)
    config = small_file(listing, "config.json", progress)
    check_config(config, listing.shown)
    index = config.parent / INDEX if SINGLE in listing.sizes else small_file(listing, INDEX, progress)
    weights = [SINGLE] if SINGLE in listing.sizes else shard_names(index, listing.shown)
    missing = [file for file in weights if file not in listing.sizes]
    if missing:
        raise AnalysisError(f"{listing.shown} lacks {missing[0]}, which its {INDEX} names: choose another revision.")
    identity = _identity(listing, config, weights)
    kept = _kept(identity, cache)
    if kept is None:
        sizes = {file: listing.sizes[file] for file in weights}
        kept = _read(config.parent, index, listing.shown, sizes, _reader(listing, progress))
        with writing_to(_path("head", identity, cache)):
            write_result(_path("head", identity, cache), kept, identity)
    for each in (listing.commit, revision):
        _note(repo, each, _Known(listing.commit, identity), cache)
    return _decoded(kept, listing.commit)


def fetch_tokenizer(repo: str, revision: str | None, *, progress: Progress = no_progress) -> Path:
    """A folder, in the Hub's own cache, with the configuration and tokenizer of a model on the Hub, without weights.

    Raises:
        InputError: there is no such repository or revision, or its configuration cannot be used.
        AnalysisError: the Hub, the network or the disk does not allow it.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        return side_files(list_files(repo, revision, progress), progress)
    except (InputError, AnalysisError) as error:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
        if refused(error) or not isinstance(config, str):
            raise
        folder = Path(config).parent
        if not any(re.match(r"tokenizer\.|vocab|spiece|sentencepiece", path.name) for path in folder.iterdir()):
            raise
        return folder


# What is kept


@dataclass(frozen=True)
class _Kept:
    """A head as its file stores it: raw bytes, dtype and shape of the weight and of the bias."""

    weight: UInt8[np.ndarray, "w"]
    bias: UInt8[np.ndarray, "b"] | None
    dtype: str
    bias_dtype: str
    rows: int
    dim: int
    tied: bool


@dataclass(frozen=True)
class _Known:
    """The commit that a revision was when it was last asked for, and the identity under which its head is kept."""

    commit: str
    head: str


def _path(kind: str, key: str, cache: Path) -> Path:
    return cache / "heads" / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _identity(listing: Listing, config: Path, weights: list[str]) -> str:
    """What a head depends on: the configuration and the weight files' hashes, or the commit if they have none."""
    hashes = [listing.sha256.get(file) for file in weights]
    if None in hashes:
        return json.dumps([listing.repo, listing.commit])
    return json.dumps([hashlib.sha256(config.read_bytes()).hexdigest(), *hashes])


def _kept(identity: str, cache: Path) -> _Kept | None:
    return read_result(_path("head", identity, cache), _Kept, identity)


def _known(repo: str, revision: str | None, cache: Path) -> _Known | None:
    key = shown_as(repo, revision or "main")
    return read_result(_path("revision", key, cache), _Known, key)


def _note(repo: str, revision: str | None, known: _Known, cache: Path) -> None:
    """Remembers what a revision is, unless that is noted already."""
    if _known(repo, revision, cache) != known:
        key = shown_as(repo, revision or "main")
        with writing_to(_path("revision", key, cache)):
            write_result(_path("revision", key, cache), known, key)


def _on_disk(repo: str, revision: str | None, cache: Path) -> HeadTensors | None:
    """The head without asking the Hub: what was kept, or out of a model that was downloaded as a whole."""
    known = _known(repo, revision, cache)
    if known and (kept := _kept(known.head, cache)):
        return _decoded(kept, known.commit)
    if here := downloaded(repo, revision):
        folder, commit = here
        check_kept(folder, shown_as(repo, revision), cache)
        head = read_head(folder, shown_as(repo, revision))
        return HeadTensors(head.weight, head.bias, head.sha256, head.dtype, head.tied, commit)
    return None


# Reading bytes


def _part(path: Path, start: int, end: int) -> bytes:
    with readable(path), path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _reader(listing: Listing, progress: Progress) -> ReadPart:
    """Reads the files of a revision on the Hub, or in the Hub's own cache where they are there already."""
    from huggingface_hub import try_to_load_from_cache

    def read(file: str, start: int, end: int) -> bytes:
        here = try_to_load_from_cache(listing.repo, file, revision=listing.commit)
        if isinstance(here, str) and Path(here).stat().st_size == listing.sizes[file]:
            return _part(Path(here), start, end)
        step = f"Reading the head of {listing.shown}"
        return read_part(listing, file, start, end, lambda done: tell_bytes(progress, step, done, end - start))

    return read


def _read(config: Path, index: Path, name: str, sizes: dict[str, int], read: ReadPart) -> _Kept:
    """Finds the head among the tensors of a model's weight files and reads it.

    Args:
        config: folder that holds the model's config.json.
        index: says which file holds which tensor, if there are several files.
        sizes: weight file → bytes.
    """
    headers: dict[str, dict[str, StoredTensor]] = {}

    def header(file: str) -> dict[str, StoredTensor]:
        if file not in headers:
            headers[file] = stored_tensors(lambda start, end: read(file, start, end), sizes[file], file)
        return headers[file]

    def tensor(stored: str, shape: tuple[int, ...]) -> tuple[bytes, str]:
        file = file_of[stored]
        found = header(file).get(stored)
        if found is None:
            raise AnalysisError(
                f"{file} of {name} lacks {stored}, which its {INDEX} places there: choose another copy."
            )
        if found.dtype not in BYTES:
            raise AnalysisError(
                f"The output head of {name} is stored as {found.dtype} and can be read from {', '.join(BYTES)}: choose "
                "a checkpoint of this model that is not quantised."
            )
        if found.shape != shape or found.end - found.start != BYTES[found.dtype] * int(np.prod(shape)):
            raise AnalysisError(
                f"{stored} of {name} is stored as {list(found.shape)} and its config.json makes it {list(shape)}: one "
                "of the two is of another model, so download both again."
            )
        raw = read(file, found.start, found.end)
        if len(raw) != found.end - found.start:
            raise AnalysisError(f"{file} of {name} changed while it was read: try again.")
        return raw, found.dtype

    if SINGLE in sizes:
        file_of = dict.fromkeys(header(SINGLE), SINGLE)
    else:
        table: Any = read_json(index, name)["weight_map"]
        file_of = {str(stored): str(file) for stored, file in table.items()}
    names = find_names(config, name, file_of)
    weight, dtype = tensor(names.weight, names.shape)
    tied = names.tied
    if names.also is not None:  # both are stored: transformers ties them if they are the same
        tied = tensor(names.also, names.shape)[0] == weight
    bias, bias_dtype = (None, "") if names.bias is None else tensor(names.bias, names.shape[:1])
    raw_bias = None if bias is None else np.frombuffer(bias, np.uint8)
    return _Kept(np.frombuffer(weight, np.uint8), raw_bias, dtype, bias_dtype, *names.shape, tied)


def _decoded(kept: _Kept, revision: str | None) -> HeadTensors:
    shape = (kept.rows, kept.dim)
    digest = hashlib.sha256(f"{kept.dtype} {shape}\n".encode())
    digest.update(kept.weight.data)
    bias = None
    if kept.bias is not None:
        digest.update(f"\n{kept.bias_dtype} {shape[:1]}\n".encode())
        digest.update(kept.bias.data)
        bias = decode(kept.bias, kept.bias_dtype)
    weight = decode(kept.weight, kept.dtype).reshape(shape)
    sha256 = digest.hexdigest()
    return HeadTensors(weight, bias, sha256, kept.dtype, kept.tied, revision or sha256[:12])
