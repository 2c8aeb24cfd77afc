"""An edited model to a folder: laid out, edited, measured, written, reloaded, compared, and only then in its place.

>>> draft = prepare(files, model, target, "auto")                                  # doctest: +SKIP
>>> export(draft, change, observation, encoding, cache=folder, provenance={}).path  # doctest: +SKIP
'edited-model'
"""

from __future__ import annotations

import platform
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

from core import __version__
from core.encoding import Encoding
from core.errors import AnalysisError, InputError
from core.export.change import Change
from core.export.edits import EditedHead, edit_head
from core.export.effect import measure_effect
from core.export.place import check_room, publish, scratch_beside
from core.export.reload import MODEL, PROBE, TENSORS, Reloader, tensor_sha256
from core.export.result import Exported, ExportedPruning
from core.export.weights import Layout, WrittenFile, lay_out, write_bytes, write_json, write_weights
from core.model import LoadedModel, ModelFiles, parse_model
from core.model.memory import estimate_ram, require_free
from core.model.probe import HALF_PRECISION_SHARE, allowed_error, probe_ids
from core.model.weights import SIDE_FILES, file_sha256, read_json, weight_files
from core.moments import Observation
from core.results import plain
from core.settings import Progress, no_progress
from core.words import size

MANIFEST = "headscope.json"
LICENCES = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)[\w.-]*", re.IGNORECASE)
SPARE = 1 << 20
"""Bytes of disk for the manifest and what the file system needs itself."""


@dataclass(frozen=True)
class Draft:
    """An export that there is room for. `needed`: bytes of disk."""

    files: ModelFiles
    model: LoadedModel
    target: Path
    layout: Layout
    probe: torch.Tensor
    needed: int


def prepare(files: ModelFiles, model: LoadedModel, target: Path, dtype: str) -> Draft:
    """Find the head in the model's files, and check disk and memory, before any number is computed.

    Args:
        files: of the model; it may have been loaded from another copy, which need not be there any more.
        target: from `core.export.place.check_target`.
        dtype: of the analysis, one of `core.settings.DTYPES`; `auto` keeps every tensor's precision.

    Raises:
        InputError: a quantised model cannot be converted.
        AnalysisError: disk or memory is short, or the files are broken.
    """
    what = model.description
    if dtype != "auto" and "quantization_config" in read_json(files.folder / "config.json", files.name):
        raise InputError(f"{files.name} is quantised, so it is exported in its own precision: leave --dtype away.")
    keep = tuple(name for each in _KEPT_IN_FP32 for name in getattr(model.module, each, None) or ())
    layout = lay_out(files.folder, files.name, None if dtype == "auto" else dtype, keep)
    inputs: Any = model.module.get_input_embeddings()
    usable = min(what.vocab_size, inputs.weight.shape[0])
    probe = probe_ids(lambda text: model.tokenizer.encode(text), usable, torch.device("cpu"))
    side = sum(path.stat().st_size for path in _side_files(files.folder))
    answer = 4 * probe.shape[1] * (2 * what.vocab_size + what.dim)
    needed = layout.bytes + side + answer + SPARE
    check_room(needed, target)
    head = 4 * what.vocab_size * what.dim
    require_free(
        estimate_ram(files.folder, dtype) + layout.head_bytes + 3 * head,
        f"Exporting {files.name}, which is loaded a second time for it,",
    )
    return Draft(files, model, target, layout, probe, needed)


_KEPT_IN_FP32 = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")


