"""Downloads from a Hub on loopback: what is fetched and what never is, and one sentence for every fault."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import AnalysisError, Cancelled, HeadscopeError, InputError
from core.model import ready, resolve
from core.model.hub import download, explaining
from core.settings import no_progress
from tests.hub import COMMIT, TinyHub, tiny_hub
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> Iterator[TinyHub]:
    with tiny_hub(monkeypatch, tmp_path / "home") as hub:
        hub.add("org/model", model)
        yield hub


def refused(name: str, cache: Path) -> HeadscopeError:
    """The error of a name that cannot be resolved, which must be one readable sentence."""
    with pytest.raises(HeadscopeError) as caught:
        resolve(name, cache=cache)
    message = str(caught.value)
    assert message.isprintable() and "http" not in message and "127.0.0.1" not in message and len(message) < 300
    assert name.partition("@")[0] in message
    return caught.value


def test_a_download_has_all_it_needs_and_nothing_that_could_run(
    hub: TinyHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repos["org/model"] |= dict.fromkeys(
        ["pytorch_model.bin", "modeling_x.py", "README.md", "consolidated.safetensors", "training_args.pt"], b"x"
    )
    hub.repos["org/model"] |= {"chat_template.jinja": b"{{ messages }}", "onnx/model.safetensors": b"x"}
    assert ready("org/model", cache=tmp_path) is None
    shares: list[float] = []
    files = resolve("org/model", cache=tmp_path, progress=lambda _, share: shares.append(share or 0))
    assert files.revision == COMMIT and files.name == "org/model"
    assert hub.files_sent() == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert shares[-1] == 1.0 and capfd.readouterr() == ("", "")
    hub.asked.clear()
    assert ready("org/model", cache=tmp_path) == files
    assert ready("org/model", cache=tmp_path, local_paths=False) == files
    assert not hub.asked
    assert resolve("org/model", cache=tmp_path) == files
    assert not hub.files_sent()


def test_the_environment_means_what_it_means_everywhere(
    hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, in a process of its own, and nothing printed."""
    code = (
        "import pathlib, sys; from core.model import resolve; "
        f"print(resolve('org/model', cache=pathlib.Path({str(tmp_path)!r})).folder, 'torch' in sys.modules)"
    )
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        hub.asked.clear()
        root = Path(__file__).parents[2]
        run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        folder, torch_loaded = run.stdout.split()
        assert Path(folder).is_relative_to(tmp_path / "elsewhere") and torch_loaded == "False" and not run.stderr
        assert bool(hub.asked) == (offline == "0")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("HF_TOKEN", "hf_\u00e9", "correct HF_TOKEN"), ("HF_HOME", "/dev/null", "point HF_HOME elsewhere")],
)
def test_what_the_environment_has_wrong_is_no_fault_of_the_hub(
    hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "core.cli", "doctor", "org/model", "--cache", str(tmp_path / "cache")]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 1 and said in run.stderr and "HF_ENDPOINT" not in run.stderr, run.stderr
    assert "\u00e9" not in run.stderr and run.stderr.count("\n") < 4


def test_a_revision_is_its_commit(hub: TinyHub, tmp_path: Path) -> None:
    files = resolve("org/model@v2", cache=tmp_path)
    assert (files.name, files.revision) == ("org/model@v2", COMMIT)
    assert ready("org/model@v2", cache=tmp_path) == files
    assert ready(f"org/model@{COMMIT}", cache=tmp_path) is not None
    assert ready("org/model@other", cache=tmp_path) is None


def test_shards_are_those_of_the_index(hub: TinyHub, tmp_path: Path) -> None:
    content = hub.repos["org/model"].pop("model.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    shards = dict.fromkeys(["model-1.safetensors", "model-2.safetensors", "other.safetensors"], content)
    hub.repos["org/model"] |= {"model.safetensors.index.json": json.dumps(index).encode(), **shards}
    folder = resolve("org/model", cache=tmp_path).folder
    assert {path.name for path in folder.glob("*.safetensors")} == {"model-1.safetensors", "model-2.safetensors"}


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("gated", AnalysisError, "accept its terms"),
        ("unauthorized", AnalysisError, "HF_TOKEN"),
        ("forbidden", AnalysisError, "HF_TOKEN"),
        ("429", AnalysisError, "too many requests"),
        ("500", AnalysisError, "500"),
        ("503", AnalysisError, "503"),
        ("404", InputError, "nothing that is called org/model (404)"),
        ("418", AnalysisError, "answered 418 when asked for org/model: check HF_ENDPOINT"),
        ("bare", AnalysisError, "is not what a Hub says"),
        ("says []", AnalysisError, "is not what a Hub says"),
        ("says null", AnalysisError, "is not what a Hub says"),
        ("says 5", AnalysisError, "is not what a Hub says"),
        ("says " + "[" * 200_000, AnalysisError, "is not what a Hub says"),
        ('says {"id": "a", "sha": "b", "siblings": [1, 2]}', AnalysisError, "is not what a Hub says"),
        ('says {"id": "a", "sha": "b", "lastModified": "never"}', AnalysisError, "is not what a Hub says"),
        ("truncated", AnalysisError, "broke off"),
    ],
)
def test_one_sentence_for_every_fault(
    hub: TinyHub, tmp_path: Path, fault: str, kind: type[HeadscopeError], says: str
) -> None:
    hub.fault = fault
    error = refused("org/model", tmp_path)
    assert type(error) is kind and says in str(error)
    assert ready("org/model", cache=tmp_path) is None


