"""Every parser takes any text: it gives what the text says, or one sentence; never a traceback and nothing half understood."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from app import state, uploads
from app.rules import Rules
from core.analysis import Analysis
from core.cli.commands import cli
from core.cli.shared import numbers as read_numbers
from core.corpus import read_corpus, self_sampled_tokens
from core.errors import HeadscopeError
from core.export.place import check_target
from core.model.names import ModelSource, parse_model
from core.pruning.names import check_pruning, kept_dims
from core.results import Sampling
from core.settings import Settings
from core.sources import Place, parse_sources
from core.steering import MOST_RATIO, Edit, check_direction
from core.store import Store, check_place
from core.sweep.plan import Plan, parse_plan, read_plan
from tests.ledger import attempt, refused, survived
from tests.properties.texts import FIXED, NASTY, nasty, numbers, texts


@pytest.fixture(scope="module", autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder to stand in, so that a relative name is never a file of this machine."""
    folder = tmp_path_factory.mktemp("nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def demo() -> Analysis:
    """The bundled model with the results that come with it."""
    return Analysis("demo", "sampler", Settings(positions=state.DEMO_POSITIONS))


def stays_here(name: str) -> bool:
    """Whether a name, taken as a path, cannot lead out of the folder one stands in."""
    return not name.strip().startswith(("/", "~")) and ".." not in name and name.strip(" ./") != ""


# --- names ------------------------------------------------------------------------------------------------------------


def all_examples(test: Callable[..., Any]) -> Callable[..., Any]:
    """Every nasty text is tried by itself, whatever else is generated."""
    for text in NASTY:
        test = example(text)(test)
    return test


@FIXED
@all_examples
@given(texts)
def test_model_names(name: str) -> None:
    def is_one(source: ModelSource) -> None:
        assert source.kind in ("demo", "smollm2", "hub") and ".." not in source.location
        assert source.kind != "hub" or source.location.count("/") == 1
        assert parse_model(source.name, local_paths=False) == source

    attempt(lambda: parse_model(name, local_paths=False), is_one)
    attempt(lambda: parse_model(name), lambda source: None)


@FIXED
@all_examples
@given(texts)
def test_corpus_names(name: str) -> None:
    count = attempt(lambda: self_sampled_tokens(name))
    assert count is None or 512 <= count <= 10_000_000
    if count is None and not name.startswith("self:"):
        attempt(lambda: read_corpus(name, local_paths=False), lambda corpus: bundled(corpus.name))
        if stays_here(name):
            attempt(lambda: read_corpus(name), lambda corpus: bundled(corpus.name))


def bundled(name: str) -> None:
    assert name in ("sampler", "python-docs")


@FIXED
@given(st.lists(texts, max_size=3))
@example(["o/n@step{0,0}"])
@example(["o/n@step{" + ",".join(map(str, range(600))) + "}"])
@example(["o/n@step{0,1,2}", "o/n@step3"])
def test_series_names(sources: list[str]) -> None:
    def is_one(places: list[Place]) -> None:
        steps = [place.step for place in places]
        assert steps == sorted(set(steps)) and steps[0] >= 0

    attempt(lambda: parse_sources(sources, local_paths=False), is_one)
    if all(map(stays_here, sources)):
        attempt(lambda: parse_sources(sources), is_one)


@FIXED
@all_examples
@given(texts)
def test_tokens(demo: Analysis, text: str) -> None:
    def is_one(choice: Any) -> None:
        assert demo.token_text(choice.id) == choice.token
        assert choice.token == text or choice.note or text.startswith("id:")

    attempt(lambda: demo.find_token(text), is_one)


@FIXED
@given(texts)
def test_folders_to_export_to(text: str) -> None:
    attempt(lambda: check_target(text), lambda path: fine(path.is_absolute() and not path.exists()))


@FIXED
@all_examples
@given(texts)
def test_files_to_write(text: str) -> None:
    attempt(lambda: check_place(text))


def fine(true: bool) -> None:
    assert true


# --- numbers ----------------------------------------------------------------------------------------------------------


@FIXED
@given(texts, numbers)
def test_options_that_are_numbers(text: str, number: float) -> None:
    attempt(lambda: read_numbers(text, "--sweep", float))
    attempt(lambda: read_numbers(text, "--few-shot", int))
    attempt(lambda: Edit(0, number), lambda edit: fine(1 / MOST_RATIO <= edit.ratio <= MOST_RATIO))
    attempt(lambda: check_direction(text))
    attempt(lambda: check_direction(f"top-k:{text}"))
    attempt(lambda: check_pruning("rotated", number), lambda _: fine(0 <= number < 1 and kept_dims(160, number) > 0))
    attempt(lambda: check_pruning(text, 0.3))


@FIXED
@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("positions", "context", "held_out", "seed", "device", "dtype"), numbers)
    )
)
def test_settings(values: dict[str, Any]) -> None:
    kinds = {"positions": int, "context": int, "seed": int, "device": str, "dtype": str}
    whole = {n: v for n, v in values.items() if not (kinds.get(n) is int and not math.isfinite(v))}
    made = {name: kinds.get(name, float)(value) for name, value in whole.items()}
    attempt(lambda: Settings(**made), lambda settings: fine(settings.positions_held_out >= 16))


