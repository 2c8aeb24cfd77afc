"""Takes a picture of every page, light and dark, wide and narrow: `python -m tests.browser.screenshots OUT [POSITIONS]`.

Not a test: for looking at. The model and the results come from the tests' own cache; without results for so many
positions (16384 if not said) the first picture waits for the analysis.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product
from pathlib import Path
from typing import Literal

import platformdirs
from playwright.sync_api import sync_playwright

from tests.browser import chromium
from tests.browser.pages import charts_drawn, settle, visit, visitor
from tests.browser.server import running_app

ANALYSIS = "model=smollm2&edit=4626:20&positions="
SHOTS = {
    "welcome": "?positions=",
    "encoding": f"encoding?view=Fit&{ANALYSIS}",
    "encoding-weights": f"encoding?view=Weights&{ANALYSIS}",
    "encoding-sparsity": f"encoding?view=Sparsity&{ANALYSIS}",
    "encoding-why": f"encoding?view=Why&{ANALYSIS}",
    "encoding-map": f"encoding?view=Map&{ANALYSIS}",
    "encoding-tokens": f"encoding?view=Tokens&{ANALYSIS}",
    "model": f"?{ANALYSIS}",
    "steering": f"steering?{ANALYSIS}",
    "samples": f"samples?{ANALYSIS}",
    "method": f"method?{ANALYSIS}",
}
WITHOUT_CHART = {"welcome", "encoding-tokens", "samples", "method"}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
ANALYSED = 1_200_000
"""Milliseconds that a first analysis may take."""
SIZES = ((1440, 1300), (390, 1900))


def main(out: Path, positions: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    cache = Path(os.environ.get("HEADSCOPE_TEST_CACHE") or platformdirs.user_cache_dir("headscope-tests"))
    found = chromium.find_chromium()
    if found is None:
        sys.exit(chromium.MISSING)
    with running_app(cache, out / "server.log") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(chromium.ARGUMENTS))
        for scheme, (width, height), (name, path) in product(SCHEMES, SIZES, SHOTS.items()):
            with visitor(browser, server.url, width=width, height=height, scheme=scheme) as page:
                visit(page, f"/{path}{positions}")
                if name not in WITHOUT_CHART:
                    page.locator(".js-plotly-plot").first.wait_for(timeout=ANALYSED)
                    charts_drawn(page)
                elif name == "samples":
                    page.get_by_role("button", name="Write").click(timeout=ANALYSED)
                    page.locator(".hs-pair").first.wait_for(timeout=ANALYSED)
                page.wait_for_timeout(400)
                settle(page)
                file = out / f"{name}-{scheme}-{width}.png"
                page.screenshot(path=file)
                print(file)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("positions", type=int, nargs="?", default=16384, help="positions that the analysis fits")
    arguments = parser.parse_args()
    main(arguments.out, arguments.positions)
