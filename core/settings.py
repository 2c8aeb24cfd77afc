"""How an analysis is run: the settings that its numbers depend on, and how progress is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError
from core.words import quoted, short, whole_characters

ASSETS = Path(__file__).resolve().parent.parent / "assets"
"""What comes with Headscope; read, never written."""

Progress = Callable[[str, float | None], None]
"""Called with a short phrase and the share done (0 to 1, or None where it is not known). It may raise
`core.errors.Cancelled`: that is how a run is stopped, always between two chunks, files or tokens. What stands in the
phrase before ": " names the step; what follows may change while it lasts (see `tell_bytes`)."""

Texts = tuple[tuple[int, ...], ...]
"""The token ids of several texts."""

OnTokens = Callable[[Texts, Texts], None]
"""Called with the texts written so far, before and after the edit, whenever every text has got another token."""


def no_progress(phrase: str, share: float | None) -> None:
    """The progress callback that tells nobody."""


def step_of(phrase: str) -> str:
    """The step that a phrase of a progress callback belongs to: `Fetching smollm2` of `Fetching smollm2: 41 of 93 MB`."""
    return phrase.partition(": ")[0]


def tell_bytes(progress: Progress, step: str, done: float, total: float) -> None:
    """Tells a step that is measured in bytes: `Fetching smollm2: 41 of 93 MB`."""
    scale, unit, digits = (1e9, "GB", 1) if total >= 1e9 else (1e6, "MB", 0 if total >= 10e6 else 1)
    done = min(done, total)
    progress(f"{step}: {done / scale:.{digits}f} of {total / scale:.{digits}f} {unit}", done / max(total, 1))


def local_path(name: str) -> Path | None:
    """A name as a path, `~` replaced; None where this system cannot look such a path up (too long, an unknown user, …)."""
    try:
        path = Path(name).expanduser()
        path.is_dir()
    except (OSError, RuntimeError, ValueError):
        return None
    return path


def require_utf8(folder: Path) -> None:
    """Raises `InputError` where a path has half characters: what safetensors and tokenizers write has no such name."""
    if whole_characters(str(folder)) != str(folder):
        raise InputError(f"The folder {quoted(folder.name)} lies at a path that is not UTF-8: choose another folder.")


FEWEST_SAMPLED, MOST_SAMPLED = 512, 10_000_000
"""N of the corpus `self:N`, tokens that a model writes itself."""
MOST_NAME = 1024
"""Characters of a model's name, which may be a path."""


def check_new_folder(folder: Path) -> None:
    """Raises `InputError` where a folder to write a model to could not be named as one afterwards."""
    require_utf8(folder)
    shown, most = quoted(str(folder)), MOST_NAME - 100
    if len(str(folder.absolute())) > most or any(len(os.fsencode(part)) > 255 for part in folder.parts):
        raise InputError(
            f"The folder {shown} cannot be written, its path is too long (at most {most} characters, and 255 bytes between "
            "slashes): choose a shorter one."
        )
    if not str(folder).isprintable():
        raise InputError(
            f"The folder {shown} cannot be written, its path has characters that cannot be printed: choose another folder."
        )


MOST_POSITIONS = 10**12
"""More contexts than any text has."""
LEAST_CONTEXT = 2
"""Tokens in the smallest window."""
LEAST_HELD_OUT = 0.01
"""The smallest share of contexts that only judge."""
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """What the numbers of an analysis depend on besides the model and the corpus.

    Attributes:
        positions: contexts that fit (N).
        context: tokens in a window (L); windows never cross documents.
        held_out: F; F·N further contexts, from other documents, only judge.
        seed: of the split, of the order of windows and of every random choice.
        device: `auto` takes a GPU where torch has one.
        dtype: precision of the model's body; `auto` keeps the checkpoint's. The head is always fp32.
    """

    positions: int = 16384
    context: int = 256
    held_out: float = 0.25
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        positions = f"at least 64 and at most {MOST_POSITIONS}"
        _check("--positions", self.positions, 64 <= self.positions <= MOST_POSITIONS, positions)
        _check("--context", self.context, LEAST_CONTEXT <= self.context <= 32768, f"from {LEAST_CONTEXT} to 32768")
        _check("--held-out", self.held_out, LEAST_HELD_OUT <= self.held_out <= 4, f"a share from {LEAST_HELD_OUT} to 4")
        _check("--seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295")
        device, colon, number = self.device.partition(":")
        fine = device in DEVICES and (not colon or (device == "cuda" and number.isascii() and number.isdecimal()))
        _check("--device", self.device, fine, f"one of {', '.join(DEVICES)}, or a GPU by its number as cuda:0")
        _check("--dtype", self.dtype, self.dtype in DTYPES, "one of " + ", ".join(DTYPES))

    @property
    def positions_held_out(self) -> int:
        """Contexts that only judge: F·N, at least 16."""
        return max(16, round(self.held_out * self.positions))


def _check(option: str, value: object, fine: bool, allowed: str) -> None:
    if not fine:
        raise InputError(f"{option} is {short(str(value)) or 'empty'}, but it must be {allowed}.")
