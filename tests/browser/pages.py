"""Driving the dashboard: open, wait until it has settled, read what its charts hold, collect what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import TimeoutError as PlaywrightTimeout

PATIENCE = 60_000
"""Milliseconds until a step of the dashboard counts as stuck; generous, for a busy machine."""

MISTAKE = "mistake in Headscope"
"""What the dashboard says, in place of a traceback, when it failed itself."""

SETTLED = "[data-testid=stApp][data-test-script-state=notRunning][data-test-connection-state=CONNECTED]"


class Watch:
    """Everything that must not happen on a page: console errors, uncaught exceptions, requests to other hosts."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("request", lambda request: self._on_request(request.url))

    def _on_console(self, message: ConsoleMessage) -> None:
        streamlits_own = "/_stcore/" in message.location.get("url", "") and "404" in message.text
        if message.type == "error" and not streamlits_own:
            self.problems.append(f"console: {message.text} ({message.location.get('url')})")

    def _on_request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname not in {"localhost", "127.0.0.1"}:
            self.problems.append(f"asks another host: {url}")


@contextmanager
def visitor(
    browser: Browser,
    url: str,
    *,
    width: int = 1440,
    height: int = 1400,
    scheme: Literal["light", "dark"] = "light",
    scale: float = 1,
) -> Iterator[Page]:
    """A page of a person of their own (own cookies, own session). Fails at the end if anything went wrong on it."""
    context = browser.new_context(
        base_url=url, viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=scale
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    watch = Watch(page)
    try:
        yield page
        assert broken(page) == ""
        assert watch.problems == []
    except BaseException as error:
        error.add_note(f"What stood on the page: {_text(page)}")
        raise
    finally:
        context.close()


def _text(page: Page) -> str:
    try:
        return page.locator("body").inner_text(timeout=5000)[-3000:]
    except PlaywrightError as error:
        return f"not known ({error})"


def broken(page: Page) -> str:
    """What a page shows in place of what failed on it: Streamlit's traceback, or the dashboard's own sentence."""
    boxes = page.locator(f"[data-testid=stException], [data-testid=stAlert]:has-text('{MISTAKE}')")
    return " ".join(boxes.all_inner_texts())


def settle(page: Page) -> None:
    """Wait until the script has run to its end. Wait for the awaited content first: this alone lags a key press."""
    try:
        page.locator(SETTLED).wait_for(state="attached")
    except PlaywrightTimeout as late:
        states = page.locator("[data-testid=stApp]").evaluate("app => JSON.stringify(app.dataset)")
        raise AssertionError(f"the page did not come to rest; it says of itself {states}") from late
    expect(page.locator("[data-testid=stSkeleton]")).to_have_count(0, timeout=PATIENCE)
    assert broken(page) == ""


def visit(page: Page, path: str) -> None:
    """Open an address of the dashboard and wait until it stands."""
    page.goto(path)
    page.get_by_role("heading", level=1).wait_for()
    settle(page)


def until(page: Page, condition: str, value: object = None) -> None:
    """Wait for a condition in the page's own language, but no longer than until the page shows a failure."""
    failed = f"document.querySelector('[data-testid=stException]') || document.body.innerText.includes('{MISTAKE}')"
    page.wait_for_function(f"value => ({condition}) || {failed}", arg=value)
    settle(page)


def grab(page: Page, slider: Locator) -> tuple[float, float, float]:
    """Press the mouse on a live slider's handle; returns where that is, and the pixels from one value to the next."""
    box = slider.bounding_box()
    assert box is not None
    at, steps = int(slider.input_value()), int(slider.get_attribute("max") or 0)
    apart = (box["width"] - 16) / steps
    x, y = box["x"] + 8 + apart * at, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    return x, y, apart


def frames_drawn(page: Page) -> int:
    """How often the live sliders have drawn their figures."""
    return int(page.locator(".knobs").get_attribute("data-frames") or 0)


def charts_drawn(page: Page, at_least: int = 1) -> None:
    """Wait until that many charts stand on the page."""
    drawn = "[...document.querySelectorAll('.js-plotly-plot')].filter(chart => chart._fullData?.length)"
    until(page, f"{drawn}.length >= value", at_least)


def charts(page: Page) -> list[Any]:
    """What every Plotly chart on the page holds: `{"meta": …, "data": [{"type", "name", "x", "y"}, …]}`."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.js-plotly-plot')].map(chart => ({
            meta: chart._fullLayout?.meta ?? null,
            data: (chart._fullData ?? []).map(trace => ({
                type: trace.type, name: trace.name ?? null,
                x: Array.from(trace.x ?? []).slice(0, 2000), y: Array.from(trace.y ?? []).slice(0, 2000),
            })),
        }))"""
    )


def text_of(page: Page) -> str:
    """The visible text of the page, blanks made single."""
    return re.sub(r"\s+", " ", page.locator("[data-testid=stMain]").inner_text())


def plain(text: str) -> str:
    """A text with ordinary blanks."""
    return text.replace("\u00a0", " ")


def sentence(page: Page) -> str:
    """The page's one sentence."""
    return plain(page.locator(".hs-sentence").first.inner_text())


def goto(page: Page, title: str) -> None:
    """Change to another page by its link, without loading the dashboard anew."""
    page.get_by_role("link", name=title, exact=True).click()
    page.wait_for_url(re.compile(rf"/{title.lower()}\b" if title != "Model" else r"//[^/]+/(\?|$)"))
    page.get_by_role("heading", level=1).wait_for()
    settle(page)
