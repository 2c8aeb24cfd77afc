"""`headscope app`: the dashboard."""

from __future__ import annotations

import os
from pathlib import Path

import click

from core.cli.group import cli
from core.cli.shared import Folder
from core.errors import InputError


@cli.command()
@click.option(
    "--host", default=None, help="Where to listen.  [default: localhost; every network if others may connect]"
)
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
@click.option("--model", default=None, help="The model to start with; of a class, the only one.")
@click.option("--corpus", default=None, help="The text to start with; of a class, the only one.")
@click.option("--classroom", is_flag=True, help="Let a class in: one model, one text, a page with a QR code to join.")
@click.option("--public", is_flag=True, help="Let anybody in: bounded, and nothing of this computer's disk is read.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@click.option("--cache", type=Folder(file_okay=False), help="Where models and results are kept.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def app(
    host: str | None,
    port: int,
    model: str | None,
    corpus: str | None,
    classroom: bool,
    public: bool,
    no_browser: bool,
    cache: str | None,
    debug: bool,
) -> None:
    """Open the dashboard."""
    from importlib import import_module

    for option, value in (("--model", model), ("--corpus", corpus)):
        if value is not None and not value.strip():
            raise InputError(f"{option} names nothing: give a name, or leave it away.")
    if cache:
        os.environ["HEADSCOPE_CACHE"] = str(Path(cache).resolve())
    import_module("app.launch").run(
        host, port, model, corpus, classroom=classroom, public=public, browser=not no_browser
    )
