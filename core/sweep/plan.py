"""What a sweep is to do, as a TOML file; every mistake in it is one sentence.

    models = ["smollm2", "EleutherAI/pythia-70m"]
    revisions = ["step0", "step1000"]      # of the models that are Hub names without a revision of their own
    corpora = ["sampler", "python-docs"]

    [settings]                             # as the options of `headscope fit`
    positions = 16384

    [tasks]
    shards = 4                             # parts of a corpus, each observed in a task of its own
    threads = 2                            # of torch in a task, and the CPUs it takes

Models, revisions and corpora are multiplied. What is named must be readable where the sweep is started and, under the
same name, on every machine of the cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from core.corpus import Corpus, read_corpus, self_sampled_tokens
from core.errors import InputError
from core.foreign import reason
from core.model.names import ModelSource, parse_model
from core.settings import Settings, local_path
from core.store import RESULT_FORMAT
from core.words import quoted, short

MOST_RUNS = 10_000
MOST_SHARDS = 4096
BUNDLED = ("sampler", "python-docs")
LARGEST_PLAN = 2**20
"""Bytes of a plan file."""
LONGEST_KEY = 1000
"""Characters of a name in a plan."""
MOST_PARTS = 100
"""Parts of it, between points."""


@dataclass(frozen=True)
class Tasks:
    """How the work is cut and what a task takes.

    Attributes:
        shards: parts of every corpus that are observed apart (fewer where a corpus is short).
        threads: of torch in a task, and the CPUs it takes; 0 shares this machine's or the cluster's CPUs among the tasks.
        gpus: GPUs that a task takes; a share such as 0.5 lets two tasks have one.
        memory_gb: memory that a task is taken to need; 0 leaves it out of account.
        retries: how often a task is tried again after its worker was lost or failed unexpectedly.
    """

    shards: int = 1
    threads: int = 0
    gpus: float = 0.0
    memory_gb: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        for name, most in (
            ("shards", MOST_SHARDS),
            ("threads", 1024),
            ("gpus", 64),
            ("memory_gb", 65536),
            ("retries", 100),
        ):
            value, least = getattr(self, name), 1 if name == "shards" else 0
            if not least <= value <= most:
                raise InputError(f"{name} is {short(str(value))}, but it must be from {least} to {most}")


@dataclass(frozen=True)
class Run:
    """One model on one corpus.

    Attributes:
        model, corpus: as the plan names them. model_place, corpus_place: the same with absolute paths.
        corpus_sha256: of the text, so that no worker reads another one under the same name.
        settings: of the analysis. shards: parts asked for.
    """

    model: str
    corpus: str
    model_place: str
    corpus_place: str
    corpus_sha256: str
    settings: Settings
    shards: int

    @property
    def name(self) -> str:
        return f"{self.model} · {self.corpus}"

    @property
    def key(self) -> str:
        """Names the run in the data set: equal where model, text and settings are."""
        known = [self.model, self.corpus_sha256, asdict(self.settings), RESULT_FORMAT]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """A plan that was read and found right."""

    name: str
    runs: tuple[Run, ...]
    tasks: Tasks


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        InputError: there is no such file, it is no TOML, or something in it is wrong; one sentence that says what.
    """
    place = local_path(str(path))
    if place is None:
        raise InputError(f"The plan {quoted(str(path))} cannot be a path here: give a file as PLAN.toml.")
    try:
        if place.exists() and not (place.is_file() or place.is_dir()):
            raise InputError(f"The plan {quoted(str(path))} is no file: give one as PLAN.toml.")
        with place.open("rb") as file:
            content = file.read(LARGEST_PLAN + 1)
        if len(content) > LARGEST_PLAN:
            raise InputError(f"The plan {place.name!r} has more than {LARGEST_PLAN // 2**20} MB: that is no plan.")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"The plan {place.name!r} is not UTF-8 text: save it as UTF-8.") from error
    except (OSError, ValueError) as error:  # the latter where a name has NUL or half a character
        why = getattr(error, "strerror", None) or error
        raise InputError(f"The plan {quoted(str(path))} cannot be read: {why}.") from error
    return parse_plan(text, place.name)


