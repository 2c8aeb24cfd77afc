"""What a stranger may send: sifted before Streamlit takes it apart, and bounded in size, in time and in lines of the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
import time
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from google.protobuf.message import DecodeError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.proto.BackMsg_pb2 import BackMsg

FRAME = 8 * 2**20
"""Bytes of the largest message that is taken from a browser, which sends kilobytes: an uploaded file goes another way."""
FILES = 10
"""File names in one request for addresses to upload to; a page asks for one file at a time."""
WIDGETS = 1000
"""In one message, of the tens that a page has."""
HASHES = 10_000
"""Messages that a browser says it still has, of the some hundreds that it keeps."""
PACE, OF_ADDRESS = 30.0, 60.0
"""Messages a second that a connection, and all of an address, are heard with for long; the rest waits where it came from. A
page sends one when a slider is let go or a key is pressed, and some a second while it waits."""
AT_ONCE = 2.0
"""Seconds whose messages may come at once."""
SILENT = 20.0
"""Seconds after which a connection that asked for nothing is closed."""
OPEN = 65_536
"""Files and sockets open at a time, where the system sets no limit."""
AGAIN = 60.0
"""Seconds after which the log says again what a stranger can make it say."""
BROWSERS = {"rerun_script", "stop_script", "app_heartbeat", "file_urls_request", "backend_operation_request"}
"""Kinds of messages that the page of a visitor needs."""
OPERATIONS = {"deferred_file", "dataframe_chunk"}
SERVER = secrets.token_hex(8)
"""Tells this server from one that was started in its place: a page that the other one drew has buttons nobody knows."""
logger = logging.getLogger("headscope")


class Seldom(logging.Filter):
    """Lets a record that begins so through once in `AGAIN` seconds, and all others."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning
        self.last = -AGAIN

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(self.beginning):
            return True
        if record.created - self.last < AGAIN:
            return False
        self.last = record.created
        return True


class Pace:
    """Lets steps through at so many a second; those not taken are saved up, for `AT_ONCE` seconds."""

    def __init__(self, steps: float) -> None:
        self.steps, self.left, self.at = steps, AT_ONCE * steps, time.monotonic()

    async def step(self) -> None:
        now = time.monotonic()
        self.left = min(AT_ONCE * self.steps, self.left + self.steps * (now - self.at)) - 1
        self.at = now
        if self.left < 0:
            await asyncio.sleep(-self.left / self.steps)


class Guard:
    """ASGI middleware around Streamlit's socket: only what a browser sends gets through.

    Of the kinds of messages Streamlit knows some are for who develops an app: one tells the names of the host's files,
    another empties everybody's cache. On a `shared` server they are dropped, and the counts of its caches are not told; the
    dashboard of one's own computer hears its own pages alone. A frame that is no message ends the socket. A connection that
    sends without end is heard at a `Pace`, and so are all of an address, so that others have their turn.
    """

    def __init__(self, app: ASGIApp, *, shared: bool) -> None:
        self.app = app
        self.shared = shared
        self.told = -AGAIN
        self.paces: WeakValueDictionary[str, Pace] = WeakValueDictionary()  # of the addresses that are connected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            hidden = self.shared and str(scope.get("path")).rstrip("/").endswith("/_stcore/metrics")
            await (PlainTextResponse("Not found", 404) if hidden else self.app)(scope, receive, _marked(send))
        elif not self.shared and not is_same_origin(Headers(raw=scope["headers"])):
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
        else:
            await self._listen(scope, receive, send)

    async def _listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = False
        address = (scope.get("client") or ("",))[0]
        together = self.paces.setdefault(address, Pace(OF_ADDRESS))
        alone = Pace(PACE)

        async def sifted() -> Message:
            nonlocal ended
            while True:
                message = await receive()
                if message["type"] != "websocket.receive":
                    return message
                await alone.step()
                await together.step()
                kind = kind_of(message.get("bytes"))
                if kind and (kind in BROWSERS or not self.shared):
                    return message
                self._tell(kind)
                if kind is None:
                    ended = True
                    return {"type": "websocket.disconnect", "code": 1008}

        await self.app(scope, sifted, send)
        if ended:
            with contextlib.suppress(Exception):  # gone already
                await send({"type": "websocket.close", "code": 1008})

    def _tell(self, kind: str | None) -> None:
        if time.monotonic() - self.told > AGAIN:
            self.told = time.monotonic()
            logger.warning("A socket was sent what no browser sends (%s).", kind or "no message")


def _marked(send: Send) -> Send:
    """Sends answers that say which server they are of, and that no page from elsewhere may show within itself, where presses
    could be led astray."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers["X-Headscope-Server"] = SERVER
            headers["X-Frame-Options"] = "SAMEORIGIN"
            headers["Content-Security-Policy"] = "frame-ancestors 'self'"
        await send(message)

    return sent


def is_same_origin(headers: Headers) -> bool:
    """Whether a socket is asked for by a page of this very server; Streamlit would take those of other ports here too."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def kind_of(frame: bytes | None) -> str | None:
    """What a browser asks for; None where no browser would."""
    message = BackMsg()
    try:
        message.ParseFromString(frame or b"")
    except DecodeError:
        return None
    kind = message.WhichOneof("type")
    if kind == "rerun_script":
        run = message.rerun_script
        fits = len(run.cached_message_hashes) <= HASHES and len(run.widget_states.widgets) <= WIDGETS
    elif kind == "file_urls_request":
        fits = len(message.file_urls_request.file_names) <= FILES
    elif kind == "backend_operation_request":
        fits = message.backend_operation_request.WhichOneof("payload") in OPERATIONS
    else:
        fits = True
    return kind if fits else None


def bound_connections() -> None:
    """Have Streamlit start a server that takes small messages, and closes connections that ask for nothing.

    Streamlit lets a message to it be as large as one from it, 200 MB, all of which is held while the rest is to come.
    """
    from streamlit.web.server.starlette import starlette_server
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    settings = getattr(starlette_server, "_get_uvicorn_config_kwargs", None)
    if settings is None or hasattr(settings, "bounded"):
        return

    class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(SILENT, self._give_up)

        def _give_up(self) -> None:
            if self.scope is None and not self.transport.is_closing():
                self.transport.close()

    def bounded() -> dict[str, Any]:
        return settings() | {"ws_max_size": FRAME, "http": Impatient}

    bounded.bounded = True  # type: ignore[attr-defined]
    starlette_server._get_uvicorn_config_kwargs = bounded


def open_many_files() -> None:
    """As many connections as the system allows: by habit it allows 1,024, which one stranger can hold."""
    if sys.platform == "win32":
        return
    import resource

    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN if most == resource.RLIM_INFINITY else most
    if least != resource.RLIM_INFINITY and least < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
