"""`headscope generate`: texts before and after."""

from __future__ import annotations

from typing import Any

import click

from core.cli.group import cli
from core.cli.shared import Telling, deliver, edits_of, open_analysis, shared, short, with_edits


@cli.command()
@click.argument("model")
@click.option("--prompt", required=True, help="What the texts go on from.")
@with_edits
@click.option("--samples", type=int, default=8, show_default=True)
@click.option("--new-tokens", type=int, default=40, show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int, default=0, help="0 keeps all.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--noise-seed", type=int, help="Of the noise the texts are drawn with; --seed if not given.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@shared
def generate(
    model: str,
    prompt: str,
    tokens: tuple[str, ...],
    ratios: tuple[float, ...],
    direction: str,
    calibrate: bool,
    samples: int,
    new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    noise_seed: int | None,
    chat: bool,
    json_path: str | None,
    **options: Any,
) -> None:
    """Sample texts before and after steering, with the same noise on both sides."""
    from core import summary
    from core.results import Sampling

    sampling = Sampling(
        samples, new_tokens, temperature, top_k, top_p, options["seed"] if noise_seed is None else noise_seed
    )
    analysis, tell = open_analysis(model, options), Telling()
    steering = None
    if tokens:
        steering = analysis.steer(edits_of(analysis, tokens, ratios, tell), direction, calibrate, tell)
    found = analysis.generate(prompt, steering, sampling, chat=chat, progress=tell)
    tell.end()
    lines = []
    for number, (before, after) in enumerate(zip(found.before_texts, found.after_texts, strict=True), start=1):
        lines += [f"{number} before  {before!r}", f"{number} after   {after!r}", ""]
    for c in found.counts:
        lines.append(
            f"{c.token!r}: {c.after} of {found.steps_after} tokens, {c.before} before; expected {short(c.expected_after)} "
            f"after, {short(c.expected_before)} before (95 % over texts: {short(c.low)} to {short(c.high)})."
        )
    deliver(summary.texts(found, model=model), json_path, "\n".join(lines).rstrip())
