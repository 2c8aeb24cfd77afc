"""Sweeps: plans are checked, parts merge to one pass, and a machine that dies during the run changes no number."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray

from core import summary
from core.analysis import Analysis
from core.errors import AnalysisError, InputError
from core.moments import Observation
from core.observe import observe
from core.settings import Settings, no_progress
from core.store import Store
from core.sweep import Event, cluster, read_plan, read_rows, run_sweep
from core.sweep.plan import LARGEST_PLAN, Run, parse_plan
from core.sweep.results import failed_row, read_row, row_of, write_row
from core.sweep.tasks import Fitted, Work, fit_run, shard_of
from tests.core.test_observe import assert_same
from tests.tiny import tiny_model

PLAN = """
models = ["demo", "org/name", "org/other@v1"]
revisions = ["step1", "step2"]
corpora = ["sampler", "python-docs"]

[settings]
positions = 512
held_out = 1

[tasks]
shards = 3
gpus = 0.5
"""


def test_models_revisions_and_corpora_are_multiplied() -> None:
    plan = parse_plan(PLAN, "plan.toml")
    names = ["demo", "org/name@step1", "org/name@step2", "org/other@v1"]
    assert [(run.model, run.corpus) for run in plan.runs] == [
        (model, corpus) for corpus in ("sampler", "python-docs") for model in names
    ]
    assert plan.runs[0].settings == Settings(positions=512, held_out=1.0)
    assert (plan.tasks.shards, plan.tasks.gpus, plan.tasks.retries) == (3, 0.5, 3)
    assert len({run.key for run in plan.runs}) == 8
    assert parse_plan('models = ["demo"]', "plan.toml").runs[0].corpus == "sampler"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models = [", "is not TOML"),
        ("", 'models is missing, but it must be a list of names, as models = ."smollm2"'),
        ("models = []", "models is \\[\\]"),
        ("models = ['']", "must be a list of names"),
        ("models = 'demo'", 'models is "demo", but it must be a list'),
        ("models = ['demo', 3]", "must be a list of names"),
        ("models = ['demo', 'demo']", "'demo' twice"),
        ("models = ['no such model']", "In the plan 'plan.toml'.*'no such model'"),
        ("models = ['demo']\nmodel = 1", "has 'model', but what may stand there is corpora, models"),
        ("models = ['demo']\nrevisions = ['main']", "has revisions, but none of its models is on the Hub"),
        ("models = ['o/n', 'o/n@main']\nrevisions = ['main']", "comes to 'o/n@main' twice"),
        ("models = ['o/n']\nrevisions = ['..']", "In the plan 'plan.toml': There is no folder 'o/n@..'"),
        ("models = ['demo']\ncorpora = []", "corpora is \\[\\]"),
        ("models = ['demo']\ncorpora = ['nowhere.txt']", "There is no corpus 'nowhere.txt'"),
        ("models = ['demo']\ncorpora = ['self:9']", "write self:N"),
        ("models = ['demo']\ncorpora = ['self:900']\ntasks.shards = 2", "cannot be observed in 2 shards"),
        ("models = ['demo']\nsettings = 3", "settings is 3, but it must be a table"),
        ("models = ['demo']\n[settings]\nposition = 3", "has 'position' in \\[settings\\].*context, device"),
        ("models = ['demo']\n[settings]\npositions = '3'", 'positions in \\[settings\\] is "3".*a whole number'),
        ("models = ['demo']\n[settings]\npositions = true", "must be a whole number"),
        ("models = ['demo']\n[settings]\npositions = 3.5", "must be a whole number"),
        ("models = ['demo']\n[settings]\nheld_out = 'a'", "must be a number"),
        ("models = ['demo']\n[settings]\ndtype = 16", "must be a text"),
        ("models = ['demo']\n[settings]\npositions = 3", "\\[settings\\]: positions is 3, but it must be at least 64"),
        (f"models = ['demo']\n[settings]\npositions = {10**22}", "positions is 1.*at most 1000000000000\\."),
        (f"models = ['demo']\n[settings]\nheld_out = {10**400}", "a number of hundreds of digits"),
        (f"models = ['demo']\n[tasks]\nretries = {10**400}", "retries is 10*\\.\\.\\., but it must be from 0 to 100"),
        ("models = ['demo']\n[tasks]\nshards = 0", "\\[tasks\\]: shards is 0, but it must be from 1 to"),
        ("models = ['demo']\n[tasks]\nmemory_gb = -1", "memory_gb is -1"),
        ("models = ['demo']\n[tasks]\ngpus = nan", "gpus is nan"),
    ],
)
def test_every_mistake_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        parse_plan(text, "plan.toml")
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and "--" not in said


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_plan(tmp_path / "plan.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_plan(tmp_path)
    (tmp_path / "plan.toml").write_bytes(b"models = ['\xff']")
    with pytest.raises(InputError, match="not UTF-8"):
        read_plan(tmp_path / "plan.toml")
    (tmp_path / "plan.toml").write_bytes(b"#" * (LARGEST_PLAN + 1))
    with pytest.raises(InputError, match="more than 1 MB"):
        read_plan(tmp_path / "plan.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    for endless in ("/dev/zero", tmp_path / "pipe.toml"):  # read, they would have no end
        with pytest.raises(InputError, match="is no file"):
            read_plan(endless)


def test_a_plan_of_many_models_in_a_line_is_no_long_name(tmp_path: Path) -> None:
    models = [f"org/model-{number}" for number in range(300)]
    listed = ", ".join(map(repr, models))
    assert len(parse_plan(f"models = [\n{listed}\n]", "plan.toml").runs) == 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (".".join("a" * 100_000) + " = 1", "a name of over 1000 characters"),
        (".".join(['"a"'] * 100_000) + " = 1", "a name of over 1000 characters or 100 parts"),
        ("[" + ".".join(['"a"'] * 100_000) + "]", "a name of over 1000 characters or 100 parts"),
        ("x = {" + ".".join("a" * 100_000) + " = 1}", "a name of over 1000 characters or 100 parts"),
        ("x = {" + ".".join(["'a'"] * 100_000) + " = 1}", "a name of over 1000 characters or 100 parts"),
        ("[settings]\nseed = " + "9" * 5000, "a number of thousands of digits"),
    ],
)
def test_a_plan_that_its_reader_chokes_on(text: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=said):
        parse_plan("models = ['demo']\n" + text, "plan.toml")
    assert time.monotonic() - began < 5


def test_files_are_known_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may stand in another folder."""
    (tmp_path / "a.csv").write_text("text\n" + "some words\n" * 50)
    monkeypatch.chdir(tmp_path)
    run = parse_plan("models = ['demo']\ncorpora = ['a.csv:text']", "plan.toml").runs[0]
    assert (run.corpus, run.corpus_place, run.model_place) == ("a.csv:text", str(tmp_path / "a.csv:text"), "demo")


