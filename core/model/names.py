"""Naming a model: one string in, one checked place out.

Five forms are understood, tried in this order: `demo` and `smollm2`; a file `*.gguf`; a folder; `org/name` or
`org/name@revision` on the Hugging Face Hub. Nothing is opened here except a look at what a folder holds, and
nothing is imported that takes time, so a wrong name is answered at once.

    >>> parse_model("org/name@main").revision
    'main'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.errors import InputError
from core.model.weights import check_folder
from core.settings import MOST_NAME
from core.words import quoted

FORMS = "demo, smollm2, org/name or org/name@revision on the Hub, a folder that save_pretrained wrote, or a .gguf file"
FORMS_SERVED = "demo, smollm2, or org/name or org/name@revision on the Hub"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is to be found.

    Attributes:
        name: the name as messages and results show it.
        kind: which of the five forms it is.
        location: the repository of a Hub name, the absolute path of a folder or file, otherwise the name.
        revision: branch, tag or commit that was asked for; None takes the newest.
    """

    name: str
    kind: Literal["demo", "smollm2", "hub", "folder", "gguf"]
    location: str
    revision: str | None = None


def parse_model(name: str, *, local_paths: bool = True) -> ModelSource:
    """Understands a model's name, or says in one sentence why it cannot be one.

    Args:
        name: see the module's text.
        local_paths: False refuses folders and files, for a server whose users must not read its disk.

    Raises:
        InputError: the name has none of the forms, or the folder or file is not a model that can be read.
    """
    forms = FORMS if local_paths else FORMS_SERVED
    shown = quoted(name)
    if not name.strip() or len(name) > MOST_NAME or not name.isprintable():
        raise InputError(f"The model name {shown} is empty, too long or has characters that cannot be: give {forms}.")
    name = name.strip()
    if name in ("demo", "smollm2"):
        return ModelSource(name, "demo" if name == "demo" else "smollm2", name)
    path = _path(name, shown) if local_paths else None
    if name.lower().endswith(".gguf"):
        return ModelSource(name, "gguf", _gguf(path, shown))
    there = path is not None and path.exists()
    if "://" in name and not there:
        raise InputError(f"{shown} is an address (a model's name is its last two parts, on the Hub): give {forms}.")
    hub = _HUB.fullmatch(name)
    if path is not None and (there or not hub):
        return ModelSource(name, "folder", _folder(path, shown, forms))
    if not hub or ".." in name or "--" in hub["repo"] or hub["repo"].endswith(".git"):
        raise InputError(f"{shown} is not the name of a model here: give {forms}.")
    return ModelSource(name, "hub", hub["repo"], hub["revision"])


def _path(name: str, shown: str) -> Path:
    """The name as a path, if the system can look it up at all."""
    try:
        path = Path(name).expanduser()
        path.is_dir()
    except PermissionError as error:
        raise InputError(
            f"{shown} cannot be read ({error.strerror}): check who may read it, or give {FORMS}."
        ) from error
    except (OSError, RuntimeError, ValueError):
        raise InputError(f"{shown} cannot be a path here (too long, or of an unknown user): give {FORMS}.") from None
    return path


def _gguf(path: Path | None, shown: str) -> str:
    if path is None:
        raise InputError(f"{shown} is a file and this server reads none of its own: give {FORMS_SERVED}.")
    if not path.is_file():
        there = f"{shown} is no ordinary file" if path.exists() else f"There is no file {shown}"
        raise InputError(f"{there}: check the path, or give {FORMS}.")
    return str(path.resolve())


def _folder(path: Path, shown: str, forms: str) -> str:
    if path.is_file():
        raise InputError(f"{shown} is a file but not a .gguf file: name the folder it is in, or give {forms}.")
    if not path.is_dir():
        hint = "on the Hub a model is org/name" if "/" not in shown else "check the path"
        raise InputError(f"There is no folder {shown} ({hint}): give {forms}.")
    check_folder(path.resolve(), shown)
    return str(path.resolve())
