"""Naming a series of checkpoints: `demo`, folders in order, or revisions on the Hub, as org/name@step{0,1,512}."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from core.errors import InputError
from core.model.names import parse_model
from core.settings import local_path
from core.words import quoted

MOST_CHECKPOINTS = 512
_BRACES = re.compile(r"(?P<repo>[^@\s]+/[^@\s]+)@(?P<before>[^{}@]*)(?:\{(?P<steps>[^{}]*)\}(?P<after>[^{}@]*))?")


@dataclass(frozen=True)
class Place:
    """Where one checkpoint is to be found: a folder or a revision on the Hub. `name` is how sentences call it."""

    step: int
    name: str
    folder: Path | None = None
    repo: str = ""
    revision: str = ""


def parse_sources(sources: Sequence[str], *, local_paths: bool = True) -> list[Place]:
    """The places that the sources name, by ascending step.

    Raises:
        InputError: a source that is none, the same step twice, more checkpoints than are taken.
    """
    places = [place for source in sources for place in _places(source.strip(), local_paths, len(sources))]
    if len(sources) > 1 and all(place.step < 0 for place in places):  # folders without a number: in the order given
        places = [replace(place, step=number) for number, place in enumerate(places)]
    if any(place.step < 0 for place in places):
        unnamed = next(place for place in places if place.step < 0)
        raise InputError(
            f"The step of {quoted(unnamed.name)} is not in its name: call the folder step-N, or number all alike."
        )
    places.sort(key=lambda place: place.step)
    for before, after in pairwise(places):
        if before.step == after.step:
            raise InputError(f"Step {after.step} is named twice ({before.name}, {after.name}): name each step once.")
    if not 2 <= len(places) <= MOST_CHECKPOINTS:
        raise InputError(
            f"{'1 checkpoint is' if len(places) == 1 else f'{len(places)} checkpoints are'} named; from 2 to "
            f"{MOST_CHECKPOINTS} make a series: name {'more' if len(places) < 2 else 'fewer'}."
        )
    return places


def _places(source: str, local_paths: bool, given: int) -> Iterator[Place]:
    folder = local_path(source) if local_paths and source else None
    if folder is not None and folder.is_dir():
        inside = sorted(p for p in folder.glob("*") if p.is_dir() and _step(p.name) >= 0 and not p.name.startswith("."))
        holds = [place for place in (folder, *inside) if (place / "config.json").is_file()]
        if not holds and given == 1:
            raise InputError(
                f"There is no checkpoint in {quoted(source)}: give a folder in which each checkpoint is a folder step-N with "
                "a config.json."
            )
        if folder in holds or not inside:
            yield Place(_step(folder.name), source, folder.resolve())
        else:
            yield from (Place(_step(path.name), path.name, path.resolve()) for path in inside)
        return
    hub = _BRACES.fullmatch(source)
    if not hub or (hub["steps"] is None and _step(hub["before"]) < 0):
        allowed = (
            "demo, folders of checkpoints, or org/name@step{0,1,512}" if local_paths else "demo or org/name@step{0,1}"
        )
        raise InputError(f"There is no series {quoted(source)}: give {allowed}.")
    if hub["steps"] is None:
        yield _on_hub(_step(hub["before"]), hub["repo"], hub["before"])
        return
    for text in map(str.strip, hub["steps"].split(",")):
        if not re.fullmatch("[0-9]{1,11}", text):
            raise InputError(
                f"{quoted(text, 20)} in {quoted(source)} is no step: write numbers, as org/name@step{{0,1,512}}."
            )
        yield _on_hub(int(text), hub["repo"], f"{hub['before']}{text}{hub['after']}")


def _on_hub(step: int, repo: str, revision: str) -> Place:
    """A revision on the Hub, of a name that can be one there."""
    name = f"{repo}@{revision}"
    parse_model(name, local_paths=False)
    return Place(step, name, repo=repo, revision=revision)


def _step(name: str) -> int:
    """The last number in a name, -1 where there is none."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 12 else -1