# --- parts of a corpus ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2, 5, 1000])
def test_merged_shards_are_one_pass(tiny_analysis, shards: int) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    model = analysis.loaded()
    plan = analysis.plan(model, analysis.corpus)
    parts = [part for part in (shard_of(plan, index, shards) for index in range(shards)) if part is not None]
    assert 2 <= len(parts) <= min(shards, len(plan.chunks))
    assert sum(part.positions for part in parts) == plan.positions
    merged = observe(model, parts[0], seed=3)
    for part in parts[1:]:
        merged = merged.merge(observe(model, part, seed=3))
    one = observe(model, plan, seed=3)
    assert_same(one, merged, rtol=1e-10)
    for name in ("fit", "held_out"):
        np.testing.assert_array_equal(getattr(one, name).reservoir.key, getattr(merged, name).reservoir.key)


# --- the data set -----------------------------------------------------------------------------------------------------


def test_rows_are_one_data_set(tiny_analysis, tmp_path: Path) -> None:
    analysis: Analysis = tiny_analysis("gpt2")
    found = analysis.encoding()
    run = Run("one", "sampler", "one", "sampler", "0" * 64, analysis.settings, 1)
    bad = dataclasses.replace(run, model="two")
    write_row(tmp_path, row_of(run, found, "r1", 2.5, False))
    write_row(tmp_path, failed_row(bad, "It broke.", 1.0))
    keys = set(summary.fit(found, model="", corpus=""))
    frame = pd.read_parquet(tmp_path)
    assert set(frame.columns) == keys | {"run", "settings", "status", "error"}
    first, second = read_rows(tmp_path)
    assert first["r2"] == found.r2 and first["sparsity"][-1]["r2"] == found.sparsity[-1].r2_refitted
    assert first["settings"] == dataclasses.asdict(analysis.settings)
    assert (first["status"], first["error"], second["status"], second["error"]) == ("done", None, "failed", "It broke.")
    path = tmp_path / f"run-{run.key}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert read_row(tmp_path, run.key) is None
    assert [row["model"] for row in read_rows(tmp_path)] == ["two"]
    with pytest.raises(InputError, match="There is no folder"):
        read_rows(tmp_path / ("nowhere" * 100))
    with pytest.raises(InputError, match="There is no folder"):
        read_rows(tmp_path / "nowhere")


