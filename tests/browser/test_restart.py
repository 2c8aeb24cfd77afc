"""A server that is killed and started again while pages are open: what they show can be pressed again, and what it was
writing is not gone without a word."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.browser.pages import PATIENCE, charts_drawn, sentence, settle, until, visit
from tests.browser.server import free_port, running_app

expect.set_options(timeout=PATIENCE)


def opened(browser: Browser, url: str, path: str) -> Page:
    page = browser.new_context(
        base_url=url
    ).new_page()  # nobody watches its console, which tells that the server is gone
    page.set_default_timeout(PATIENCE)
    visit(page, path)
    settle(page)
    page.evaluate("window.before = true")
    return page


def test_pages_that_were_open_go_on_with_the_next_server(browser: Browser, tmp_path: Path) -> None:
    cache, target, port = tmp_path / "cache", tmp_path / "exported", free_port()
    with running_app(cache, tmp_path / "first.log", port=port) as first:
        steering = opened(browser, first.url, "/steering?edit=4058:7")
        pruning = opened(browser, first.url, "/pruning?removed=0.5")
        method = opened(browser, first.url, "/method")
        charts_drawn(steering, 2)
        steering.get_by_role("button", name="Share").click()
        steering.get_by_role("button", name="Write a report").click()
        steering.get_by_role("button", name=re.compile("^Report, ")).wait_for()
        pruning.get_by_role("radio", name="Export").click()
        pruning.get_by_role("textbox", name="New folder").fill(str(target))
        pruning.get_by_role("button", name="Export", exact=True).click()
        pruning.get_by_role("button", name="Cancel").wait_for()
        assert not pruning.get_by_text("broke off").count()
        os.kill(first.pid, signal.SIGKILL)
        for page in (steering, pruning, method):
            page.locator("[data-testid=stApp]:not([data-test-connection-state=CONNECTED])").wait_for(state="attached")
    assert not target.exists()

    with running_app(cache, tmp_path / "second.log", port=port) as second:
        for page in (steering, pruning, method):
            until(page, "!window.before")
            page.locator("[data-test-connection-state=CONNECTED]").wait_for(state="attached")
        charts_drawn(steering, 2)
        assert "asked 7×" in sentence(steering)
        slider = steering.get_by_role("slider").first
        slider.focus()
        slider.press("ArrowRight")
        expect(steering.locator(".hs-sentence").first).not_to_contain_text("asked 7×")
        settle(steering)
        steering.get_by_role("button", name="Share").click()
        steering.get_by_role("button", name="Write a report").click()
        with steering.expect_download() as download:
            steering.get_by_role("button", name=re.compile("^Report, ")).click()
        assert download.value.suggested_filename == "headscope-report.html"

        told = pruning.get_by_text(f"The export to {target} broke off because its server ended")
        expect(told).to_be_visible()
        assert not list(tmp_path.glob(".headscope-export-*"))
        settle(pruning)
        pruning.get_by_role("button", name="Put away").click()
        expect(told).to_have_count(0)
        pruning.reload()
        charts_drawn(pruning)
        expect(told).to_have_count(0)
        assert second.tracebacks() == ""
    for page in (steering, pruning, method):
        page.context.close()
