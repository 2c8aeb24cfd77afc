"""What a stranger may send to a shared server: strange frames, kinds of messages for developers, silence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import websockets
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send
from streamlit.proto.BackMsg_pb2 import BackendOperationRequest, BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.web.server.starlette import starlette_server

from app import guard
from app.guard import Guard
from tests.browser.server import ROOT, Server, free_port
from tests.load.visitor import Visitor

LONG = 2.0
"""Seconds that nobody waits for the server, whatever another sends."""


def made(**fields: Any) -> BackMsg:
    return BackMsg(**fields)


def asking_for(names: int) -> BackMsg:
    message = BackMsg()
    message.file_urls_request.request_id = "r"
    message.file_urls_request.file_names.extend([""] * names)
    return message


def having(hashes: int) -> BackMsg:
    message = BackMsg()
    message.rerun_script.cached_message_hashes.extend(["a"] * hashes)
    return message


def operation(payload: str) -> BackMsg:
    message = BackMsg()
    getattr(message.backend_operation_request, payload).SetInParent()
    return message


def sent(frames: list[bytes | str], *, shared: bool) -> tuple[list[bytes], list[Message]]:
    """What gets through to the application, and what the browser is sent."""
    queue: list[Message] = [
        {"type": "websocket.connect"},
        *({"type": "websocket.receive", "text" if isinstance(frame, str) else "bytes": frame} for frame in frames),
        {"type": "websocket.disconnect", "code": 1005},
    ]
    through: list[bytes] = []
    answers: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive":
                through.append(message["bytes"])

    async def receive() -> Message:
        return queue.pop(0)

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(Guard(app, shared=shared)({"type": "websocket", "headers": []}, receive, send))
    return through, answers


BROWSER = [
    made(stop_script=True),
    made(app_heartbeat=True),
    asking_for(1),
    having(500),
    operation("deferred_file"),
    operation("dataframe_chunk"),
]
DEVELOPER = [
    made(load_git_info=True),
    made(clear_cache=True),
    made(set_run_on_save=True),
    made(debug_shutdown_runtime=True),
    made(debug_disconnect_websocket=True),
]
NOBODY = [
    "hello",
    b"",
    b"\xff" * 50,
    asking_for(1000).SerializeToString(),
    having(100_000).SerializeToString(),
    operation("install_skills").SerializeToString(),
    BackMsg(backend_operation_request=BackendOperationRequest(request_id="x")).SerializeToString(),
]


def test_what_a_browser_sends_gets_through_unchanged() -> None:
    frames = [message.SerializeToString() for message in BROWSER]
    assert sent([*frames], shared=True) == (frames, [])


def test_what_is_for_developers_is_dropped_where_others_come_too() -> None:
    frames = [message.SerializeToString() for message in DEVELOPER]
    last = made(stop_script=True).SerializeToString()
    assert sent([*frames, last], shared=True) == ([last], [])
    assert sent([*frames, last], shared=False) == ([*frames, last], [])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("frame", NOBODY, ids=range(len(NOBODY)))
def test_what_no_browser_sends_ends_the_socket(frame: bytes | str, shared: bool) -> None:
    through, answers = sent([frame, made(stop_script=True).SerializeToString()], shared=shared)
    assert through == [] and answers == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("origin", "heard"),
    [
        ("http://localhost:8501", True),
        (None, True),
        ("http://localhost:9999", False),
        ("null", False),
        ("http://evil.com", False),
    ],
)
def test_ones_own_dashboard_hears_its_own_pages_alone(origin: str | None, heard: bool) -> None:
    headers = [(b"host", b"localhost:8501"), *([(b"origin", origin.encode())] if origin else [])]
    reached: list[bool] = []
    answers: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(True)

    async def send(message: Message) -> None:
        answers.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    asyncio.run(Guard(app, shared=False)({"type": "websocket", "headers": headers}, receive, send))
    assert bool(reached) == heard and (answers == []) == heard


def test_a_frame_costs_next_to_nothing() -> None:
    frame = having(300).SerializeToString()
    started = time.perf_counter()
    for _ in range(1000):
        guard.kind_of(frame)
    assert time.perf_counter() - started < 1, "a millisecond for each move of a slider"


def test_who_sends_without_end_is_heard_at_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, in order: nothing is lost of what a browser that was away has to say."""
    slept: list[float] = []
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    monkeypatch.setattr(guard.asyncio, "sleep", sleep)
    monkeypatch.setattr(guard.time, "monotonic", lambda: now)
    frames = [having(number).SerializeToString() for number in range(1, 361)]
    assert sent([*frames], shared=True) == (frames, [])
    assert len(slept) == 300 and now == pytest.approx(300 / guard.PACE)