def test_a_small_file_that_is_not_the_one_that_was_told_of(hub: TinyHub, tmp_path: Path) -> None:
    """Another tokenizer of the same length would give other numbers without a word."""
    hub.fault = "other tokenizer"
    assert "The tokenizer.json of org/model is not what the Hub lists" in str(refused("org/model", tmp_path))
    hub.fault = ""
    files = resolve("org/model", cache=tmp_path)
    assert (files.folder / "tokenizer.json").read_bytes() == hub.repos["org/model"]["tokenizer.json"]
    (files.folder / "tokenizer.json").resolve().write_bytes(b"{}")  # the disk's fault, while the Hub is there
    assert "not what the Hub lists" in str(refused("org/model", tmp_path))
    assert resolve("org/model", cache=tmp_path).sha256 == files.sha256


def test_weights_that_are_not_what_the_answer_named_though_no_hash_is_listed(hub: TinyHub, tmp_path: Path) -> None:
    hub.switches["org/model"] = {"unlisted", "other bytes silently"}
    assert "The model.safetensors of org/model is not what the Hub lists" in str(refused("org/model", tmp_path))
    assert ready("org/model", cache=tmp_path) is None
    hub.switches["org/model"] = {"unlisted"}
    files = resolve("org/model", cache=tmp_path)
    assert (files.folder / "model.safetensors").read_bytes() == hub.repos["org/model"]["model.safetensors"]


def test_what_is_not_there(hub: TinyHub, tmp_path: Path) -> None:
    assert isinstance(refused("org/nothing", tmp_path), InputError)
    error = refused("org/model@v9", tmp_path)
    assert isinstance(error, InputError) and "no revision 'v9'" in str(error)


def test_a_broken_transfer_goes_on_where_it_stopped(hub: TinyHub, tmp_path: Path, model: Path) -> None:
    hub.fault = "truncated once"
    files = resolve("org/model", cache=tmp_path)
    assert (files.folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert any(path.endswith("model.safetensors") and span for _, path, span in hub.asked)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pytorch_model.bin": b"x", "config.json": b"{}"}, "pickles (pytorch_model.bin)"),
        ({"model.Q4.gguf": b"x"}, "GGUF"),
        ({"model.safetensors": b"x", "config.json": b'{"model_type": "mine", "auto_map": {}}'}, "auto_map"),
        ({}, "no model.safetensors"),
    ],
)
def test_refused_before_any_weight_is_fetched(hub: TinyHub, tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    hub.repos["org/odd"] = files
    assert says in str(refused("org/odd", tmp_path))
    assert hub.files_sent() <= {"config.json"}


def test_too_large_for_the_disk(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.model import hub as module

    monkeypatch.setattr(module, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=10)))
    assert "of disk" in str(refused("org/model", tmp_path))
    assert "model.safetensors" not in hub.files_sent()


def test_what_killed_downloads_left_is_removed(hub: TinyHub, tmp_path: Path) -> None:
    """huggingface_hub gives each download a file of its own, and does not come back to it; one under way stays."""
    weights = resolve("org/model", cache=tmp_path).folder / "model.safetensors"
    blob = weights.resolve()
    dead, alive = (blob.with_name(f"{blob.name}.{kind}.incomplete") for kind in ("dead", "alive"))
    for path in (dead, alive):
        path.write_bytes(b"half")
    os.utime(dead, times=(time.time() - 3600,) * 2)
    assert resolve("org/model", cache=tmp_path).folder == weights.parent
    assert alive.exists() and not dead.exists() and blob.exists()


