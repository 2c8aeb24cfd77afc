"""`headscope app`: the dashboard."""

from __future__ import annotations

import os
from pathlib import Path

import click

from core.cli.group import cli


@cli.command()
@click.option("--host", default="localhost", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
@click.option("--model", default=None, help="The model to start with.")
@click.option("--classroom", is_flag=True, help="A teacher's server for many (not in this version yet).")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@click.option("--cache", type=click.Path(file_okay=False), help="Where models and results are kept.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def app(
    host: str, port: int, model: str | None, classroom: bool, no_browser: bool, cache: str | None, debug: bool
) -> None:
    """Open the dashboard."""
    from importlib import import_module

    if cache:
        os.environ["HEADSCOPE_CACHE"] = str(Path(cache).resolve())
    import_module("app.launch").run(host=host, port=port, model=model, classroom=classroom, browser=not no_browser)
