"""`headscope bench`: what Headscope costs, against baselines measured in the same run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from core.cli.group import cli
from core.cli.shared import Telling, deliver, output, short, table

if TYPE_CHECKING:
    from core.bench import Growth, Ratio

BROWSER = (
    "What needs a browser (a slider step, redraws while dragging, the second load of a model) is measured by "
    "python -m tests.benchmarks.browser, from a checkout with the extra test."
)


@cli.command()
@click.argument("model", default="smollm2")
@click.option("--only", help="Rows with commas: head, observe, memory, fit, slider, pruning, sampling, start.")
@click.option("--growth", is_flag=True, help="How time and memory grow over a decade of N, V, d and checkpoints.")
@click.option("--rounds", type=click.IntRange(1, 99), default=5, show_default=True, help="Turns, of which the median.")
@click.option("--positions", type=click.IntRange(512, 65536), default=4096, show_default=True, help="Of the passes.")
@output
def bench(
    model: str,
    only: str | None,
    growth: bool,
    rounds: int,
    positions: int,
    json_path: str | None,
    cache: str | None,
    no_cache: bool,
    **_: Any,
) -> None:
    """Measure the ratios that MODEL (smollm2) has to reach on this machine; leave it otherwise idle."""
    import psutil

    from core.bench import Subject, measure, measure_growth
    from core.store import Store

    tell = Telling()
    store = Store(cache, enabled=not no_cache)
    names = [] if only is None else [name.strip() for name in only.split(",")]
    ratios: list[Ratio] = []
    grown: list[Growth] = []
    if not growth or only:
        for ratio in measure(Subject(model, positions, rounds, store, tell), names):
            ratios.append(ratio)
    if growth:
        grown = list(measure_growth(store, tell))
    tell.end()
    load = psutil.getloadavg()[0]
    cores = psutil.cpu_count() or 1
    result: dict[str, Any] = {
        "ratios": [{**asdict(ratio), "reached": ratio.reached} for ratio in ratios],
        "growth": [asdict(each) for each in grown],
        "rounds": rounds,
        "load": load,
        "cores": cores,
        "browser": BROWSER,
    }
    text = []
    if ratios:
        rows = [
            [r.name, "–" if r.ratio is None else _short(r.ratio), _short(r.limit), _reached(r), *_costs(r), r.baseline]
            for r in ratios
        ]
        text += [table(["", "ratio", "at most", "", "ours", "baseline", "which"], rows), ""]
    if grown:
        rows = [[g.name, g.varied, f"{g.sizes[0]:,}–{g.sizes[-1]:,}", f"{g.time_exponent:.2f}", f"{g.memory_exponent:.2f}",
                 f"{g.seconds[0]:.3g}–{g.seconds[-1]:.3g} s", f"{g.megabytes[0]:.3g}–{g.megabytes[-1]:.3g} MB"]
                for g in grown]  # fmt: skip
        text += [table(["", "over", "", "time ∝ size^", "memory ∝ size^", "time", "peak extra memory"], rows), ""]
    text += [f"Medians of {rounds} rounds in turns, {cores} cores, load {load:.1f} at the end.", BROWSER]
    deliver(result, json_path, "\n".join(text))


def _short(value: float) -> str:
    return f"1/{short(1 / value)}" if 0 < value < 0.01 else short(value)


def _reached(ratio: Ratio) -> str:
    return {None: ratio.note or "not measured", True: "yes", False: "NO"}[ratio.reached]


def _costs(ratio: Ratio) -> list[str]:
    scale, unit = (1000, "ms") if ratio.unit == "s" and (ratio.ours or 0) < 1 else (1, ratio.unit)
    ours = "–" if ratio.ours is None else f"{short(ratio.ours * scale)} {unit}"
    return [ours, "–" if ratio.theirs is None else f"{short(ratio.theirs)} {ratio.unit}"]
