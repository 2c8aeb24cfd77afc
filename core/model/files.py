"""From a model's name to a folder of safetensors on this disk, fetching, downloading or converting where needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import AnalysisError
from core.model.convert import convert_gguf, converted_folder, is_converted
from core.model.fetch import fetch_smollm2, is_fetched, smollm2_path
from core.model.hub import check_kept, download, downloaded
from core.model.names import parse_model
from core.model.weights import check_folder, file_sha256, is_damaged_checkpoint, model_sha256
from core.settings import ASSETS, Progress, no_progress

SMOLLM2_REVISION = "0.1.2"
DEMO = ASSETS / "demo" / "model"


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        name: as the user gave it.
        revision: commit of a Hub model, version of `smollm2`, otherwise the first 12 digits of `sha256`.
        folder: in the layout of `save_pretrained`, weights as safetensors.
        sha256: of everything the model's numbers depend on (weights, configuration, tokenizer; of a GGUF the file).
    """

    name: str
    revision: str
    folder: Path
    sha256: str


def resolve(name: str, *, cache: Path, progress: Progress = no_progress, local_paths: bool = True) -> ModelFiles:
    """Finds a model's files and brings them here first where they are not.

    Args:
        name: see `core.model.names`.
        cache: folder for what is fetched or converted (Hub models stay in the Hub's own cache).
        progress: see `core.settings.Progress`.
        local_paths: False refuses folders and files.

    Raises:
        InputError: there is no such model, or it is not one that can be read.
        AnalysisError: it cannot be brought here.
    """
    source = parse_model(name, local_paths=local_paths)
    if source.kind == "demo":
        check_folder(DEMO, "demo")
        sha256 = model_sha256(DEMO, source.name, cache, progress)
        return ModelFiles(source.name, sha256[:12], DEMO, sha256)
    if source.kind == "smollm2":
        folder, sha256 = convert_gguf(fetch_smollm2(cache, progress).path, cache, progress)
        return ModelFiles(source.name, SMOLLM2_REVISION, folder, sha256)
    if source.kind == "gguf":
        folder, sha256 = convert_gguf(Path(source.location), cache, progress)
        return ModelFiles(source.name, sha256[:12], folder, sha256)
    if source.kind == "hub":
        folder, revision = download(source.location, source.revision, cache, progress)
        return ModelFiles(source.name, revision, folder, model_sha256(folder, source.name, cache, progress))
    folder = Path(source.location)
    if is_damaged_checkpoint(folder, lambda path: file_sha256(path, cache, progress)):
        raise AnalysisError(
            f"{source.name} is damaged: it is not what the training run has written. Copy it again, or train anew; if it was "
            "changed on purpose, copy it out of the run's folder."
        )
    sha256 = model_sha256(folder, source.name, cache, progress)
    return ModelFiles(source.name, sha256[:12], folder, sha256)


def ready(name: str, *, cache: Path, local_paths: bool = True) -> ModelFiles | None:
    """The model's files if they are on this disk already, otherwise None; the network is never asked.

    Raises:
        InputError: the name is wrong.
    """
    source = parse_model(name, local_paths=local_paths)
    if source.kind in ("smollm2", "gguf"):
        gguf = smollm2_path(cache) if source.kind == "smollm2" else Path(source.location)
        if not (is_fetched(cache) if source.kind == "smollm2" else gguf.is_file()):
            return None
        sha256 = file_sha256(gguf, cache)
        folder = converted_folder(sha256, cache)
        revision = SMOLLM2_REVISION if source.kind == "smollm2" else sha256[:12]
        return ModelFiles(source.name, revision, folder, sha256) if is_converted(folder, cache) else None
    if source.kind == "hub":
        found = downloaded(source.location, source.revision)
        if found is None:
            return None
        try:
            check_kept(found[0], source.name, cache)
        except AnalysisError:  # damaged since it was downloaded
            return None
        return ModelFiles(source.name, found[1], found[0], model_sha256(found[0], source.name, cache))
    return resolve(name, cache=cache, local_paths=local_paths)
