"""torch and transformers, imported once by one thread when the first page stands.

Imported lazily by several sessions at once they have been seen half-initialised, so nobody else imports them:
whoever needs them waits here first.
"""

from __future__ import annotations

import threading
from functools import cache


class _Import(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="headscope-import", daemon=True)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            import core.generate
            import core.model.load
            import core.observe  # noqa: F401
        except BaseException as error:
            self.error = error


@cache
def _thread() -> _Import:
    thread = _Import()
    thread.start()
    return thread


_once = threading.Lock()


def start() -> None:
    """Begin importing in the background; does nothing the second time."""
    with _once:
        _thread()


def start_behind(seconds: float = 3.0) -> None:
    """Begin importing in a while, when the page that is being served stands; does nothing the second time."""
    _timer(seconds)


@cache
def _timer(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, start)
    timer.daemon = True
    timer.start()
    return timer


def wait() -> None:
    """Return when torch and transformers are ready to be used."""
    start()
    thread = _thread()
    thread.join()
    if thread.error is not None:
        raise thread.error
