"""Start the dashboard from the command line: for this computer, for a class, or for whoever reaches it."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

from app import environment, guard
from core.errors import AnalysisError, InputError

LOCAL_HOST = "localhost"
EVERYWHERE = "0.0.0.0"


def run(
    host: str | None,
    port: int,
    model: str | None = None,
    corpus: str | None = None,
    *,
    classroom: bool = False,
    public: bool = False,
    browser: bool = True,
) -> None:
    """Serve the dashboard until it is interrupted.

    Args:
        host: a loopback address (`localhost`, `127.0.0.1`, `::1`); any other only for a class or the public. None: this
            computer alone, or every network that it is in for a class or the public.
        port: a free port from 1 to 65535.
        model, corpus: chosen when a page is first opened; all that a class works with.
        classroom: others may connect; model and text are fixed and loaded before anybody comes.
        public: others may connect, and choose among what comes with Headscope and the texts that they upload.
        browser: open the page in the user's browser as soon as the server answers.

    Raises:
        InputError: a host, port, model or corpus that cannot be.
        AnalysisError: the port is in use.
    """
    if classroom and public:
        raise InputError("Choose one of --classroom and --public.")
    shared = classroom or public
    host = _written_out(host or (EVERYWHERE if shared else LOCAL_HOST))
    _check_host(host)
    if not shared and not _is_loopback(host):
        raise InputError(
            f"--host {host} would let other computers in: add --classroom (one model and one text for a class) or "
            "--public (a few models, nothing of this computer's disk), or leave it at localhost."
        )
    if not 1 <= port <= 65535:
        raise InputError(f"--port is {port}, but it must be from 1 to 65535.")
    if model or corpus:
        _check(model, corpus)
    _require_free(host, port)
    address = f"http://{_in_address(_reachable(host) if shared else host)}:{port}"
    os.environ |= {
        environment.AUDIENCE_VARIABLE: "classroom" if classroom else "public" if public else "own",
        environment.MODEL_VARIABLE: model or "",
        environment.CORPUS_VARIABLE: corpus or "",
        environment.ADDRESS_VARIABLE: address if shared else "",
    }
    if shared and _is_loopback(host):
        print(f"\n  Only this computer reaches this dashboard, at {address}: leave --host away to let others in.")
    elif shared:
        print(f"\n  Others reach this dashboard at {address}" + (" (page Join: as a QR code)" if classroom else ""))
    if browser:
        page = "/join" if classroom else ""
        here = LOCAL_HOST if host in (EVERYWHERE, "::") else host
        threading.Thread(
            target=_open_when_ready, args=(f"http://{_in_address(here)}:{port}", page), daemon=True
        ).start()
    server = Path(__file__).with_name("server.py")
    options = {"server.port": port, "server.address": host}
    if shared:
        # an address that is set by hand keeps Streamlit from asking a service outside what this computer is called there
        options |= {"browser.serverAddress": _reachable(host), "server.maxUploadSize": environment.SHARED_MEGABYTES}
    sys.argv = ["streamlit", "run", str(server), *(f"--{name}={value}" for name, value in options.items())]
    import streamlit.web.cli

    guard.bound_connections()
    # the server has its own way to end, and hands on what it was told then
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    streamlit.web.cli.main(standalone_mode=False)


def _check(model: str | None, corpus: str | None) -> None:
    """Names that cannot be are refused before anything is served."""
    from core.corpus import read_corpus, self_sampled_tokens
    from core.model.names import parse_model

    if model:
        parse_model(model)
    if corpus and self_sampled_tokens(corpus) is None:
        read_corpus(corpus)


def _written_out(host: str) -> str:
    """An IPv4 address in its usual form; 0 and 127.1 are ways to write one."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if re.fullmatch(r"[0-9.]+", host) else host
    except OSError:
        return host


def _check_host(host: str) -> None:
    """Raises `InputError` for a name that means no address."""
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no name"
        raise InputError(
            f"--host {host} cannot be found ({why}): give localhost, or a name or address of this computer."
        ) from None


def _is_loopback(host: str) -> bool:
    if host == LOCAL_HOST:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reachable(host: str) -> str:
    """The address of this computer that others in its network use; the host itself where one was named."""
    if host not in (EVERYWHERE, "::"):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address kept for documentation; of a datagram socket nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(
                    f"--host {host} is not an address of this computer: give localhost, or a name or address of its own."
                ) from None
            raise AnalysisError(
                f"Port {port} on {host} cannot be used ({error.strerror or error}): is Headscope running already? "
                f"Choose another with --port, for example --port {port % 65535 + 1}."
            ) from None


def _open_when_ready(address: str, page: str = "", patience: float = 60.0) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
                webbrowser.open(address + page)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
