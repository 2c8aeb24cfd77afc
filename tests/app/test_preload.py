"""Figures and the import of pandas, in a process of its own each: here pandas is imported long since."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BEGINNING = """
import sys, threading, time
from app import preload
from core.figures import Look, head

half = threading.Event()


class Slow:
    "Stops in the middle of pandas' import: its name is there, and its classes are not."

    def find_spec(self, name, path=None, target=None):
        if name == "pandas.core.api":
            half.set()
            time.sleep(0.5)


def draw():
    head.agreement(1e-6, 1e-4, 1e-2, Look())


def behind(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


sys.meta_path.insert(0, Slow())
assert "pandas" not in sys.modules
"""
FAILS_ONCE = """
class Once:
    "An import that fails once, as when the disk was busy."

    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            self.name = ""
            raise ImportError(name)


def fails_once(name, ask):
    sys.meta_path.insert(0, Once(name))
    try:
        ask()
    except ImportError:
        ask()
        return
    raise AssertionError("it did not fail")

"""
SLOWEST = "needed by the page itself, with torch"
CASES = {
    "begun before": """
behind(preload.tables)
assert half.wait(30)
with preload.drawing():
    assert hasattr(sys.modules["pandas"], "Series")
    draw()
""",
    "begun meanwhile": """
with preload.drawing():
    draw()
    importing = behind(preload.tables)
    assert not half.wait(0.5)
    draw()
importing.join()
assert hasattr(sys.modules["pandas"], "Series")
""",
    "needed by the page itself": """
with preload.drawing():
    draw()
    preload.tables()
    assert hasattr(sys.modules["pandas"], "Series")
    draw()
""",
    SLOWEST: """
with preload.drawing():
    preload.wait()
    draw()
""",
    "an import that fails": FAILS_ONCE
    + """
fails_once("pandas", preload.tables)
with preload.drawing():
    draw()
""",
    "a page that fails": """
try:
    with preload.drawing():
        raise ValueError
except ValueError:
    preload.tables()
""",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.thorough if case == SLOWEST else ()) for case in CASES]
)
def test_no_figure_is_drawn_with_half_of_pandas(case: str) -> None:
    end = "\nprint('fine')\n"
    found = subprocess.run(
        [sys.executable, "-c", BEGINNING + CASES[case] + end], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (found.stdout, found.returncode) == ("fine\n", 0), found.stderr


def test_plotly_would_take_it() -> None:
    """Without that, a figure fails; a newer Plotly may do without. On a busy machine pandas may be whole by then."""
    drawn_at_once = "\nbehind(preload.tables)\nassert half.wait(30)\ndraw()\n"

    def said() -> str:
        return subprocess.run(
            [sys.executable, "-c", BEGINNING + drawn_at_once], cwd=ROOT, capture_output=True, text=True, timeout=120
        ).stderr

    assert any("partially initialized module 'pandas'" in said() for _ in range(5))
