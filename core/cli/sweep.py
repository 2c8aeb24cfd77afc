"""`headscope sweep`: many models, revisions and corpora, on Ray."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.cli.group import cli
from core.cli.shared import OutputFolder, deliver, output, short, table
from core.cli.streams import remark

if TYPE_CHECKING:
    from core.sweep import Event

STEP, SECONDS = 0.25, 10.0
"""Share of a step, and time, after which a task's progress is told again."""


@cli.command()
@click.argument("plan_path", metavar="PLAN.toml")
@click.option(
    "--address", help="Of a running Ray cluster: auto, HOST:6379 or ray://HOST:10001. Started here if not given."
)
@click.option(
    "--out", type=OutputFolder(file_okay=False), help="Folder of the Parquet data set; PLAN-results if not given."
)
@output
def sweep(
    plan_path: str,
    address: str | None,
    out: str | None,
    json_path: str | None,
    cache: str | None,
    no_cache: bool,
    **_: Any,
) -> None:
    """Fit many models, revisions and corpora, as PLAN.toml says, on this machine or on a Ray cluster.

    \b
    models = ["smollm2", "EleutherAI/pythia-70m"]
    revisions = ["step0", "step1000"]     # of models of the Hub
    corpora = ["sampler", "python-docs"]
    [settings]                            # as the options of headscope fit
    positions = 16384
    [tasks]
    shards = 4                            # parts of a corpus, each a task
    threads = 2                           # and the CPUs of a task
    """
    from core.store import Store
    from core.sweep import read_plan, run_sweep

    plan = read_plan(plan_path)
    place = Path(plan_path).expanduser()
    folder = Path(out) if out else place.with_name(f"{place.stem}-results")
    store = Store(cache, enabled=not no_cache)
    done = run_sweep(plan, folder, store, address=address, tell=_Telling())
    lines = [
        [
            row["model"],
            row["corpus"],
            *(short(row[k]) for k in ("r2", "r2_held_out_text", "perplexity")),
            row["error"] or "",
        ]
        if row["status"] == "done"
        else [row["model"], row["corpus"], "–", "–", "–", row["error"]]
        for row in done.rows
    ]
    text = [
        table(["model", "corpus", "R²", "R² unseen text", "perplexity", ""], lines),
        "",
        f"{len(done.rows) - done.failed} of {len(done.rows)} runs are done ({done.kept} were before); rows in {done.out}.",
    ]
    result = {
        "plan": plan.name,
        "out": str(done.out),
        "kept": done.kept,
        "failed": done.failed,
        "runs": list(done.rows),
    }
    deliver(result, json_path, "\n".join(text))
    if done.failed:
        sys.exit(1)


WORDS = {
    "started": "started",
    "again": "started again: its worker was lost, or it failed",
    "anew": "started anew: what it had finished is gone from the disk, or damaged",
    "kept": "was done before",
}


class _Telling:
    """What happens to every task, one line each on stderr."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[str, float, float]] = {}

    def __call__(self, event: Event) -> None:
        from core.settings import step_of

        if event.state == "working":
            step, share, now = step_of(event.text), event.share or 0.0, time.monotonic()
            before, at, when = self.told.get(event.task, ("", 0.0, 0.0))
            if step == before and share < at + STEP and now < when + SECONDS:
                return
            self.told[event.task] = step, share, now
            said = step if event.share is None or not share else f"{step}, {100 * share:.0f} %"
        elif event.state == "failed":
            said = f"failed: {event.text}"
        else:
            said = WORDS.get(event.state, event.state) + (f" ({event.text})" if event.text else "")
        remark(f"{event.task}: {said}")
