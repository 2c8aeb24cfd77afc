"""What a model folder may hold, and what is read of it: safetensors weights, JSON and tokenizer text, never code.

A safetensors file is a length (8 bytes), a JSON header of that length, and raw numbers; nothing in it can run.
Pickled weights (`.bin`, `.pt`) can run anything, so they are refused by name, as is a model whose configuration
asks for Python code of its own. The sum of a model's headers also tells its size before anything is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from core import disk
from core.errors import AnalysisError, InputError
from core.model.quiet import importing
from core.settings import Progress, no_progress, tell_bytes
from core.words import short

RUN, HASHES = "run.json", "sha256.json"
"""File of a training run that says what it is, and of each of its checkpoints that holds the SHA-256 of all others."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SIDE_FILES = re.compile(
    r"config\.json|generation_config\.json|(tokenizer|special_tokens|added_tokens|vocab|chat_template)[\w.-]*\.json|"
    r"tokenizer\.model|(vocab|merges)\.txt|spiece\.model|sentencepiece\.bpe\.model|chat_template\.[\w]+"
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
LARGEST_JSON = 100_000_000
LARGEST_HEADER = 10_000_000
"""Bytes of the header of a safetensors file: some 70,000 tensors, several times what the largest known file holds."""
LARGEST_SIDE_FILE = 256 * 2**20
"""Bytes of a configuration or a tokenizer; the largest known have some tens of millions."""
MOST_LABELS = 1_000_000
"""Classes that a configuration may speak of: transformers makes a name for each as it reads it."""


def check_names(names: Iterable[str], shown: str) -> None:
    """Raises `InputError`, with what would help, if these file names are not those of a model that can be read."""
    names = set(names)
    if "adapter_config.json" in names:
        raise InputError(f"{shown} holds an adapter: merge it into its base model, save that and name the result.")
    if {SINGLE, INDEX}.isdisjoint(names):
        pickled = sorted(name for name in names if name.endswith(PICKLES))
        if pickled:
            raise InputError(
                f"{shown} has its weights only as pickles ({pickled[0]}), which could run any code and are never "
                "read: choose a revision with safetensors, or convert it with save_pretrained where you trust it."
            )
        ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
        if ggufs:
            raise InputError(f"{shown} holds GGUF files ({ggufs[0]}): name one of the files itself, by its path.")
        raise InputError(f"{shown} holds no {SINGLE} and no {INDEX}: name a model saved by save_pretrained.")
    if "config.json" not in names:
        raise InputError(f"{shown} holds weights but no config.json: name a model saved by save_pretrained.")


def check_config(path: Path, shown: str) -> None:
    """Raises `InputError` if `config.json` cannot be read or would make transformers run or read anything else."""
    config = read_json(path, shown)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(
            f"The config.json of {shown} names no model_type as text: name a model saved by save_pretrained."
        )
    if "auto_map" in config and not _is_native(model_type):
        raise InputError(
            f"{shown} is of type '{model_type}', which transformers does not know and would run the model's own "
            "Python code for (auto_map); that is never done here: choose a model that transformers supports itself."
        )
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if isinstance(labels := part.get("num_labels"), int) and labels > MOST_LABELS:
            raise InputError(
                f"The config.json of {shown} speaks of more than {MOST_LABELS:,} classes (num_labels): remove that entry."
            )
    for key, value in config.items():
        if key == "transformers_weights" or (key.endswith("_implementation") and "/" in str(value)):
            raise InputError(f"The config.json of {shown} points elsewhere with '{key}': remove that entry.")


def _is_native(model_type: str) -> bool:
    with importing:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns a file or folder that this user may not read into one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read ({disk.why(error)}): check who may read it.") from error