def export(
    draft: Draft,
    change: Change,
    observation: Observation,
    encoding: Encoding,
    *,
    cache: Path,
    provenance: Mapping[str, Any],
    progress: Progress = no_progress,
) -> Exported:
    """Make the edited checkpoint. The loaded model is not changed, and until the end nothing stands at the target.

    Args:
        change: what to do to the head.
        observation, encoding: of the model, for steering and for the effect on held-out text.
        cache: where hashes of large files are remembered.
        provenance: goes into the manifest as it is (corpus, settings).
        progress: see `core.settings.Progress`; `Cancelled` leaves nothing.

    Raises:
        InputError: a ratio cannot be reached, or the target came to be there meanwhile.
        AnalysisError: the disk is full, or stock transformers does not give the logits that were promised.
    """
    started = time.perf_counter()
    model, target = draft.model, draft.target
    check_room(draft.needed, target)  # again: an observation may have taken an hour
    with scratch_beside(target) as scratch, Reloader(scratch, str(model.device), torch.get_num_threads()) as reloader:
        progress("Editing the head", None)
        dtypes = (draft.layout.head_dtype, getattr(torch, model.description.dtype))
        edited = edit_head(model.head, observation, encoding, change, *dtypes, progress)
        ids = [edit.token_id for edit in change.edits]
        effect = measure_effect(model.head, edited.head, observation.held_out.reservoir, ids, progress)
        folder = scratch / MODEL
        folder.mkdir()
        written = _write(draft, edited, folder, progress)
        save_file({"ids": draft.probe}, scratch / PROBE)
        answer = reloader.answer(progress)
        check = _compare(draft, edited, answer, scratch)
        steering = edited.steering
        tokens = () if steering is None else steering.tokens
        tokens = tuple(
            replace(token, realised_held_out=ratio) for token, ratio in zip(tokens, effect.realised, strict=True)
        )
        pruned = change.pruned
        result = Exported(
            path=str(target),
            model=_shown(draft.files.name),
            revision=draft.files.revision,
            dtype=str(dtypes[0]).removeprefix("torch."),
            tied=bool(answer["tied"]),
            was_tied=model.description.tied,
            direction="" if steering is None else steering.direction,
            calibrated=steering is not None and steering.calibrated,
            tokens=tokens,
            pruning=None
            if pruned is None
            else ExportedPruning(pruned.method, pruned.removed, pruned.dims, model.description.dim),
            effect=effect,
            max_logit_error=check[0],
            tolerance=check[1],
            half_precision_deviation=check[2],
            head_bytes=draft.layout.head_bytes,
            head_bytes_before=draft.layout.head_bytes_before,
            model_bytes=sum(file.bytes for file in written if file.name.endswith(".safetensors")),
            model_bytes_before=draft.layout.bytes_before,
            generated=int(answer["generated"]),
            seconds=time.perf_counter() - started,
        )
        write_json(folder / MANIFEST, plain(_manifest(draft, result, written, provenance, cache, progress)))
        progress("Moving the checkpoint to its place", 1.0)
        publish(folder, target)
    return result


def _write(draft: Draft, edited: EditedHead, folder: Path, progress: Progress) -> list[WrittenFile]:
    """The files of the checkpoint but for the manifest; config.json comes last, so that what is unfinished is no model."""
    source = draft.files.folder
    written = write_weights(draft.layout, edited.stored, folder, progress)
    for path in _side_files(source):
        written.append(write_bytes(folder / path.name, path.read_bytes()))
        shutil.copymode(path, folder / path.name)
    generation = getattr(draft.model.module, "generation_config", None)
    if generation is not None and not (folder / "generation_config.json").exists():
        content = generation.to_json_string(use_diff=True)
        written.append(write_bytes(folder / "generation_config.json", content.encode()))
    config: dict[str, Any] = read_json(source / "config.json", draft.files.name)
    written.append(write_json(folder / "config.json", _untied(config, draft.model.description.dtype)))
    return written


