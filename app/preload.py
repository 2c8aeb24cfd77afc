"""What is imported behind the visitor's back: the pages while a browser is still loading, torch when the first page stands.

Imported lazily by several sessions at once, pandas and torch have been seen half-initialised, so one thread imports them
and whoever needs them waits here first. Plotly does not ask for pandas but takes what there is of it: whoever draws a
figure does so while it is all there, or before it is begun with.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any


class _Import(threading.Thread):
    def __init__(self, load: Callable[[], object]) -> None:
        super().__init__(name="headscope-import", daemon=True)
        self.load = load
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.load()
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        self.join()
        if self.error is not None:
            raise self.error


_once = threading.Lock()
_change = threading.Condition()
_begun = threading.Event()  # with importing pandas
_drawing: set[int] = set()  # threads that draw without pandas


@cache
def _pages() -> _Import:
    def load() -> None:
        import streamlit as st

        st.empty()  # Streamlit's first element looks through every module that is loaded; here these are few
        importlib.import_module("app.pages")

    return _Import(load)


@cache
def _reading() -> _Import:
    def load() -> None:
        first = pages()
        with drawing():
            first.read_ahead()

    return _Import(load)


@cache
def _tables() -> _Import:
    def load() -> None:
        with _change:
            _begun.set()
            _change.wait_for(lambda: not _drawing)
        importlib.import_module("pandas")

    return _Import(load)


@cache
def _torch() -> _Import:
    def load() -> None:
        tables()
        from core.model.quiet import importing

        with importing:
            import core.generate
            import core.model.load
            import core.observe  # noqa: F401

        gc.freeze()  # what is loaded stays: looking through it for garbage stops everybody for a fifth of a second

    return _Import(load)


def pages() -> Any:
    """The module `app.pages`, imported by one thread."""
    with _once:
        importing = _pages()
    importing.wait()
    return importlib.import_module("app.pages")


def tables() -> None:
    """Return when pandas is ready to be used."""
    _drawn()
    _wait_for(_tables)


def _wait_for(begin: Any) -> None:
    """Return when what a cached function imports is there; where it failed, whoever asks next begins it anew."""
    with _once:
        under_way = begin()
    try:
        under_way.wait()
    except BaseException:
        with _once:
            begin.cache_clear()
        raise


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """While figures are drawn; begins when pandas is ready, unless nobody has begun with it, who then waits for the end."""
    with _change:
        if not _begun.is_set():
            _drawing.add(threading.get_ident())
    try:
        if threading.get_ident() not in _drawing:
            tables()
        yield
    finally:
        _drawn()


def _drawn() -> None:
    """This thread draws without pandas no more: it is at the end, or waits for pandas."""
    with _change:
        _drawing.discard(threading.get_ident())
        _change.notify_all()


def pages_behind() -> None:
    """Begin importing the pages and reading what the first of them shows."""
    with _once:
        _pages()
        _reading()


def torch_behind(seconds: float = 6.0) -> None:
    """Begin importing torch in a while, when the page that is being served stands; does nothing the second time.

    A browser on a slow computer of two cores draws its first chart 4 s after the page was served.
    """
    _timer(seconds)


@cache
def _timer(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, start)
    timer.daemon = True
    timer.start()
    return timer


def start() -> None:
    """Begin importing torch in the background; does nothing the second time."""
    with _once:
        _torch()


def wait() -> None:
    """Return when torch and transformers are ready to be used."""
    _drawn()
    _wait_for(_torch)