def test_what_is_here_is_used_when_the_hub_is_not_reached(hub: TinyHub, tmp_path: Path) -> None:
    files = resolve("org/model", cache=tmp_path)
    hub.fault = "503"
    assert resolve("org/model", cache=tmp_path) == files
    hub.fault = "gated"
    refused("org/model", tmp_path)


def test_offline(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(refused("org/model", tmp_path))
    assert not hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    files = resolve("org/model", cache=tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("org/model", cache=tmp_path) == files


def test_nobody_answers(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "could not be reached" in str(refused("org/model", tmp_path))


def test_a_network_that_goes_between_two_files_is_no_strange_hub(hub: TinyHub) -> None:
    """`huggingface_hub` then says, by a kind of `ValueError`, that the file is not here either."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    with pytest.raises(AnalysisError, match="could not be reached for org/model"), explaining("org/model"):
        raise LocalEntryNotFoundError("not here") from OSError("no route")


@contextlib.contextmanager
def talking(begin: bytes, more: bytes, pause: float) -> Iterator[str]:
    """The address of a server that begins an answer, sends more with pauses between, and never comes to an end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def answer() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    visitor, _ = listener.accept()
                    visitor.sendall(begin)
                    threading.Thread(target=go_on, args=(visitor,), daemon=True).start()

        def go_on(visitor: socket.socket) -> None:
            with visitor, contextlib.suppress(OSError):
                while not over.wait(pause):
                    visitor.sendall(more)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname(), 1).close()  # so that it looks up
        thread.join(5)


@pytest.fixture
def dripping() -> Iterator[str]:
    with talking(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{", b" ", 0.05) as address:
        yield address


def test_a_hub_that_drips_has_a_minute(
    hub: TinyHub, dripping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", dripping)
    monkeypatch.setattr("core.model.hub.PATIENCE", 0.6)
    with pytest.raises(AnalysisError, match="did not say within 1 s what org/model is"):
        download("org/model", None, tmp_path, no_progress)
    monkeypatch.setattr("core.model.hub.PATIENCE", 600.0)
    told: list[str] = []

    def cancel(phrase: str, share: float | None) -> None:
        told.append(phrase)
        if len(told) > 2:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        download("org/model", None, tmp_path, cancel)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    download("org/model", None, tmp_path, no_progress)  # the next question is asked anew


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Internal Server Error"])
def test_a_hub_whose_answer_does_not_end(
    hub: TinyHub, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.model.hub.LARGEST_ANSWER", 10**6)
    with talking(f"HTTP/1.1 {status}\r\n\r\n{{".encode(), b" " * 65536, 0.001) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        with pytest.raises(AnalysisError, match="answer does not end after 1 MB: check HF_ENDPOINT"):
            download("org/model", None, tmp_path, no_progress)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    download("org/model", None, tmp_path, no_progress)


@pytest.mark.parametrize("fault", ["endless", "weights endless"])
def test_a_file_that_does_not_end_never_fills_the_disk(hub: TinyHub, fault: str, tmp_path: Path) -> None:
    hub.fault = fault
    with pytest.raises(AnalysisError, match="of org/model is not what the Hub lists"):
        download("org/model", None, tmp_path, no_progress)
    kept = sum(path.stat().st_size for path in (tmp_path / "home" / "hub").rglob("*") if path.is_file())
    assert kept <= sum(map(len, hub.repos["org/model"].values()))
    hub.fault = ""
    folder, _ = download("org/model", None, tmp_path, no_progress)
    assert (folder / "config.json").read_bytes() == hub.repos["org/model"]["config.json"]


@pytest.mark.parametrize("kind", ["tag", "commit", "sha"])
@pytest.mark.parametrize("place", ["{outside}", "../../../outside", ".."])
def test_a_hub_that_names_files_elsewhere(hub: TinyHub, tmp_path: Path, kind: str, place: str) -> None:
    hub.fault = f"{kind} {place.format(outside=tmp_path / 'outside')}"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AnalysisError, match="HF_ENDPOINT"):
        download("org/model", None, tmp_path, no_progress)
    there = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "home" / "hub")}
    assert there <= {*before, tmp_path / "home"} and not list(tmp_path.rglob("outside*"))
    hub.fault = ""
    download("org/model", None, tmp_path, no_progress)


def test_a_download_can_be_cancelled(hub: TinyHub, tmp_path: Path) -> None:
    def cancel(phrase: str, share: float | None) -> None:
        if share is not None:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        resolve("org/model", cache=tmp_path, progress=cancel)
    assert ready("org/model", cache=tmp_path) is None
    assert resolve("org/model", cache=tmp_path).revision == COMMIT
