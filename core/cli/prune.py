"""`headscope prune`: dimensions of the output embedding leave; what that costs on held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from core.cli.group import cli
from core.cli.shared import deliver, numbers, open_analysis, shared, short, table
from core.errors import InputError

if TYPE_CHECKING:
    from core.pruning.result import HeadCost, Pruning


@cli.command()
@click.argument("model")
@click.option(
    "--method",
    "methods",
    help="Names with commas: saliency, random, reverse, std, rms, …, or all; all but rotated-self, which lets the model write "
    "first, if not given.",
)
@click.option("--remove", default="0.1,0.3,0.5", show_default=True, help="Fractions of the dimensions, with commas.")
@click.option("--judge", metavar="CORPUS", help="Judge on the held-out part of another corpus too.")
@click.option("--seeds", type=click.IntRange(1, 64), default=4, show_default=True, help="Orders of the method random.")
@click.option(
    "--keep-top1", type=float, help="Say what can go while the top prediction stays in this share of contexts."
)
@click.option("--time", "timed", is_flag=True, help="Time the smaller head against the full one.")
@shared
def prune(
    model: str,
    methods: str | None,
    remove: str,
    judge: str | None,
    seeds: int,
    keep_top1: float | None,
    timed: bool,
    json_path: str | None,
    **options: Any,
) -> None:
    """Delete dimensions of MODEL's output embedding, or lower its rank, and judge every fraction on held-out text."""
    from core import summary
    from core.pruning.names import METHODS, STANDARD, check_method, check_removed
    from core.pruning.result import largest_removable

    chosen = [name.strip() for name in methods.split(",")] if methods is not None else list(STANDARD)
    if chosen == ["all"]:
        chosen = list(METHODS)
    chosen = list(dict.fromkeys(chosen))
    removed = list(dict.fromkeys(numbers(remove, "--remove", float)))
    for name in chosen:
        if name == "all":
            raise InputError("'all' names every method by itself: give --method all, or the names of some.")
        check_method(name)
    for fraction in removed:
        check_removed(fraction)
    if keep_top1 is not None and not 0 < keep_top1 <= 1:
        raise InputError(f"--keep-top1 is {keep_top1:g}, but it must be a share above 0 and at most 1, as 0.9.")
    analysis, tell = open_analysis(model, options)
    found = analysis.prune(chosen, removed, seeds=seeds, progress=tell)
    others = () if judge is None else analysis.prune(chosen, removed, judge=judge, seeds=seeds, progress=tell)
    costs = [analysis.pruned_cost(name, removed[-1], tell) for name in chosen] if timed else []
    tell.end()
    lines = [_title(found[0]), "", _table(found)]
    if others:
        lines += ["", _title(others[0]), "", _table(others)]
    if keep_top1 is not None:
        rows = [[each.method, f"{100 * largest_removable(each.points, keep_top1):.1f} %"] for each in found]
        lines += ["", table([f"top prediction stays in {100 * keep_top1:g} %", "can go"], rows)]
    for cost in costs:
        lines += ["", _cost(cost)]
    deliver(summary.prune(found, others, model=model, costs=costs, keep_top1=keep_top1), json_path, "\n".join(lines))


def _perplexity(found: Pruning) -> str:
    told = found.perplexity_full
    return (
        short(told)
        if math.isfinite(told)
        else "beyond all numbers, for it takes what follows in the text for impossible"
    )


def _title(found: Pruning) -> str:
    other = "" if found.judged_on == found.corpus else f" of {found.judged_on}"
    return (
        f"Fitted on {found.corpus}; KL in nats / share of contexts whose top prediction stays, on {found.positions:,} held-out "
        f"contexts{other}; perplexity of the full head {_perplexity(found)}."
    )


def _table(found: Sequence[Pruning]) -> str:
    header = ["removed", *(f"{100 * point.removed:g} % ({point.dims} stay)" for point in found[0].points)]
    rows = []
    for each in found:
        cells = []
        for point in each.points:
            band = f" ({short(point.kl_low)}–{short(point.kl_high)})" if each.seeds > 1 else ""
            cells.append(f"{short(point.kl)}{band} / {point.top1_agreement:.2f}")
        rows.append([each.method + (" (trained)" if each.trained else ""), *cells])
    return table(header, rows)


def _cost(cost: HeadCost) -> str:
    rows = [
        [str(each.positions), f"{1e3 * each.seconds_full:.2f} ms", f"{1e3 * each.seconds:.2f} ms", f"{each.ratio:.2f}"]
        for each in cost.speed
    ]
    size = f"{cost.bytes / 1e6:.1f} MB instead of {cost.bytes_full / 1e6:.1f} MB"
    title = f"{cost.method}, {cost.dims} of {cost.dim} stay: {size}"
    return title + "\n" + table(["positions", "full", "pruned", "ratio"], rows)