def test_a_row_is_not_kept_when_the_weights_have_changed(tmp_path: Path) -> None:
    folder, out, store = tiny_model("gpt2", tmp_path / "model"), tmp_path / "out", Store(tmp_path / "store")
    plan = parse_plan(f"models = [{str(folder)!r}]\n[settings]\npositions = 500\ncontext = 64", "plan.toml")

    def measured() -> float:
        run = plan.runs[0]
        analysis = Analysis(run.model_place, run.corpus_place, run.settings, store)
        row = row_of(run, analysis.encoding(), analysis.files().revision, 1.0, False)
        write_row(out, row)
        return row["r2"]

    first = measured()
    known = cluster._known_row(plan.runs[0], out, store)
    assert known is not None and known["r2"] == first
    tiny_model("gpt2", folder, seed=1)
    assert cluster._known_row(plan.runs[0], out, store) is None
    second = measured()
    known = cluster._known_row(plan.runs[0], out, store)
    assert known is not None and known["r2"] == second != first
    folder.rename(tmp_path / "elsewhere")  # what was measured stays known
    known = cluster._known_row(plan.runs[0], out, store)
    assert known is not None and known["r2"] == second


# --- on Ray -----------------------------------------------------------------------------------------------------------


class RayHere:
    """In place of Ray: every task is done in this process, when it is asked for."""

    exceptions = ray.exceptions

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1}}]

    def remote(self, **_: Any) -> Callable[[Callable[..., Any]], Any]:
        return lambda task: SimpleNamespace(remote=lambda *given: partial(task, *given))

    def wait(self, running: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return running[:1], running[1:]

    def get(self, reference: Any) -> Any:
        return reference()


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ray", lambda address, plan: nullcontext(RayHere()))
    monkeypatch.setattr(cluster, "_Telling", lambda name, board: no_progress)
    monkeypatch.setattr(cluster._Driver, "_board", lambda driver: None)
    monkeypatch.setattr(cluster._Driver, "_hear", lambda driver: None)


def test_the_end_of_rays_control_service_is_the_end_of_the_sweep(
    ray_here: None, plan_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen with a real one: Ray's calls wait for it for a minute and then end the process."""
    monkeypatch.setattr(cluster, "SILENT_SECONDS", 0.6)
    service = socket.create_server(("127.0.0.1", 0))
    place = f"127.0.0.1:{service.getsockname()[1]}"
    told = SimpleNamespace(gcs_address=place)
    monkeypatch.setattr(RayHere, "get_runtime_context", lambda ray: told, raising=False)
    plan, heard = parse_plan(plan_text, "plan.toml"), list[Event]()

    def tell(event: Event) -> None:
        heard.append(event)
        if event.state == "done":
            service.close()

    with pytest.raises(ConnectionError, match="control service does not answer"):
        run_sweep(plan, tmp_path / "out", Store(tmp_path / "store"), tell=tell)
    assert [(event.task, event.state) for event in heard if event.state != "done"] == [("Ray", "working")]
    assert sum(event.state == "done" for event in heard) == 1


@pytest.mark.parametrize(("times", "kind"), [(1, "damaged"), (1, "of another place"), (100, "damaged")])
def test_a_shard_that_is_wrong_while_a_run_is_fitted(
    ray_here: None, plan_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, kind: str
) -> None:
    """It is observed again, or the run fails: never is an observation of fewer positions stored."""
    plan, store = parse_plan(plan_text, "plan.toml"), Store(tmp_path / "store")
    fits: list[int] = []

    def fit_while_a_bit_flips(work: Work, observation: Observation, name: str, board: None) -> Any:
        fits.append(observation.fit.n)
        if len(fits) <= times:
            path = next(tmp_path.glob("store/partial/sweep-*/shard-0001.safetensors"))
            content = bytearray((path if kind == "damaged" else path.with_name("shard-0000.safetensors")).read_bytes())
            content[-9] ^= kind == "damaged"
            path.write_bytes(content)
        return fit_run(work, observation)

    monkeypatch.setattr(cluster, "_fit", fit_while_a_bit_flips)
    found = run_sweep(plan, tmp_path / "out", store)
    assert set(fits) == {2000}
    run = plan.runs[0]
    analysis = Analysis(run.model_place, run.corpus_place, run.settings, store)
    stored = store.get("observation", analysis.key(analysis.files()), Observation)
    if times == 1:
        assert len(fits) == 2 and found.failed == 0 and found.rows[0]["positions"] == 2000
        assert stored is not None and stored.fit.n == 2000
    else:
        assert "damaged again and again" in found.rows[0]["error"] and stored is None


def test_another_sweep_finishes_the_run_meanwhile(
    ray_here: None, plan_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes the shards that both have: what it found is taken then, nothing is done twice and nobody is blamed."""
    plan, store, told = parse_plan(plan_text, "plan.toml"), Store(tmp_path / "store"), list[Event]()
    fits: list[int] = []

    def fit_beside_another(work: Work, observation: Observation, name: str, board: None) -> Any:
        fits.append(observation.fit.n)
        if len(fits) == 1:
            assert run_sweep(plan, tmp_path / "other", store).failed == 0
            assert not list(tmp_path.glob("store/partial/sweep-*"))
        return fit_run(work, observation)

    monkeypatch.setattr(cluster, "_fit", fit_beside_another)
    found = run_sweep(plan, tmp_path / "out", store, tell=told.append)
    assert fits == [2000, 2000] and numbers(found.rows[0]) == numbers(read_rows(tmp_path / "other")[0])
    assert told[-1] == Event(plan.runs[0].name, "kept", "another sweep has finished it")
    assert sum(event.state == "done" for event in told) == plan.tasks.shards  # each part once


def test_a_part_is_said_to_be_lost_with_its_worker_only_where_it_was() -> None:
    driver, told = cluster._Driver.__new__(cluster._Driver), list[Event]()
    events = [Event("run · part 1 of 2", "started"), Event("run · part 2 of 2", "started")]
    driver.tell = told.append
    driver.board = SimpleNamespace(take=SimpleNamespace(remote=lambda: lambda: events))
    driver.ray = SimpleNamespace(get=lambda reference, timeout: reference(), exceptions=ray.exceptions)
    driver.seen, driver.lost = set(), set()
    driver._hear()
    driver.lost = {"run · part 2 of 2"}
    driver._hear()
    driver._hear()
    assert [event.state for event in told] == ["started", "started", "again", "anew", "again", "again"]


def test_a_fit_of_another_model_than_was_observed(
    ray_here: None, plan_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = parse_plan(plan_text, "plan.toml")

    def fit_another(work: Work, observation: Observation, name: str, board: None) -> Any:
        found = fit_run(work, observation)
        assert isinstance(found, Fitted)
        return dataclasses.replace(found, model_sha256="another")

    monkeypatch.setattr(cluster, "_fit", fit_another)
    found = run_sweep(plan, tmp_path / "out", Store(tmp_path / "store"))
    assert "is not the same model on all machines" in found.rows[0]["error"]


def test_ray_that_ends_during_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("init", "shutdown"):
        monkeypatch.setattr(f"ray.{name}", lambda **_: None)
    plan = parse_plan("models = ['demo']", "plan.toml")
    for lost in (
        OSError("Connection reset by peer"),
        ConnectionResetError(104, "reset"),
        ray.exceptions.RaySystemError(""),
        ray.exceptions.LocalRayletDiedError(),
    ):
        with (
            pytest.raises(AnalysisError, match=r"Ray ended while .* the same command goes on") as told,
            cluster._ray(None, plan),
        ):
            raise lost
        assert "raylet" not in str(told.value)
    with pytest.raises(OSError, match="No space left") as full, cluster._ray(None, plan):
        raise OSError(28, "No space left on device")
    assert full.type is OSError  # of the disk, not of Ray


def test_ray_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises a plain `Exception` where its own processes are too slow."""
    ended = []

    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", slow)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append(True))
    plan = parse_plan("models = ['demo']", "plan.toml")
    with pytest.raises(AnalysisError, match=r"cannot be started on this machine \(.*timed out.*\): close other"):
        cluster._ray(None, plan).__enter__()
    with pytest.raises(InputError, match=r"cannot be reached at 'ray://x' .*: is it running there"):
        cluster._ray("ray://x", plan).__enter__()
    assert ended == [True, True]
    monkeypatch.setattr("ray.init", lambda **_: sys.exit(15))  # as it does where it is told to stop
    with pytest.raises(KeyboardInterrupt):
        cluster._ray(None, plan).__enter__()


def test_every_task_of_a_run_has_a_name_of_its_own() -> None:
    """Else the fit of a run of one part is taken for another try of that part."""
    run = Run("demo", "sampler", "demo", "sampler", "0" * 64, Settings(), 1)
    assert cluster._name(run, 0) != cluster._name(run, cluster.FIT) == run.name


def test_the_end_of_ray_is_no_failure_of_a_run() -> None:
    """A run that failed has a row that says so; when Ray ends on this machine, nothing is known of any run."""

    def get(_: object) -> None:
        raise ray.exceptions.LocalRayletDiedError

    run = SimpleNamespace(run=SimpleNamespace(key="run"))
    driver = SimpleNamespace(
        running={"task": (run, 0)}, rows={}, ray=SimpleNamespace(get=get, exceptions=ray.exceptions)
    )
    with pytest.raises(ray.exceptions.LocalRayletDiedError):
        cluster._Driver._take(driver, "task")  # type: ignore[arg-type]
    assert "worker was lost" in cluster._reason(ray.exceptions.WorkerCrashedError())


RAY_TALKS = """
import os, sys, threading
from core.sweep.cluster import _unheard
with _unheard():
    print("Of a listener.")
    print("A remark.", file=sys.stderr)
    os.write(2, b"[E 1 2] task_manager.cc: Failed")
    thread = threading.Thread(target=print, args=("(raylet) A worker died.",), name="ray_listen_error_messages")
    thread.start()
    thread.join()
print("The result.")
print("The end.", file=sys.stderr)
"""


def test_what_ray_says_is_no_part_of_the_result_and_no_remark() -> None:
    done = subprocess.run([sys.executable, "-c", RAY_TALKS], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("The result.\n", "Of a listener.\nA remark.\nThe end.\n")


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", "silence"])
def test_an_address_at_which_ray_does_not_listen_is_told_at_once(
    answer: bytes | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "REACHED_WITHIN", 0.5)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("it would try for ever"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"

        def serve() -> None:
            with listening.accept()[0] as there:
                there.recv(100)
                if isinstance(answer, bytes):
                    there.sendall(answer)
                else:
                    time.sleep(2)

        if answer is None:
            listening.close()
        else:
            threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(InputError, match=rf"cannot be reached at '{address}' \(.+\): is it running there"):
            cluster._ray(address, parse_plan("models = ['demo']", "plan.toml")).__enter__()


NOTICES_QUICKLY = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 2,
}


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A cluster of two machines of one CPU each, both of them this one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": NOTICES_QUICKLY}
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster.shutdown()


@pytest.fixture(scope="module")
def plan_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tiny_model("gpt2", tmp_path_factory.mktemp("gpt2"))
    return (
        f"models = [{str(folder)!r}]\n[settings]\npositions = 2000\ncontext = 64\nheld_out = 0.5\n"
        "[tasks]\nshards = 4\nthreads = 1"
    )


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "cached")}


def held(doomed: str, gone: Path) -> Callable[..., Any]:
    """What a worker does with a part: on the doomed node it stops half-way for good, elsewhere it waits for that node's end."""

    def _observe(work: Any, index: int, name: str, board: Any) -> Any:
        import time

        from core.sweep import cluster, tasks

        telling = cluster._Telling(name, board)

        def progress(phrase: str, share: float | None) -> None:
            telling(phrase, share)
            if telling.node == doomed and (share or 0) > 0.3:
                telling._tell("working", "half-way", share)
                time.sleep(600)
            for _ in range(1200):
                if gone.exists() or telling.node == doomed:
                    return
                time.sleep(0.05)

        return tasks.observe_shard(work, index, progress)

    return _observe


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_node_that_dies_changes_no_number(
    two_nodes: Any, plan_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = parse_plan(plan_text, "plan.toml")
    doomed = two_nodes.add_node(num_cpus=1)
    two_nodes.wait_for_nodes()
    told: list[Event] = []
    gone = tmp_path / "gone"

    def kill_half_way(event: Event) -> None:
        told.append(event)
        if event.text == "half-way" and not gone.exists():
            two_nodes.remove_node(doomed, allow_graceful=False)
            gone.touch()

    store = Store(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_observe", held(doomed.node_id, gone))
        died = run_sweep(plan, tmp_path / "died", store, address=two_nodes.address, tell=kill_half_way)
    assert gone.exists(), "no task had come to the second node"
    assert died.failed == 0, died.rows[0]["error"]
    lost = {event.task for event in told if event.node == doomed.node_id}
    again = {event.task for event in told if event.state == "again"}
    assert len(lost) == 1 and again == lost  # only what it was at was done twice

    # the same plan, interrupted after its first finished part, and then to its end, on the node that is left
    def stop(event: Event) -> None:
        if event.state == "done":
            raise KeyboardInterrupt

    second = Store(tmp_path / "second")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, tmp_path / "resumed", second, address=two_nodes.address, tell=stop)
    told.clear()
    resumed = run_sweep(plan, tmp_path / "resumed", second, address=two_nodes.address, tell=told.append)
    kept = [event.task for event in told if event.state == "kept"]
    assert len(kept) >= 1 and not set(kept) & {event.task for event in told if event.state == "started"}
    assert numbers(resumed.rows[0]) == numbers(died.rows[0])

    # it is what one process finds, and pages and commands find it in the store
    run = plan.runs[0]
    analysis = Analysis(run.model_place, run.corpus_place, run.settings, store)
    stored = analysis.cached_encoding()
    assert stored is not None and analysis.answers_without_model()
    alone = Analysis(run.model_place, run.corpus_place, run.settings, Store(tmp_path / "alone")).encoding()
    assert stored.r2 == pytest.approx(alone.r2, rel=1e-9)
    np.testing.assert_allclose(stored.alpha, alone.alpha, rtol=1e-6)  # other threads round the logits otherwise

    # everything is there now: Ray is not asked
    told.clear()
    done = run_sweep(plan, tmp_path / "died", store, address="nowhere:1", tell=told.append)
    assert [event.state for event in told] == ["kept"] and done.kept == 1
    assert numbers(done.rows[0]) == numbers(died.rows[0])


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_that_cannot_be_done_is_a_row_with_its_reason(two_nodes: Any, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 300', '"vocab_size": 301'))
    plan = parse_plan(f"models = [{str(folder)!r}]\n[settings]\npositions = 500\ncontext = 64", "plan.toml")
    found = run_sweep(plan, tmp_path / "out", Store(tmp_path / "store"), address=two_nodes.address)
    assert found.failed == 1 and found.rows[0]["error"].endswith(".")
    assert read_rows(tmp_path / "out")[0]["status"] == "failed"
    greedy = parse_plan(f"models = [{str(folder)!r}]\n[tasks]\nmemory_gb = 60000", "plan.toml")
    with pytest.raises(InputError, match="wants memory_gb = 60000 for a task, but no machine has more than"):
        run_sweep(greedy, tmp_path / "greedy", Store(tmp_path / "store"), address=two_nodes.address)
    wants = parse_plan(f"models = [{str(folder)!r}]\n[tasks]\nthreads = 64", "plan.toml")
    with pytest.raises(InputError, match="wants threads = 64 for a task, but no machine has more than 1"):
        run_sweep(wants, tmp_path / "out", Store(tmp_path / "store"), address=two_nodes.address)
