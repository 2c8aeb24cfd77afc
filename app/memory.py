"""The C library's part in how much memory a server holds that runs for hours. Where it is not glibc, nothing happens."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

MMAP_THRESHOLD, ARENA_MAX = -3, -8  # names of `mallopt`, malloc.h
OWN_PAGES = 2 * 2**20
"""Bytes from which an array gets pages of its own, which go back to the system with it."""
ARENAS = 2


def keep_flat() -> None:
    """At the start of a server: large arrays off the heap, and few heaps.

    By itself glibc puts arrays of up to 32 MB on the heap, once it has seen some of that size freed, and gives every few
    threads a heap of their own: each is held together by whatever small piece was allocated last.
    """
    _call("mallopt", MMAP_THRESHOLD, OWN_PAGES)
    _call("mallopt", ARENA_MAX, ARENAS)


def give_back() -> None:
    """After heavy work: return freed memory to the system, also from between pieces in use."""
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        function: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
        function(*numbers)
