"""What `pip install` puts there works away from the checkout: the command, and the texts it comes with."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import core


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder from which only what is installed can be imported."""
    try:
        metadata.distribution("headscope")
    except metadata.PackageNotFoundError:
        pytest.skip("headscope is not installed in this environment, only importable from the checkout")
    return tmp_path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_command(elsewhere: Path) -> None:
    command = str(Path(sys.executable).with_name("headscope"))
    version = run([command, "--version"], elsewhere)
    assert (version.returncode, version.stderr) == (0, "")
    assert core.__version__ in version.stdout
    wrong = run([command, "fit", "no-such-model"], elsewhere)
    assert wrong.returncode == 2
    assert "no-such-model" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_the_bundled_text_and_the_pages(elsewhere: Path) -> None:
    code = (
        "from pathlib import Path; import app; from core.corpus import read_corpus;"
        "print(read_corpus('sampler').name, Path(app.__file__).with_name('.streamlit').joinpath('config.toml').is_file())"
    )
    found = run([sys.executable, "-c", code], elsewhere)
    assert (found.returncode, found.stdout.split()) == (0, ["sampler", "True"]), found.stderr
