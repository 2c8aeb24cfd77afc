"""Start the dashboard from the command line."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

from core.errors import AnalysisError, InputError
from core.model.names import parse_model

MODEL_VARIABLE = "HEADSCOPE_MODEL"
"""How the model named on the command line reaches the pages."""


def run(host: str, port: int, model: str | None = None, classroom: bool = False, browser: bool = True) -> None:
    """Serve the dashboard until it is interrupted.

    Args:
        host: a loopback address: `localhost`, `127.0.0.1` or `::1`.
        port: a free port from 1 to 65535.
        model: chosen when a page is first opened.
        classroom: not there yet.
        browser: open the page in the user's browser as soon as the server answers.

    Raises:
        InputError: a host, port or model that cannot be.
        AnalysisError: the port is in use.
    """
    if classroom or not _is_loopback(host):
        raise InputError(
            f"The dashboard serves this computer only (--host localhost), not {host!r}: the classroom mode that would "
            "make it safe for others is not there yet."
            if not _is_loopback(host)
            else "The classroom mode is not there yet: leave --classroom out."
        )
    if not 1 <= port <= 65535:
        raise InputError(f"--port is {port}, but it must be from 1 to 65535.")
    if model:
        parse_model(model)
        os.environ[MODEL_VARIABLE] = model
    _require_free(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if browser:
        threading.Thread(target=_open_when_ready, args=(address,), daemon=True).start()
    server = Path(__file__).with_name("server.py")
    sys.argv = ["streamlit", "run", str(server), f"--server.port={port}", f"--server.address={host}"]
    import streamlit.web.cli

    streamlit.web.cli.main()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AnalysisError(
                f"Port {port} on {host} cannot be used ({error.strerror or error}): is Headscope running already? "
                f"Choose another with --port, for example --port {port % 65535 + 1}."
            ) from None


def _open_when_ready(address: str, patience: float = 60.0) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
                webbrowser.open(address)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
