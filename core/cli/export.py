"""`headscope export`: an edited model as an ordinary checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from core.cli.group import cli
from core.cli.shared import (
    OutputFolder,
    deliver,
    edits_of,
    open_analysis,
    shared,
    short,
    table,
    with_edits,
    with_pruning,
)
from core.words import size

if TYPE_CHECKING:
    from core.export.result import Exported


@cli.command()
@click.argument("model")
@with_edits
@with_pruning
@click.option("--out", required=True, type=OutputFolder(), help="A new folder for the checkpoint.")
@shared
def export(
    model: str,
    tokens: tuple[str, ...],
    ratios: tuple[float, ...],
    direction: str,
    calibrate: bool,
    method: str | None,
    removed: float | None,
    out: str,
    json_path: str | None,
    **options: Any,
) -> None:
    """Write MODEL with tokens steered, dimensions pruned, or both, to a folder that stock transformers loads.

    --dtype is the precision of the export too. Before the folder appears, another process loads it and compares.
    """
    from core.export.change import check_change
    from core.export.place import check_target
    from core.steering import Edit

    named = [
        Edit(at, 1.0) for at, _ in enumerate(tokens or ratios)
    ]  # what is wrong is said before anything is computed
    check_change(named, direction, method, removed)
    check_target(out)
    analysis, tell = open_analysis(model, options)
    edits = edits_of(analysis, tokens, ratios, tell) if named else []
    found = analysis.export(out, edits, direction, calibrate, method=method, removed=removed, progress=tell)
    tell.end()
    deliver(asdict(found), json_path, _told(found))


def _told(found: Exported) -> str:
    """The export in a few lines for people."""
    effect, pruning = found.effect, found.pruning
    lines = [f"{found.path}"]
    if found.tokens:
        rows = [
            [repr(t.token), short(t.target), short(t.realised_held_out), f"1 in {short(1 / t.alpha)}"]
            for t in found.tokens
        ]
        lines += ["", table(["token", "asked ×", "held-out ×", "before"], rows), ""]
    if pruning is not None:
        lines.append(f"Pruned ({pruning.method}): {pruning.dims} of {pruning.dim} dimensions are left.")
    lines.append(
        f"On {effect.positions:,} held-out contexts, rounded to {found.dtype}: KL {short(effect.kl)} nats, the top "
        f"prediction stays in {100 * effect.top1_agreement:.1f} %, perplexity {short(effect.perplexity)} "
        f"({short(effect.perplexity_before)} before)."
    )
    lines.append(
        f"Head {size(found.head_bytes)}, before {size(found.head_bytes_before)}"
        f"{' (shared with the input embedding, now its own)' if found.was_tied else ''}; whole model "
        f"{size(found.model_bytes)}, before {size(found.model_bytes_before)}."
    )
    if pruning is not None:
        lines.append(
            "The pruned head is stored dense, V×d: transformers knows no factored head, so nothing gets smaller."
        )
    lines.append(
        f"Stock transformers reloaded it in another process: logits differ by at most {short(found.max_logit_error)} from "
        f"those promised, and {found.generated} tokens were generated. What was done stands in headscope.json."
    )
    return "\n".join(lines)
