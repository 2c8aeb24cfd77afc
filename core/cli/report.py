"""`headscope report`: an analysis as one HTML file."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from core.cli.group import cli
from core.cli.shared import (
    OutputFile,
    check_edits,
    check_idle,
    deliver,
    edits_of,
    open_analysis,
    shared,
    with_edits,
    with_sampling,
)

OF_TEXTS = ("chat", "samples", "new_tokens", "temperature", "top_k", "top_p", "noise_seed")
"""The options that mean nothing without --prompt."""


@cli.command()
@click.argument("model")
@click.option("--out", required=True, type=OutputFile(), help="The HTML file to write.")
@with_edits
@click.option("--prompt", help="Also the next token after this text, and texts that go on from it.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option("--samples", type=int, default=6, show_default=True, help="Texts that go on from the prompt; 0: none.")
@with_sampling
@shared
def report(
    model: str,
    out: str,
    tokens: tuple[str, ...],
    ratios: tuple[float, ...],
    direction: str,
    calibrate: bool,
    prompt: str | None,
    chat: bool,
    samples: int,
    new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    noise_seed: int | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Write what there is to say of MODEL into one HTML file that needs nothing else: figures, sentences, settings."""
    from core.kept import bundled
    from core.report import Wanted, report_of, write_report
    from core.results import Sampling

    check_edits(tokens)
    if prompt is None:
        check_idle(OF_TEXTS, "is of texts that go on from a prompt: give --prompt too")
    seed = options["seed"] if noise_seed is None else noise_seed
    texts = prompt is not None and samples
    sampling = Sampling(samples, new_tokens, temperature, top_k, top_p, seed) if texts else None
    analysis, tell = open_analysis(model, options)
    if prompt is not None:
        analysis.check_prompt(prompt, chat=chat, new_tokens=new_tokens if texts else 0, progress=tell)
    edits = tuple(edits_of(analysis, tokens, ratios, tell)) if tokens else ()
    wanted = Wanted(edits, direction, calibrate, prompt, chat, sampling)
    command = shlex.join(["headscope", *sys.argv[1:]])
    dynamics = bundled() if model == "demo" else None
    found = report_of(analysis, wanted, dynamics=dynamics, command=command, progress=tell)
    path = write_report(found, out)
    tell.end()
    figures = sum(len(section.charts) for section in found.sections)
    result = {"path": str(path), "bytes": path.stat().st_size, "figures": figures}
    deliver(result, json_path, f"{path}\n{figures} figures, {path.stat().st_size / 1e6:.1f} MB; it needs no network.")
