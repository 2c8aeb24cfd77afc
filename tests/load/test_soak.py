"""A mixed load for twelve minutes: whatever visitors do, memory and open files stay where they were after the warm-up.

Run with `python -m pytest -m load -s tests/load/test_soak.py`; `HEADSCOPE_SOAK_SECONDS` makes it longer or shorter.
Visitors come, look at pages, move sliders, ask for texts and for encodings of other positions and seeds, bring texts of
their own, open addresses that make no sense, and leave, also in the middle of something. The server is judged in two lulls,
one after the warm-up and one at the end, when everybody has left and their sessions with them: how many of these it holds
before then depends on how fast it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetState

from tests.browser.server import Server, running_app
from tests.load.visitor import Visitor, moved

pytestmark = pytest.mark.load

SECONDS = float(os.environ.get("HEADSCOPE_SOAK_SECONDS", "720"))
WARM_UP = 0.6
"""The part of it after which everything that is kept in bounded number is there."""
KEPT_FOR = 15
"""Seconds for which the server keeps a session that has gone; Streamlit's two minutes would need a longer warm-up."""
VISITORS = 6
STAY = (3, 9)
"""Things that a visitor does before leaving."""
PATIENCE = 240.0
MOST_GROWTH = 0.08
"""What is kept in bounded number fills up for some minutes more. What each of the thousands of visits left would be more."""
MOST_MORE_FILES = 15
"""Open files more than in the first lull, where the one visitor's session has four. Sessions whose files stayed open would
be thousands more."""
LULL = 20
"""Seconds that a lull is looked at, after the last session has gone."""

PAGES = ("learn", "model", "encoding", "steering", "samples", "pruning", "dynamics", "compare", "method")
SEEDS, POSITIONS = range(8), (1024, 4096)
RATIOS = (0.5, 2.0, 5.0, 20.0)
TOKENS = (300, 700, 1500)
BAD_VALUES = (
    "seed=-1&positions=7&model=%2Fetc&corpus=%2Fetc%2Fpasswd",
    "edit=999999999:2,3:1e999,x:y&direction=nowhere&calibrate=%00",
    "rows=%FF%00|..|1024&data=..%2F..&series=%2Froot",
    "prompt=" + "%3Cscript%3E" * 200,
    "corpus=upload%3A0123456789abcdef%2F..%2F..%2Fx&removed=nan&temperature=inf",
    "samples=99999999999999999999&new-tokens=-5&step=1e9&lesson=0",
)
BAD_PATHS = (
    "/..%2f..%2fetc/passwd",
    "/media/nothing.png",
    "/nowhere/at/all",
    "/_stcore/upload_file/no-session/no-file",
    "/component/headscope/..%2f..%2fsecrets.toml",
    "/?" + "x" * 8000,
)


@dataclass
class Measured:
    """What was done how often, what went wrong, and (bytes, open files, threads) each second: all the time, in each lull."""

    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    lulls: list[list[tuple[int, int, int]]] = field(default_factory=list)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("STREAMLIT_SERVER_DISCONNECTED_SESSION_TTL", str(KEPT_FOR))
    with running_app(tmp_path / "cache", tmp_path / "log", "--public", "--model", "demo", "--host", "localhost") as app:
        yield app
    assert app.tracebacks() == ""


