"""One dashboard for all browser tests, with its own empty results and the shared model; a fresh person per test."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chromium import ARGUMENTS
from tests.browser.pages import PATIENCE, charts_drawn, visit, visitor
from tests.browser.server import Server, running_app

if TYPE_CHECKING:
    from core.model import ModelFiles

NewPage = Callable[..., Page]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Beside a test that failed, what its dashboard was doing at that moment."""
    report = yield
    if report.failed and report.when == "call":
        for name, value in item.funcargs.items():
            if isinstance(value, Server):
                report.sections.append((f"what the dashboard {name!r} is doing", value.doing()))
    return report


@pytest.fixture(scope="package")
def server(smollm2_files: ModelFiles, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The dashboard as a user starts it. At the end its log is searched for tracebacks."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "cache").mkdir()
    (folder / "cache" / "models").symlink_to(cache_folder / "models", target_is_directory=True)
    with running_app(folder / "cache", folder / "server.log") as running:
        yield running
    assert running.tracebacks() == ""


@pytest.fixture(scope="package")
def demo(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A dashboard that has nothing but what comes with Headscope."""
    folder = tmp_path_factory.mktemp("demo")
    with running_app(folder / "cache", folder / "server.log") as running:
        yield running
    assert running.tracebacks() == ""


@pytest.fixture
def guest(browser: Browser, demo: Server) -> Iterator[NewPage]:
    """Opens a page of another person on the bundled model at every call."""
    with ExitStack() as open_pages:
        yield lambda **options: open_pages.enter_context(visitor(browser, demo.url, **options))


@pytest.fixture(scope="package")
def browser(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Browser, server: Server) -> Iterator[NewPage]:
    """Opens a page of another person at every call."""
    with ExitStack() as open_pages:
        open_page: Callable[..., AbstractContextManager[Page]] = partial(visitor, browser, server.url)
        yield lambda **options: open_pages.enter_context(open_page(**options))


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()


@pytest.fixture(scope="package")
def first_visit(browser: Browser, server: Server) -> str:
    """A first visitor starts an analysis, takes fewer positions and waits; returns what stands in the address afterwards.

    All others come to a model that was analysed already.
    """
    with visitor(browser, server.url) as page:
        visit(page, "/?positions=4096")
        page.get_by_role("button", name="Start with SmolLM2").click(timeout=5 * PATIENCE)  # demo is analysed anew
        page.get_by_role("progressbar").wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled.").wait_for(timeout=PATIENCE)
        page.get_by_text("Settings").click()
        page.get_by_role("radio", name="1k", exact=True).click()
        page.get_by_role("progressbar").wait_for(timeout=PATIENCE)
        page.get_by_role("link", name="Encoding").click()
        page.locator(".js-plotly-plot").wait_for(timeout=5 * PATIENCE)
        charts_drawn(page)
        return urlsplit(page.url).query
