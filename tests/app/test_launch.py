"""The start: what is refused, in one sentence, before a server runs."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path

import pytest

from app import launch, uploads
from core.errors import AnalysisError, InputError

CONFIG = Path(launch.__file__).parent / ".streamlit" / "config.toml"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_computers_are_refused(host: str) -> None:
    with pytest.raises(InputError, match="classroom mode"):
        launch.run(host, 8501, browser=False)


def test_classroom_is_not_there_yet() -> None:
    with pytest.raises(InputError, match="not there yet"):
        launch.run("localhost", 8501, classroom=True, browser=False)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be(port: int) -> None:
    with pytest.raises(InputError, match="from 1 to 65535"):
        launch.run("localhost", port, browser=False)


def test_a_busy_port_gets_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AnalysisError, match=f"Port {port} .* --port"):
            launch.run("127.0.0.1", port, browser=False)


def test_a_wrong_model_is_refused_before_the_server_starts() -> None:
    with pytest.raises(InputError):
        launch.run("localhost", 8501, "no such model", browser=False)


def test_the_configuration_is_private_and_fast() -> None:
    config = tomllib.loads(CONFIG.read_text("utf-8"))
    assert config["server"]["address"] == "localhost"
    assert config["server"]["headless"] and not config["server"]["showEmailPrompt"]
    assert config["server"]["maxUploadSize"] == uploads.MOST_MEGABYTES
    assert config["browser"]["gatherUsageStats"] is False
    assert config["runner"]["postScriptGC"] is False
    for theme in ("light", "dark"):
        assert len(config["theme"][theme]["chartCategoricalColors"]) == 10


def test_uploads_keep_to_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    path = Path(uploads.keep("../../etc/pass wd.txt", b"text"))
    assert path.is_relative_to(tmp_path / "uploads") and path.read_bytes() == b"text"
    assert uploads.title(str(path)) == "pass-wd.txt"
    for number in range(2 * uploads.KEPT):
        uploads.keep("a.txt", str(number).encode())
    assert len(list((tmp_path / "uploads").iterdir())) <= uploads.KEPT
