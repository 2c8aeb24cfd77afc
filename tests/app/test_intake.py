"""Uploads made by hand, against the running dashboard: a visitor holds one file, all together no more than is told."""

from __future__ import annotations

import asyncio
import http.cookiejar
import io
import socket
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import UploadedFileRec

from app import intake
from app.intake import Intake
from tests.browser.server import Server
from tests.load.visitor import Visitor

SIZE = 4 * 2**20


class Hand:
    """Sends files as a page does, with its cookie and its token, but as many as it likes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cookies = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))
        self.opener.open(f"{url}/_stcore/host-config", timeout=30).close()
        self.opener.open(f"{url}/_stcore/health", timeout=30).close()
        self.token = next((each.value or "" for each in self.cookies if "xsrf" in each.name), "")

    def put(self, session: str, file: str, content: bytes) -> int:
        mark = "x" * 24
        head = f'--{mark}\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}", "X-Xsrftoken": self.token}
        address = f"{self.url}/_stcore/upload_file/{session}/{file}"
        try:
            with self.opener.open(urllib.request.Request(address, body, headers, method="PUT"), timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return refusal.code


def test_forty_files_of_one_visitor_are_held_as_one(shared: Server) -> None:
    async def send() -> tuple[list[int], int, int]:
        async with Visitor(shared.url) as visitor:
            await visitor.open("method")
            hand = Hand(shared.url)
            process = psutil.Process(shared.pid)
            statuses = [
                await asyncio.to_thread(hand.put, visitor.session, f"first-{number}", b"a" * SIZE)
                for number in range(4)
            ]
            before = process.memory_info().rss
            statuses += [
                await asyncio.to_thread(hand.put, visitor.session, f"file-{number}", b"a" * SIZE)
                for number in range(40)
            ]
            return statuses, before, process.memory_info().rss

    statuses, before, after = asyncio.run(send())
    assert statuses == [204] * 44
    assert after - before < 10 * SIZE, "forty files were sent and none was let go of"


def test_what_is_no_upload_of_a_visitor_is_refused(shared: Server) -> None:
    hand = Hand(shared.url)
    assert hand.put("nobody", "file", b"a") == 400


def test_an_upload_that_is_broken_off_costs_the_log_nothing(shared: Server) -> None:
    """By a client that leaves, and by one that sends chunks that are none."""

    async def session() -> None:
        async with Visitor(shared.url) as visitor:
            await visitor.open("method")
            hand = Hand(shared.url)
            address, port = shared.url.removeprefix("http://").split(":")
            for kind in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
                head = (
                    f"PUT /_stcore/upload_file/{visitor.session}/f HTTP/1.1\r\nHost: {address}:{port}\r\n"
                    f"Content-Type: multipart/form-data; boundary=xx\r\n{kind}\r\n"
                    f"Cookie: _streamlit_xsrf={hand.token}\r\nX-Xsrftoken: {hand.token}\r\n\r\n"
                )
                with socket.create_connection((address, int(port)), timeout=10) as gone:
                    gone.sendall(head.encode())
                    await asyncio.sleep(0.3)
                    gone.sendall(b"--xx\r\nno chunk\r\n")
                    await asyncio.sleep(0.3)
            assert await asyncio.to_thread(hand.put, visitor.session, "whole", b"a" * SIZE) == 204

    asyncio.run(session())
    assert "Traceback" not in shared.log.read_text("utf-8", errors="replace")


def test_what_no_browser_sends_costs_the_sender_a_sentence_and_the_log_a_line(shared: Server) -> None:
    nonsense = [{"json_value": "{not json"}, {"json_value": "[" * 100_000}, {"json_value": "[[[1]],null]"}]

    async def send() -> list[str]:
        said = []
        for values in nonsense * 4:
            async with Visitor(shared.url) as visitor:
                await visitor.open("steering")
                await visitor.until(lambda v=visitor: not v.running and any(v.components("headscope_knobs")), 120)
                knobs = next(visitor.components("headscope_knobs"))
                state = WidgetState(id=knobs.element.bidi_component.id, **values)
                await visitor.press([state], knobs.fragment)
                await visitor.until(lambda v=visitor: not v.running)
                said.append(visitor.text())
                assert visitor.problems == []
        return said

    said = asyncio.run(send())
    assert any("something that it cannot read: reload it" in text for text in said)
    printed = shared.log.read_text("utf-8", errors="replace")
    assert "Traceback" not in printed and printed.count("what no browser sends") <= 4


def test_a_value_of_the_wrong_type_costs_a_sentence_and_no_traceback(shared: Server) -> None:
    async def send() -> str:
        async with Visitor(shared.url) as visitor:
            await visitor.open("encoding")
            await visitor.until(lambda: not visitor.running and any(visitor.elements("selectbox")), 120)
            box = next(visitor.elements("selectbox")).element.selectbox
            await visitor.press([WidgetState(id=box.id, double_value=1e300)])
            await visitor.until(lambda: not visitor.running)
            return visitor.text()

    assert "something that it cannot read: reload it" in asyncio.run(send())
    assert shared.tracebacks() == ""


def test_a_file_that_is_not_there_is_no_upload(shared: Server) -> None:
    async def send() -> list[str]:
        async with Visitor(shared.url) as visitor:
            await visitor.open("encoding")
            await visitor.until(lambda: not visitor.running and any(visitor.elements("file_uploader")), 120)
            state = WidgetState(id=visitor.widget("file_uploader", "upload"))
            state.file_uploader_state_value.uploaded_file_info.add(file_id="of somebody else", name="a.txt", size=3)
            await visitor.press([state])
            await visitor.until(lambda: not visitor.running)
            return visitor.problems

    assert asyncio.run(send()) == []
    assert shared.tracebacks() == ""


# --- the limits, with Streamlit's own store -----------------------------------------------------------------------------


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryUploadedFileManager:
    store = MemoryUploadedFileManager("/_stcore/upload_file")
    monkeypatch.setattr("streamlit.runtime.get_instance", lambda: SimpleNamespace(uploaded_file_mgr=store))
    return store


def taking(store: MemoryUploadedFileManager) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        content = io.BytesIO()
        more = True
        while more:
            message = await receive()
            content.write(message.get("body", b""))
            more = message.get("more_body", False)
        session, file = scope["path"].split("/")[-2:]
        if b"no" not in content.getvalue():
            store.add_file(session, UploadedFileRec(file, "a.txt", "text/plain", content.getvalue()))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def held(store: MemoryUploadedFileManager) -> dict[str, list[str]]:
    return {session: list(files) for session, files in store.file_storage.items() if files}


def test_the_newest_file_of_each_visitor_stays_and_the_oldest_of_all_leave(
    store: MemoryUploadedFileManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MEGABYTES", 3)
    client = TestClient(Intake(taking(store)))

    def put(session: str, file: str, content: bytes) -> int:
        return client.put(f"/_stcore/upload_file/{session}/{file}", content=content).status_code

    megabyte = b"a" * 2**20
    for session in "abc":
        assert put(session, "one", megabyte) == 204
    assert held(store) == {"a": ["one"], "b": ["one"], "c": ["one"]}
    assert put("b", "two", b"b") == 204
    assert held(store) == {"a": ["one"], "b": ["two"], "c": ["one"]}
    put("b", "three", b"no")
    assert held(store)["b"] == ["two"], "a file that is refused costs nobody theirs"
    put("d", "one", 2 * megabyte)
    assert held(store) == {"b": ["two"], "d": ["one"]}
    put("e", "one", 9 * megabyte)
    assert held(store) == {"e": ["one"]}, "the newest stays, whatever its size"
    store.remove_session_files("e")
    put("f", "one", megabyte)
    assert held(store) == {"f": ["one"]}


def test_a_file_that_does_not_arrive_is_given_up(
    store: MemoryUploadedFileManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SECONDS", 0.2)

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    answer = TestClient(Intake(never)).put("/_stcore/upload_file/a/one", content=b"a")
    assert answer.status_code == 408 and "took too long" in answer.text


def test_a_file_that_comes_drop_by_drop_is_given_up_and_a_steady_one_is_not(
    store: MemoryUploadedFileManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "GRACE", 0.2)

    async def upload(part: bytes, parts: int) -> int:
        left, sent = parts, []

        async def receive() -> Any:
            nonlocal left
            await asyncio.sleep(0.05)
            left -= 1
            return {"type": "http.request", "body": part, "more_body": left > 0}

        async def send(message: Any) -> None:
            sent.append(message.get("status"))

        scope = {"type": "http", "method": "PUT", "path": "/_stcore/upload_file/a/one", "headers": []}
        await Intake(taking(store))(scope, receive, send)
        return int(sent[0])

    assert asyncio.run(upload(b"a", 20)) == 408
    assert asyncio.run(upload(b"a" * intake.LEAST, 10)) == 204


def test_one_file_of_a_visitor_is_on_its_way_at_a_time(store: MemoryUploadedFileManager) -> None:
    going, sent = asyncio.Event(), []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await going.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def put(guard: Intake, session: str) -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append((session, message["status"]))

        scope = {"type": "http", "method": "PUT", "path": f"/_stcore/upload_file/{session}/x", "headers": []}
        await guard(scope, receive, send)

    async def together() -> None:
        guard = Intake(slow)
        first = [asyncio.create_task(put(guard, session)) for session in ("a", "b")]
        await asyncio.sleep(0.05)
        await put(guard, "a")
        assert sent == [("a", 429)]
        going.set()
        await asyncio.gather(*first)
        await put(guard, "a")

    asyncio.run(together())
    assert sent == [("a", 429), ("a", 204), ("b", 204), ("a", 204)]


def test_one_address_leaves_places_to_others(store: MemoryUploadedFileManager) -> None:
    going, sent = asyncio.Event(), []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await going.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def put(guard: Intake, session: str, address: str) -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append((address, message["status"]))

        path = f"/_stcore/upload_file/{session}/x"
        await guard(
            {"type": "http", "method": "PUT", "path": path, "headers": [], "client": (address, 1)}, receive, send
        )

    async def together() -> None:
        guard = Intake(slow)
        most = intake.OF_ONE + intake.MOST_WAITING // 8
        many = [asyncio.create_task(put(guard, f"made up {n}", "10.0.0.1")) for n in range(most + 5)]
        await asyncio.sleep(0.05)
        assert sent == [("10.0.0.1", 429)] * 5
        await put(guard, "made up 20", "10.0.0.1")  # waits already
        assert sent == [("10.0.0.1", 429)] * 6
        other = asyncio.create_task(put(guard, "another", "10.0.0.2"))
        await asyncio.sleep(0.05)
        assert len(guard.coming) == intake.OF_ONE + 1
        going.set()
        await asyncio.gather(other, *many)
        assert not guard.coming and not guard.waiting

    asyncio.run(together())
    assert ("10.0.0.2", 204) in sent and ("10.0.0.2", 429) not in sent
    assert sent.count(("10.0.0.1", 204)) == intake.OF_ONE + intake.MOST_WAITING // 8, "a class waits for its turn"


def test_a_file_that_waits_too_long_for_a_place_is_refused(
    store: MemoryUploadedFileManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "LONGEST_WAIT", 0.1)
    guard = Intake(taking(store))
    guard.coming = {f"other {n}": "testclient" for n in range(intake.OF_ONE)}
    answer = TestClient(guard).put("/_stcore/upload_file/a/one", content=b"a")
    assert answer.status_code == 429 and "wait for them" in answer.text
    assert not guard.waiting
