"""The start: what is refused, in one sentence, before a server runs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send
from streamlit import config
from streamlit.proto.NewSession_pb2 import CustomThemeConfig
from streamlit.runtime import app_session, runtime_util
from streamlit.web.server.starlette import starlette_server

from app import environment, guard, launch, rules, server, uploads
from core.errors import AnalysisError, InputError
from tests.browser.server import COMMAND, Server, free_port, wait_until_healthy

CONFIG = Path(launch.__file__).parent / ".streamlit" / "config.toml"


@pytest.mark.parametrize(
    ("host", "written"),
    [("0", "0.0.0.0"), ("127.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "::1"), ("1..2", "1..2")],
)
def test_ways_to_write_an_address(host: str, written: str) -> None:
    assert launch._written_out(host) == written


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_computers_are_let_in_only_on_purpose(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.socket, "getaddrinfo", lambda *_: [])  # a name is found, network or not
    with pytest.raises(InputError, match=r"--classroom .* --public"):
        launch.run(host, 8501, browser=False)


def test_a_class_and_the_public_are_two_things() -> None:
    with pytest.raises(InputError, match="one of --classroom and --public"):
        launch.run(None, 8501, classroom=True, public=True, browser=False)


def test_a_corpus_that_cannot_be_read_is_refused_before_the_server_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"notes\.txt"):
        launch.run(None, 8501, "demo", str(tmp_path / "notes.txt"), classroom=True, browser=False)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another thing there")
def test_ctrl_c_ends_the_dashboard_with_a_sentence(tmp_path: Path) -> None:
    port = free_port()
    running = subprocess.Popen(
        [*COMMAND, "--port", str(port), "--cache", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until_healthy(running, Server(f"http://localhost:{port}", tmp_path / "no-log", running.pid), 60)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert said.rstrip().splitlines()[-1].startswith("Stopped;") and "Abort" not in said and "Traceback" not in said


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the server would be started with; it is not."""
    arguments: list[str] = []
    for name in ("AUDIENCE", "MODEL", "CORPUS", "ADDRESS"):
        monkeypatch.setenv(getattr(environment, f"{name}_VARIABLE"), "")
    monkeypatch.setattr("streamlit.web.cli.main", lambda **_: arguments.extend(sys.argv))
    monkeypatch.setattr(sys, "argv", [])
    yield arguments


def test_large_messages_to_the_server_are_refused_and_large_ones_from_it_are_not(started: list[str]) -> None:
    launch.run(None, free_port(), browser=False)
    launch.run(None, free_port(), browser=False)  # once is enough
    settings = starlette_server._get_uvicorn_config_kwargs()
    assert settings["ws_max_size"] == guard.FRAME < 10 * 2**20
    assert uvicorn.Config(lambda: None, **settings).http is settings["http"]
    assert runtime_util.get_max_message_size_bytes() >= 200e6


def test_at_home_only_this_computer_is_served(started: list[str]) -> None:
    launch.run(None, free_port(), browser=False)
    assert "--server.address=localhost" in started
    assert rules.rules() == rules.Rules()


@pytest.mark.parametrize("how", ["classroom", "public"])
def test_others_are_let_in(started: list[str], how: str) -> None:
    port = free_port()
    launch.run(None, port, "demo", "python-docs", browser=False, **{how: True})
    assert "--server.address=0.0.0.0" in started
    told = rules.rules()
    assert (told.audience, told.model, told.corpus) == (how, "demo", "python-docs")
    assert re.fullmatch(rf"http://[\w.-]+:{port}", told.address)
    assert not told.address.startswith(("http://0.0.0.0", "http://localhost"))


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


