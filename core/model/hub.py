"""Models from the Hugging Face Hub, through `huggingface_hub`, so that HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and
tokens mean what they mean everywhere.

Only safetensors weights, JSON and tokenizer text of the repository's top folder are ever fetched, the weights last:
a snapshot that has its weights is complete. A model that is here already is used when the Hub cannot be reached.
Weights must have the SHA-256 that the Hub lists. Of one file a part can be read alone, see `read_part`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import disk
from core.errors import AnalysisError, HeadscopeError, InputError, check_fits
from core.model.quiet import quiet_hub
from core.model.weights import (
    INDEX,
    SIDE_FILES,
    SINGLE,
    check_config,
    check_folder,
    check_names,
    file_sha256,
    shard_names,
)
from core.settings import Progress, tell_bytes

LARGEST_ANSWER = 32 * 2**20
"""Bytes of an answer that is not a file: what a model is, or an error."""
PATIENCE = 60.0
"""Seconds within which the Hub has to say what a model is, however slowly it speaks."""
RETRIES = 4
"""How often the rest of a part is asked for again, after a broken connection or an answer of 500 and above."""
BROKEN_OFF_SECONDS = 60.0
"""After which a download to which nothing was added is dead: one that gets nothing from the network gives up sooner."""


@dataclass(frozen=True)
class Listing:
    """What the Hub lists for one revision of a repository: the files of its top folder.

    Attributes:
        repo: org/name.
        revision: branch, tag or commit that was asked for; None is the newest.
        commit: what the revision stands for.
        sizes: file name → bytes.
        sha256: file name → SHA-256, of the large files (LFS) only.
    """

    repo: str
    revision: str | None
    commit: str
    sizes: dict[str, int]
    sha256: dict[str, str]

    @property
    def shown(self) -> str:
        """The name that messages use."""
        return shown_as(self.repo, self.revision)


def shown_as(repo: str, revision: str | None) -> str:
    """A Hub model's name as the user would give it."""
    return f"{repo}@{revision}" if revision else repo


def list_files(repo: str, revision: str | None, progress: Progress) -> Listing:
    """Asks the Hub what a revision is and which files it has.

    Raises:
        InputError: there is no such repository or revision.
        AnalysisError: the Hub or the network does not allow it.
    """
    from huggingface_hub import HfApi

    shown = shown_as(repo, revision)

    def ask() -> Any:
        return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=20)

    with explaining(shown):
        info = _within(PATIENCE, ask, shown, lambda: progress(f"Looking for {shown} on the Hub", None))
    if not isinstance(info.sha, str) or not re.fullmatch(r"[\w-]{1,64}", info.sha):
        raise AnalysisError(f"The server does not say which commit {shown} is: check HF_ENDPOINT.")
    files = [file for file in info.siblings or () if isinstance(file.rfilename, str) and "/" not in file.rfilename]
    sizes = {file.rfilename: file.size if isinstance(file.size, int) else 0 for file in files}
    return Listing(repo, revision, info.sha, sizes, {file.rfilename: file.lfs.sha256 for file in files if file.lfs})


def _within(seconds: float, ask: Callable[[], Any], shown: str, tell: Callable[[], None]) -> Any:
    """What `ask` gives, where it gives it in time; timeouts of the network begin anew with every byte that arrives.

    Raises:
        AnalysisError: it took too long. `Cancelled` from `tell`.
    """
    from huggingface_hub import close_session

    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="headscope-hub", daemon=True).start()
    end = time.monotonic() + seconds
    try:
        while True:
            tell()
            if wait([answer], 0.25).done:
                return answer.result()
            if time.monotonic() > end:
                raise AnalysisError(
                    f"The Hub did not say within {seconds:.0f} s what {shown} is: check the network and HF_ENDPOINT, or try "
                    "again later."
                )
    finally:
        if not answer.done():
            close_session()  # what still arrives is not waited for


def _watch_answers() -> None:
    """From now on what a server answers in huggingface_hub's session neither fills the memory nor leaves the Hub's cache."""
    from huggingface_hub.utils import get_session

    session = get_session()
    if _watch not in session.event_hooks["response"]:
        session.event_hooks = {**session.event_hooks, "response": [*session.event_hooks["response"], _watch]}


def _watch(answer: Any) -> None:
    """Hook of an HTTP session: what is not a file is read up to `LARGEST_ANSWER`; hashes that name files are names."""
    if answer.request.method == "HEAD":
        for header in ("ETag", "X-Linked-ETag", "X-Repo-Commit"):
            name = answer.headers.get(header, "").removeprefix("W/").strip('"')
            if set("/\\") & set(name) or name in (".", ".."):
                raise AnalysisError(
                    "The Hub names a file so that it would lie outside of its cache: do not trust that server (HF_ENDPOINT)."
                )
    if answer.is_error or answer.url.path.startswith("/api/"):
        chunks = answer.iter_bytes  # which `read` goes through
        answer.iter_bytes = lambda *args, **kwargs: _at_most(LARGEST_ANSWER, chunks(*args, **kwargs))


