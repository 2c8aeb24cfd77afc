"""What Streamlit holds of uploads, in memory: bounded in number, in space and in time, for all visitors together.

A page asks for one file at a time and writes it under the cache at once (`app.uploads`). Streamlit keeps what arrived for
as long as the session lives, and takes any number of files that a message made by hand sends.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADDRESS = re.compile(r".*/_stcore/upload_file/([^/]+)/([^/]+)/?")
AT_ONCE = 32
"""Files on their way at a time, of all visitors; of each visitor one."""
OF_ONE = AT_ONCE // 4
"""Of one address: of a computer, or of a network behind one."""
MOST_WAITING = 256
"""Files that wait for a place meanwhile, of all visitors; nothing of them is read. Of one address an eighth: a class."""
LONGEST_WAIT = 30.0
"""Seconds, after which a file is refused."""
SECONDS = 120.0
"""For a file to arrive."""
GRACE = 5.0
"""Seconds after which it must have come at `LEAST` bytes a second, so that nobody holds a place by waiting."""
LEAST = 16_000
MEGABYTES = 200
"""Of all files that arrived; the oldest leave. A class of thirty fits with a file each."""


class Intake:
    """ASGI middleware around Streamlit's upload: one file of each visitor, `MEGABYTES` of all."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.coming: dict[str, str] = {}  # the address of each session
        self.waiting: dict[str, str] = {}  # likewise
        self.left = asyncio.Condition()
        self.order: list[tuple[str, str]] = []  # (session, file) of what is held, the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = ADDRESS.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "PUT" else None
        if found is None:
            await self.app(scope, receive, send)
            return
        session, file = found.groups()
        address = (scope.get("client") or ("",))[0]
        if not await self._has_place(session, address):
            said = PlainTextResponse("Other uploads are on their way: wait for them, then try again.", 429)
            await said(scope, receive, send)
            return
        self.coming[session] = address
        try:
            await self._take(session, file, scope, receive, send)
        finally:
            del self.coming[session]
            async with self.left:
                self.left.notify_all()

    async def _has_place(self, session: str, address: str) -> bool:
        """Whether a file may come: of each session one, and where too many are on their way it waits for a while."""

        def free() -> bool:
            return len(self.coming) < AT_ONCE and _count(self.coming, address) < OF_ONE

        if session in self.coming or session in self.waiting:
            return False
        if free():
            return True
        if len(self.waiting) >= MOST_WAITING or _count(self.waiting, address) >= MOST_WAITING // 8:
            return False
        self.waiting[session] = address
        try:
            async with asyncio.timeout(LONGEST_WAIT), self.left:
                return await self.left.wait_for(free)
        except TimeoutError:
            return False
        finally:
            del self.waiting[session]

    async def _take(self, session: str, file: str, scope: Scope, receive: Receive, send: Send) -> None:
        answered, arrived, begun = False, 0, asyncio.get_running_loop().time()

        async def answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        async def part() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            longest = min(SECONDS, GRACE + arrived / LEAST) if message.get("more_body") else SECONDS
            if not limit.expired():
                limit.reschedule(begun + longest)
            return message

        try:
            async with asyncio.timeout(min(SECONDS, GRACE)) as limit:
                await self.app(scope, part, answer)
        except TimeoutError:
            if not answered:
                said = PlainTextResponse("The upload took too long and was given up: try again.", 408)
                await said(scope, receive, send)
            return
        self._make_room(session, file)

    def _make_room(self, session: str, file: str) -> None:
        from streamlit import runtime

        store: Any = runtime.get_instance().uploaded_file_mgr
        newest = (session, file)
        order = [each for each in self.order if each != newest] + [newest]
        records = {each: store.get_files(each[0], [each[1]]) for each in order}
        sizes = {each: len(found[0].data) for each, found in records.items() if found}
        self.order = list(sizes)  # others were refused, or their session has ended
        if newest not in sizes:
            return
        space = sum(sizes.values())
        for old in sorted(self.order[:-1], key=lambda each: each[0] != session):  # of the same visitor, then the oldest
            if old[0] == session or space > MEGABYTES * 2**20:
                store.remove_file(*old)
                self.order.remove(old)
                space -= sizes[old]


def _count(sessions: dict[str, str], address: str) -> int:
    """How many of the sessions are at an address."""
    return sum(each == address for each in sessions.values())
