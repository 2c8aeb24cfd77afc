"""The command line: each command is one call of `core`, printed for people or, with `--json`, for programs.

Exit codes: 0 done; 1 the analysis failed, with a reason; 2 wrong arguments or input, with the remedy. No traceback
unless `--debug`. With `--json -` one JSON object is all that stands on stdout; progress goes to stderr.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the console script; the commands are loaded inside it, so that Ctrl-C ends that quietly too."""
    try:
        from core.cli.commands import cli
    except KeyboardInterrupt:
        print("\nStopped before anything was begun.", file=sys.stderr, flush=True)
        os._exit(130)
    cli()
