"""Runs of pages at a time: so many of one network address, for each holds the interpreter that all share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from weakref import WeakValueDictionary

AT_ONCE = 2
"""Of one address. A class behind one loses nothing: pages are drawn by one interpreter, one after the other in any case."""
PATIENCE = 2.0
"""Seconds after which a run goes ahead all the same; some that are in may wait for something else."""

_gates: WeakValueDictionary[str, threading.Semaphore] = WeakValueDictionary()
_making = threading.Lock()


@contextlib.contextmanager
def taking_turns(address: str) -> Iterator[None]:
    """Within, at most `AT_ONCE` runs for this address are at work, unless one has waited for `PATIENCE` seconds."""
    with _making:
        gate = _gates.setdefault(address, threading.Semaphore(AT_ONCE))
    entered = gate.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        if entered:
            gate.release()
