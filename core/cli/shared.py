"""What the commands share: their options, progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from core.cli.streams import remark, say, say_json, told_to_stop
from core.errors import InputError
from core.settings import DEVICES, DTYPES, Settings, step_of
from core.words import quoted, whole_characters

if TYPE_CHECKING:
    from core.analysis import Analysis
    from core.steering import Edit

Command = Callable[..., None]


def analysing(**defaults: Any) -> Callable[[Command], Command]:
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
    return _with(*options, *OUTPUT)


def _with(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """The decorator that gives a command these options, in this order."""
    return lambda function: functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), function)


class OutputFile(click.ParamType):
    """A file to write, of which is said before the work when it cannot be."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from core.store import check_place

        path = os.path.expanduser(value)  # noqa: PTH111 (lets an empty name and an unknown user be)
        to_output = value == "-" and param is not None and param.name == "json_path"
        if value == "-" and param is not None and not to_output:
            raise InputError(
                f"{param.opts[0]} takes the path of a file, and - means the output for --json only: give /dev/stdout, or "
                "./- for a file of that name."
            )
        if not to_output:
            check_place(path)
        if param is not None and ctx is not None:
            _check_alone("/dev/stdout" if to_output else path, param, ctx)
        return path


class Folder(click.Path):
    """A folder; `~` at its beginning is the user's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "-" and param is not None:
            raise InputError(f"{param.opts[0]} takes the path of a folder: give one, or ./- for a folder of that name.")
        path = os.path.expanduser(value)  # noqa: PTH111 (lets an empty name and an unknown user be)
        return str(super().convert(path, param, ctx))


class OutputFolder(Folder):
    """A folder to write, that no other option writes to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = super().convert(value, param, ctx)
        if param is not None and ctx is not None:
            _check_alone(path, param, ctx)
        return path


def _check_alone(path: str, param: click.Parameter, context: click.Context) -> None:
    """Raises `InputError` if another option writes to the same place: the last of them would replace the others, and JSON
    with something else before or after it is none."""
    from core.store import handed_over

    taken = _taken(context)
    number = handed_over(path)
    place = Path(os.path.realpath(path)) if number is None else number  # a link to itself is told of by who writes
    other = taken.setdefault(place, param)
    if other.name == param.name:
        return
    takes_all = isinstance(place, int) or (
        place.exists() and not place.is_file() and not place.is_dir()
    )  # terminal, pipe
    if not takes_all or "json_path" in (other.name, param.name):
        shown = "the output" if number == OUTPUT_NUMBER else quoted(path)
        raise InputError(f"{other.opts[0]} and {param.opts[0]} both write to {shown}: give each a place of its own.")


def _taken(context: click.Context) -> dict[int | Path, click.Parameter]:
    """Where the options of the running command write to: paths, or the numbers of open files."""
    return context.meta.setdefault(f"{__name__}.outputs", {})


OUTPUT_NUMBER = 1
"""Of the open file that is the output."""


OUTPUT = (
    click.option("--cache", type=Folder(file_okay=False), help="Where models and results are kept."),
    click.option("--no-cache", is_flag=True, help="Neither read nor write results."),
    click.option(
        "--json", "json_path", type=OutputFile(), metavar="PATH|-", help="Write JSON to a file, or - for stdout."
    ),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)


shared = analysing()


output = _with(*OUTPUT)


with_edits = _with(
    click.option("--token", "tokens", multiple=True, help='A token, blank included: " Paris", or id:123. Repeats.'),
    click.option("--ratio", "ratios", type=float, multiple=True, help="Times its mean probability; one per token."),
    click.option("--direction", default="minimum-variance", show_default=True, help="saliency, least-norm, top-k:K, …"),
    click.option("--calibrate/--no-calibrate", default=True, help="Solve the step size on the fitting part."),
)


def check_edits(tokens: tuple[str, ...]) -> None:
    """Whether what says how tokens are steered has tokens to steer.

    Raises:
        InputError: such an option is given, but no token.
    """
    for name, option in (("ratios", "--ratio"), ("direction", "--direction"), ("calibrate", "--[no-]calibrate")):
        if not tokens and is_given(name):
            raise InputError(
                f"{option} says how a token is steered, but no token is named: give --token too, or leave it away."
            )


