"""A training run kept small: of every checkpoint the head in half precision and what was measured; `demo` is one.

The fits are made anew from the heads whenever the series is read; alpha, loss and samples are those recorded.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int64

from core import disk
from core.corpus import count_tokens, read_corpus, tokenise
from core.dynamics import Builder, Dynamics, Missing
from core.errors import AnalysisError, InputError
from core.model.files import resolve
from core.settings import ASSETS, check_new_folder, local_path
from core.store import Store, read_result, write_result
from core.words import quoted

DEMO = ASSETS / "demo" / "checkpoints"
KEPT = "series.safetensors"
DEMO_KEY = {"series": "demo"}
"""Under which the dynamics of `demo` come precomputed."""


@dataclass(frozen=True)
class KeptCheckpoint:
    """All that is kept of a checkpoint when a run is kept small: its head in half precision and what was measured."""

    step: int
    weight: Float16[np.ndarray, "V d"]
    alpha: Float32[np.ndarray, "V"]
    loss: float
    samples: tuple[str, ...]


@dataclass(frozen=True)
class KeptSeries:
    """What the checkpoints of a kept run share."""

    corpus: str
    tokens: tuple[str, ...]
    counts: Int64[np.ndarray, "V"]
    prompt: str
    steps: tuple[int, ...]


def bundled() -> Dynamics:
    """The run that comes with Headscope: as it was measured beforehand, else measured from its checkpoints."""
    return Store().get("dynamics", DEMO_KEY, Dynamics) or read_kept(DEMO, "demo")


def kept_folder(sources: Sequence[str], local_paths: bool) -> Path | None:
    """The folder that the sources name, if they name one kept run and nothing else."""
    if list(sources) == ["demo"]:
        return DEMO
    folder = local_path(sources[0]) if len(sources) == 1 and local_paths and sources[0] else None
    return folder if folder is not None and (folder / KEPT).is_file() else None


def check_kept(folder: Path) -> None:
    """Raises `InputError` if a run cannot be kept in `folder`: to be known before it is measured. Leaves nothing there."""
    with _written(folder):
        pass


def write_kept(folder: Path, series: KeptSeries, checkpoints: Iterable[KeptCheckpoint]) -> None:
    """Write a run small into `folder`: nothing appears there before all is written, and the file that makes it a series last.

    Raises:
        InputError: the folder cannot be written, or the disk is full; nothing is left then.
    """
    with _written(folder) as writing:
        for checkpoint in checkpoints:
            write_result(writing / f"step-{checkpoint.step:08d}.safetensors", checkpoint)
        steps = sorted(writing.iterdir())
        write_result(writing / KEPT, series)
        (folder / KEPT).unlink(missing_ok=True)  # it would name steps of another run
        for path in (*steps, writing / KEPT):
            path.replace(folder / path.name)


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` to write into; at the end it goes, and so do folders that were made for it and are empty."""
    check_new_folder(folder)
    made: list[Path] = []
    try:
        made += [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as writing:
            yield Path(writing)
    except OSError as error:
        raise InputError(
            f"{quoted(str(folder))} cannot be written ({disk.why(error)}): "
            f"{disk.room(error, 'make room there, or ')}choose another folder."
        ) from error
    finally:
        for each in made:
            with suppress(OSError):  # what was kept
                each.rmdir()


def read_kept(folder: Path, source: str, corpus: str | None = None, *, local_paths: bool = True) -> Dynamics:
    """The dynamics of a run that was kept small: the fits are made anew, alpha, loss and samples are those recorded.

    Args:
        corpus: compare with the frequencies of this text instead of the one that the run was trained on.

    Raises:
        AnalysisError: the files are not there, or damaged.
    """
    series = read_result(folder / KEPT, KeptSeries, remove=False)
    if series is None:
        raise AnalysisError(f"The checkpoints of {source} are missing or damaged: install Headscope again.")
    counts, name = series.counts, series.corpus
    if corpus is not None:
        counts, name = _counts_of(corpus, source, len(series.counts), local_paths), corpus
    builder = Builder(counts)
    missing = []
    for step in series.steps:
        kept = read_result(folder / f"step-{step:08d}.safetensors", KeptCheckpoint, remove=False)
        if kept is None or kept.step != step:
            missing.append(Missing(f"step {step}", "The file is missing or damaged."))
            continue
        builder.add(
            step,
            f"step {step}",
            kept.weight.astype(np.float32),
            hashlib.sha256(kept.weight.tobytes()).hexdigest(),
            alpha=kept.alpha.astype(np.float64),
            loss=kept.loss,
            samples=kept.samples,
        )
    return Dynamics(
        source=source,
        corpus=name,
        stand_in=corpus is not None,
        token_ids=builder.rows,
        tokens=tuple(series.tokens[i] for i in builder.rows),
        counts=builder.counts,
        unseen=len(series.counts) - len(builder.rows),
        checkpoints=tuple(builder.checkpoints),
        missing=tuple(missing),
        prompt=series.prompt,
    )


def _counts_of(corpus: str, source: str, rows: int, local_paths: bool) -> np.ndarray:
    from core.model.load import read_tokenizer

    if source != "demo":
        raise InputError(
            "A run that was kept small has no tokenizer: leave --corpus away, or give the run's own folder."
        )
    files = resolve("demo", cache=Store().folder)
    documents = tokenise(read_corpus(corpus, local_paths=local_paths), read_tokenizer(files.folder, source), 256)
    return count_tokens(documents, rows)
