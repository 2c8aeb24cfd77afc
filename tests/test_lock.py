"""The pinned packages are whole, and are those that pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK = ROOT / ".ci" / "requirements.lock"
UNPINNED = {"torch"}
"""See the head of the lock."""

pytestmark = pytest.mark.skipif(not LOCK.is_file(), reason="unpacked without its dot-folders")


def pins(text: str) -> dict[str, tuple[str, list[str]]]:
    """Name → (version, hashes); fails at whatever is neither a comment nor a package pinned to a version and hashes."""
    found = {}
    for entry in re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ").splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)(?: ; [^-]*)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", entry)
        assert match, f"not pinned with hashes: {entry[:100]}"
        found[canonicalize_name(match[1])] = (match[2], match[3].split())
    return found


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in [*project["dependencies"], *(line for extra in extras for line in extra)]]


def test_every_package_is_pinned_within_its_range() -> None:
    pinned = pins(LOCK.read_text("utf-8"))
    wrong = []
    for wanted in requirements():
        name = canonicalize_name(wanted.name)
        if name not in UNPINNED:
            version = pinned.get(name, ("none", []))[0]
            if version == "none" or not wanted.specifier.contains(Version(version), prereleases=True):
                wrong.append(f"{wanted} and the lock has {version}")
    assert wrong == [], "pin anew, as the head of .ci/requirements.lock says"
    assert not UNPINNED & pinned.keys() and len(pinned) > 80


def test_every_range_has_two_ends() -> None:
    for wanted in requirements():
        operators = {each.operator for each in wanted.specifier}
        assert operators & {">=", ">", "=="} and operators & {"<", "<=", "=="}, wanted


@pytest.mark.parametrize(
    "entry", ["numpy", "numpy>=2", "numpy==2.0", "numpy==2.0 --hash=md5:0", "-r x", "--index-url x"]
)
def test_what_is_not_pinned_is_seen(entry: str) -> None:
    with pytest.raises(AssertionError, match="not pinned"):
        pins(entry + "\n")
