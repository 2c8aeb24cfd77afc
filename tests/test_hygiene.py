"""Every file of the project can be read and used anywhere: no path of one machine, no dead link, nothing huge."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LARGEST = 5_000_000
DEMO = ROOT / "assets" / "demo"
DEMO_LARGEST = 40_000_000
"""The bundled model with its checkpoints and results, all together."""

MACHINE_PATHS = ("work", "farm", "root", "tmp", "home", "Users")
REGISTRY_HOSTS = ("pypi", "npmjs", "debian", "pythonhosted")
SPOTS = re.compile(
    r"(?<![\w.:/~}$-])/(?:" + "|".join(MACHINE_PATHS) + r")/\w"
    r"|\b(?:[\w-]+\.)*(?:" + "|".join(REGISTRY_HOSTS) + r")\.(?:org|com)\b(?!/project/)"
    r"|huggingface\.co/simple"
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|(?:src|srcset|href)=\"([^\"\s]+)")


def files() -> list[Path]:
    """The files git tracks or would track; all files where the project was unpacked without git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        return [path for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str | None:
    """The file's text, or None if it is not text."""
    raw = path.read_bytes()
    return None if b"\0" in raw[:8192] else raw.decode("utf-8", errors="replace")


def spots(text: str) -> list[str]:
    """Absolute paths of some machine, and addresses of package registries."""
    return [match.group() for match in SPOTS.finditer(text)]


def dead_links(markdown: str, folder: Path) -> list[str]:
    """Relative links and images of a page that lead to no file."""
    targets = [first or second for first, second in LINK.findall(markdown)]
    inside = [target for target in targets if not re.match(r"[a-z]+:|#", target)]
    return [target for target in inside if not (folder / target.split("#")[0]).exists()]


def test_no_path_of_a_machine_and_no_registry() -> None:
    found = [(path.relative_to(ROOT).as_posix(), spots(text_of(path) or "")) for path in files()]
    assert [each for each in found if each[1]] == []


def test_no_file_is_huge() -> None:
    assert [path.name for path in files() if path.stat().st_size > LARGEST and DEMO not in path.parents] == []


def test_the_bundled_model_is_small() -> None:
    assert 0 < sum(path.stat().st_size for path in files() if DEMO in path.parents) <= DEMO_LARGEST


def test_links_lead_somewhere() -> None:
    pages = [path for path in files() if path.suffix == ".md" and "assets" not in path.relative_to(ROOT).parts]
    assert {page.name: dead_links(page.read_text("utf-8"), page.parent) for page in pages} == {
        page.name: [] for page in pages
    }
    assert ROOT / "README.md" in pages


@pytest.mark.parametrize("host", [f"https://{name}.org/simple" for name in REGISTRY_HOSTS])
def test_a_registry_is_seen(host: str) -> None:
    assert spots(f"see {host}")


@pytest.mark.parametrize("folder", MACHINE_PATHS)
def test_a_path_of_a_machine_is_seen(folder: str) -> None:
    assert spots(f'open("/{folder}/ab")')


def test_ordinary_text_passes() -> None:
    inner = "/".join(("a", "work", "b"))
    assert spots(f"and/or {inner} https://example.org/home/page ~{inner[1:]} $HOME{inner[1:]} 1/10") == []


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "here.md").touch()
    page = '[a](here.md#part) [b](#top) [c](https://example.org) ![d](gone.png "x") <img src="lost.png">'
    assert dead_links(page, tmp_path) == ["gone.png", "lost.png"]