def _untied(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration with a head of its own; a pointer to code that is not exported goes."""
    changed = {key: value for key, value in config.items() if key not in ("auto_map", "torch_dtype")}
    changed |= {"tie_word_embeddings": False, "dtype": dtype}
    nested = changed.get("text_config")
    if isinstance(nested, dict):
        nested = {key: value for key, value in nested.items() if key != "torch_dtype"}
        changed["text_config"] = nested | {"tie_word_embeddings": False, "dtype": dtype}
    return changed


def _side_files(folder: Path) -> list[Path]:
    """Tokenizer, generation settings and licence: copied as they are.

    Raises:
        InputError: one is a link to elsewhere, whose content an exported model would give away. The links of a Hub's cache lead
            to its `blobs`.
    """
    names = (path for path in folder.iterdir() if path.is_file() and path.name != "config.json")
    found = sorted(path for path in names if SIDE_FILES.fullmatch(path.name) or LICENCES.fullmatch(path.name))
    home = folder.resolve()
    for path in found:
        place = path.resolve().parent
        if home not in (place, *place.parents) and place != home.parent.parent / "blobs":
            raise InputError(
                f"{path.name} of the model is a link that leads out of its folder: put a copy there instead."
            )
    return found


def _compare(
    draft: Draft, edited: EditedHead, answer: Mapping[str, Any], scratch: Path
) -> tuple[float, float, float | None]:
    """(largest difference of the logits, what is allowed, the same in half precision or None).

    Raises:
        AnalysisError: it is more than allowed, the head is tied still, or the input embedding is another.
    """
    model, name = draft.model, draft.files.name
    found = load_file(scratch / TENSORS)
    promised = edited.head.logits(model.hidden_states(draft.probe)[0]).cpu()
    largest = promised.abs().max().item()
    tolerance = allowed_error(largest)
    error = (found["logits"] - promised).abs().max().item()
    deviation, fine = None, error <= tolerance
    if "logits_fp32" in found:
        deviation = error
        hidden = (found["hidden"] * model.description.logit_scale).to(model.device)
        error = (found["logits_fp32"] - edited.head.logits(hidden).cpu()).abs().max().item()
        fine = error <= tolerance and deviation <= max(tolerance, HALF_PRECISION_SHARE * largest)
    if not fine:
        raise AnalysisError(
            f"The exported checkpoint of {name} gives other logits in stock transformers than promised (off by "
            f"{max(error, deviation or 0.0):.2g}, allowed is {tolerance:.2g}), so it was given up: this model cannot be "
            "exported."
        )
    embedding: Any = model.module.get_input_embeddings()
    if answer["tied"] or answer["input_embedding_sha256"] != tensor_sha256(embedding.weight):
        raise AnalysisError(
            f"Stock transformers ties the head of {name} to its input embedding again, so the edit would change what the "
            "model reads, and the export was given up: this model cannot be exported."
        )
    return error, tolerance, deviation


def _shown(name: str) -> str:
    """A model's name without the folders of this machine, which are no one's business."""
    source = parse_model(name)
    return Path(source.location).name if source.kind in ("folder", "gguf") else source.name


def _manifest(
    draft: Draft,
    result: Exported,
    written: list[WrittenFile],
    provenance: Mapping[str, Any],
    cache: Path,
    progress: Progress,
) -> dict[str, Any]:
    """What `headscope.json` says: enough to make the same export again and to check every file of this one."""
    files = draft.files
    sha256 = {path.name: file_sha256(path, cache, progress) for path in weight_files(files.folder, files.name)}
    for path in (files.folder / "config.json", *_side_files(files.folder)):  # small: not worth a word
        sha256[path.name] = file_sha256(path, cache)
    measured = {key: value for key, value in asdict(result).items() if key not in ("path", "model", "revision")}
    dense = None
    if result.pruning is not None:
        dense = (
            f"The head was pruned to {result.pruning.dims} of {result.pruning.dim} dimensions and is stored as a dense "
            f"matrix all the same ({size(result.head_bytes)}), because transformers knows no factored head."
        )
    return {
        "made_with": f"headscope {__version__}",
        "source": {
            "model": result.model,
            "revision": result.revision,
            "sha256": files.sha256,
            "files": sha256,
        },
        **provenance,
        **measured,
        "note": dense,
        "files": {file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in written},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors.__version__,
            "numpy": np.__version__,
        },
    }
