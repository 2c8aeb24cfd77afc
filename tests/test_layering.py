"""The arrows of the house go one way only, and torch is loaded only where it is needed.

    tokens, words -> errors -> settings -> show -> store, moments, results -> model, corpus -> observe, train -> encoding
    -> steering | pruning | dynamics -> generate, export -> similarity -> analysis -> series -> figures, cli -> app

A room imports only from layers before its own. What is imported for type checking alone counts for the arrows but
not for what gets loaded.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    {"tokens", "words"},
    {"errors"},
    {"foreign"},
    {"settings", "disk"},
    {"show"},
    {"store", "moments", "results", "records"},
    {"quality"},
    {"model", "corpus"},
    {"head_pass", "least_squares"},
    {"observe", "train", "sources"},
    {"encoding"},
    {"steering", "pruning", "dynamics"},
    {"generate", "export", "tables", "kept", "summary"},
    {"similarity"},
    {"analysis"},
    {"series", "sweep", "bench"},
    {"compare"},
    {"figures"},
    {"report"},
    {"cli"},
)
LAYER_OF = {room: depth for depth, layer in enumerate(LAYERS) for room in layer}

HEAVY = {"torch", "transformers"}
FREE_OF_TORCH = {
    "least_squares",
    "store",
    "tokens",
    "moments",
    "results",
    "corpus",
    "quality",
    "encoding",
    "steering",
    "figures",
}
TORCH_AT_THE_TOP = {"bench", "model", "head_pass", "observe", "generate", "export", "pruning"}
"""Rooms that may import torch when they are imported; all others do it inside the function that needs it."""

ONLY_IN = {
    "cache_data": "cache.py",
    "cache_resource": "cache.py",
    "session_state": "state.py",
    "query_params": "state.py",
}
"""What of Streamlit belongs to one file of `app`."""


@dataclass(frozen=True)
class Import:
    """One imported module. `loaded`: not only for type checking; `at_top`: when the importing file is imported."""

    module: str
    line: int
    loaded: bool
    at_top: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    def is_in(self, *packages: str) -> bool:
        return any(self.module == package or self.module.startswith(package + ".") for package in packages)


def imports(source: str) -> list[Import]:
    """Everything a file imports, wherever in the file; `from core import model` counts as `core.model`."""
    return list(_imports(ast.parse(source), loaded=True, at_top=True))


def _imports(node: ast.AST, loaded: bool, at_top: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, loaded, at_top) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import; the house writes them in full"
        for alias in node.names:
            yield Import(f"{node.module}.{alias.name}", node.lineno, loaded, at_top)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for checked in node.body:
            yield from _imports(checked, loaded=False, at_top=at_top)
        for other in node.orelse:
            yield from _imports(other, loaded, at_top)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, loaded, at_top and not inside)


def core_violations(room: str, source: str) -> list[str]:
    """What a file of `core` imports against the arrows. `room`: its file or folder right under `core`."""
    if room not in LAYER_OF:
        return [f"core.{room} has no layer yet; give it one in {Path(__file__).name}"]
    found = []
    for each in imports(source):
        if each.is_in("app", "streamlit"):
            found.append(f"line {each.line}: core imports {each.module}")
        if each.package == "core":
            other = each.module.partition(".")[2].split(".")[0]
            if other in LAYER_OF and other != room and LAYER_OF[other] >= LAYER_OF[room]:
                found.append(f"line {each.line}: {room} imports {other}, which is not before it")
        if each.loaded and each.package in HEAVY:
            if room in FREE_OF_TORCH:
                found.append(f"line {each.line}: {room} imports {each.module}, but works on arrays only")
            elif each.at_top and room not in TORCH_AT_THE_TOP:
                found.append(f"line {each.line}: {room} imports {each.module} at its top; do it where it is needed")
    return found


def app_violations(path: str, source: str) -> list[str]:
    """What a file of `app` does against the arrows. `path`: relative to `app`, e.g. `views/encoding.py`."""
    found = []
    for each in imports(source):
        if path.startswith("views/"):
            if each.loaded and each.package in HEAVY:
                found.append(f"line {each.line}: a view imports {each.module}")
            if each.is_in("core.model", "core.observe", "core.store"):
                found.append(f"line {each.line}: a view imports {each.module}; it goes through core.analysis")
            if each.is_in("app.views", "app.main"):
                found.append(f"line {each.line}: a view imports {each.module}")
        elif path != "main.py" and each.is_in("app.views", "app.main"):
            found.append(f"line {each.line}: {path} imports {each.module}, which comes after it")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and path != ONLY_IN.get(node.attr, path):
            found.append(f"line {node.lineno}: st.{node.attr} is for app/{ONLY_IN[node.attr]}")
    return found


def python_files(package: str) -> list[str]:
    """All files of a package but `core/__init__.py`, which gathers the public names of all rooms."""
    paths = (path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py"))
    return sorted(path for path in paths if path != "core/__init__.py")


@pytest.mark.parametrize("path", python_files("core"))
def test_core_keeps_the_arrows(path: str) -> None:
    room = path.removeprefix("core/").removesuffix(".py").split("/")[0]
    assert core_violations(room, (ROOT / path).read_text("utf-8")) == []


@pytest.mark.parametrize("path", python_files("app"))
def test_app_keeps_the_arrows(path: str) -> None:
    assert app_violations(path.removeprefix("app/"), (ROOT / path).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "module", ["core", "core.cli", "core.analysis", "core.figures", "core.model.files", "core.model.heads"]
)
def test_imports_without_torch(module: str) -> None:
    """A command that only reads a result from disk, or says that an argument is wrong, does not wait for torch."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'streamlit'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("steering", "import torch"),
        ("steering", "def f():\n    from torch import nn"),
        ("steering", "from core.pruning import prune"),
        ("steering", "from core import dynamics"),
        ("analysis", "import transformers"),
        ("encoding", "import core.analysis"),
        ("model", "from core.corpus import Corpus"),
        ("figures", "import streamlit as st"),
        ("cli", "def f():\n    import app.main"),
        ("new_room", ""),
    ],
)
def test_a_wrong_import_of_core_is_seen(room: str, source: str) -> None:
    assert len(core_violations(room, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("views/steering.py", "import torch"),
        ("views/steering.py", "from core.model import load_model"),
        ("views/steering.py", "from app.views import encoding"),
        ("widgets.py", "import app.views.steering"),
        ("widgets.py", "import streamlit as st\n@st.cache_data\ndef f(): ..."),
        ("views/steering.py", "import streamlit as st\nst.session_state['a'] = 1"),
    ],
)
def test_a_wrong_line_of_app_is_seen(path: str, source: str) -> None:
    assert len(app_violations(path, source)) == 1


def test_what_is_allowed_passes() -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import numpy"
    assert core_violations("steering", "from core.encoding import Encoding\n" + lazy) == []
    assert core_violations("analysis", "def f():\n    import torch") == []
    assert core_violations("observe", "import torch") == []
    assert app_violations("main.py", "from app.views import steering") == []
    assert app_violations("cache.py", "import streamlit as st\n@st.cache_resource\ndef f(): ...") == []
