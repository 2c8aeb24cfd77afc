"""`headscope dynamics`: the encoding over the checkpoints of a training run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from core.cli.group import cli
from core.cli.shared import OutputFolder, Telling, analysing, check_idle, deliver, is_given, settings_of, table
from core.cli.streams import remark
from core.errors import InputError
from core.settings import check_new_folder
from core.words import quoted

OF_TRAINING = ("size", "steps", "vocab", "dim", "layers", "heads", "batch", "out")
"""The options that mean nothing without --train."""
MEASURING = ("positions", "context", "held_out", "seed", "device", "dtype")
OF_THE_RUN = ("context", "held_out", "seed")
"""Of these, those that a training run's own checkpoints were split by."""


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
    "--out", type=OutputFolder(file_okay=False), help="Folder of the training run; one goes on where it stopped."
)
@click.option("--keep", type=OutputFolder(file_okay=False), help="Write the run's checkpoints small, to this folder.")
@click.option("--whole", is_flag=True, help="Download whole models from the Hub, for −log alpha and the loss.")
@analysing(corpus=None, positions=4096, context=None, held_out=None)
def dynamics(
    sources: tuple[str, ...], training: bool, out: str | None, keep: str | None, json_path: str | None, **options: Any
) -> None:
    """Watch the encoding appear over the checkpoints of SOURCES: demo, folders, org/name@step{0,1,512}."""
    from core.dynamics import finding, stand_in
    from core.kept import check_kept
    from core.model.weights import RUN
    from core.series import check_own_text, keep_series, run_folder, summary, train_series
    from core.series import dynamics as measure
    from core.store import Store

    if training == bool(sources):
        raise InputError("Give either --train or the checkpoints to read: demo, folders, or org/name@step{0,1,512}.")
    if not training:
        check_idle(OF_TRAINING, "is of a training run: give --train too")
    if training and options["whole"]:
        raise InputError("--whole is of models on the Hub, and --train has all of its own: leave one of them away.")
    if not training:
        _tell_idle(sources, options["corpus"])
    store, settings, tell = Store(options["cache"], enabled=not options["no_cache"]), settings_of(options), Telling()
    if out:
        check_new_folder(Path(out))
    run = Path(out) if out else Path(sources[0]) if len(sources) == 1 else None
    if keep:
        if not training:
            if run is None:
                raise InputError("--keep keeps one training run: give its folder alone.")
            check_own_text(run, options["corpus"])
        check_kept(Path(keep))
        if run is not None and Path(os.path.realpath(keep)).is_relative_to(os.path.realpath(run)):
            raise InputError("--keep lies in the folder of the run that it keeps: give a folder outside it.")
    if training:
        if run is not None and not os.path.exists(run / RUN):  # noqa: PTH110 (never raises)
            check_kept(run)
        from core.corpus import read_corpus

        text, chosen = read_corpus(options["corpus"] or "python-docs", progress=tell), _training(options)
        run = run or run_folder(store, text, chosen)
        remark(f"Training run: {run}")
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
    if keep and run:
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
    text_lines = [table(["step", "R² frequency", "R² −log α", "loss", ""], rows), "", finding(found)]
    if found.stand_in:
        text_lines.append(stand_in(found.corpus))
    text_lines += [f"{each.name}: {each.reason}" for each in found.missing]
    deliver(summary(found), json_path, "\n".join(text_lines))


def _tell_idle(sources: tuple[str, ...], corpus: str | None) -> None:
    """Remark on options that were given and change nothing, for the sources were measured or split before."""
    from core.kept import kept_folder
    from core.series import is_own_text

    idle: tuple[str, ...]
    if kept_folder(sources, local_paths=True) is not None:
        idle, why = MEASURING, "what was measured of a kept run is read as it is"
    elif len(sources) == 1 and is_own_text(Path(sources[0]), corpus):
        idle, why = OF_THE_RUN, "a training run is judged by the text that it left out"
    else:
        return
    given = [f"--{name.replace('_', '-')}" for name in idle if is_given(name)]
    if given:
        remark(f"headscope: {', '.join(given)} {'changes' if len(given) == 1 else 'change'} nothing here: {why}.")


def _training(options: dict[str, Any]) -> Any:
    """The size by name, with what the user wants otherwise."""
    from dataclasses import replace

    from core.train import SIZES

    if options["size"] not in SIZES:
        raise InputError(f"--size is {quoted(options['size'])}, but it must be one of {', '.join(SIZES)}.")
    names = ("steps", "vocab", "dim", "layers", "heads", "batch", "context", "held_out", "seed")
    return replace(SIZES[options["size"]], **{name: options[name] for name in names if options[name] is not None})


def _tell_checkpoint(tell: Telling) -> Callable[[Any], None]:
    """A line on stderr for every checkpoint, while a series is measured."""

    def told(found: Any) -> None:
        last = found.checkpoints[-1]
        loss = "" if last.loss is None else f", loss {last.loss:.2f} nats"
        tell.remark(f"step {last.step:,}: R² of corpus frequency {last.r2_corpus_frequency:.3f}{loss}")

    return told