def check_folder(folder: Path, shown: str) -> None:
    """Raises `InputError` if `folder` is not a complete model that can be read."""
    with readable(folder):
        entries = [entry for entry in folder.iterdir() if entry.exists()]
        names = {entry.name for entry in entries if entry.is_file()}
        sizes = {entry.name: entry.stat().st_size for entry in entries if SIDE_FILES.fullmatch(entry.name)}
    for name in sorted({entry.name for entry in entries} - names):  # a pipe or a device may never end
        if name in (SINGLE, INDEX, "config.json") or (name in sizes and not (folder / name).is_dir()):
            raise InputError(f"The {name} of {shown} is no ordinary file: copy or download it again.")
    check_names(names, shown)
    for name in sorted(names & sizes.keys()):
        if sizes[name] > LARGEST_SIDE_FILE:
            raise InputError(
                f"The {name} of {shown} is larger than {LARGEST_SIDE_FILE // 2**20} MB: copy or download it again."
            )
    missing = [path.name for path in weight_files(folder, shown) if not path.is_file()]
    if missing:
        raise InputError(f"{shown} lacks {missing[0]}, which its {INDEX} names: copy or download it again.")
    check_config(folder / "config.json", shown)


def weight_files(folder: Path, shown: str) -> list[Path]:
    """The safetensors files that hold a model's weights, in the order transformers would choose them."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [folder / SINGLE]
    return [folder / name for name in shard_names(folder / INDEX, shown)]


def shard_names(index: Path, shown: str) -> list[str]:
    """The file names in a `model.safetensors.index.json`; only plain names in the same folder are allowed."""
    table = read_json(index, shown).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names or not all(re.fullmatch(r"[A-Za-z0-9][\w.-]*\.safetensors", name) for name in names):
        raise InputError(
            f"The {INDEX} of {shown} does not list safetensors files beside it: download it again, or choose "
            "another model."
        )
    return names


def read_json(path: Path, shown: str) -> dict[str, object]:
    """The object in a JSON file, or an `InputError` that names it."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_JSON + 1)
        content = json.loads(text) if len(text) <= LARGEST_JSON else None
    except PermissionError as error:
        raise InputError(
            f"The {path.name} of {shown} cannot be read ({error.strerror}): check who may read it."
        ) from error
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"The {path.name} of {shown} cannot be read as a JSON object: copy or download it again.")
    return content


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file: bytes [start, end) counted from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → (dtype, shape) of every tensor in a safetensors file, checked against the file's size.

    Raises:
        AnalysisError: the header is broken or promises more bytes than there are.
    """
    try:
        with path.open("rb") as file:

            def read(start: int, end: int) -> bytes:
                file.seek(start)
                return file.read(end - start)

            tensors = stored_tensors(read, path.stat().st_size, path.name)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check who may read it.") from error
    except OSError as error:
        raise _broken(path.name) from error
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def stored_tensors(read: Callable[[int, int], bytes], size: int, file: str) -> dict[str, StoredTensor]:
    """What the header of a safetensors file says, wherever the file is.

    Args:
        read: gives bytes [start, end) of the file.
        size: of the whole file, which the header must describe exactly.
        file: its name, for the message.

    Raises:
        AnalysisError: the header is broken or promises more bytes than there are; so may `read`.
    """
    length = int.from_bytes(read(0, 8), "little") if size >= 8 else 0
    if not 2 <= length <= size - 8:
        raise _broken(file)
    if length > LARGEST_HEADER:
        raise AnalysisError(
            f"The header of {file} has {length / 1e6:.1f} MB, and at most {LARGEST_HEADER // 1_000_000} MB are read: copy or "
            "download the model again, or save it in several files."
        )
    text, data = read(8, 8 + length), 8 + length
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            start, end = (data + int(offset) for offset in entry["data_offsets"])
            tensor = StoredTensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), start, end)
            width = BYTES.get(tensor.dtype)
            if min(tensor.shape, default=0) < 0 or (width and end - start != width * prod(tensor.shape)):
                raise ValueError("shape")
            tensors[name] = tensor
        position = data
        for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
            if tensor.start != position or tensor.end < position:  # a hole, or two that overlap
                raise ValueError("data offsets")
            position = tensor.end
        if position != size:
            raise ValueError("data length")
        if odd := [name for name, tensor in tensors.items() if tensor.dtype.startswith("C")]:
            raise AnalysisError(
                f"{file} holds complex numbers ({short(odd[0])}), and a language model would take half of them: choose another "
                "checkpoint."
            )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise _broken(file) from error
    return tensors


def _broken(file: str) -> AnalysisError:
    return AnalysisError(
        f"The weights in {file} are broken or incomplete (its header does not describe the file): copy or download "
        "the model again."
    )


def parameter_bytes(folder: Path, shown: str, width: int | None = None) -> tuple[int, int]:
    """Number of parameters in a model's files, and the bytes they take (at `width` bytes each where one is given)."""
    numbers = size = 0
    for path in weight_files(folder, shown):
        for dtype, shape in read_header(path).values():
            numbers += prod(shape)
            size += prod(shape) * (width or BYTES.get(dtype, 1))
    return numbers, size