@FIXED
@given(numbers, numbers, numbers, numbers)
def test_sampling(samples: float, new_tokens: float, temperature: float, top_p: float) -> None:
    ints = [int(n) if math.isfinite(n) else 2**70 for n in (samples, new_tokens)]
    attempt(
        lambda: Sampling(*ints, temperature=float(temperature), top_p=float(top_p)),
        lambda sampling: fine(sampling.temperature > 0 and 0 < sampling.top_p <= 1),
    )


# --- plans ------------------------------------------------------------------------------------------------------------

KEYS = (
    "models",
    "revisions",
    "corpora",
    "settings",
    "tasks",
    "positions",
    "context",
    "shards",
    "gpus",
    "threads",
    "dtype",
)
values: st.SearchStrategy[Any] = st.recursive(
    numbers.filter(lambda n: not isinstance(n, int) or abs(n) < 2**63)
    | st.booleans()
    | texts.filter(lambda text: text.isprintable())
    | st.sampled_from(["demo", "org/name", "sampler", "python-docs", "self:900", "cpu", "float32"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def toml(value: Any) -> str:
    """A value as TOML; a table in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


@FIXED
@given(st.dictionaries(st.sampled_from(KEYS[:5]), values, max_size=5), st.booleans())
def test_plans(document: dict[str, Any], with_model: bool) -> None:
    document = document | ({"models": ["demo"]} if with_model else {})
    if not all(map(stays_here, _names(document))):
        return
    text = "\n".join(f"{key} = {toml(value)}" for key, value in document.items())

    def is_one(plan: Plan) -> None:
        assert plan.runs and len({run.key for run in plan.runs}) == len(plan.runs)
        assert all(run.model in document["models"] or "@" in run.model for run in plan.runs)
        for name, value in document.get("settings", {}).items():
            assert asdict(plan.runs[0].settings)[name] == value

    attempt(lambda: parse_plan(text, "p.toml"), is_one)


def _names(document: dict[str, Any]) -> list[str]:
    found = [document.get(key) for key in ("models", "corpora")]
    return [name for names in found if isinstance(names, list) for name in names if isinstance(name, str)]


@FIXED
@all_examples
@given(texts)
def test_texts_that_are_no_plans(nowhere: Path, text: str) -> None:
    attempt(lambda: parse_plan(text, "p.toml"))
    attempt(lambda: read_plan(text))
    attempt(lambda: parse_plan("models = " + "[" * 100_000, "p.toml"))
    (nowhere / "p.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    attempt(lambda: read_plan(nowhere / "p.toml"))


# --- addresses --------------------------------------------------------------------------------------------------------

WELL_MADE = {
    "edit": st.lists(st.tuples(st.integers(0, 10**9), st.floats(1e-6, 1e6)), max_size=15).map(
        lambda edits: tuple({i: Edit(i, ratio) for i, ratio in edits}.values())
    ),
    "rows": st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
            st.sampled_from(state.POSITIONS),
        ),
        max_size=state.MOST_ROWS,
        unique=True,
    ).map(tuple),
    "temperature": st.floats(0.01, 10),
    "removed": st.floats(0, 0.99),
    "seed": st.integers(0, 2**32 - 1),
    "direction": st.sampled_from(state.DIRECTION_CHOICES),
    "calibrate": st.booleans(),
    "present": st.booleans(),
}


@FIXED
@given(st.sampled_from(sorted(state._FIELDS)), texts | numbers.map(str) | st.lists(nasty, max_size=4).map(",".join))
@example("edit", "1:2,1:3,x")
@example("edit", "1:nan")
@example("rows", "%FF|%00|1024")
@example("step", "9" * 4400)
def test_any_address(field: str, text: str) -> None:
    """What an address says is read or left out; what was read says the same once it is written again."""
    _, read, write = state._FIELDS[field]
    try:
        value = read(text)
    except ValueError as error:  # says what is allowed, and the page says that
        refused(f"The address may say {error}.")
    else:
        assert read(write(value)) == value
        assert not isinstance(value, float) or math.isfinite(value)
        survived()


@FIXED
@given(st.data())
@pytest.mark.parametrize("field", sorted(WELL_MADE))
def test_an_address_brings_back_what_was_chosen(field: str, data: st.DataObject) -> None:
    value = data.draw(WELL_MADE[field])
    _, read, write = state._FIELDS[field]
    assert read(write(value)) == value
    survived()


@FIXED
@given(texts, texts, st.integers())
def test_a_shared_server_is_told_only_what_it_offers(model: str, corpus: str, positions: int) -> None:
    own = Rules("public", "~/models/mine", None, "http://192.0.2.7:8501")

    def is_offered(names: tuple[str, str]) -> None:
        assert names[0] in ("demo", "smollm2", "~/models/mine")
        assert names[1] in ("sampler", "python-docs") or names[1].startswith("self:")

    attempt(lambda: own.admit(model, corpus, positions), is_offered)
    attempt(lambda: own.admit("demo", corpus, 1024), is_offered)


@FIXED
@all_examples
@given(texts)
def test_an_upload_stays_in_its_folder(nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(nowhere / "cache"))
    path = Path(uploads.keep(name, name.encode("utf-8", "replace")))
    folder = (Store().folder / "uploads").resolve()
    assert path.resolve().parent.parent == folder and path.is_file() and not path.name.startswith(".")
    assert uploads.find(uploads.public_name(str(path))) == path
    found = uploads.find(name)
    assert found is None or folder in found.resolve().parents
    survived()


# --- the command line as a whole --------------------------------------------------------------------------------------

words = texts.filter(lambda text: "\0" not in text and not text.startswith(("/", "~", "..")))
OPTIONS = (
    *(
        "--token",
        "--ratio",
        "--direction",
        "--sweep",
        "--few-shot",
        "--corpus",
        "--positions",
        "--context",
        "--held-out",
    ),
    *(
        "--seed",
        "--device",
        "--dtype",
        "--method",
        "--remove",
        "--prompt",
        "--samples",
        "--new-tokens",
        "--temperature",
    ),
)
COMMANDS = (
    "fit",
    "steer",
    "prune",
    "generate",
    "doctor",
    "export",
    "dynamics",
    "sweep",
    "compare",
    "report",
    "directions",
)


@FIXED
@given(
    st.sampled_from(COMMANDS),
    st.sampled_from(["no such model", "org", "a.gguf", "", "x\ny"]) | words,
    st.lists(st.tuples(st.sampled_from(OPTIONS), words | numbers.map(str)), max_size=3),
)
def test_commands_end_with_a_sentence(command: str, model: str, options: list[tuple[str, str]]) -> None:
    """Nothing here can be analysed: no model of that name is there, and none may be asked for over the network."""
    arguments = [command, model, *(part for option in options for part in option)]
    if _is_model(model):
        return
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code in (1, 2) and "unexpectedly" not in done.stderr, done.output
    assert isinstance(done.exception, SystemExit) and "Traceback" not in done.output, done.output
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert said
    if said[-1].startswith("headscope: "):
        refused(said[-1].removeprefix("headscope: "))
    else:
        survived()


def _is_model(name: str) -> bool:
    try:
        parse_model(name)
    except HeadscopeError:
        return False
    return True
