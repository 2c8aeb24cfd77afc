"""A small server on loopback that speaks as much of the Hub's protocol as `huggingface_hub` needs to download.

It serves model information with the files' sizes, the weights' SHA-256 and the commit, and the files themselves with
HEAD, GET and ranges, from several revisions of a repository. Weights can be sent on to another host, as the real Hub
does. Faults are switched on by name, so that each sentence a user may read can be provoked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "1234567890abcdef1234567890abcdef12345678"
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/revision/(?P<revision>[^?]+))?(?:\?.*)?")
_FILE = re.compile(r"/(?P<at>cdn/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>[^?]+)(?:\?.*)?")


def commit_of(repo: str, revision: str) -> str:
    """The commit of a revision that was added by name."""
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


@dataclass
class TinyHub:
    """The repositories that are served, and the faults that are switched on.

    Attributes:
        repos: repository name → file name → content.
        series: further revisions, as org/name@revision → file name → content, each with a commit of its own.
        revisions: the names under which the one commit of every repository in `repos` is known.
        fault: for everything: `gated`, `unauthorized`, `forbidden`, `truncated`, `stall` (half of a file is sent and then
            nothing more), a status such as `429`, or empty.
        switches: the same, several at once, for org/name or org/name@revision alone. Besides there are
            `weights X` (fault X, but only when weights are asked for), `redirect` (weights are sent on to another
            host), `no ranges` (asked for a range, all is sent), `other bytes` (weights are not the listed ones, and
            the server's ETag tells), `other bytes silently`, `longer` (weights have more bytes than are listed),
            `tag X`, `commit X`, `sha X` (the hash that names a file, its revision, or the listed one is X), `endless`
            (what is sent for a file goes on with blanks until the client has had enough), `other tokenizer` (of the
            listed length), `says X` (X, and not what a Hub says of a model), `bare` (files come without their headers),
            `unlisted` (no SHA-256 is listed for the weights).
            `X once` ends with the first time that weights are asked for.
        asked: (method, path, range) of every request.
        authorized: the paths that were asked for with a token.
        sent: file name → bytes of it that were sent.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    series: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", "v2", COMMIT)
    fault: str = ""
    switches: dict[str, set[str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    authorized: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    stalled: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def add(self, repo: str, folder: Path, revision: str | None = None) -> None:
        """Serves a folder's files as a repository, or as one more revision of it."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        if revision:
            self.series[f"{repo}@{revision}"] = files
        else:
            self.repos[repo] = files

    def files_sent(self) -> set[str]:
        """Names of the files whose content was asked for."""
        found = (_FILE.fullmatch(path) for method, path, _ in self.asked if method == "GET")
        return {match["name"] for match in found if match}

    def weights_sent(self) -> int:
        """Bytes of weights that were sent."""
        return sum(count for name, count in self.sent.items() if name.endswith(".safetensors"))

    def find(self, repo: str, revision: str) -> tuple[dict[str, bytes], str, str] | None:
        """Files, commit and name of a revision, which is named by itself or by its commit."""
        for name in self.series:
            of, _, known = name.partition("@")
            if of == repo and revision in (known, commit_of(repo, known)):
                return self.series[name], commit_of(repo, known), name
        if repo in self.repos and revision in self.revisions:
            return self.repos[repo], COMMIT, repo
        return None

    def has(self, repo: str) -> bool:
        return repo in self.repos or any(name.startswith(f"{repo}@") for name in self.series)

    def faults(self, repo: str, name: str, *, weights: bool) -> set[str]:
        """What is switched on for a request, each without `weights` and `once`; the latter are then used up."""
        found = set()
        for switched in (self.switches.get(repo, set()), self.switches.get(name, set()), {self.fault}):
            found |= {each for each in switched if weights or not each.startswith("weights ")}
            if weights:
                switched -= {each for each in switched if each.endswith(" once")}
        self.fault = "" if weights and self.fault.endswith(" once") else self.fault
        return {each.removeprefix("weights ").removesuffix(" once") for each in found}


@contextlib.contextmanager
def tiny_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[TinyHub]:
    """A running server that `huggingface_hub` takes for the Hub, with an empty cache below `home`."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    from core.model import hub as own

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
    for module in (file_download, _http, own):
        monkeypatch.setattr(module, "time", _Hurried())
    try:
        yield hub
    finally:
        hub.stalled.set()
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
        if self.headers.get("Authorization"):
            self.hub.authorized.append(self.path)
        if info := _INFO.fullmatch(self.path):
            self._model_info(info["repo"], info["revision"] or "main")
        elif file := _FILE.fullmatch(self.path):
            self._file(file["repo"], file["revision"], file["name"], elsewhere=bool(file["at"]))
        else:
            self._refuse(404, "EntryNotFound")

    def _find(self, repo: str, revision: str) -> tuple[dict[str, bytes], str, str] | None:
        found = self.hub.find(repo, revision)
        if not self.hub.has(repo):
            self._refuse(401, "RepoNotFound")
        elif not found:
            self._refuse(404, "RevisionNotFound")
        return found

    def _refused(self, faults: set[str]) -> bool:
        status = next((fault for fault in faults if fault.isdigit()), None)
        if "gated" in faults:
            self._refuse(403, "GatedRepo")
        elif "unauthorized" in faults:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif "forbidden" in faults:
            self._refuse(403, "")
        elif status:
            self._refuse(int(status), "")
        else:
            return False
        return True

    def _model_info(self, repo: str, revision: str) -> None:
        found = self._find(repo, revision)
        if not found or self._refused(self.hub.faults(repo, found[2], weights=False)):
            return
        files: list[dict[str, object]] = []
        for name, data in found[0].items():
            files.append({"rfilename": name, "size": len(data)})
            if name.endswith(".safetensors") and "unlisted" not in self.hub.faults(repo, found[2], weights=False):
                sha256 = hashlib.sha256(data).hexdigest()
                files[-1]["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        faults = self.hub.faults(repo, found[2], weights=False)
        sha = next((fault.removeprefix("sha ") for fault in faults if fault.startswith("sha ")), found[1])
        said = next((fault.removeprefix("says ") for fault in faults if fault.startswith("says ")), None)
        if said is not None:
            self._send(200, said.encode(), {"Content-Type": "application/json"})
            return
        answer = json.dumps({"id": repo, "modelId": repo, "sha": sha, "siblings": files, "tags": []}).encode()
        self._send(200, answer, {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str, *, elsewhere: bool) -> None:
        found = self._find(repo, revision)
        if not found:
            return
        files, commit, place = found
        weights = name.endswith(".safetensors")
        redirected = weights and not elsewhere and "redirect" in self.hub.faults(repo, place, weights=False)
        asked = weights and self.command == "GET" and not redirected
        faults = self.hub.faults(repo, place, weights=asked)
        if self._refused(faults):
            return
        data = files.get(name)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        sha256 = hashlib.sha256(data).hexdigest()
        if weights and faults & {"other bytes", "other bytes silently"}:
            data = _other(data)
        if weights and "longer" in faults:
            data += b"more"
        tag = hashlib.sha256(data).hexdigest() if "other bytes" in faults else sha256
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        for fault in faults:
            kind, _, name_told = fault.partition(" ")
            headers |= {"tag": {"ETag": f'"{name_told}"'}, "commit": {"X-Repo-Commit": name_told}}.get(kind, {})
        if "bare" in faults:
            headers = {}
        if "other tokenizer" in faults and name == "tokenizer.json":
            data = data.replace(b"e", b"a")
        if redirected:
            port = self.hub.address.rpartition(":")[2]
            headers |= {"ETag": '"of the redirect"', "X-Linked-ETag": f'"{tag}"', "X-Linked-Size": str(len(data))}
            self._send(302, b"", headers | {"Location": f"http://localhost:{port}/cdn{self.path}"})
            return
        if elsewhere:
            headers = {"ETag": '"' + "f" * 64 + '"'}  # a hash of another kind
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if "no ranges" in faults:
            wanted = None
        start = int(wanted[1]) if wanted else 0
        end = min(int(wanted[2]) + 1, len(data)) if wanted and wanted[2] else len(data)
        if wanted and start >= len(data):
            self._refuse(416, "")
            return
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        if "endless" in faults and self.command == "GET":
            self._send_on(data[start:end], headers)
            return
        cut = "stall" in faults or (weights and "truncated" in faults)
        self._send(206 if wanted else 200, data[start:end], headers, cut=cut, name=name)
        if "stall" in faults and self.command == "GET":
            self.hub.stalled.wait(5)  # the line stays open, and silent

    def _send_on(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)
            while not self.hub.stalled.wait(0.001):
                self.wfile.write(b" " * 4096)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(
        self, status: int, data: bytes, headers: dict[str, str], *, cut: bool = False, name: str | None = None
    ) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        content = data[: len(data) // 2] if cut else data
        self.close_connection = self.close_connection or cut
        try:
            for start in range(0, len(content), 4096):
                self.wfile.write(content[start : start + 4096])
                if name:
                    self.hub.sent[name] += len(content[start : start + 4096])
        except ConnectionError:  # the client has what it wanted
            self.close_connection = True


def _other(data: bytes) -> bytes:
    """Weights with the same header and other numbers."""
    begin = 8 + int.from_bytes(data[:8], "little")
    return data[:begin] + bytes(byte ^ 1 for byte in data[begin:])
