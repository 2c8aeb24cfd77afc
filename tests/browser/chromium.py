"""Finds a Chromium for the browser tests, or gets one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "brave")
USUAL_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
)
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MISSING = (
    "The browser tests need Chrome or Chromium and none was found or could be installed: install it (Debian/Ubuntu: "
    "apt-get install chromium), set CHROME_PATH to it, or leave these tests out with -m 'not slow'."
)


@lru_cache(maxsize=1)
def find_chromium() -> str | None:
    """The path of a browser: one that is there, else Playwright's download, else Debian's package; None if none."""
    return _installed() or _from_playwright() or _from_debian()


def _installed() -> str | None:
    named = os.environ.get("CHROME_PATH")
    candidates = [named] if named else [*map(shutil.which, NAMES), *USUAL_PLACES, _playwrights_own()]
    return next((path for path in candidates if path and Path(path).is_file()), None)


def _playwrights_own() -> str | None:
    """Where Playwright keeps the browser it downloads, whether or not it has one."""
    asked = "from playwright.sync_api import sync_playwright as p\nwith p() as p: print(p.chromium.executable_path)"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False, timeout=60)
    return found.stdout.strip() or None


def _from_playwright() -> str | None:
    return _installed() if _done([sys.executable, "-m", "playwright", "install", "chromium"], 180) else None


def _from_debian() -> str | None:
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    _done(["apt-get", "update", "-qq"], 180)
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"]
    return _installed() if _done(install, 600) else None


def _done(command: list[str], seconds: float) -> bool:
    """Whether the command ended well within its time. What it prints is shown only where pytest shows output."""
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, env=quiet, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0
