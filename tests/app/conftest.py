"""Pages run by Streamlit's own test runner, on arrays instead of a model and without torch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Element

from app import cache, jobs, preload
from app.state import Choice
from tests.app.arrays import ArrayAnalysis, facts
from tests.browser.server import Server, running_app

MAIN = Path(__file__).parents[2] / "app" / "main.py"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is open to others. At the end its log is searched for tracebacks."""
    folder = tmp_path_factory.mktemp("shared")
    with running_app(folder / "cache", folder / "log", "--public", "--model", "demo", "--host", "localhost") as app:
        yield app
    assert app.tracebacks() == ""


@pytest.fixture(autouse=True)
def lanes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, jobs.Lane]]:
    """Empty caches and job lanes for every test; nobody imports torch."""
    monkeypatch.setattr(preload, "wait", lambda: None)
    own = {"analyses": jobs.Lane("test"), "generation": jobs.Lane("test")}
    for name, lane in own.items():
        monkeypatch.setattr(jobs, name, lambda lane=lane: lane)
    monkeypatch.setattr(cache, "head_facts", lambda choice: facts())
    st.cache_resource.clear()
    yield own
    st.cache_resource.clear()


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """A page as a visitor sees it who comes by a link and opens Share, once its jobs are done."""

    def open_page(
        page: str, analysis: ArrayAnalysis | Callable[[Choice], ArrayAnalysis] | None = None, **query: str
    ) -> AppTest:
        opened = analysis if callable(analysis) else lambda choice: analysis or ArrayAnalysis()
        monkeypatch.setattr(cache, "open_analysis", opened)
        test = AppTest.from_file(str(MAIN), default_timeout=30)
        test.session_state["share"] = True
        for key, value in query.items():
            test.query_params[key] = value
        test.run()
        test.switch_page(f"views/{page}.py").run()
        return settled(test)

    return open_page


def settled(test: AppTest) -> AppTest:
    """Run again until no job is shown any more."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if not [button for button in test.button if button.key == "job-cancel"]:
            return test
        time.sleep(0.05)
        test.run()
    raise AssertionError("a job never ended")


def text_of(test: AppTest) -> str:
    """Everything that the page says in HTML, Markdown and boxes."""
    html = [element.proto.body for element in test.get("html") if not element.proto.unsafe_allow_javascript]
    return "\n".join([*html, *(e.value for e in [*test.markdown, *test.error, *test.info, *test.title])])


def read(error: Element) -> str:
    """A sentence as a reader sees it: without the marks that keep its signs from being markup."""
    return re.sub(r"\\(.)", r"\1", error.value)