def tensor_count(folder: Path, shown: str) -> int:
    """How many tensors a model's files hold."""
    return sum(len(read_header(path)) for path in weight_files(folder, shown))


def model_sha256(folder: Path, shown: str, cache: Path, progress: Progress = no_progress) -> str:
    """One hash of everything the model's numbers depend on: its weights, configuration and tokenizer."""
    side = (path for path in folder.iterdir() if path.is_file() and SIDE_FILES.fullmatch(path.name))
    paths = sorted([*weight_files(folder, shown), *side], key=lambda path: path.name)
    lines = [f"{path.name} {file_sha256(path, cache, progress)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_damaged_checkpoint(folder: Path, sha256: Callable[[Path], str] = sha256_of) -> bool:
    """The same as `is_damaged`, of a folder that may belong to no training run: there is nothing then to hold it against."""
    return (folder.parent / RUN).is_file() and is_damaged(folder, sha256)


def is_damaged(folder: Path, sha256: Callable[[Path], str] = sha256_of) -> bool:
    """Whether the files of a folder of a training run are not those that were written; one that never was listed is taken as
    it is."""
    try:
        known = json.loads(disk.content(folder / HASHES))
        return any(not (folder / name).is_file() or sha256(folder / name) != known[name] for name in known)
    except FileNotFoundError:
        return (folder / HASHES).exists()
    except (OSError, ValueError, AttributeError, TypeError):
        return True


def file_sha256(path: Path, cache: Path, progress: Progress = no_progress) -> str:
    """SHA-256 of a file, remembered in `cache/hashes.json` for as long as size, times and inode stay the same.

    The time of the last change to the inode is one of them: unlike the time of writing nobody can set it back.
    """
    with readable(path):
        real = path.resolve()
        disk.check_ordinary(real)
        stat = real.stat()
        mark = f"{real} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
        known = _hashed.get(mark) or _known_hashes(cache).get(mark, "")
        if known.partition(" ")[2] == _checksum(mark, known.partition(" ")[0]):
            return known.partition(" ")[0]
        digest, done = hashlib.sha256(), 0
        with real.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                done += len(block)
                if stat.st_size >= WORTH_TELLING:
                    tell_bytes(progress, f"Checking {path.name}", done, stat.st_size)
    sha256 = digest.hexdigest()
    _hashed[mark] = f"{sha256} {_checksum(mark, sha256)}"
    others = [(key, value) for key, value in _known_hashes(cache).items() if not key.startswith(f"{real} ")]
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the analysis
        write_atomically(
            cache / "hashes.json", json.dumps(dict(others[-MOST_HASHES:]) | {mark: _hashed[mark]}, indent=0).encode()
        )
    return sha256


WORTH_TELLING = 10**7
"""Bytes of a file whose hash takes a moment."""
MOST_HASHES = 1000
_hashed: dict[str, str] = {}
"""What this process has hashed, for a cache that cannot be written to."""


def _checksum(mark: str, sha256: str) -> str:
    """Tells whether a remembered hash is still the one that was written down."""
    return hashlib.blake2b(f"{mark} {sha256}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _known_hashes(cache: Path) -> dict[str, str]:
    try:
        table = json.loads(disk.content(cache / "hashes.json"))
        return {str(key): str(value) for key, value in table.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
