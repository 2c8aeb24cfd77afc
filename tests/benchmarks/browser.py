"""What a visitor waits for, as ratios of two times in one run: `python -m tests.benchmarks.browser [--cache FOLDER]`.

Needs the model `smollm2` and a browser, and takes some minutes; leave the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chromium import ARGUMENTS, find_chromium
from tests.browser.pages import charts_drawn, frames_drawn, grab, settle, visit, visitor
from tests.browser.server import kept_between_runs, running_app
from tests.browser.test_first_screen import bare_page

STEPS = 32
DRAG_SECONDS, SWING = 3.0, 20
STEP_LIMIT, SECOND_LIMIT, REDRAWS = 1.5, 0.15, 30.0
PATIENCE = 1_200_000
BARE_PAGE = """
import plotly.graph_objects as go
import streamlit as st
st.set_page_config(layout="wide")
n = st.slider("n", 1, 100, 40)
st.plotly_chart(go.Figure(go.Scatter(x=list(range(200)), y=[n * x for x in range(200)])), key="bare")
"""
OURS = """[JSON.stringify(document.querySelector('.st-key-result .js-plotly-plot')?._fullData?.map(t => Array.from(t.x ?? []))),
  document.querySelector('.hs-sentence')?.innerText, document.querySelector('.knob-told')?.innerText]"""
"""What the chart below the slider holds, the page's sentence, and the line that goes with the slider."""
BARE = "[document.querySelector('.js-plotly-plot')?._fullData?.[0]?.y[1]]"


def open_bare(page: Page) -> None:
    page.goto("/")
    page.get_by_role("slider").focus()
    page.wait_for_function("document.querySelector('.js-plotly-plot')?._fullData?.length")
    settle(page)


def open_ours(page: Page) -> None:
    visit(page, "/steering?model=smollm2&corpus=python-docs&edit=4626:2")
    slider = page.get_by_role("slider").first
    slider.wait_for(timeout=PATIENCE)
    charts_drawn(page, 2)
    page.locator(".knob-pair").first.wait_for(timeout=PATIENCE)  # until then the model is being loaded
    settle(page)
    slider.focus()


def step(page: Page, key: str, shown: str) -> float:
    """Seconds from a key until every part of what a page shows is another."""
    before = page.evaluate(shown)
    page.bring_to_front()
    started = time.perf_counter()
    page.keyboard.press(key)
    page.wait_for_function(f"before => {shown}.every((now, at) => now !== before[at])", arg=before, polling="raf")
    seconds = time.perf_counter() - started
    settle(page)
    return seconds


def steps(ours: Page, bare: Page) -> tuple[float, float]:
    """Seconds of a slider step on the page Steering and on a bare one: medians, the two in turn."""
    open_bare(bare)
    open_ours(ours)
    found = []
    for round in range(STEPS):
        key = "ArrowRight" if round % 20 < 10 else "ArrowLeft"
        found.append((step(ours, key, OURS), step(bare, key, BARE)))
    of_ours, of_bare = zip(*found[2:], strict=True)
    return statistics.median(of_ours), statistics.median(of_bare)


def redraws(page: Page) -> float:
    """Redraws of the next-token chart a second while the slider is dragged."""
    x, y, apart = grab(page, page.get_by_role("slider").first)
    first, started, away = frames_drawn(page), time.perf_counter(), 0
    while time.perf_counter() - started < DRAG_SECONDS:
        away = SWING - away
        page.mouse.move(x - apart * away, y, steps=SWING)  # to another value with every step
    seconds = time.perf_counter() - started
    frames = frames_drawn(page) - first
    page.mouse.up()
    return frames / seconds


def loads(browser: Browser, models: Path, folder: Path) -> tuple[float, float]:
    """Seconds until the page Encoding of `smollm2` is filled: the first time, and after a restart with what was kept."""
    shutil.copytree(models, folder / "cache" / "models")
    found = []
    for _ in range(2):
        with running_app(folder / "cache", folder / "log") as server, visitor(browser, server.url) as page:
            started = time.perf_counter()
            page.goto("/encoding?model=smollm2")
            page.locator(".js-plotly-plot").first.wait_for(timeout=PATIENCE)
            charts_drawn(page)
            found.append(time.perf_counter() - started)
    return found[0], found[1]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument(
        "--cache", type=Path, default=None, help="A cache that holds the model, and results if need be."
    )
    cache = options.parse_args().cache or kept_between_runs()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as name:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        folder = Path(name)
        with (
            running_app(cache, folder / "log") as server,
            visitor(browser, server.url) as page,
            bare_page(folder, BARE_PAGE) as url,
            visitor(browser, url) as other,
        ):
            ours, bare = steps(page, other)
            print(
                f"slider step / bare page: {ours / bare:.2f} (limit {STEP_LIMIT}; {ours:.3f} s / {bare:.3f} s)",
                flush=True,
            )
            page.bring_to_front()
            print(f"redraws while dragging: {redraws(page):.0f} a second (at least {REDRAWS:.0f})", flush=True)
        first, second = loads(browser, cache / "models", folder)
        print(f"second load / first: {second / first:.3f} (limit {SECOND_LIMIT}; {second:.1f} s / {first:.1f} s)")


if __name__ == "__main__":
    main()