def test_the_theme_is_put_together_once_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = app_session._populate_theme_msg, []

    def counting(message: CustomThemeConfig, section: str = "theme") -> None:
        asked.append(section)
        original(message, section)

    monkeypatch.setattr(app_session, "_populate_theme_msg", counting)
    for key, value in {"theme.primaryColor": "#123456", "theme.dark.backgroundColor": "#000001"}.items():
        monkeypatch.setattr(config.get_config_options()[key], "_get_val_func", lambda value=value: value)
    server._keep_theme()
    for _ in range(3):
        ours, theirs = CustomThemeConfig(), CustomThemeConfig()
        app_session._populate_theme_msg(ours)
        app_session._populate_theme_msg(ours.dark, "theme.dark")
        original(theirs)
        original(theirs.dark, "theme.dark")
        assert ours == theirs and ours.primary_color == "#123456" and ours.dark.background_color == "#000001"
    assert asked == ["theme", "theme.dark"]


def test_uploads_keep_to_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    path = Path(uploads.keep("../../etc/pass wd.txt", b"text"))
    assert path.is_relative_to(tmp_path / "uploads") and path.read_bytes() == b"text"
    assert uploads.title(str(path)) == "pass-wd.txt"


def test_who_has_the_same_text_cannot_ask_whether_it_was_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for cache in ("one", "another"):
        monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path / cache))
        names += [uploads.public_name(uploads.keep("my.txt", b"a text")) for _ in range(2)]
        assert uploads.find(names[-1])
    assert names[0] == names[1] != names[2] == names[3]
    assert not uploads.find(names[0])
    (tmp_path / "another" / "uploads.key").write_bytes(b"")  # a stump is no key
    assert uploads.public_name(uploads.keep("my.txt", b"a text")) not in names and uploads.find(names[3])


def test_uploads_that_nobody_uses_leave_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(uploads, "KEPT", 5)
    in_use = Path(uploads.keep("mine.txt", b"a text that is read on every page"))
    for number in range(12):
        place = Path(uploads.keep("a.txt", str(number).encode())).parent
        os.utime(place, (number, number))  # long ago
        os.utime(in_use.parent, (number, number))
        assert uploads.find(uploads.public_name(str(in_use))) == in_use  # a use
    kept = list((tmp_path / "uploads").iterdir())
    assert len(kept) == 5 and in_use.parent in kept


def test_uploads_keep_within_their_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(uploads, "KEPT_MEGABYTES", 2)
    for number in range(6):
        newest = uploads.keep("large.txt", bytes([number]) * 700_000)
        os.utime(Path(newest).parent, (number, number))
    assert len(list((tmp_path / "uploads").iterdir())) == 2
    enormous = Path(uploads.keep("enormous.txt", b"x" * 3_000_000))
    assert list((tmp_path / "uploads").iterdir()) == [enormous.parent]


def test_an_upload_that_is_cut_off_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))

    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    content = b"a text " * 1000
    with monkeypatch.context() as disk:
        disk.setattr(Path, "replace", full)
        with pytest.raises(InputError, match=r"cannot be kept in Headscope's cache .No space left.*make room there"):
            uploads.keep("my.txt", content)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert Path(uploads.keep("my.txt", content)).read_bytes() == content


def test_a_stump_of_an_upload_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    kept = Path(uploads.keep("my.txt", b"a whole text"))
    kept.write_bytes(b"a who")
    assert Path(uploads.keep("my.txt", b"a whole text")).read_bytes() == b"a whole text"


@pytest.mark.parametrize(
    ("audience", "host", "status"),
    [
        ("own", "localhost:8501", 200),
        ("own", "127.0.0.1:8501", 200),
        ("own", "[::1]:8501", 200),
        ("own", "evil.example:8501", 400),
        ("own", "localhost.evil.example", 400),
        ("classroom", "192.168.1.5:8501", 200),
    ],
)
def test_a_dashboard_of_ones_own_goes_by_no_other_name(
    audience: str, host: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.AUDIENCE_VARIABLE, audience)

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("a page")(scope, receive, send)

    guarded = TrustedHostMiddleware(page, allowed_hosts=server.own_hosts(), www_redirect=False)
    asked = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode())]}
    answers: list[Message] = []

    async def send(message: Message) -> None:
        answers.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing more is asked for")

    asyncio.run(guarded(asked, receive, send))
    assert answers[0]["status"] == status
