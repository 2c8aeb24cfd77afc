"""A small server on loopback that speaks as much of the Hub's protocol as `huggingface_hub` needs to download.

It serves model information with the files' sizes and the commit, and the files themselves with HEAD, GET and ranges.
Faults are switched on by name, so that each sentence a user may read can be provoked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "1234567890abcdef1234567890abcdef12345678"
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/revision/(?P<revision>[^?]+))?(?:\?.*)?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>[^?]+)(?:\?.*)?")


@dataclass
class TinyHub:
    """The repositories that are served, and the fault that is switched on.

    Attributes:
        repos: repository name → file name → content.
        revisions: the names under which the one commit of every repository is known.
        fault: `gated`, `unauthorized`, `forbidden`, `truncated`, a status such as `429`, or empty.
        asked: (method, path, range) of every request.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", "v2", COMMIT)
    fault: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def add(self, repo: str, folder: Path) -> None:
        """Serves a folder's files as a repository."""
        self.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def files_sent(self) -> set[str]:
        """Names of the files whose content was asked for."""
        found = (_FILE.fullmatch(path) for method, path, _ in self.asked if method == "GET")
        return {match["name"] for match in found if match}


@contextlib.contextmanager
def tiny_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[TinyHub]:
    """A running server that `huggingface_hub` takes for the Hub, with an empty cache below `home`."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    hub = TinyHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # small files arrive in several pieces too
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", _Hurried())
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Hurried:
    """The module `time` without the client's pauses between its attempts."""

    @staticmethod
    def sleep(seconds: float) -> None: ...

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


class _Handler(BaseHTTPRequestHandler):
    hub: TinyHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.asked.append((self.command, self.path, self.headers.get("Range")))
        if info := _INFO.fullmatch(self.path):
            self._model_info(info["repo"], info["revision"] or "main")
        elif file := _FILE.fullmatch(self.path):
            self._file(file["repo"], file["revision"], file["name"])
        else:
            self._refuse(404, "EntryNotFound")

    def _refused(self, repo: str, revision: str) -> bool:
        fault = self.hub.fault
        if repo not in self.hub.repos:
            self._refuse(401, "RepoNotFound")
        elif revision not in self.hub.revisions:
            self._refuse(404, "RevisionNotFound")
        elif fault == "gated":
            self._refuse(403, "GatedRepo")
        elif fault == "unauthorized":
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif fault == "forbidden":
            self._refuse(403, "")
        elif fault.isdigit():
            self._refuse(int(fault), "")
        else:
            return False
        return True

    def _model_info(self, repo: str, revision: str) -> None:
        if self._refused(repo, revision):
            return
        files = [{"rfilename": name, "size": len(data)} for name, data in self.hub.repos[repo].items()]
        answer = json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": files, "tags": []}).encode()
        self._send(200, answer, {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str) -> None:
        if self._refused(repo, revision):
            return
        data = self.hub.repos[repo].get(name)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if wanted else 200, data[start:], headers, cut=name.endswith(".safetensors"))

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and self.hub.fault.startswith("truncated"):
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            if self.hub.fault == "truncated once":
                self.hub.fault = ""
        else:
            self.wfile.write(data)
