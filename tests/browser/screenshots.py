"""Takes a picture of every page, light and dark, wide and narrow: `python -m tests.browser.screenshots OUT`.

Not a test: for looking at. The model and the results come from the tests' own cache.
"""

from __future__ import annotations

import os
import sys
from itertools import product
from pathlib import Path
from typing import Literal

import platformdirs
from playwright.sync_api import sync_playwright

from tests.browser import chromium
from tests.browser.pages import PATIENCE, charts_drawn, settle, visit, visitor
from tests.browser.server import running_app

ANALYSIS = "model=smollm2&edit=4626:20"
SHOTS = {
    "welcome": "",
    "model": f"?{ANALYSIS}",
    "encoding": f"encoding?{ANALYSIS}",
    "encoding-weights": f"encoding?{ANALYSIS}&view=Weights",
    "encoding-sparsity": f"encoding?{ANALYSIS}&view=Sparsity",
    "encoding-why": f"encoding?{ANALYSIS}&view=Why",
    "encoding-map": f"encoding?{ANALYSIS}&view=Map",
    "encoding-tokens": f"encoding?{ANALYSIS}&view=Tokens",
    "steering": f"steering?{ANALYSIS}",
    "samples": f"samples?{ANALYSIS}",
    "method": "method",
}
WITHOUT_CHART = {"welcome", "encoding-tokens", "samples", "method"}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SIZES = ((1440, 1300), (390, 1900))


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    cache = Path(os.environ.get("HEADSCOPE_TEST_CACHE") or platformdirs.user_cache_dir("headscope-tests"))
    found = chromium.find_chromium()
    if found is None:
        sys.exit(chromium.MISSING)
    with running_app(cache, out / "server.log") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(chromium.ARGUMENTS))
        for scheme, (width, height), (name, path) in product(SCHEMES, SIZES, SHOTS.items()):
            with visitor(browser, server.url, width=width, height=height, scheme=scheme) as page:
                visit(page, f"/{path}")
                if name not in WITHOUT_CHART:
                    page.locator(".js-plotly-plot").first.wait_for(timeout=5 * PATIENCE)
                    charts_drawn(page)
                elif name == "samples":
                    page.get_by_role("button", name="Write").click(timeout=5 * PATIENCE)
                    page.locator(".hs-pair").first.wait_for(timeout=5 * PATIENCE)
                page.wait_for_timeout(400)
                settle(page)
                file = out / f"{name}-{scheme}-{width}.png"
                page.screenshot(path=file)
                print(file)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give the folder for the pictures: python -m tests.browser.screenshots OUT")
    main(Path(sys.argv[1]))
