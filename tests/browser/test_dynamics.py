"""Watching training: the bundled run, and one that is trained live, killed half-way and gone on with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import NewPage
from tests.browser.pages import charts, charts_drawn, settle, text_of, visit, visitor
from tests.browser.server import running_app

TRAINED = 480_000
"""Milliseconds that the training may take on a busy machine."""
CURVES = "[...document.querySelectorAll('.js-plotly-plot')].find(c => c._fullData?.[0]?.name?.includes('corpus'))"
POINTS = f"({CURVES}?._fullData[0].y.length ?? 0)"


def curve(page: Page, at: int = 0) -> list[float]:
    """One line of the chart of R² and loss: 0 corpus frequency, 1 −log probability, 2 loss."""
    return page.evaluate(f"at => Array.from({CURVES}._fullData[at].y)", at)


def test_the_bundled_run_moves_with_the_slider(new_page: NewPage) -> None:
    page = new_page()
    visit(page, "/dynamics")
    charts_drawn(page, 3)
    told = text_of(page)
    found = re.search(r"at step ([\d,]+); 90 % of the fall of the loss is done at step ([\d,]+)", told)
    assert found and int(found[1].replace(",", "")) * 5 <= int(found[2].replace(",", ""))
    assert abs(curve(page)[0]) < 0.02 and curve(page)[-1] > 0.8
    slider = page.get_by_role("slider", name="Step")
    slider.focus()
    slider.press("Home")
    expect(page.get_by_text(re.compile(r"^Step 0: R² of corpus frequency")).first).to_be_visible()
    settle(page)
    assert "step=0" in page.url
    page.reload()
    expect(page.get_by_role("slider", name="Step")).to_have_attribute("aria-valuetext", "0")
    page.get_by_role("button", name="Play", exact=True).click()
    expect(page.get_by_text(re.compile(r"^Step 2: R² of corpus frequency")).first).to_be_visible()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()


def test_a_series_that_is_none(new_page: NewPage) -> None:
    page = new_page()
    visit(page, "/dynamics?series=train:huge:0:sampler")
    expect(page.locator("[data-testid=stAlert]")).to_contain_text("has no such name")
    visit(page, "/dynamics?series=no-such-folder")
    expect(page.locator("[data-testid=stAlert]")).to_contain_text("There is no series 'no-such-folder'")


@pytest.fixture
def visit_app(browser: Browser, tmp_path: Path) -> Iterator[Callable[[], tuple[Page, ExitStack]]]:
    """Starts a dashboard on one and the same cache and opens a page on it; closing the stack kills it."""
    (tmp_path / "cache").mkdir()
    with ExitStack() as all_of_them:

        def start() -> tuple[Page, ExitStack]:
            stack = all_of_them.enter_context(ExitStack())
            running = stack.enter_context(running_app(tmp_path / "cache", tmp_path / "server.log"))
            page = stack.enter_context(visitor(browser, running.url))
            return page, stack

        yield start
    assert "Traceback" not in (tmp_path / "server.log").read_text("utf-8", errors="replace")


@pytest.mark.thorough
def test_training_live_killed_half_way(visit_app: Callable[[], tuple[Page, ExitStack]], tmp_path: Path) -> None:
    """The curves grow; the server ends with the run half done; the same address goes on from there to the whole picture.

    That an interrupted run ends at the same bits as one that was not is tested in `tests/core/test_series.py`.
    """
    page, server = visit_app()
    visit(page, "/dynamics")
    charts_drawn(page, 3)
    page.get_by_role("button", name="Train one now").click()
    page.get_by_role("combobox", name="Text").last.wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("progressbar").wait_for()
    until_points(page, 8)
    seen, seen_loss, address = curve(page), curve(page, 2), page.url
    assert "series=train" in address
    server.close()  # terminated, and killed if it does not obey

    page, server = visit_app()
    visit(page, "/dynamics?" + address.partition("?")[2])
    page.get_by_role("button", name="Keep this run").wait_for(timeout=TRAINED)
    charts_drawn(page, 3)
    frequency, loss = curve(page), curve(page, 2)
    assert abs(frequency[0]) < 0.1 and max(frequency) > 0.7 and loss[-1] < loss[0] - 2
    found = re.search(r"at step ([\d,]+); 90 % of the fall of the loss is done at step ([\d,]+)", text_of(page))
    assert found and int(found[1].replace(",", "")) < int(found[2].replace(",", ""))

    assert (frequency[: len(seen)], loss[: len(seen)]) == (seen, seen_loss)  # to the last bit

    page.get_by_role("button", name="Keep this run").click()
    expect(page.get_by_text("This run is kept")).to_be_visible()
    page.get_by_role("button", name="Discard this run").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("came with Headscope").first).to_be_visible()
    assert not list((tmp_path / "cache" / "runs").glob("*/step-*"))
    server.close()


def until_points(page: Page, count: int) -> None:
    """Wait until that many checkpoints are drawn while the run goes on."""
    page.wait_for_function(f"count => {POINTS} >= count", arg=count, timeout=TRAINED)
    assert charts(page)
