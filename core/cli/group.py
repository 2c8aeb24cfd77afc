"""The command `headscope`: every failure ends in one sentence and an exit code."""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click

from core import __version__
from core.cli.streams import Remarks, arriving, prepare, remark, told_to_stop
from core.errors import Cancelled, HeadscopeError, is_out_of_memory
from core.foreign import check_environment

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_told_usually = sys.unraisablehook


class _Command(click.Command):
    """A command whose help arrives, or one sentence says why not."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with arriving():  # all that is printed while arguments are read is the help and the version
            return super().make_context(*args, **kwargs)


class _Group(_Command, click.Group):
    """A group whose commands end with one sentence and the right exit code instead of a traceback."""

    command_class = _Command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        prepare()
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice to programmers is none to a user
        with contextlib.suppress(ValueError):  # not the main thread: then others decide what ends it
            signal.signal(signal.SIGTERM, _terminated)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, behind a shell
                signal.signal(signal.SIGINT, _terminated)
            sys.unraisablehook = _unraisable
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            remark(f"headscope: {_sentence(error)}")
            sys.exit(2)
        except (KeyboardInterrupt, click.Abort, Cancelled):
            _stopped()
        except HeadscopeError as error:
            remark(f"headscope: {error}", instead=sys.stderr.isatty())
            if _debug():
                raise
            sys.exit(error.exit_code)
        except BrokenPipeError:
            os._exit(0)
        except BaseException as error:
            if told_to_stop and not _debug():  # code that is being loaded makes an ImportError of it
                _stopped()
            if is_out_of_memory(error) and not _debug():
                remark("headscope: There is not enough memory: use fewer --positions or a smaller model.")
                sys.exit(1)
            panic = type(error).__name__ == "PanicException"  # of Rust, in tokenizers; it is no Exception
            if _debug() or not (panic or isinstance(error, Exception)):
                raise
            said = (str(error).strip().splitlines() or [""])[0][:300]
            if panic:
                remark(f"headscope: The model's tokenizer failed on this text: {said}; --debug shows where.")
            else:
                remark(f"headscope: This failed unexpectedly ({type(error).__name__}: {said}); --debug shows where.")
            sys.exit(1)


def _sentence(error: click.ClickException) -> str:
    """What click refused, and where it is said what is allowed."""
    said = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return f"{said}."
    return f"{said}{' ' if said.endswith('?') else '; '}{context.command_path} --help shows what is allowed."


def _terminated(number: int, _: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: what it holds is let go of on the way out."""
    told_to_stop.append(number)
    if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
        _say_stopped()  # an exception while torch is loaded may end in C++, as a crash
        os._exit(_exit_code())
    raise KeyboardInterrupt


def _unraisable(what: UnraisableHookArgs) -> None:
    """Where Python lets no error through, as while an object is let go of, Ctrl-C would be printed and lost: it comes again."""
    if told_to_stop and issubclass(what.exc_type, KeyboardInterrupt):
        _thread.start_new_thread(_once_more, (told_to_stop[-1],))
    else:
        _told_usually(what)


def _once_more(number: int) -> None:
    time.sleep(0.01)  # by then the hook, which lets nothing through either, is left
    _thread.interrupt_main(signal.Signals(number))


def _stopped() -> NoReturn:
    _say_stopped()
    sys.exit(_exit_code())


def _say_stopped() -> None:
    remark("\nStopped; the same command goes on from what could be kept.")


def _exit_code() -> int:
    return 143 if signal.SIGTERM in told_to_stop else 130


def _debug() -> bool:
    return "--debug" in sys.argv


@click.group(
    "headscope", cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="headscope")
@click.pass_context
def cli(context: click.Context) -> None:
    """Open up the output head of a causal language model: measure, steer and explore its token probability encoding.

    Without a command the dashboard opens in the browser.
    """
    check_environment()
    logging.basicConfig(format="headscope: %(message)s", level=logging.WARNING, handlers=[Remarks()])
    if context.invoked_subcommand is None:
        context.invoke(cli.commands["app"])