class Guest:
    """Somebody who does one thing after the other, and then somebody else."""

    def __init__(self, number: int, url: str, measured: Measured) -> None:
        self.url, self.measured, self.random = url, measured, random.Random(number)
        self.visitor: Visitor

    async def come_and_go(self, end: float) -> None:
        while time.monotonic() < end:
            doing = "coming"
            try:
                async with Visitor(self.url) as self.visitor:
                    for _ in range(self.random.randint(*STAY)):
                        things = (
                            self.look,
                            self.steer,
                            self.write,
                            self.encode,
                            self.bring,
                            self.bad_url,
                            self.bad_path,
                        )
                        thing = self.random.choices(things, (5, 4, 2, 2, 1, 2, 1))[0]
                        doing = thing.__name__
                        await thing()
                        self.measured.done[doing] += 1
                        if time.monotonic() > end:
                            break
                self.measured.problems += self.visitor.problems
            except Exception as error:
                said = self.visitor.text()[-600:] if hasattr(self, "visitor") else ""
                self.measured.problems.append(f"{doing}: {error!r}; the page says: {said}")

    async def settled(self) -> None:
        """Until nothing runs and no progress is shown, or not so long: then the page is left as it works."""
        with contextlib.suppress(TimeoutError):
            await self.visitor.until(
                lambda: not self.visitor.running and not any(self.visitor.elements("progress")),
                self.random.choice((0.1, 5, 20, 20)),
            )

    async def look(self) -> None:
        await self.visitor.open(self.random.choice(PAGES))
        await self.settled()

    async def steer(self) -> None:
        token = self.random.choice(TOKENS)
        await self.visitor.open("steering", f"edit={token}:2")
        await self.visitor.until(
            lambda: not self.visitor.running and any(self.visitor.components("headscope_knobs")), PATIENCE
        )
        for ratio in self.random.sample(RATIOS, 3):
            knobs = next(self.visitor.components("headscope_knobs"))
            event = moved(knobs.element.bidi_component.id, "moved", {"id": token, "ratio": ratio})
            await self.visitor.press(event, knobs.fragment)
            await self.visitor.until(lambda: not self.visitor.running, PATIENCE)
            await asyncio.sleep(0.3)

    async def write(self, seed: int | None = None) -> None:
        await self.visitor.open("samples", f"edit={self.random.choice(TOKENS)}:5&samples=2&new-tokens=12")
        await self._until_there("number_input", "noise-seed")
        place = self.visitor.widget("number_input", "noise-seed")
        button = self.visitor.button("Write")
        if button is not None:
            await self.visitor.press(
                [
                    WidgetState(id=place, double_value=self.random.randint(0, 20) if seed is None else seed),
                    WidgetState(id=button.element.button.id, trigger_value=True),
                ]
            )
            await self.settled()

    async def encode(self) -> None:
        query = f"model=demo&corpus=sampler&positions={self.random.choice(POSITIONS)}&seed={self.random.choice(SEEDS)}"
        async with Visitor(self.url) as own:  # a session reads the address only when it begins
            before, self.visitor = self.visitor, own
            await own.open(self.random.choice(("encoding", "pruning", "model")), query)
            await self.settled()
            before.problems += own.problems
            self.visitor = before

    async def bring(self) -> None:
        await self.visitor.open("encoding")
        await self._until_there("text_area", "pasted")
        use = next(s for s in self.visitor.elements("button") if s.element.button.label == "Use this text")
        number = self.random.randint(0, 30)
        text = "\n\n".join(f"Text {number}, part {part}: the river ran past old mills. " * 30 for part in range(12))
        await self.visitor.press(
            [
                WidgetState(id=self.visitor.widget("text_area", "pasted"), string_value=text),
                WidgetState(id=use.element.button.id, trigger_value=True),
            ]
        )
        await self.settled()

    async def _until_there(self, kind: str, key: str) -> None:
        def there() -> bool:
            found = self.visitor.elements(kind)
            return not self.visitor.running and any(getattr(s.element, kind).id.endswith(f"-{key}") for s in found)

        await self.visitor.until(there, PATIENCE)

    async def bad_url(self) -> None:
        async with Visitor(self.url) as own:
            await own.open(self.random.choice(PAGES), self.random.choice(BAD_VALUES))
            self.measured.problems += own.problems

    async def bad_path(self) -> None:
        status = await asyncio.to_thread(self._ask, self.url + self.random.choice(BAD_PATHS))
        if status >= 500:
            self.measured.problems.append(f"the server answered {status} to an address that makes no sense")

    def _ask(self, address: str) -> int:
        method = self.random.choice(("GET", "PUT", "DELETE", "POST"))
        data = b"x" * 1000 if method in ("PUT", "POST") else None
        try:
            with urllib.request.urlopen(urllib.request.Request(address, data, method=method), timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return refusal.code


async def watch(server: Server, sizes: list[tuple[int, int, int]]) -> None:
    process = psutil.Process(server.pid)
    while True:
        sizes.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        await asyncio.sleep(1)


async def lull(server: Server, number: int) -> list[tuple[int, int, int]]:
    """What the server holds when nobody has been there for a while but one visitor, who has had some new texts written: after
    work the server gives back what it does not hold, which would hide as much as it grows by."""
    sizes: list[tuple[int, int, int]] = []
    guest = Guest(number, server.url, Measured())
    async with Visitor(server.url) as guest.visitor:
        end = time.monotonic() + KEPT_FOR + 5  # Streamlit lets sessions go when another one comes
        while time.monotonic() < end:
            await guest.visitor.open("method")
            async with Visitor(server.url):
                await asyncio.sleep(2)
        await guest.write(seed=1000 + number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch(server, sizes), LULL)
    return sizes


async def soak(server: Server) -> Measured:
    measured = Measured()
    watching = asyncio.create_task(watch(server, measured.sizes))
    for part, share in enumerate((WARM_UP, 1 - WARM_UP)):
        end = time.monotonic() + share * SECONDS
        numbers = range(part * VISITORS, (part + 1) * VISITORS)
        await asyncio.gather(*(Guest(number, server.url, measured).come_and_go(end) for number in numbers))
        measured.lulls.append(await lull(server, part))
    watching.cancel()
    return measured


def test_a_mixed_load_leaves_nothing_behind(shared: Server) -> None:
    measured = asyncio.run(soak(shared))
    (rss, files, threads), (last_rss, last_files, last_threads) = (np.median(each, axis=0) for each in measured.lulls)
    all_rss, all_files, _ = np.array(measured.sizes).T
    growth, more = last_rss / rss - 1, last_files - files
    print(
        f"\n{VISITORS} visitors at a time, {SECONDS:.0f} s: "
        f"{', '.join(f'{name} {count}' for name, count in measured.done.most_common())}; from the lull after the "
        f"warm-up to the one at the end: memory {rss / 1e6:.0f} to {last_rss / 1e6:.0f} MB ({100 * growth:+.1f} %), open files "
        f"{files:.0f} to {last_files:.0f} (at most {max(all_files)} at a time), threads {threads:.0f} to "
        f"{last_threads:.0f}; {len(measured.problems)} errors. Memory by the minute, MB: "
        f"{', '.join(f'{size / 1e6:.0f}' for size in all_rss[::60])}."
    )
    assert measured.problems == []
    assert len(measured.done) == 7 and sum(measured.done.values()) > SECONDS / 2
    assert growth < MOST_GROWTH
    assert more <= MOST_MORE_FILES
