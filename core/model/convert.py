"""GGUF → an ordinary safetensors folder, once.

A GGUF file is a quantised model in one file. transformers can unpack it, which takes long; the result is kept in
fp32 under the file's SHA-256, so that the second time is an ordinary load and a changed file is another model.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core import disk
from core.errors import AnalysisError, HeadscopeError, InputError, check_fits
from core.model.fetch import clear_stale, locked, scratch_folder, writing_to
from core.model.gguf_header import NO_WEIGHTS, check_header, check_lengths, weights
from core.model.memory import require_free
from core.model.weights import file_sha256, readable, sha256_of
from core.settings import Progress, no_progress, tell_bytes
from core.words import plural, short

MAGIC = b"GGUF"
_alone = threading.Lock()
"""Held while the readers of other packages are changed for a conversion."""
HASHES = "converted.json"
"""File of a conversion that holds the SHA-256 of all others."""


def converted_folder(sha256: str, cache: Path) -> Path:
    """Where the conversion of the GGUF file with this hash lies, whether or not it is there yet."""
    return cache / "models" / f"gguf-{sha256[:24]}"


def is_converted(folder: Path, cache: Path, progress: Progress = no_progress) -> bool:
    """Whether a conversion is there, and every file as it was written."""
    try:
        known = json.loads(disk.content(folder / HASHES))
        names = {path.name for path in folder.iterdir()} - {HASHES}
        return names == set(known) and all(file_sha256(folder / n, cache, progress) == known[n] for n in names)
    except (OSError, ValueError, TypeError, InputError):
        return False


def convert_gguf(path: Path, cache: Path, progress: Progress = no_progress) -> tuple[Path, str]:
    """The folder that holds `path` converted, made on the first call, and the SHA-256 of the GGUF file.

    Raises:
        AnalysisError: the file is not GGUF, its architecture is not one transformers can unpack, or the disk is full.
    """
    with readable(path), path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise AnalysisError(f"{path.name} is not a GGUF file (it does not begin with 'GGUF'): copy it again.")
    sha256 = file_sha256(path, cache, progress)
    target = converted_folder(sha256, cache)
    if not is_converted(target, cache, progress):
        with writing_to(target), locked(target, progress):
            if not is_converted(target, cache, progress):
                _convert(path, target, progress)
    clear_stale(target)
    return target, sha256


def _convert(path: Path, target: Path, progress: Progress) -> None:
    import gguf

    with scratch_folder(target) as folder:
        progress(f"Unpacking {path.name} (once)", None)
        try:
            with _parsing_once():
                check_lengths(path)
                with np.errstate(over="ignore"):  # an offset beyond what numbers hold is told below
                    read = gguf.GGUFReader(path)
                check_header(path, read)
                _check_room(path, sum(int(tensor.n_elements) for tensor in read.tensors), target.parent)
                _unpack(path, folder / "model", weights(read), progress)
        except (HeadscopeError, MemoryError):
            raise
        except OSError as error:
            if error.errno is not None:  # the disk, told by `writing_to`
                raise
            raise _refusal(path, error) from error
        except Exception as error:
            if "(os error" in str(error):  # how safetensors and tokenizers report the disk
                raise OSError(str(error)) from error
            # the reader's own faults on a broken or unknown file are of many types
            raise _refusal(path, error) from error
        progress(f"Unpacking {path.name} (once)", 1.0)
        hashes = {file.name: sha256_of(file) for file in sorted((folder / "model").iterdir())}
        (folder / "model" / HASHES).write_text(json.dumps(hashes, indent=0), "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        (folder / "model").replace(target)


def _check_room(path: Path, numbers: int, folder: Path) -> None:
    """Raises `AnalysisError` if what a file unpacks to does not fit into memory (twice, for a moment) or on the disk."""
    what, advice = f"Unpacking {path.name}", "free some, or name a safetensors folder of the same model"
    require_free(8 * numbers, what, advice=advice)
    check_fits(what, 4 * numbers, shutil.disk_usage(folder).free, "disk", advice)


def _refusal(path: Path, error: Exception) -> AnalysisError:
    text = " ".join(str(error).split())
    # the reader takes what there is of a tensor for the whole
    if "cannot reshape array of size" in text or "must be a divisor of the total size" in text:
        return AnalysisError(f"{path.name} ends before its last tensor: it did not arrive whole, so copy it once more.")
    if "ignore_mismatched_sizes" in text:
        return AnalysisError(
            f"What {path.name} says of its model does not describe the tensors in it: it is damaged or was made wrongly, so "
            "copy it again, or name a safetensors folder of the same model."
        )
    if "out of bounds for axis 0 with size 0" in text:
        return AnalysisError(f"{path.name} ends inside of its header: it is damaged, so copy it again.")
    text = text.replace(str(path.parent), "").replace(str(path.resolve().parent), "")
    text = re.sub(r"\S*[/\\]alone[/\\]", "", text)  # where it lay as it was read
    reason = short(text, 200) if 0 < len(text) <= 200 else type(error).__name__  # without what a terminal obeys
    return AnalysisError(
        f"transformers cannot unpack {path.name} ({reason}): copy it again, or use a GGUF of an architecture that "
        "it supports or a safetensors folder of the same model."
    )


def _unpack(path: Path, folder: Path, numbers: int, progress: Progress) -> None:
    """Loads a GGUF file of so many weights in fp32 and saves it, with its tokenizer, as safetensors."""
    import torch
    import transformers

    from core.model.quiet import quiet_transformers

    place: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False, "local_files_only": True}
    options = dict(place)
    if hasattr(transformers, "GgufConfig"):  # newer releases would keep the blocks packed where they have a kernel
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    alone = folder.parent / "alone"  # what lies beside the file is not part of it, and would be read
    alone.mkdir()
    try:
        (alone / path.name).symlink_to(path.resolve())
    except OSError:  # a system on which links are a privilege
        shutil.copyfile(path, alone / path.name)
    loader: Any = transformers.AutoModelForCausalLM
    options |= {"dtype": torch.float32, "output_loading_info": True}
    with quiet_transformers(), _telling(f"Unpacking {path.name} (once)", progress):
        tokenizer = transformers.AutoTokenizer.from_pretrained(alone, **place)
        with _counting() as taken:
            model, report = loader.from_pretrained(alone, **options)
        if missing := sorted(report["missing_keys"]):  # transformers would have drawn them at random
            raise AnalysisError(
                f"{path.name} lacks {plural(len(missing), 'weight')} of {type(model).__name__} ({missing[0]}): it "
                "is damaged, so copy it again."
            )
        left = sorted(name for name in report["unexpected_keys"] if not NO_WEIGHTS.search(name))
        if left or (taken and sum(taken) < numbers):
            first = short(left[0]) if left else f"{numbers - sum(taken):,} of {numbers:,}"
            raise AnalysisError(
                f"{path.name} holds weights for which the model that it describes has no place ({first}): without them it is "
                "another model, so copy it again."
            )
        for mark in ("hf_quantizer", "quantization_method"):
            if hasattr(model, mark):
                delattr(model, mark)
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _counting() -> Iterator[list[int]]:
    """Within, of every tensor that transformers takes out of a GGUF file the number of weights; it drops others silently."""
    from transformers import modeling_gguf_pytorch_utils as reader

    taken: list[int] = []
    load = reader.load_gguf_checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        found = load(*arguments, **options)
        taken.extend(tensor.numel() for tensor in found.get("tensors", {}).values())
        return found

    reader.load_gguf_checkpoint = counted
    try:
        yield taken
    finally:
        reader.load_gguf_checkpoint = load


@contextlib.contextmanager
def _parsing_once() -> Iterator[None]:
    """Within, what a GGUF file says beside its numbers is parsed once, which takes seconds, and not by each part of
    transformers that wants some of it; the table of tensor names is made once and not for each module of the model."""
    import gguf

    own: Any = gguf
    with _alone:
        parse, names = own.GGUFReader, own.get_tensor_name_map
        parsed = functools.cache(parse)
        own.GGUFReader = lambda path, *more: parsed(os.path.realpath(path), *more)
        own.get_tensor_name_map = functools.cache(names)
        try:
            yield
        finally:
            own.GGUFReader, own.get_tensor_name_map = parse, names


@contextlib.contextmanager
def _telling(phrase: str, progress: Progress) -> Iterator[None]:
    """Puts `progress` in the place of the bar that transformers prints while it unpacks a GGUF file."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def told(items: Iterable[Any], **_: object) -> Iterator[Any]:
        items = list(items)
        sizes = [int(getattr(item, "n_bytes", 0)) for item in items]
        total, done = sum(sizes), 0
        for number, (item, length) in enumerate(zip(items, sizes, strict=True)):
            if total:
                tell_bytes(progress, phrase, done, total)
            else:
                progress(phrase, number / len(items))
            yield item
            done += length

    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    reader.tqdm = told
    try:
        yield
    finally:
        reader.tqdm = bar
