"""`headscope fit`: observe and encode."""

from __future__ import annotations

from typing import Any

import click

from core.cli.group import cli
from core.cli.shared import OutputFile, deliver, open_analysis, shared, short


@cli.command()
@click.argument("model")
@click.option("--weights", type=OutputFile(), help="CSV: dim, weight, stderr, t, p, saliency.")
@click.option("--tokens", "tokens_path", type=OutputFile(), help="CSV: id, token, count, alpha, …, residual.")
@shared
def fit(model: str, weights: str | None, tokens_path: str | None, json_path: str | None, **options: Any) -> None:
    """Observe MODEL on a corpus and fit its token probability encoding."""
    from core import summary
    from core.tables import token_table, weight_table, write_csv

    analysis, tell = open_analysis(model, options)
    found = analysis.encoding(tell)
    tell.end()
    result = summary.fit(
        found,
        model=model,
        corpus=analysis.corpus_name,
        revision=analysis.files().revision,
        seconds=analysis.seconds,
        cached=analysis.cached,
    )
    sparsity = ", ".join(
        f"{p.dims}: {p.r2_refitted:.2f}" for p in found.sparsity if p.dims in (5, 20, 50, 200, found.dim)
    )
    lines = [
        f"A straight line through {found.dim} numbers explains {100 * found.r2:.1f} % of −log alpha "
        f"({100 * found.r2_held_out_tokens:.1f} % on tokens, {100 * found.r2_held_out_text:.1f} % on text it has not seen).",
        f"{found.positions:,} positions fit, {found.positions_held_out:,} judge; {len(found.token_ids):,} tokens; "
        f"residuals spread by {short(found.residual_std)} nats.",
        f"cos(A, −mean h) = {found.cosine_minus_mean_hidden:.3f}; log Z spreads by {found.log_z_std:.2f} nats; effective "
        f"dimensions {found.effective_dims:.0f} of {found.dim}.",
        f"R² with the most salient dimensions only: {sparsity}.",
        *found.warnings,
        *([found.note] if found.note else []),
        f"{analysis.seconds:.1f} s{' (from the cache)' if analysis.cached else ''}",
    ]
    deliver(result, json_path, "\n".join(lines))
    if weights is not None:
        write_csv(weight_table(found), weights)
    if tokens_path is not None:
        write_csv(token_table(found), tokens_path)
