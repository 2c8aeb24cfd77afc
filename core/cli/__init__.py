"""The command line: each command is one call of `core`, printed for people or, with `--json`, for programs.

Exit codes: 0 done; 1 the analysis failed, with a reason; 2 wrong arguments or input, with the remedy. No traceback
unless `--debug`. With `--json -` one JSON object is all that stands on stdout; progress goes to stderr.
"""

from __future__ import annotations

from core.cli import app, bench, compare, dynamics, export, fit, generate, model, prune, report, steer, sweep
from core.cli.group import cli

__all__ = [
    "app",
    "bench",
    "cli",
    "compare",
    "dynamics",
    "export",
    "fit",
    "generate",
    "main",
    "model",
    "prune",
    "report",
    "steer",
    "sweep",
]


def main() -> None:
    """Entry point of the console script."""
    cli()
