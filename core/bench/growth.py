"""How cost grows: time and memory over a decade of positions, tokens, dimensions and checkpoints, and the exponent.

An exponent of 1 is proportional, 0 does not grow; it is the slope of the least-squares line through log cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from core.analysis import Analysis
from core.bench.measure import Work, extra_memory, seconds
from core.corpus import Plan, plan_windows, tokenise
from core.dynamics import Builder
from core.encoding import encode
from core.head_pass import HeadPass
from core.moments import Moments, Observation, Reservoir
from core.observe import observe
from core.settings import Progress, Settings, no_progress
from core.store import Store

ROUNDS = 3


@dataclass(frozen=True)
class Growth:
    """Cost of one step over a decade of one size.

    Attributes:
        name: the step. varied: what grows. sizes: from small to large, a decade apart.
        seconds, megabytes: at every size; peak extra memory.
        time_exponent, memory_exponent: slopes of log cost over log size.
    """

    name: str
    varied: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    megabytes: tuple[float, ...]
    time_exponent: float
    memory_exponent: float


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost over log size; costs of 0 count as a thousandth of the largest."""
    floor = max(max(costs) * 1e-3, 1e-12)
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, floor)), 1)[0])


def grown(name: str, varied: str, sizes: Sequence[int], work_of: Callable[[int], Work]) -> Growth:
    """Measure a step at every size; `work_of` makes ready what is not to be measured."""
    times, memory = [], []
    for size in sizes:
        work = work_of(size)
        work()
        memory.append(extra_memory(work) / 2**20)
        times.append(min(seconds(work) for _ in range(ROUNDS)))
    return Growth(
        name,
        varied,
        tuple(sizes),
        tuple(times),
        tuple(memory),
        exponent(sizes, times),
        exponent(sizes, memory),
    )


def positions(store: Store) -> Growth:
    """`observe`, over the number of positions N, of the bundled model."""
    analysis = Analysis("demo", "python-docs", store=store)
    loaded = analysis.loaded()
    documents = tokenise(analysis.corpus, loaded.tokenizer, 256)

    def work_of(size: int) -> Work:
        plan: Plan = plan_windows(documents, Settings(positions=size), name="python-docs")
        return lambda: observe(loaded, plan)

    return grown("observe", "positions N", (4000, 8600, 18600, 40000), work_of)


def head_of(vocab: int, dim: int) -> HeadPass:
    """A head of random numbers."""
    from core.model import Head

    draw = torch.Generator().manual_seed(0)
    return HeadPass(Head(torch.randn(vocab, dim, generator=draw), None, None, np.ones(vocab, dtype=bool)))


def head_pass(vocab: int, dim: int) -> Work:
    """The head pass over 256 positions."""
    applied, draw = head_of(vocab, dim), torch.Generator().manual_seed(1)
    hidden, targets = torch.randn(256, dim, generator=draw) / dim**0.5, torch.zeros(256, dtype=torch.long)

    def work() -> None:
        applied.buffers = None
        with torch.inference_mode():
            applied(hidden, targets)

    return work


def fit(vocab: int, dim: int) -> Work:
    """The fit of a head of random numbers whose mean probabilities are random numbers too."""
    draw = np.random.default_rng(0)
    embedding = draw.standard_normal((vocab, dim)).astype(np.float32)
    hidden = draw.standard_normal((2 * dim, dim))
    moments = Moments(
        n=2 * dim,
        sum_p=np.exp(draw.standard_normal(vocab)),
        counts=np.ones(vocab, dtype=np.int64),
        sum_h=hidden.sum(0),
        sum_hh=hidden.T @ hidden,
        sum_log_z=0.0,
        sum_log_z2=1.0,
        sum_h_log_z=np.zeros(dim),
        sum_loss=1.0,
        reservoir=Reservoir(
            1,
            np.zeros(0, np.uint64),
            np.zeros((0, dim), np.float32),
            np.zeros(0),
            np.zeros((0, 16), np.int32),
            np.zeros((0, 16), np.float32),
            np.zeros(0, np.int32),
        ),
    )
    return lambda: encode(embedding, Observation(moments, replace(moments), 2, 2))


def checkpoints(count: int) -> Work:
    """The dynamics of a series of heads of V = 4,096, d = 128."""
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 1000, 4096)
    start, drift = (draw.standard_normal((4096, 128)).astype(np.float32) for _ in range(2))

    def work() -> None:
        builder = Builder(counts)
        for step in range(count):
            head = start + step * drift
            digest = hashlib.sha256(head.tobytes()).hexdigest()
            builder.add(step, f"step {step}", head, digest, alpha=counts / counts.sum(), loss=1.0)

    return work


DECADE = (5000, 10_800, 23_200, 50_000)
WIDTHS = (64, 136, 296, 640)


def _growths(store: Store) -> Iterator[tuple[str, Callable[[], Growth]]]:
    yield "observe over N", lambda: positions(store)
    yield "head pass over V", lambda: grown("head pass", "tokens V", DECADE, lambda size: head_pass(size, 256))
    yield "head pass over d", lambda: grown("head pass", "dimensions d", WIDTHS, lambda size: head_pass(16_384, size))
    yield "fit over V", lambda: grown("fit", "tokens V", DECADE, lambda size: fit(size, 256))
    yield "fit over d", lambda: grown("fit", "dimensions d", WIDTHS, lambda size: fit(16_384, size))
    yield "dynamics over checkpoints", lambda: grown("dynamics", "checkpoints", (3, 7, 14, 30), checkpoints)


def measure_growth(store: Store, progress: Progress = no_progress) -> Iterable[Growth]:
    """Measure all of them; each is given out when it is there."""
    for name, measured in _growths(store):
        progress(f"Measuring {name}", None)
        yield measured()
