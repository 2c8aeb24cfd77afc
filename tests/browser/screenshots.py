"""Takes a picture of every page, light and dark, wide and narrow: `python -m tests.browser.screenshots OUT [--model smollm2]`.

Not a test: for looking at. Results come from the tests' own cache; without them the first picture waits for the analysis.
`--readme` takes the pictures of the README instead.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, sync_playwright

from tests.browser import chromium
from tests.browser.pages import charts_drawn, settle, visit, visitor
from tests.browser.server import kept_between_runs, running_app

SHOTS = {
    "model": "?",
    "encoding": "encoding?view=Fit",
    "encoding-weights": "encoding?view=Weights",
    "encoding-sparsity": "encoding?view=Sparsity",
    "encoding-why": "encoding?view=Why",
    "encoding-map": "encoding?view=Map",
    "encoding-tokens": "encoding?view=Tokens",
    "steering": "steering?",
    "steering-costs": "steering?figure=Side+effects",
    "samples": "samples?",
    "pruning": "pruning?",
    "pruning-tenths": "pruning?prune-view=Frequent+and+rare",
    "pruning-export": "pruning?prune-view=Export",
    "dynamics": "dynamics?",
    "compare": "compare?",
    "method": "method?",
    **{f"learn-{step}": f"learn?lesson={step}" for step in range(1, 9)},
    "learn-presented": "learn?lesson=5&present=1",
    "join": "join?",
}
"""Every page, and the views within it. `join` is only there in a class."""
WITH_CHARTS = ("model", "encoding", "steering", "pruning", "dynamics", "compare")
TEXT_ONLY = ("encoding-tokens", "pruning-export")
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
ANALYSED = 1_200_000
"""Milliseconds that a first analysis may take."""
SIZES = ((1440, 1900), (390, 3200))
README = {"encoding": 870, "steering": 1070, "samples": 1250, "pruning": 1000, "dynamics": 1090}
"""Pages whose pictures stand in the README, and the height of each; 1,320 wide."""


def filled(page: Page, name: str) -> None:
    """Wait until a page shows what it is for."""
    if name.startswith(WITH_CHARTS) and name not in TEXT_ONLY:
        page.locator(".js-plotly-plot").first.wait_for(timeout=ANALYSED)
        charts_drawn(page)
        if name.startswith("steering"):
            page.locator(".knob-pair").first.wait_for(timeout=ANALYSED)
    elif name == "samples":
        page.locator(".hs-pair").first.wait_for(timeout=ANALYSED)
        page.locator(".hs-sentence").wait_for(timeout=ANALYSED)  # written to the end
    elif name.startswith("learn"):
        page.locator(".hs-question").wait_for(timeout=ANALYSED)
        page.locator(".js-plotly-plot, .knob-pair").first.wait_for()
    page.mouse.move(5, 5)
    page.evaluate("document.fonts.ready.then(() => true)")
    page.wait_for_timeout(600)  # transitions; for a picture, not for a test
    settle(page)


def take(
    out: Path,
    shots: dict[str, str],
    sizes: dict[str, tuple[tuple[int, int], ...]],
    schemes: tuple[Literal["light", "dark"], ...],
    *arguments: str,
) -> None:
    """Start the dashboard with `arguments`, and take a picture of each page in each scheme and size."""
    out.mkdir(parents=True, exist_ok=True)
    cache = kept_between_runs()
    found = chromium.find_chromium()
    if found is None:
        sys.exit(chromium.MISSING)
    with ExitStack() as stack:
        server = stack.enter_context(running_app(cache, out / "server.log", *arguments))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=found, args=list(chromium.ARGUMENTS))
        stack.callback(browser.close)
        for scheme, (name, path) in product(schemes, shots.items()):
            for width, height in sizes[name]:
                with visitor(browser, server.url, width=width, height=height, scheme=scheme) as page:
                    visit(page, f"/{path}")
                    filled(page, name)
                    file = out / (f"{name}.png" if schemes == ("light",) else f"{name}-{scheme}-{width}.png")
                    page.screenshot(path=file)
                    print(file, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--readme", action="store_true", help="the pictures of the README, on smollm2")
    parser.add_argument("--only", default="", help="only pages whose name begins so")
    asked = parser.parse_args()
    if asked.readme:
        shots = {name: f"{name}?model=smollm2&edit=3398:20" for name in README} | {"dynamics": "dynamics?"}
        take(asked.out, shots, {name: ((1320, height),) for name, height in README.items()}, ("light",))
        return
    shots = {
        name: path.replace("?", f"?model={asked.model}&").rstrip("&")
        for name, path in SHOTS.items()
        if name.startswith(asked.only)
    }
    lesson = {name: path for name, path in shots.items() if name != "join"}
    take(asked.out, lesson, dict.fromkeys(lesson, SIZES), SCHEMES)
    if "join" in shots:
        take(asked.out, {"join": "join"}, {"join": SIZES}, SCHEMES, "--classroom", "--model", asked.model)


if __name__ == "__main__":
    main()
