"""Keeping the libraries' own progress bars and notices off the terminal while a model is prepared, and their parts whole.

The switches are global to the process. The first thread that comes in turns them, the last that leaves turns them
back, so that a long download in one thread does not hold up another.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator

importing = threading.RLock()
"""Held while transformers is imported where another thread may do so too: both have been left with half of it."""


class _Switch:
    """Something global that is off while at least one thread is inside."""

    def __init__(self, off: Callable[[contextlib.ExitStack], None]) -> None:
        self._off = off
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._off(self._undo)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._undo.close()


def _hub_off(undo: contextlib.ExitStack) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    undo.callback(logging.set_verbosity, logging.get_verbosity())
    logging.set_verbosity(logging.CRITICAL)
    if not are_progress_bars_disabled():
        undo.callback(enable_progress_bars)
        disable_progress_bars()


def _transformers_off(undo: contextlib.ExitStack) -> None:
    from transformers.utils import logging

    undo.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    undo.callback(logging.set_verbosity, logging.get_verbosity())
    logging.set_verbosity(logging.CRITICAL)
    if logging.is_progress_bar_enabled():
        undo.callback(logging.enable_progress_bar)
        logging.disable_progress_bar()


quiet_hub = _Switch(_hub_off)
"""Context manager: huggingface_hub shows no bars and prints nothing below a critical error."""

quiet_transformers = _Switch(_transformers_off)
"""Context manager: transformers shows no bars and prints nothing below a critical error, nor does `warnings`."""
