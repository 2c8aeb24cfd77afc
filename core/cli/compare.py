"""`headscope compare`: several models, revisions or corpora side by side."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import click

from core.cli.group import cli
from core.cli.shared import Folder, Telling, deliver, settings_of, shared, short, table
from core.cli.streams import remark
from core.errors import HeadscopeError, InputError
from core.settings import Settings


@cli.command()
@click.argument("models", nargs=-1)
@click.option(
    "--row", "more", nargs=3, multiple=True, type=(str, str, int), metavar="MODEL CORPUS POSITIONS",
    help="One more row, with its own text and positions. Repeats.",
)  # fmt: skip
@click.option("--data", type=Folder(file_okay=False), help="Also the runs of a data set that headscope sweep wrote.")
@click.option("--steering/--no-steering", default=True, help="How far off ratios are.")
@click.option("--pruning/--no-pruning", default=True, help="What deleting dimensions costs.")
@shared
def compare(
    models: tuple[str, ...],
    more: tuple[tuple[str, str, int], ...],
    data: str | None,
    steering: bool,
    pruning: bool,
    json_path: str | None,
    **options: Any,
) -> None:
    """Measure MODELS on the corpus, and every --row, one after the other: fit, weights, steering, pruning.

    A row that cannot be measured says why in its place, the others are measured, and the exit code is 1.
    """
    from core.analysis import Analysis
    from core.compare import Row, as_json, compare_row, distinct, finding, names, read_data
    from core.store import Store

    settings = settings_of(options)
    wanted = [(model, options["corpus"], settings) for model in models]
    wanted += [(model, corpus, _with_positions(settings, positions)) for model, corpus, positions in more]
    if data is not None and not data.strip():
        raise InputError("--data names no folder: give the one that headscope sweep wrote, or leave it away.")
    if not wanted and data is None:
        raise InputError(
            "There is nothing to compare: name models, or give --row MODEL CORPUS POSITIONS or --data DIR."
        )
    of_data = read_data(data) if data else ()
    for row in of_data:
        if row.error:
            remark(f"{row.title}: {row.error}")
    rows: list[Row] = []
    store, tell = Store(options["cache"], enabled=not options["no_cache"]), Telling()
    for model, corpus, each in wanted:
        try:
            row = compare_row(Analysis(model, corpus, each, store), steering=steering, pruning=pruning, progress=tell)
        except HeadscopeError as error:
            if len(wanted) + len(of_data) == 1:
                raise
            row = Row(model, corpus, positions=each.positions, seed=each.seed, error=str(error))
            remark(f"{row.title}: {error}")
        rows.append(row)
    tell.end()
    failed = any(row.error for row in rows)
    rows = distinct([*rows, *of_data])
    lines = [
        [
            name,
            f"{row.vocab_size:,} × {row.dim:,}" if row.dim else "–",
            *(short(value) for value in (row.r2, row.r2_held_out_tokens, row.r2_held_out_text, row.effective_dims)),
            "–" if row.steering is None else short(row.steering.held_out[row.steering.ratios.index(20)]),
            *(_kept(row, method) for method in ("rotated", "saliency")),
        ]
        for name, row in zip(names(rows), rows, strict=True)
    ]
    header = ["", "V × d", "R²", "tokens", "text", "effective", "|log error| at 20×", "rotated 30 %", "saliency 30 %"]
    deliver(as_json(rows), json_path, f"{table(header, lines)}\n\n{finding(rows)}")
    if failed or all(row.error for row in rows):
        sys.exit(1)


def _with_positions(settings: Settings, positions: int) -> Settings:
    """The settings of a `--row`, which has positions of its own."""
    try:
        return replace(settings, positions=positions)
    except InputError as error:
        raise InputError(str(error).replace("--positions", "POSITIONS of --row")) from error


def _kept(row: Any, method: str) -> str:
    """Share of contexts whose top prediction stays with 30 % of the dimensions gone."""
    points = [p for each in row.pruning if each.method == method for p in each.points if p.removed == 0.3]
    return f"{points[0].top1_agreement:.2f}" if points else "–"
