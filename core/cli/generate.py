"""`headscope generate`: texts before and after, and how alike and how varied they are."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

import click

from core.cli.group import cli
from core.cli.shared import (
    check_edits,
    check_idle,
    deliver,
    edits_of,
    open_analysis,
    shared,
    short,
    table,
    with_edits,
    with_pruning,
    with_sampling,
)

if TYPE_CHECKING:
    from core.results import Similarity, TextQuality


@cli.command()
@click.argument("model")
@click.option("--prompt", required=True, help="What the texts go on from.")
@with_edits
@with_pruning
@click.option("--samples", type=int, default=8, show_default=True)
@with_sampling
@click.option("--mauve", "with_mauve", is_flag=True, help="Also MAUVE, on texts drawn for it (extra mauve).")
@click.option("--mauve-texts", type=int, default=256, show_default=True, help="Texts per side for it; three sides.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@shared
def generate(
    model: str,
    prompt: str,
    tokens: tuple[str, ...],
    ratios: tuple[float, ...],
    direction: str,
    calibrate: bool,
    method: str | None,
    removed: float | None,
    samples: int,
    new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    noise_seed: int | None,
    with_mauve: bool,
    mauve_texts: int,
    chat: bool,
    json_path: str | None,
    **options: Any,
) -> None:
    """Sample texts before and after steering, pruning or both, with the same noise on both sides.

    Steering and pruning together: prune first, then steer what is left to the ratios of the model as it is.
    """
    from core import summary
    from core.pruning.names import check_pruning
    from core.quality import text_quality
    from core.results import Sampling
    from core.similarity.mauve import check_similarity

    check_edits(tokens)
    if not with_mauve:
        check_idle(["mauve_texts"], "is of MAUVE: give --mauve too")
    check_pruning(method, removed)  # what is wrong is said before anything is computed
    if with_mauve:
        check_similarity(mauve_texts)
    sampling = Sampling(
        samples, new_tokens, temperature, top_k, top_p, options["seed"] if noise_seed is None else noise_seed
    )
    analysis, tell = open_analysis(model, options)
    steering = None
    if tokens:
        analysis.check_prompt(prompt, chat=chat, new_tokens=new_tokens, progress=tell)
        steering = analysis.steer(edits_of(analysis, tokens, ratios, tell), direction, calibrate, tell)
    edit: dict[str, Any] = {"chat": chat, "method": method, "removed": removed}
    found = analysis.generate(prompt, steering, sampling, **edit, progress=tell)
    similar = None
    if with_mauve:
        similar = analysis.similarity(prompt, steering, sampling, texts=mauve_texts, **edit, progress=tell)
    tell.end()
    lines = []
    for number, (before, after) in enumerate(zip(found.before_texts, found.after_texts, strict=True), start=1):
        lines += [f"{number} before  {before!r}", f"{number} after   {after!r}", ""]
    for c in found.counts:
        lines.append(
            f"{c.token!r}: {c.after} of {found.steps_after} tokens, {c.before} before; expected {short(c.expected_after)} "
            f"after, {short(c.expected_before)} before (95 % over texts: {short(c.low)} to {short(c.high)})."
        )
    sides = text_quality(found.before), text_quality(found.after)
    if similar is not None:
        sides = similar.before, similar.after
    lines += _quality(*sides)
    if similar is not None:
        lines += ["", _mauve(similar)]
    result = summary.texts(found, model=model, method=method, removed=removed, mauve=similar)
    deliver(result, json_path, "\n".join(lines).rstrip())


def _quality(before: TextQuality, after: TextQuality) -> list[str]:
    """How varied the texts are, as a table."""
    rows = []
    for side, each in (("before", before), ("after", after)):
        distinct = map(short, (each.distinct_1, each.distinct_2, each.distinct_3))
        repeated = "–" if isnan(each.repetition) else f"{100 * each.repetition:.1f} %"
        rows.append([side, f"{each.texts:,}", f"{each.tokens:,}", *distinct, repeated])
    return [table(["", "texts", "tokens", "distinct-1", "distinct-2", "distinct-3", "repetition"], rows)]


def _mauve(found: Similarity) -> str:
    return (
        f"MAUVE {found.value:.3f} (± {found.value_std:.3f} over {found.clusterings} runs of k-means); two samples of the model "
        f"as it is get {found.ceiling:.3f} ± {found.ceiling_std:.3f}; {found.texts} independent texts per side."
    )
