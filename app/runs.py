"""Training runs of one's own: what they are called, where they lie, which of them are kept.

A run is named `train:SIZE:SEED:CORPUS`, which stands in the address; the same name comes back to the same folder.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app import uploads
from core import disk
from core.errors import InputError
from core.model.weights import write_atomically
from core.store import Store
from core.words import quoted

if TYPE_CHECKING:
    from core.corpus import Corpus
    from core.train import TrainSettings

PREFIX = "train:"
SIZES = ("small", "medium")
CORPORA = ("python-docs", "sampler")
MARK = "kept.json"


@dataclass(frozen=True)
class Run:
    """A training run as it is named."""

    size: str
    seed: int
    corpus: str

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.size}:{self.seed}:{self.corpus}"

    @property
    def title(self) -> str:
        return f"Own run: {self.size}, {uploads.title(self.corpus)}, seed {self.seed}"

    @property
    def settings(self) -> TrainSettings:
        from core.train import SIZES as SETTINGS

        return replace(SETTINGS[self.size], seed=self.seed)

    def text(self) -> Corpus:
        from core.corpus import read_corpus

        return read_corpus(self.corpus)

    def folder(self) -> Path:
        from core.series import run_folder

        return run_folder(Store(), self.text(), self.settings)


def parse(series: str) -> Run | None:
    """The run that a name means, None where it names something else.

    Raises:
        InputError: it begins like a run and is none.
    """
    if not series.startswith(PREFIX):
        return None
    size, _, rest = series.removeprefix(PREFIX).partition(":")
    seed, _, corpus = rest.partition(":")
    if (
        size not in SIZES
        or not (seed.isascii() and seed.isdecimal() and len(seed) <= 10 and int(seed) < 2**32)
        or not corpus
    ):
        raise InputError("That training run has no such name: choose one from the list, or train one.")
    return Run(size, int(seed), corpus)


def places(series: str) -> list[str]:
    """The folders or names of a series that is no run, as they stand on a command line.

    Raises:
        InputError: a quotation mark that is not closed.
    """
    try:
        return shlex.split(series)
    except ValueError as error:
        raise InputError(f"The checkpoints {quoted(series)} cannot be read: a quotation mark is not closed.") from error


def title(series: str) -> str:
    if series == "demo":
        return "demo: the bundled run"
    try:
        run = parse(series)
    except InputError:
        return series
    return series if run is None else run.title


def kept() -> list[str]:
    """Names of the runs that were kept."""
    names = []
    for mark in sorted((Store().folder / "runs").glob(f"*/{MARK}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            names.append(str(json.loads(disk.content(mark))["series"]))
    return names


def keep(series: str) -> None:
    """Have a run stand in the list, also after a restart.

    Raises:
        InputError: its folder cannot be written to.
    """
    run = parse(series)
    if run is None:
        return
    try:
        write_atomically(run.folder() / MARK, json.dumps({"series": series}).encode())
    except OSError as error:
        raise uploads.not_kept("run", error) from error


def discard(series: str) -> None:
    """Remove a run.

    Raises:
        InputError: its folder cannot be removed, or not as a whole.
    """
    run = parse(series)
    if run is None:
        return
    try:
        shutil.rmtree(run.folder())
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"The run cannot be discarded ({disk.why(error)}): see that Headscope's cache can be written to and try again."
        ) from error
