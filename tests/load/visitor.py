"""A visitor without a browser: speaks Streamlit's own protocol, keeps what is on the page, repeats what repeats itself.

Thirty browsers are more than two cores carry, and what is measured is the server. So this does what the page in a browser
does with messages, and nothing else: it sends what a hand would change and applies what comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState

PATIENCE = 60.0
"""Seconds after which what is waited for counts as lost."""


@dataclass
class Shown:
    """An element on the page, and the run that drew it last."""

    element: Element
    fragment: str
    run: int


@dataclass
class Visitor:
    """One session. `page` holds what a reader would see, by its place."""

    url: str
    page: dict[tuple[int, ...], Shown] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    messages: int = 0
    session: str = ""

    async def __aenter__(self) -> Visitor:
        address = self.url.replace("http", "ws", 1) + "/_stcore/stream"
        self._socket = await websockets.connect(
            address, subprotocols=[websockets.Subprotocol("streamlit")], max_size=None, ping_interval=None
        )
        self._query, self._hash, self._run = "", "", 0
        self._cached: dict[str, ForwardMsg] = {}
        self._repeated: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()
        self.running = False
        self._in_fragments: frozenset[str] = frozenset()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stop_repeating()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        await self._socket.close()

    # --- what a hand does -------------------------------------------------------------------------------------------

    async def open(self, name: str, query: str = "") -> None:
        """Open a page by its name in the address, and wait until it stands."""
        self._query, self._hash = query, self.pages.get(name, "")
        await self._send([], "", "" if self._hash else name)
        await self.until(lambda: not self.running and bool(self.page))

    async def press(self, states: list[WidgetState], fragment: str = "") -> None:
        """Change widgets; `fragment`: the part of the page that they belong to."""
        await self._send(states, fragment)

    async def until(self, true: Callable[[], object], seconds: float = PATIENCE) -> float:
        """Wait for what the page shows; returns how long it took, s."""
        started = time.perf_counter()
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(true)
        return time.perf_counter() - started

    # --- what an eye sees -------------------------------------------------------------------------------------------

    def elements(self, kind: str) -> Iterator[Shown]:
        return (shown for shown in list(self.page.values()) if shown.element.WhichOneof("type") == kind)

    def html(self) -> str:
        return "\n".join(shown.element.html.body for shown in self.elements("html"))

    def text(self) -> str:
        """All that can be read: HTML and Markdown without their marks, progress bars, buttons, the sliders' numbers."""
        parts = [self.html()]
        parts += [shown.element.markdown.body for shown in self.elements("markdown")]
        parts += [shown.element.progress.text for shown in self.elements("progress")]
        parts += [shown.element.alert.body for shown in self.elements("alert")]
        parts += [shown.element.bidi_component.json for shown in self.elements("bidi_component")]
        return re.sub(r"<style>.*?</style>|<[^>]*>", " ", "\n".join(parts), flags=re.DOTALL)

    def components(self, name: str) -> Iterator[Shown]:
        return (s for s in self.elements("bidi_component") if s.element.bidi_component.component_name == name)

    def button(self, label: str) -> Shown | None:
        """The button with this label, if the page has it."""
        return next((s for s in self.elements("button") if s.element.button.label == label), None)

    def widget(self, kind: str, key: str) -> str:
        """The id of the widget with this key."""
        return next(
            getattr(s.element, kind).id for s in self.elements(kind) if getattr(s.element, kind).id.endswith(f"-{key}")
        )

    # --- the protocol -----------------------------------------------------------------------------------------------

    async def _send(self, states: list[WidgetState], fragment: str = "", name: str = "", again: bool = False) -> None:
        message = BackMsg()
        run = message.rerun_script
        run.query_string, run.page_script_hash, run.page_name = self._query, self._hash, name
        run.fragment_id, run.is_auto_rerun = fragment, again
        run.widget_states.widgets.extend(states)
        run.cached_message_hashes.extend(self._cached)
        if not again:
            self.running = True
        await self._socket.send(message.SerializeToString())

    async def _read(self) -> None:
        try:
            async for raw in self._socket:
                message = ForwardMsg()
                message.ParseFromString(raw if isinstance(raw, bytes) else raw.encode())
                self.messages += 1
                async with self._changed:
                    self._take(message)
                    self._changed.notify_all()
        except websockets.ConnectionClosed as closed:
            self.problems.append(f"the connection was closed: {closed}")

    def _take(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "ref_hash":
            whole = ForwardMsg()
            whole.CopyFrom(self._cached[message.ref_hash])
            whole.metadata.CopyFrom(message.metadata)
            message, kind = whole, whole.WhichOneof("type")
        elif message.metadata.cacheable:
            self._cached[message.hash] = message
        if kind == "new_session":
            self.session = message.new_session.initialize.session_id or self.session
            self._run += 1
            self.running = True
            self._in_fragments = frozenset(message.metadata.run.fragment_ids)
            if not self._in_fragments:
                self._stop_repeating()
        elif kind == "navigation":
            self._hash = message.navigation.page_script_hash
            for page in message.navigation.app_pages:
                self.pages[page.url_pathname] = page.page_script_hash
        elif kind == "delta":
            self._draw(message)
        elif kind == "auto_rerun":
            part = message.auto_rerun
            if part.fragment_id in self._repeated:
                self._repeated.pop(part.fragment_id).cancel()
            self._repeated[part.fragment_id] = asyncio.create_task(self._repeat(part.fragment_id, part.interval))
        elif kind == "stop_auto_rerun":
            for part in message.stop_auto_rerun.fragment_ids:
                if part in self._repeated:
                    self._repeated.pop(part).cancel()
        elif kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
            self.running = False
            self._sweep()

    def _draw(self, message: ForwardMsg) -> None:
        place, delta = tuple(message.metadata.delta_path), message.delta
        if delta.WhichOneof("type") == "new_element":
            element = delta.new_element
            if element.WhichOneof("type") == "exception":
                self.problems.append(f"{element.exception.type}: {element.exception.message}")
            if element.WhichOneof("type") == "alert" and "mistake in Headscope" in element.alert.body:
                self.problems.append(element.alert.body)
            self.page[place] = Shown(element, delta.fragment_id, self._run)

    def _sweep(self) -> None:
        """What the run that has just ended did not draw again is gone."""
        for place, shown in list(self.page.items()):
            if shown.run < self._run and (not self._in_fragments or shown.fragment in self._in_fragments):
                del self.page[place]

    async def _repeat(self, fragment: str, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            with contextlib.suppress(websockets.ConnectionClosed):
                await self._send([], fragment, again=True)

    def _stop_repeating(self) -> None:
        for task in self._repeated.values():
            task.cancel()
        self._repeated.clear()


def moved(component: str, event: str, value: object) -> list[WidgetState]:
    """What a component of ours sends when something happens in it: its own state, which is empty, and the event."""
    from streamlit.components.v2.bidi_component.main import _make_trigger_id

    told = json.dumps([{"event": event, "value": value}])
    return [
        WidgetState(id=component, json_value="{}"),
        WidgetState(id=_make_trigger_id(component, "events"), json_trigger_value=told),
    ]