def parse_plan(text: str, name: str) -> Plan:
    """The plan that stands in a text; see `read_plan`."""
    unquoted = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'", "a", text)
    # the reader takes a minute for a name of 100,000 parts
    if re.search(rf"(?m)^[^=,\n#]{{{LONGEST_KEY}}}|(?:[\w-]+[ \t]*\.[ \t]*){{{MOST_PARTS}}}", unquoted):
        raise InputError(
            f"The plan {name!r} is not TOML that can be read here: it has a name of over {LONGEST_KEY} characters or "
            f"{MOST_PARTS} parts."
        )
    try:
        document = tomllib.loads(text)
    except RecursionError as error:
        raise InputError(
            f"The plan {name!r} has lists in lists, hundreds deep: a list of names is all it needs."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"The plan {name!r} is not TOML ({reason(error)}): mend it there.") from error
    except ValueError as error:
        raise InputError(f"The plan {name!r} has a number of thousands of digits: give one that is meant.") from error
    _known(document, {"models", "revisions", "corpora", "settings", "tasks"}, "", name)
    try:
        settings = _table(document, "settings", Settings, name)
        tasks = _table(document, "tasks", Tasks, name)
    except OverflowError as error:
        raise InputError(f"The plan {name!r} has a number of hundreds of digits: give one that is meant.") from error
    models = _with_revisions(_names(document, "models", name), _names(document, "revisions", name), name)
    corpora = _names(document, "corpora", name) or ["sampler"]
    if len(models) * len(corpora) > MOST_RUNS:
        raise InputError(
            f"The plan {name!r} makes {len(models) * len(corpora):,} runs: at most {MOST_RUNS:,} are taken."
        )
    runs = []
    for corpus in corpora:
        text_of = _corpus(corpus, settings, tasks, name)
        place = _absolute(corpus)
        runs += [
            Run(model, corpus, model_place, place, text_of.sha256, settings, tasks.shards)
            for model, model_place in models.items()
        ]
    return Plan(name, tuple(runs), tasks)


def _known(table: dict[str, Any], allowed: set[str], where: str, name: str) -> None:
    for key in table:
        if key not in allowed:
            inside = f" in [{where}]" if where else ""
            raise InputError(
                f"The plan {name!r} has {quoted(key)}{inside}, but what may stand there is {_listed(allowed)}."
            )


def _listed(names: set[str]) -> str:
    *most, last = sorted(names)
    return f"{', '.join(most)} and {last}"


def _names(document: dict[str, Any], key: str, name: str) -> list[str]:
    """A list of texts, each given once; `models` must be there."""
    if key not in document and key != "models":
        return []
    value = document.get(key)
    example = {"models": "smollm2", "revisions": "main", "corpora": "sampler"}[key]
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each.strip() for each in value):
        given = "is missing" if value is None else f"is {_shown(value)}"
        raise InputError(
            f'In the plan {name!r} {key} {given}, but it must be a list of names, as {key} = ["{example}"].'
        )
    twice = next((each for place, each in enumerate(value) if each in value[:place]), None)
    if twice is not None:
        raise InputError(f"In the plan {name!r} {key} has {quoted(twice)} twice: name each once.")
    return value


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return short(text, 80)


def _table(document: dict[str, Any], key: str, kind: type[Any], name: str) -> Any:
    """A table of the plan as the dataclass whose fields it may set."""
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise InputError(
            f"In the plan {name!r} {key} is {_shown(table)}, but it must be a table: write [{key}] above it."
        )
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind)}
    _known(table, set(defaults), key, name)
    values: dict[str, Any] = {}
    for field, value in table.items():
        wanted: type[Any] = type(defaults[field])
        fine = isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
        if not fine:
            word = {int: "a whole number", float: "a number", str: "a text"}[wanted]
            raise InputError(f"In the plan {name!r} {field} in [{key}] is {_shown(value)}, but it must be {word}.")
        values[field] = wanted(value)
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"In the plan {name!r}, [{key}]: {str(error).removeprefix('--').rstrip('.')}.") from error


def _with_revisions(models: list[str], revisions: list[str], name: str) -> dict[str, str]:
    """Every model at every revision and where each is; a model that is not on the Hub, or names a revision, as it is."""
    places: dict[str, str] = {}
    used = False
    for model in models:
        source = _model(model, name)
        versioned = bool(revisions) and source.kind == "hub" and source.revision is None
        used |= versioned
        for each in [f"{model}@{revision}" for revision in revisions] if versioned else [model]:
            if each in places:
                raise InputError(f"The plan {name!r} comes to {quoted(each)} twice: name each model and revision once.")
            source = _model(each, name)
            places[each] = source.location if source.kind in ("folder", "gguf") else each
    if revisions and not used:
        raise InputError(
            f"The plan {name!r} has revisions, but none of its models is on the Hub and without one: leave them away."
        )
    return places


def _model(model: str, name: str) -> ModelSource:
    try:
        return parse_model(model)
    except InputError as error:
        raise InputError(f"In the plan {name!r}: {error}") from error


def _absolute(corpus: str) -> str:
    """A file or folder (with a column or not) by its whole path: a worker may stand elsewhere; other names as they are."""
    path, before = local_path(corpus), local_path(corpus.rpartition(":")[0] or corpus)
    if path is None or before is None or corpus in BUNDLED or not (path.exists() or before.exists()):
        return corpus
    return os.path.abspath(path)  # noqa: PTH100 (links stay links)


def _corpus(corpus: str, settings: Settings, tasks: Tasks, name: str) -> Corpus:
    """The text as it is known before a model is there (see `Analysis.corpus`)."""
    try:
        count = self_sampled_tokens(corpus)
        if count is None:
            return read_corpus(corpus)
    except InputError as error:
        raise InputError(f"In the plan {name!r}: {error}") from error
    if tasks.shards > 1:
        raise InputError(
            f"In the plan {name!r} the corpus {quoted(corpus)} cannot be observed in {tasks.shards} shards, for each machine "
            "would sample another text: set shards = 1."
        )
    return Corpus(corpus, (), False, f"self:{count}:{settings.seed}")