def is_given(name: str) -> bool:
    """Whether the running command's option stands on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def check_idle(names: Iterable[str], why: str) -> None:
    """Raises `InputError` if one of these options is given, which would change nothing: `why` says of what it is."""
    idle = next((name for name in names if is_given(name)), None)
    if idle is not None:
        raise InputError(f"--{idle.replace('_', '-')} {why}, or leave it away.")


with_pruning = _with(
    click.option("--method", help="Prune the head first: saliency, compensated, greedy, rotated, …"),
    click.option("--remove", "removed", type=float, help="Share of the dimensions that goes, 0 to 1."),
)


def open_analysis(model: str, options: dict[str, Any]) -> tuple[Analysis, Telling]:
    """What is known of a model, and what tells how far it is; nothing is read yet."""
    from core.analysis import Analysis
    from core.store import Store

    store, tell = Store(options["cache"], enabled=not options["no_cache"]), Telling()
    return Analysis(model, options["corpus"], settings_of(options), store, reading=tell), tell


def settings_of(options: dict[str, Any]) -> Settings:
    names = ("positions", "context", "held_out", "seed", "device", "dtype")
    return Settings(**{name: options[name] for name in names if options[name] is not None})


with_sampling = _with(
    click.option("--new-tokens", type=int, default=40, show_default=True),
    click.option("--temperature", type=float, default=1.0, show_default=True),
    click.option("--top-k", type=int, default=0, help="0 keeps all."),
    click.option("--top-p", type=float, default=1.0, show_default=True),
    click.option("--noise-seed", type=int, help="Of the noise the texts are drawn with; --seed if not given."),
)


SILENT = 10.0
"""Seconds after which a log is told how far a step is."""


class Telling:
    """Progress on stderr, unheard if that is closed: on a terminal one line that rewrites itself; elsewhere one line per step,
    and for a long step another every `SILENT` seconds. Where a step says nothing for so long, that is said."""

    def __init__(self) -> None:
        self.phrase, self.shown, self.live = "", 0.0, sys.stderr is not None and sys.stderr.isatty()
        self.heard, self._over = 0.0, threading.Event()
        self._silence = threading.Thread(target=self._tell_silence, name="headscope-silence", daemon=True)
        if context := click.get_current_context(silent=True):
            context.call_on_close(self._hush)

    def __call__(self, phrase: str, share: float | None) -> None:
        if told_to_stop:
            raise KeyboardInterrupt
        now, fresh = time.monotonic(), step_of(phrase) != step_of(self.phrase)
        if not self.heard:
            self._silence.start()
        self.heard = now
        if fresh or now - self.shown > (0.2 if self.live else SILENT) or (self.live and share == 1.0):
            percent = "" if share is None or (fresh and not self.live) else f" {100 * share:3.0f} %"
            remark(f"{phrase} …{percent}", instead=self.live, end=not self.live)
            self.shown = now
        self.phrase = phrase

    def _tell_silence(self) -> None:
        while not self._over.wait(min(1.0, SILENT)):
            now = time.monotonic()
            if now - self.heard > SILENT and (self.live or now - self.shown > SILENT):
                remark(
                    f"{self.phrase} … nothing new for {now - self.heard:.0f} s", instead=self.live, end=not self.live
                )
                self.shown = now

    def _hush(self) -> None:
        """No silence is told from now on; a line of it that is being said has arrived (or is stuck: it is not waited for)."""
        self._over.set()
        if self._silence.is_alive():
            self._silence.join(timeout=1)

    def remark(self, text: str) -> None:
        """Say something in between; the progress goes on below it."""
        self._clear()
        remark(text)

    def end(self) -> None:
        self._hush()
        self._clear()

    def _clear(self) -> None:
        if self.live and self.phrase:
            remark(instead=True, end=False)


def deliver(result: dict[str, Any], json_path: str | None, text: str) -> None:
    """Print for people, or write JSON (NaN and infinity become null: JSON has no such numbers).

    Raises:
        InputError: the file cannot be written; the JSON is printed then, so that the work is not lost.
        AnalysisError: the output cannot be written.
    """
    # where an option writes to the output, nothing else stands there
    tell = remark if OUTPUT_NUMBER in _taken(click.get_current_context()) else say
    if json_path is None:
        tell(text)
        return
    from core.results import plain
    from core.store import write_text

    document = whole_characters(json.dumps(plain(result), ensure_ascii=False, allow_nan=False))
    if json_path == "-":
        say_json(document)
        return
    try:
        write_text(json_path, document + "\n")
    except InputError as error:
        say_json(document)
        raise InputError(f"{str(error).rstrip('.')}; the result stands in the output instead.") from error
    if sys.stdout is not None:
        tell(text)


def short(value: float) -> str:
    """Three significant digits, as people say them."""
    return "–" if not math.isfinite(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in (header, *rows)]  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def edits_of(analysis: Analysis, tokens: tuple[str, ...], ratios: tuple[float, ...], tell: Telling) -> list[Edit]:
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
            tell.remark(choice.note)
        edits.append(Edit(choice.id, ratio))
    return edits


def numbers(text: str, option: str, kind: type[float] | type[int]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{option} is {quoted(text)}, but it must be numbers with commas, as 0.1,1,10 or 16,64."
        ) from error
