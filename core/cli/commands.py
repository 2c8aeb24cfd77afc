"""Every command, each in a module of its own, under the one name `headscope`."""

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
    "model",
    "prune",
    "report",
    "steer",
    "sweep",
]
