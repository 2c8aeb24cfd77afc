"""A series of checkpoints as a user asks for it: what is wrong with one of them is said, and the rest still counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from core.cli.commands import cli
from core.dynamics import Dynamics
from core.errors import AnalysisError, Cancelled, InputError
from core.kept import KEPT, KeptCheckpoint, KeptSeries, read_kept, write_kept
from core.model.files import resolve
from core.model.heads import read_head
from core.series import dynamics, summary, train_series
from core.settings import Settings
from core.store import Store
from core.train import TrainSettings, step_folder
from tests.hub import TinyHub, tiny_hub
from tests.tiny import tiny_model

SETTINGS = TrainSettings(vocab=400, dim=16, layers=1, heads=2, context=32, batch=4, steps=32, seed=5, threads=1)
MEASURE = Settings(positions=600, context=32)
STEPS = (0, 1, 2, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dynamics]:
    """A training run and what was measured of it. Shared: it is never changed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder / "run", train_series("sampler", SETTINGS, folder / "run", MEASURE, Store(folder / "cache"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TinyHub]:
    with tiny_hub(monkeypatch, tmp_path / "home") as hub:
        yield hub


def curves(found: Dynamics) -> list[dict[str, object]]:
    return summary(found)["checkpoints"]  # type: ignore[return-value]


def test_a_published_series_with_every_fault(trained: tuple[Path, Dynamics], hub: TinyHub, tmp_path: Path) -> None:
    """Duplicate, missing, gated, truncated and mismatched revisions each have their sentence; the others are measured."""
    for step in STEPS:
        source = step_folder(trained[0], 1 if step == 2 else step)
        hub.add("org/series", source, f"step{step}")
    hub.switches = {
        "org/series@step1": {"redirect"},
        "org/series@step4": {"gated"},
        "org/series@step8": {"truncated"},
        "org/series@step16": {"other bytes"},
    }
    found = dynamics(["org/series@step{0,1,2,4,8,16,32,64}"], "sampler", MEASURE, Store(tmp_path / "cache"))
    assert [c.step for c in found.checkpoints] == [0, 1, 2, 32]
    assert [(c.step, c.duplicate_of) for c in found.checkpoints if c.duplicate_of is not None] == [(2, 1)]
    assert [c.step for c in found.curve] == [0, 1, 32]
    said = {each.name: each.reason for each in found.missing}
    assert set(said) == {f"org/series@step{step}" for step in (4, 8, 16, 64)}
    assert "accept its terms" in said["org/series@step4"]
    assert "step8" in said["org/series@step8"] and "step64" in said["org/series@step64"]
    assert all(reason.isprintable() and reason.endswith(".") for reason in said.values())
    for checkpoint in found.curve:
        assert checkpoint.head_sha256 == read_head(step_folder(trained[0], checkpoint.step), "here").sha256


def test_whole_models_whose_bytes_are_not_the_listed_ones(
    trained: tuple[Path, Dynamics], hub: TinyHub, tmp_path: Path
) -> None:
    """Of a range nobody lists a hash; a whole file that is not what the Hub lists is refused by name."""
    for step in (0, 16, 32):
        hub.add("org/series", step_folder(trained[0], step), f"step{step}")
    hub.switches = {"org/series@step16": {"other bytes silently"}}
    found = dynamics(["org/series@step{0,16,32}"], "sampler", MEASURE, Store(tmp_path / "cache"), whole=True)
    assert [c.step for c in found.checkpoints] == [0, 32]
    assert [each.name for each in found.missing] == ["org/series@step16"]
    assert found.stand_in and found.checkpoints[0].loss is not None


def test_no_revision_that_can_be_read(hub: TinyHub, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"No checkpoint of 'org/none@step\{0,1\}' could be read\. The first: "):
        dynamics(["org/none@step{0,1}"], "sampler", MEASURE, Store(tmp_path))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_run_that_was_stopped_goes_on_to_the_same_curves(
    trained: tuple[Path, Dynamics], tmp_path: Path, share: float
) -> None:
    def stop(phrase: str, done: float | None) -> None:
        if phrase.startswith("Training") and done is not None and done >= share:
            raise Cancelled

    told: list[int] = []
    with pytest.raises(Cancelled):
        train_series("sampler", SETTINGS, tmp_path / "run", MEASURE, Store(tmp_path / "cache"), progress=stop)
    again = train_series(
        "sampler", SETTINGS, tmp_path / "run", MEASURE, Store(tmp_path / "cache"),
        on_checkpoint=lambda found: told.append(len(found.checkpoints)),
    )  # fmt: skip
    assert told == list(range(1, len(STEPS) + 1))
    assert curves(again) == curves(trained[1])
    for before, after in zip(trained[1].checkpoints, again.checkpoints, strict=True):
        np.testing.assert_array_equal(before.weights, after.weights)
        assert before.samples == after.samples


def test_folders_are_what_the_run_was(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    """The run's folder, and its step folders one by one in another order."""
    run, known = trained
    store = Store(tmp_path)
    as_run = dynamics([str(run)], None, MEASURE, store)
    assert not as_run.stand_in and curves(as_run) == curves(known)
    shuffled = dynamics([str(step_folder(run, step)) for step in (8, 0, 32)], None, MEASURE, store)
    assert [c.step for c in shuffled.checkpoints] == [0, 8, 32]
    assert {c.step: c.r2_alpha for c in shuffled.curve}.items() <= {c.step: c.r2_alpha for c in known.curve}.items()


def test_frequencies_of_another_text_are_told(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    options = ["--positions", "600", "--context", "32", "--cache", str(tmp_path / "cache")]
    said = "a stand-in: the text this model was trained on is not known here."
    assert said not in CliRunner().invoke(cli, ["dynamics", str(run), *options], catch_exceptions=False).stdout
    (run / "run.json").unlink()
    assert said in CliRunner().invoke(cli, ["dynamics", str(run), *options], catch_exceptions=False).stdout


def test_a_damaged_step_of_a_folder_is_named(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    weights = step_folder(run, 4) / "model.safetensors"
    tensors = load_file(weights)
    del tensors["embed_out.weight"]
    save_file(tensors, weights, {"format": "pt"})
    found = dynamics([str(run)], None, MEASURE, Store(tmp_path / "cache"))
    assert [each.name for each in found.missing] == ["step-4"]
    assert [c.step for c in found.curve] == [0, 1, 2, 8, 16, 32]


def test_a_step_of_a_run_that_is_not_as_it_was_written_is_named(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    """Weights that are well formed and others would give other numbers without a word; the run has their hashes."""
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    weights = step_folder(run, 4) / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-4] ^= 1
    weights.write_bytes(raw)
    found = dynamics([str(run)], None, MEASURE, Store(tmp_path / "cache"))
    assert [(each.name, each.reason) for each in found.missing] == [
        ("step-4", "step-4 is damaged: it is not what the training run has written.")
    ]
    assert [c.step for c in found.curve] == [0, 1, 2, 8, 16, 32]
    with pytest.raises(AnalysisError, match=r"step-4 is damaged: it is not what the training run has written\. Copy"):
        resolve(str(step_folder(run, 4)), cache=tmp_path / "cache")
    assert resolve(str(step_folder(run, 8)), cache=tmp_path / "cache").folder.name == "step-8"
    copied = shutil.copytree(step_folder(run, 4), tmp_path / "copied")
    assert resolve(str(copied), cache=tmp_path / "cache").folder == copied


def test_another_architecture_among_the_folders(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    other = tiny_model("gpt2", tmp_path / "step-64")
    found = dynamics(
        [str(step_folder(trained[0], 0)), str(step_folder(trained[0], 32)), str(other)], "sampler", MEASURE,
        Store(tmp_path / "cache"),
    )  # fmt: skip
    assert [c.step for c in found.curve] == [0, 32]
    assert "unlike the others" in found.missing[0].reason


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["nothing-here"], "There is no series"),
        (["org/name@step{0,x}"], "is no step"),
        (["org/name@step{0,1}", "org/name@step1"], "Step 1 is named twice"),
        (["org/name@step1"], "from 2 to 512 make a series"),
        (["org/name@step{" + ",".join(map(str, range(600))) + "}"], "from 2 to 512 make a series"),
    ],
)
def test_names_that_are_no_series(sources: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        dynamics(sources, "sampler", MEASURE, Store(tmp_path))


def test_folders_without_a_checkpoint_are_no_series(tmp_path: Path) -> None:
    for name in ("gtk-2.0", "gtk-3.0"):
        (tmp_path / name).mkdir()
    for source in (tmp_path, tmp_path / "gtk-2.0"):
        with pytest.raises(InputError, match=r"There is no checkpoint in .* a folder step-N with a config.json"):
            dynamics([str(source)], "sampler", MEASURE, Store(tmp_path / "cache"))


def test_folders_are_closed_to_strangers(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no series"):
        dynamics([str(trained[0])], "sampler", MEASURE, Store(tmp_path), local_paths=False)


def test_a_run_kept_small(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    """By the command: the kept heads are in half precision, so R² is the run's to about three digits."""
    run, known = trained
    arguments = [
        "dynamics",
        str(run),
        "--keep",
        str(tmp_path / "kept"),
        "--positions",
        "600",
        "--cache",
        str(tmp_path / "c"),
    ]
    answer = CliRunner().invoke(cli, [*arguments, "--context", "32", "--json", "-"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "kept" / KEPT).is_file()
    kept = dynamics([str(tmp_path / "kept")])
    assert not kept.stand_in and [c.step for c in kept.curve] == list(STEPS)
    for before, after in zip(known.curve, kept.curve, strict=True):
        assert abs(before.r2_corpus_frequency - after.r2_corpus_frequency) < 2e-3
        assert (before.loss, before.samples) == (after.loss, after.samples)
    written = json.loads(answer.stdout)
    assert [c["step"] for c in written["checkpoints"]] == list(STEPS)
    assert written["checkpoints"] == json.loads(json.dumps(curves(known)))


def refusal(*arguments: str) -> str:
    """The sentence with which `headscope dynamics` refuses, exit code 2."""
    answer = CliRunner().invoke(cli, ["dynamics", *arguments])
    said = answer.stderr.strip()
    assert answer.exit_code == 2 and said.startswith("headscope: ") and said.endswith(".") and "\n" not in said, said
    return said


def test_places_where_no_run_can_be_kept(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    """Said before anything is measured, and nothing is left of the attempt."""
    (tmp_path / "file").touch()
    for name in ("file/x", "new/" + "a" * 300, "tr\udce9"):
        refused = refusal(str(trained[0]), "--keep", str(tmp_path / name))
        assert "cannot be written" in refused or "not UTF-8" in refused
    assert "no training run" in refusal("demo", "--keep", str(tmp_path / "new"))
    for inside in (trained[0], trained[0] / "kept"):
        assert "outside it" in refusal(str(trained[0]), "--keep", str(inside))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_kept_step_that_is_another_one_is_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = [random.normal(size=(12, 2)).astype(np.float16) for _ in range(2)]
    kept = [KeptCheckpoint(4 * n, each, np.ones(12, np.float32), 1.0, ()) for n, each in enumerate(weights)]
    write_kept(tmp_path, KeptSeries("text", tuple("abcdefghijkl"), np.arange(1, 13), "", (0, 4)), kept)
    shutil.copy(tmp_path / "step-00000000.safetensors", tmp_path / "step-00000004.safetensors")
    found = read_kept(tmp_path, "run")
    assert [c.step for c in found.checkpoints] == [0] and [each.name for each in found.missing] == ["step 4"]


def test_a_disk_that_fills_while_a_run_is_kept(tmp_path: Path) -> None:
    """A run that was kept there before stays; a place that was new is not there."""

    def checkpoints(loss: float, full: bool) -> Iterator[KeptCheckpoint]:
        yield KeptCheckpoint(0, np.zeros((3, 2), np.float16), np.ones(3, np.float32), loss, ())
        if full:
            raise OSError(28, "No space left on device")

    series = KeptSeries("text", ("a", "b", "c"), np.ones(3, np.int64), "", (0,))
    write_kept(tmp_path / "old", series, checkpoints(1.0, False))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(path.name for path in before) == [KEPT, "step-00000000.safetensors"]
    for name in ("old", "new/place"):
        with pytest.raises(InputError, match=r"No space left on device.*choose another folder"):
            write_kept(tmp_path / name, series, checkpoints(2.0, True))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("option", [("--steps", "5"), ("--size", "small"), ("--batch", "8"), ("--out", "run")])
def test_options_of_training_without_training(option: tuple[str, str]) -> None:
    assert f"{option[0]} is of a training run: give --train too" in refusal("demo", *option)


def test_the_bundled_run_shows_the_claim() -> None:
    """Nothing of frequency in the untrained embedding, nearly all of it long before the loss is down."""
    answer = CliRunner().invoke(cli, ["dynamics", "demo", "--json", "-"], catch_exceptions=False)
    found = json.loads(answer.stdout)
    assert len(found["checkpoints"]) >= 16 and not found["frequency_is_a_stand_in"]
    assert abs(found["checkpoints"][0]["r2_corpus_frequency"]) <= 0.02
    assert found["step_frequency_90"] <= found["step_loss_90"] / 5
    assert len({c["head_sha256"] for c in found["checkpoints"]}) == len(found["checkpoints"])


def test_what_training_has_anyway_is_not_asked_for() -> None:
    assert "leave one of them away" in refusal("--train", "--whole")


def test_a_run_is_kept_with_its_own_text(trained: tuple[Path, Dynamics], tmp_path: Path) -> None:
    """Under the name of another text its own frequencies would stand."""
    keep = str(tmp_path / "kept")
    said = refusal(str(trained[0]), "--corpus", "python-docs", "--keep", keep)
    assert "A run is kept with the frequencies of the text it was trained on" in said and not Path(keep).exists()


def test_options_that_change_nothing_are_remarked_on() -> None:
    done = CliRunner().invoke(cli, ["dynamics", "demo", "--positions", "64", "--held-out", "0.5", "--json", "-"])
    assert done.exit_code == 0 and "--positions, --held-out change nothing here" in done.stderr
    assert "nothing here" not in CliRunner().invoke(cli, ["dynamics", "demo", "--json", "-"]).stderr