def test_all_of_an_address_share_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six that send without end are heard as two are, and who comes from elsewhere is not made to wait for them."""
    frame, heard, connections = having(1).SerializeToString(), 0, 6
    monkeypatch.setattr(guard, "AT_ONCE", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal heard
        while (await receive())["type"] != "websocket.disconnect":
            heard += 1

    async def receive() -> Message:
        return {"type": "websocket.receive", "bytes": frame}

    async def once() -> Message:
        return {"type": "websocket.disconnect" if heard_elsewhere else "websocket.receive", "bytes": frame}

    heard_elsewhere: list[float] = []

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        await receive()
        heard_elsewhere.append(time.monotonic() - started)

    async def all_of_them() -> None:
        judge = Guard(app, shared=True)
        stranger = {"type": "websocket", "headers": [], "client": ("10.0.0.1", 1)}
        going = [asyncio.create_task(judge(stranger, receive, receive)) for _ in range(connections)]
        await asyncio.sleep(1)
        judge.app = elsewhere
        await judge({**stranger, "client": ("10.0.0.2", 1)}, once, once)
        for each in going:
            each.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        going.clear()

    asyncio.run(all_of_them())
    assert guard.OF_ADDRESS * 0.5 < heard < guard.OF_ADDRESS * 1.3 and heard_elsewhere[0] < 0.1


def test_the_log_says_once_in_a_while_what_a_stranger_makes_it_say(caplog: pytest.LogCaptureFixture) -> None:
    seldom = guard.Seldom("socket.accept() out of")
    logger = logging.getLogger("tests.seldom")
    logger.addFilter(seldom)
    for _ in range(50):
        logger.error("socket.accept() out of system resource\nsocket: ...")
        logger.error("another")
    assert len([record for record in caplog.records if record.msg.startswith("socket")]) == 1
    assert len([record for record in caplog.records if record.msg == "another"]) == 50
    seldom.last -= 2 * guard.AGAIN
    logger.error("socket.accept() out of system resource")
    assert caplog.records[-1].msg.startswith("socket")


# --- the running server -------------------------------------------------------------------------------------------------


def answers_in(server: Server) -> float:
    started = time.perf_counter()
    urllib.request.urlopen(f"{server.url}/_stcore/health", timeout=60).close()
    return time.perf_counter() - started


def place(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def shake_hands(server: Server, origin: str = "") -> socket.socket:
    host, port = place(server)
    opened = socket.create_connection((host, port), timeout=10)
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: streamlit\r\n" + (f"Origin: {origin}\r\n" if origin else "") + "\r\n"
    )
    opened.sendall(request.encode())
    return opened


def test_strange_frames_trouble_neither_the_log_nor_others(shared: Server) -> None:
    async def stranger(frame: bytes | str) -> list[str | None]:
        """The kinds of answers."""
        address = shared.url.replace("http", "ws", 1) + "/_stcore/stream"
        said: list[str | None] = []
        async with websockets.connect(address, subprotocols=[websockets.Subprotocol("streamlit")]) as opened:
            await opened.send(frame)
            with contextlib.suppress(TimeoutError, websockets.ConnectionClosed):
                async with asyncio.timeout(0.5):
                    while True:
                        raw = await opened.recv()
                        assert isinstance(raw, bytes)
                        said.append(ForwardMsg.FromString(raw).WhichOneof("type"))
        return said

    async def all_of_them() -> None:
        million = asking_for(1_000_000).SerializeToString()
        for frame in [*NOBODY, *(message.SerializeToString() for message in DEVELOPER), million]:
            going = asyncio.create_task(stranger(frame))
            await asyncio.sleep(0.05)
            assert await asyncio.to_thread(answers_in, shared) < LONG
            assert "git_info_changed" not in await going
        async with Visitor(shared.url) as visitor:
            await visitor.open("method")
            assert visitor.page and visitor.problems == []

    asyncio.run(all_of_them())
    printed = shared.log.read_text("utf-8", errors="replace")
    assert printed.count("what no browser sends") == 1 and "Traceback" not in printed


def test_nobody_is_told_where_on_the_host_it_lies(shared: Server) -> None:
    async def whole() -> bytes:
        address = shared.url.replace("http", "ws", 1) + "/_stcore/stream"
        told = b""
        async with websockets.connect(
            address, subprotocols=[websockets.Subprotocol("streamlit")], max_size=None
        ) as opened:
            await opened.send(made(rerun_script={"page_name": "method"}).SerializeToString())
            while True:
                raw = await opened.recv()
                assert isinstance(raw, bytes)
                told += raw
                if ForwardMsg.FromString(raw).WhichOneof("type") == "script_finished":
                    return told

    told = asyncio.run(whole())
    assert b"main.py" in told and os.fsencode(ROOT) not in told and os.fsencode(Path.home()) + b"/" not in told


def test_a_page_from_elsewhere_is_refused_without_asking_outside(shared: Server) -> None:
    started = time.perf_counter()
    for _ in range(3):
        with shake_hands(shared, "http://elsewhere.example") as opened:
            assert b"403" in opened.recv(100)
    assert time.perf_counter() - started < LONG
    printed = shared.log.read_text("utf-8", errors="replace")
    assert printed.count("disallowed Origin") == 1 and "external IP" not in printed


def test_no_page_from_elsewhere_shows_ours_within_itself(shared: Server) -> None:
    for path in ("/", "/steering", "/_stcore/health"):
        with urllib.request.urlopen(shared.url + path, timeout=60) as answer:
            assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
            assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'self'"


def test_strangers_are_not_told_what_is_cached(shared: Server) -> None:
    for path in ("/_stcore/metrics", "/_stcore/metrics/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(shared.url + path, timeout=60)


def test_a_message_that_would_fill_the_memory_is_refused_at_its_head(shared: Server) -> None:
    with shake_hands(shared) as opened:
        assert b"101" in opened.recv(1000)
        opened.sendall(b"\x82\xff" + (guard.FRAME + 1).to_bytes(8, "big") + b"\0\0\0\0" + b"\0" * 1000)
        rest = b""
        with contextlib.suppress(ConnectionError):
            while part := opened.recv(65536):
                rest += part
        assert (1009).to_bytes(2, "big") in rest, "too big"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the limits of another process")
def test_the_server_opens_as_many_files_as_the_system_allows(shared: Server) -> None:
    import psutil

    limits = psutil.Process(shared.pid).rlimit(psutil.RLIMIT_NOFILE)  # type: ignore[attr-defined, unused-ignore]
    assert limits[0] == limits[1] or limits[0] >= guard.OPEN


def test_who_asks_for_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SILENT", 0.5)
    monkeypatch.setattr(starlette_server, "_get_uvicorn_config_kwargs", starlette_server._get_uvicorn_config_kwargs)
    guard.bound_connections()
    settings = starlette_server._get_uvicorn_config_kwargs()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(1.5)
        await PlainTextResponse("here")(scope, receive, send)

    async def ask() -> tuple[bytes, float, bytes]:
        running = uvicorn.Server(uvicorn.Config(slow, port=free_port(), lifespan="off", **settings))
        serving = asyncio.create_task(running.serve())
        while not running.started:
            await asyncio.sleep(0.05)
        started = time.perf_counter()
        silent, silently = await asyncio.open_connection("127.0.0.1", running.config.port)
        asking, aloud = await asyncio.open_connection("127.0.0.1", running.config.port)
        silently.write(b"GET / HT")
        aloud.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        nothing, took = await silent.read(), time.perf_counter() - started
        answer = await asking.readuntil(b"here")
        silently.close()
        aloud.close()
        running.should_exit = True
        await serving
        return nothing, took, answer

    nothing, took, answer = asyncio.run(ask())
    assert nothing == b"" and took < 1.4
    assert answer.startswith(b"HTTP/1.1 200"), "what takes long is waited for"
