"""Measuring: two functions in turns, and the memory that one takes."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """One line of the table.

    Attributes:
        name: what is measured. baseline: what it is compared with.
        ratio: ours over the baseline; None where it could not be measured. limit: what it has to reach, at most.
        ours, theirs: medians, in `unit`; theirs is 1 where the limit is no ratio but a number.
        spread: lowest and highest ratio of a round. note: why there is no ratio, or what it does not say.
    """

    name: str
    baseline: str
    ratio: float | None
    limit: float
    ours: float | None = None
    theirs: float | None = None
    unit: str = "s"
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        return None if self.ratio is None else self.ratio <= self.limit


def seconds(work: Work) -> float:
    """How long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(name: str, baseline_name: str, limit: float, ours: Work, baseline: Work, rounds: int) -> Ratio:
    """The median over the rounds of time of `ours` over time of `baseline`; which goes first alternates.

    Both run once before, so that what is done only the first time (libraries, memory, threads) counts for neither.
    """
    ours(), baseline()
    times = []
    for number in range(rounds):
        if number % 2:
            second = seconds(baseline)
            times.append((seconds(ours), second))
        else:
            first = seconds(ours)
            times.append((first, seconds(baseline)))
    ratios = [a / b for a, b in times]
    return Ratio(
        name,
        baseline_name,
        statistics.median(ratios),
        limit,
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        spread=(min(ratios), max(ratios)),
    )


def extra_memory(work: Work) -> int:
    """Bytes of memory that this process had at most while `work` ran, beyond what it had before."""
    _give_back()
    process, seen = psutil.Process(), [0]
    before = process.memory_info().rss
    if _reset_peak():
        work()
        return max(0, _peak() - before)
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen[0] = max(seen[0], process.memory_info().rss)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return max(0, seen[0] - before)


def _give_back() -> None:
    """Let go of what is freed, as far as the C library can be asked to: else it would hide what is taken again."""
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_peak() -> bool:
    """Start the kernel's own record of the largest memory anew (Linux); False where there is none."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _peak() > 0
    except (OSError, ValueError, StopIteration):
        return False


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
