"""The command `headscope`: every failure ends in one sentence and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from typing import Any

import click

from core import __version__
from core.errors import Cancelled, HeadscopeError


class _Group(click.Group):
    """A group whose commands end with one sentence and the right exit code instead of a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(ValueError):  # not the main thread: then others decide what ends it
            signal.signal(signal.SIGTERM, _terminated)
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except (KeyboardInterrupt, click.Abort, Cancelled):
            click.echo("\nStopped; the same command goes on from what could be kept.", err=True)
            sys.exit(143 if _told else 130)
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


_told: list[int] = []  # the signals that asked for an end; click and Ray make exceptions of their own of ours


def _terminated(number: int, _: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: what it holds is let go of on the way out."""
    _told.append(number)
    raise KeyboardInterrupt


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
        context.invoke(cli.commands["app"])