def _at_most(limit: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    got = 0
    for chunk in chunks:
        got += len(chunk)
        if got > limit:
            raise AnalysisError(f"The Hub's answer does not end after {limit / 1e6:.0f} MB: check HF_ENDPOINT.")
        yield chunk


def refused(error: HeadscopeError) -> bool:
    """Whether this is the Hub's own no, so that what is on this disk must not be used in its place."""
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    return isinstance(cause, HfHubHTTPError) and cause.response.status_code in (400, 401, 403, 404)


def download(repo: str, revision: str | None, cache: Path, progress: Progress) -> tuple[Path, str]:
    """The folder of a Hub model, downloaded where it is not here yet, and the commit it is.

    Args:
        repo, revision: see `Listing`.
        cache: where the files' hashes are remembered; the model itself stays in the Hub's own cache.
        progress: see `core.settings.Progress`.

    Raises:
        InputError: there is no such repository or revision, or it holds no model that can be read.
        AnalysisError: the Hub, the network or the disk does not allow it, or a file is not what the Hub lists.
    """
    try:
        listing = list_files(repo, revision, progress)
    except (InputError, AnalysisError) as error:
        if not refused(error) and (here := downloaded(repo, revision)):
            check_kept(here[0], shown_as(repo, revision), cache)
            return here
        raise
    shown, sizes = listing.shown, listing.sizes
    check_names(sizes, shown)
    folder = side_files(listing, progress)
    with explaining(shown):
        index = [] if SINGLE in sizes else [_small(listing, INDEX, listing.commit, progress)]
        weights = shard_names(index[0], shown) if index else [SINGLE]
        _clear_broken_off(folder)
        _check_disk(folder, weights, sizes, shown)
        total, before = sum(sizes.get(name, 0) for name in weights), 0
        for name in weights:
            path = _file(listing, name, listing.commit, progress, before, total)
            _check_sha256(path, listing, cache, progress)
            before += sizes.get(name, 0)
    _clear_broken_off(folder)
    check_folder(folder, shown)
    return folder, listing.commit


def side_files(listing: Listing, progress: Progress) -> Path:
    """The folder of a revision in the Hub's own cache with its configuration and tokenizer, but no weights.

    Raises:
        InputError: the configuration is missing or not one that can be used.
        AnalysisError: the Hub, the network or the disk does not allow it.
    """
    shown = listing.shown
    if "config.json" not in listing.sizes:
        raise InputError(f"{shown} holds no config.json: name a model saved by save_pretrained.")
    with explaining(shown):
        config = _small(listing, "config.json", listing.revision, progress)  # notes the commit too
        check_config(config, shown)
        if config.parent.name != listing.commit:
            raise AnalysisError(f"{shown} was changed on the Hub at this very moment: try again.")
        for name in sorted(listing.sizes):
            if SIDE_FILES.fullmatch(name) and name != "config.json":
                _small(listing, name, listing.commit, progress)
    return config.parent


def small_file(listing: Listing, name: str, progress: Progress) -> Path:
    """One JSON file of a revision, in the Hub's own cache; errors as for `side_files`."""
    with explaining(listing.shown):
        return _small(listing, name, listing.commit, progress)


def downloaded(repo: str, revision: str | None) -> tuple[Path, str] | None:
    """The folder and commit of a Hub model that is complete on this disk, otherwise None. Never asks the network."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        check_folder(folder, repo)
    except InputError:
        return None
    return folder, folder.name


def check_kept(folder: Path, shown: str, cache: Path) -> None:
    """Compares the files of a downloaded model with their names in the Hub's cache, which are their hashes.

    Raises:
        AnalysisError: one of them is not what was downloaded.
    """
    for path in folder.iterdir():
        if path.is_file() and not _is_as_named(path, lambda path: file_sha256(path, cache)):
            raise AnalysisError(
                f"{path.name} of {shown} is damaged on this disk: delete the model from the Hub's cache (`hf cache`) and "
                "download it again."
            )


def _is_as_named(path: Path, sha256: Callable[[Path], str]) -> bool:
    """Whether a file in the Hub's cache is what its name there says, where that is a hash of it."""
    name = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", name):
        return sha256(path) == name
    if re.fullmatch("[0-9a-f]{40}", name):  # what git would call it; what stands between may use the SHA-1 alone
        digests = [hashlib.sha1(begun, usedforsecurity=False) for begun in (b"blob %d\0" % path.stat().st_size, b"")]
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                for digest in digests:
                    digest.update(block)
        return name in [digest.hexdigest() for digest in digests]
    return True


def _small(listing: Listing, name: str, revision: str | None, progress: Progress) -> Path:
    """Downloads a file that is no weights, and throws it away where it is not the one that the server told of."""
    path = _file(listing, name, revision, progress)
    if not _is_as_named(path, lambda path: hashlib.sha256(path.read_bytes()).hexdigest()):
        _throw_away(path)
        raise _not_as_listed(listing, name)
    return path


def _file(
    listing: Listing, name: str, revision: str | None, progress: Progress, before: float = 0, total: float = 0
) -> Path:
    """Downloads one file; `before` of `total` bytes were there already when it began.

    Raises:
        AnalysisError: more is sent than the Hub lists. What huggingface_hub raises.
    """
    from huggingface_hub import hf_hub_download

    phrase = f"Downloading {listing.repo}"
    size = listing.sizes.get(name) or LARGEST_ANSWER

    class Told:
        """Stands where huggingface_hub would show a bar."""

        def __init__(self, *_: object, initial: float = 0, **__: object) -> None:
            self.done = initial or 0

        def __enter__(self) -> Told:
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

        def update(self, more: float | None = 1) -> None:
            self.done += more or 0
            if self.done > size:
                raise _not_as_listed(listing, name)
            if total:
                tell_bytes(progress, phrase, before + self.done, total)
            else:
                progress(phrase, None)

    bar: Any = Told
    return Path(hf_hub_download(listing.repo, name, revision=revision, tqdm_class=bar))


def _clear_broken_off(folder: Path) -> None:
    """Remove what killed downloads of a model left in the Hub's cache: huggingface_hub never goes on with it."""
    for left in (folder.parent.parent / "blobs").glob("*.incomplete"):
        with contextlib.suppress(OSError):  # another process removes it too
            if disk.age(left) > BROKEN_OFF_SECONDS:
                left.unlink()


def _check_disk(folder: Path, weights: list[str], sizes: dict[str, int], shown: str) -> None:
    needed = sum(sizes.get(name, 0) for name in weights if not (folder / name).exists())
    advice = "free some space or point HF_HOME at another disk"
    check_fits(shown, needed, shutil.disk_usage(folder).free, "disk", advice)


def _check_sha256(path: Path, listing: Listing, cache: Path, progress: Progress) -> None:
    """Removes a downloaded file that is not the listed one, or not what the server's answer named, and says so."""
    expected = listing.sha256.get(path.name)
    as_listed = not expected or file_sha256(path, cache, progress) == expected
    if not (as_listed and _is_as_named(path, lambda path: file_sha256(path, cache, progress))):
        _throw_away(path)
        raise _not_as_listed(listing, path.name)


def _throw_away(path: Path) -> None:
    for each in (path.resolve(), path):  # the content and the link to it
        with contextlib.suppress(OSError):
            each.unlink()


def _not_as_listed(listing: Listing, name: str) -> AnalysisError:
    return AnalysisError(
        f"The {name} of {listing.shown} is not what the Hub lists, and it was thrown away: try again, and if it stays so, do "
        "not trust that server (HF_ENDPOINT)."
    )


def read_part(listing: Listing, name: str, start: int, end: int, tell: Callable[[int], None]) -> bytes:
    """Bytes [start, end) of a file on the Hub by HTTP range; a broken transfer goes on where it stopped.

    Length and position of what arrives are checked, the file's length, and the SHA-256 that the server tells of the
    file against the listed one. What is read of it cannot be hashed alone: that takes the whole file (`download`).

    Args:
        tell: called with the number of bytes that have arrived; it may raise `Cancelled`.

    Raises:
        AnalysisError: the Hub or the network does not allow it, or what was sent is not what the Hub lists.
    """
    got = bytearray()
    for attempt in range(RETRIES + 1):
        if attempt:
            time.sleep(min(2 ** (attempt - 1), 8))
        with explaining(listing.shown):
            try:
                _receive(listing, name, start, end, got, tell)
                break
            except Exception as error:
                if attempt == RETRIES or not _may_pass(error):
                    raise
    return bytes(got)


def _receive(listing: Listing, name: str, start: int, end: int, got: bytearray, tell: Callable[[int], None]) -> None:
    """Asks once for what `got` still lacks of bytes [start, end)."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(listing.repo, name, revision=listing.commit)
    first = start + len(got)
    headers = build_hf_headers() | {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as answer:
        if answer.status_code == 416:  # the file ends before the range
            raise _not_as_listed(listing, name)
        hf_raise_for_status(answer)
        _check_answer(answer, listing, name, first, end)
        position = first if answer.status_code == 206 else 0  # a server without ranges begins at the beginning
        for chunk in answer.iter_bytes():  # as it arrives, so that nothing is lost when it breaks off
            got += chunk[max(first - position, 0) : max(end - position, 0)]
            position += len(chunk)
            tell(len(got))
            if position >= end:
                return
    raise _Cut("The answer ended early.")


class _Cut(RuntimeError):
    """A transfer ended before all had arrived."""


def _may_pass(error: Exception) -> bool:
    """Whether a fault may be gone when the same is asked again: of the connection, or of the Hub itself."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    # httpx or httpx2, whichever huggingface_hub uses
    return isinstance(error, _Cut) or any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _check_answer(answer: Any, listing: Listing, name: str, first: int, end: int) -> None:
    """Raises `AnalysisError` if the headers of an answer are not those of bytes [first, end) of the listed file."""
    size, sha256 = listing.sizes[name], listing.sha256.get(name)
    spans = {206: answer.headers.get("Content-Range"), 200: answer.headers.get("Content-Length", str(size))}
    expected = {206: f"bytes {first}-{end - 1}/{size}", 200: str(size)}
    fine = answer.status_code in spans and spans[answer.status_code] == expected[answer.status_code]
    # the Hub sends one on to where the file lies, whose own ETag can be a hash of another kind
    tags = [each.headers.get("X-Linked-ETag", "") for each in (*answer.history, answer)]
    tags += [] if answer.history else [answer.headers.get("ETag", "")]
    told = {tag.removeprefix("W/").strip('"') for tag in tags}
    others = {tag for tag in told if re.fullmatch("[0-9a-f]{64}", tag)} - {sha256}
    if not fine or (sha256 and others):
        raise _not_as_listed(listing, name)


@contextmanager
def explaining(shown: str) -> Iterator[None]:
    """Keeps huggingface_hub quiet and turns any fault of the Hub, the network or the disk into one sentence."""
    try:
        with quiet_hub():
            _watch_answers()
            yield
    except HeadscopeError:
        raise
    except Exception as error:
        raise _explained(error, shown) from error


def _explained(error: Exception, shown: str) -> HeadscopeError:
    """One sentence for any fault of the Hub; its own texts hold addresses and several lines."""
    from huggingface_hub import errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return AnalysisError(
            f"{shown} is gated: accept its terms on its Hub page, then log in with `hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{shown.partition('@')[0]} has no revision '{shown.partition('@')[2]}': give one it has.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"There is no model {shown} on the Hub, or it is private: check the spelling (org/name), or log in with "
            "`hf auth login`."
        )
    if isinstance(error, errors.HfHubHTTPError) and status == 404 and "/resolve/" in error.response.url.path:
        return AnalysisError(f"A file of {shown} is missing on the Hub (404) although it is listed: try again later.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return AnalysisError(f"{shown} is not on this disk and HF_HUB_OFFLINE forbids the Hub: unset it and try again.")
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        return _explained(error.__cause__, shown)
    if isinstance(error, UnicodeEncodeError):  # in the header of a question, so nothing was asked yet
        return AnalysisError(
            "The access token for the Hub holds characters that no token has: correct HF_TOKEN, or log in anew with "
            "`hf auth login`."
        )
    no_hub = (ValueError, TypeError, KeyError, AttributeError, RecursionError, errors.FileMetadataError)
    odd = isinstance(error, no_hub) and not isinstance(error, errors.LocalEntryNotFoundError)  # that is of the network
    if odd or isinstance(error.__cause__, errors.FileMetadataError) or type(error).__name__ == "DecodingError":
        return AnalysisError(f"What the server says of {shown} is not what a Hub says: check HF_ENDPOINT.")
    if status in (401, 403):
        return AnalysisError(
            f"The Hub denies access to {shown} ({status}): check HF_TOKEN, or log in with `hf auth login`."
        )
    if status == 429:
        return AnalysisError(f"The Hub has had too many requests (429): wait some minutes and ask for {shown} again.")
    if status == 404:
        return InputError(
            f"The Hub has nothing that is called {shown} (404): check the spelling (org/name) and HF_ENDPOINT."
        )
    if status is not None:
        what = "try again later" if status >= 500 else "check HF_ENDPOINT, or try again later"
        return AnalysisError(f"The Hub answered {status} when asked for {shown}: {what}.")
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    if isinstance(error, OSError) and (error.errno in full or error.filename is not None):
        return AnalysisError(
            f"{shown} cannot be kept on this disk ({error.strerror}): {disk.room(error, 'free some space or ')}point HF_HOME "
            "elsewhere."
        )
    cut = "Consistency" in str(error) or type(error).__name__ in ("RemoteProtocolError", "IncompleteRead", "ReadError")
    if cut or isinstance(error, RuntimeError):
        return AnalysisError(
            f"The connection to the Hub for {shown} broke off: try again; what arrived complete is kept."
        )
    return AnalysisError(
        f"The Hub could not be reached for {shown} ({type(error).__name__}): check the network and HF_ENDPOINT, or "
        "name a folder."
    )
