"""The dashboard as a user starts it: `headscope app`, as a process of its own on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

ROOT = Path(__file__).parent.parent.parent
MAIN = """import faulthandler, signal
from core.cli import main
faulthandler.register(signal.SIGUSR1)
main()"""
COMMAND = (sys.executable, "-c", MAIN, "app", "--no-browser")


@dataclass(frozen=True)
class Server:
    """A running dashboard. Everything it printed is in the file `log`."""

    url: str
    log: Path
    pid: int

    def tracebacks(self) -> str:
        """What the server printed from its first traceback on; empty if there was none."""
        printed = self.log.read_text("utf-8", errors="replace")
        start = printed.find("Traceback (most recent call last)")
        return printed[start : start + 4000] if start >= 0 else ""

    def doing(self) -> str:
        """Where each of its threads is, and before that the end of what it printed: asked for when a test has failed."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(0.5)
        return self.log.read_text("utf-8", errors="replace")[-20_000:]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def kept_between_runs() -> Path:
    """The one folder that outlives a run of the tests: the real model is downloaded and converted into it once."""
    return Path(os.environ.get("HEADSCOPE_TEST_CACHE") or platformdirs.user_cache_dir("headscope-tests"))


@contextmanager
def running_app(cache: Path, log: Path, *arguments: str, seconds: float = 60, port: int = 0) -> Iterator[Server]:
    """Start the dashboard on the checked-out code with its results in `cache`; stop it at the end.

    Args:
        port: 0 for any that is free.
    """
    port = port or free_port()
    environment = os.environ | {"HEADSCOPE_CACHE": str(cache), "PYTHONFAULTHANDLER": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "--port", str(port), *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://localhost:{port}", log, process.pid)
    try:
        wait_until_healthy(process, server, seconds)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_healthy(process: subprocess.Popen[bytes], server: Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"The dashboard did not start; it printed:\n{server.log.read_text('utf-8', errors='replace')}")
