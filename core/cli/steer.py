"""`headscope steer` and `headscope directions`: edits, measured."""

from __future__ import annotations

import math
from typing import Any

import click

from core.cli.group import cli
from core.cli.shared import (
    check_idle,
    deliver,
    edits_of,
    numbers,
    open_analysis,
    shared,
    short,
    table,
    with_edits,
)
from core.errors import InputError
from core.words import quoted


@cli.command()
@click.argument("model")
@with_edits
@click.option("--sweep", help="Ratios with commas: the first token at each of them.")
@click.option("--few-shot", help="Numbers of positions with commas: the direction from so few.")
@click.option("--prompt", help="Also the next token after this text, before and after the edit.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@shared
def steer(
    model: str,
    tokens: tuple[str, ...],
    ratios: tuple[float, ...],
    direction: str,
    calibrate: bool,
    sweep: str | None,
    few_shot: str | None,
    prompt: str | None,
    chat: bool,
    json_path: str | None,
    **options: Any,
) -> None:
    """Multiply the mean probability of tokens and measure what happens on held-out text."""
    from core import summary
    from core.results import FewShotPoint, NextToken
    from core.steering import SweepPoint, check_direction

    check_direction(direction)
    if prompt is None:
        check_idle(["chat"], "wraps a prompt: give --prompt too")
    sweep_ratios = (
        [] if sweep is None else [_positive(ratio) for ratio in dict.fromkeys(numbers(sweep, "--sweep", float))]
    )
    sizes = [] if few_shot is None else list(dict.fromkeys(numbers(few_shot, "--few-shot", int)))
    analysis, tell = open_analysis(model, options)
    if prompt is not None:
        analysis.check_prompt(prompt, chat=chat, progress=tell)
    edits = edits_of(analysis, tokens, ratios, tell)
    found = analysis.steer(edits, direction, calibrate, tell)
    baselines = analysis.baselines(edits, tell)
    rows = [
        [repr(t.token), short(t.target), short(t.realised), short(t.realised_held_out), f"1 in {short(1 / t.alpha)}",
         short(t.max_ratio), short(t.delta_norm)] for t in found.tokens
    ]  # fmt: skip
    text = [table(["token", "asked ×", "fitting ×", "held-out ×", "before", "at most ×", "‖ΔE‖"], rows), ""]
    rows = [
        [s.direction, short(s.tokens[0].realised_held_out), short(s.kl), short(s.js), f"{s.top1_agreement:.3f}",
         short(s.others_drift)] for s in (found, *baselines)
    ]  # fmt: skip
    text.append(table(["held-out", "first token ×", "KL nats", "JS nats", "top-1 stays", "others drift"], rows))
    points: tuple[SweepPoint, ...] | None = None
    shots: tuple[FewShotPoint, ...] | None = None
    at_prompt: NextToken | None = None
    if sweep_ratios:
        points = analysis.sweep(edits, sweep_ratios, direction, calibrate, tell)
        rows = [[short(p.ratio), short(p.realised), short(p.realised_held_out), short(p.kl)] for p in points]
        text += ["", table(["asked ×", "fitting ×", "held-out ×", "KL nats"], rows)]
        reached, first = {point.ratio for point in points}, found.tokens[0]
        if left := [f"{short(ratio)}×" for ratio in sweep_ratios if ratio not in reached]:
            text.append(f"Left out: {', '.join(left)}, for {first.token!r} reaches at most {short(first.max_ratio)}×.")
    if sizes:
        shots = analysis.few_shot(edits, sizes, direction, tell)
        rows = [[f"{p.positions:,}", short(p.realised_held_out[0]), short(p.log_error)] for p in shots]
        text += ["", table(["positions", "held-out ×", "|log error|"], rows)]
    if prompt is not None:
        at_prompt = analysis.next_token(prompt, found, chat=chat)
        rows = [
            [repr(token), short(before), short(after)]
            for token, before, after in zip(at_prompt.tokens, at_prompt.before, at_prompt.after, strict=True)
        ]
        text += ["", table(["next token", "before", "after"], rows)]
    tell.end()
    result = summary.steer(
        found,
        model=model,
        corpus=analysis.corpus_name,
        baselines=baselines,
        sweep=points,
        few_shot=shots,
        at_prompt=at_prompt,
    )
    deliver(result, json_path, "\n".join(text))


@cli.command()
@click.argument("model")
@click.option("--tokens", "count", type=click.IntRange(1, 1000), default=60, show_default=True, help="Tokens tried.")
@click.option("--ranks", default="200:5000", show_default=True, help="FIRST:LAST by mean probability.")
@click.option("--ratios", default="0.05,2,5,20,100", show_default=True)
@shared
def directions(model: str, count: int, ranks: str, ratios: str, json_path: str | None, **options: Any) -> None:
    """Compare all directions over many tokens: median |log(realised / asked)|, on held-out text and on the fitting part."""
    first, _, last = ranks.partition(":")
    if not all(rank.isdecimal() and len(rank) < 10 for rank in (first, last)):
        raise InputError(f"--ranks is {quoted(ranks)}, but it must be FIRST:LAST, as 200:5000.")
    wanted = [_positive(ratio) for ratio in numbers(ratios, "--ratios", float)]
    analysis, tell = open_analysis(model, options)
    analysis.encoding(tell)
    ids = analysis.tokens_of_rank(int(first), int(last), count)
    rows = analysis.compare_directions(ids, wanted, progress=tell)
    tell.end()
    result = {
        "model": model,
        "corpus": analysis.corpus_name,
        "ranks": ranks,
        "tokens": ids,
        "rows": [vars(r) for r in rows],
    }
    lines = [f"{len(ids)} tokens of rank {ranks}; median |log(realised / asked)| on held-out text", ""]
    for calibrated, title in ((False, "as given"), (True, "calibrated on the fitting part")):
        body = [
            [row.direction, *map(_error, row.held_out, row.reached), f"{_largest(row.fit):.1e}"]
            for row in rows
            if row.calibrated == calibrated
        ]
        lines += [table([title, *(f"{ratio:g}×" for ratio in wanted), "largest on fitting part"], body), ""]
    lines.append(
        "In brackets: the share of tokens for which the direction reaches that ratio at all, where it is not 100 %."
    )
    deliver(result, json_path, "\n".join(lines))


def _error(error: float, reached: float) -> str:
    if math.isnan(error):
        return "–"
    return f"{error:.3f}" + ("" if reached == 1 else f" ({100 * reached:.0f} %)")


def _largest(values: tuple[float, ...]) -> float:
    """The largest of the values that are numbers."""
    return max((v for v in values if math.isfinite(v)), default=math.nan)


def _positive(ratio: float) -> float:
    from core.steering import Edit

    return Edit(0, ratio).ratio
