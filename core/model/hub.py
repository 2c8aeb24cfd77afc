"""Models from the Hugging Face Hub, through `huggingface_hub`, so that HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and
tokens mean what they mean everywhere.

Only safetensors weights, JSON and tokenizer text of the repository's top folder are ever fetched, the weights last:
a snapshot that has its weights is complete. A model that is here already is used when the Hub cannot be reached.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import AnalysisError, HeadscopeError, InputError
from core.model.quiet import quiet_hub
from core.model.weights import INDEX, SIDE_FILES, SINGLE, check_config, check_folder, check_names, shard_names
from core.settings import Progress, tell_bytes


def download(repo: str, revision: str | None, progress: Progress) -> tuple[Path, str]:
    """The folder of a Hub model, downloaded where it is not here yet, and the commit it is.

    Raises:
        InputError: there is no such repository or revision, or it holds no model that can be read.
        AnalysisError: the Hub, the network or the disk does not allow it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    shown = f"{repo}@{revision}" if revision else repo
    progress(f"Looking for {shown} on the Hub", None)
    try:
        with quiet_hub():
            info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=20)
    except Exception as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (400, 401, 403, 404)
        if not refused and (here := downloaded(repo, revision)):
            return here
        raise _explained(error, shown) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
    check_names(sizes, shown)
    with _explaining(shown):
        config = _file(repo, "config.json", revision, progress, 0.0, 0.0)  # also notes which commit the revision is
        check_config(config, shown)
        commit = config.parent.name
        side = [name for name in sorted(sizes) if SIDE_FILES.fullmatch(name) and name != "config.json"]
        side += [INDEX] if SINGLE not in sizes else []
        for name in side:
            path = _file(repo, name, commit, progress, 0.0, 0.0)
        weights = [SINGLE] if SINGLE in sizes else shard_names(path, shown)
        _check_disk(config, weights, sizes, shown)
        total, before = sum(sizes.get(name, 0) for name in weights), 0
        for name in weights:
            _file(repo, name, commit, progress, before, total)
            before += sizes.get(name, 0)
    check_folder(config.parent, shown)
    return config.parent, commit


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


def _file(repo: str, name: str, revision: str | None, progress: Progress, before: float, total: float) -> Path:
    """Downloads one file; `before` of `total` bytes were there already when it began."""
    from huggingface_hub import hf_hub_download

    phrase = f"Downloading {repo}"

    class Told:
        """Stands where huggingface_hub would show a bar."""

        def __init__(self, *_: object, initial: float = 0, **__: object) -> None:
            self.done = before + (initial or 0)

        def __enter__(self) -> Told:
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

        def update(self, more: float | None = 1) -> None:
            self.done += more or 0
            if total:
                tell_bytes(progress, phrase, self.done, total)
            else:
                progress(phrase, None)

    bar: Any = Told
    return Path(hf_hub_download(repo, name, revision=revision, tqdm_class=bar))


def _check_disk(config: Path, weights: list[str], sizes: dict[str, int], shown: str) -> None:
    needed = sum(sizes.get(name, 0) for name in weights if not (config.parent / name).exists())
    free = shutil.disk_usage(config.parent).free
    if needed > free:
        raise AnalysisError(
            f"{shown} needs {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free: free some space or point "
            "HF_HOME at another disk."
        )


@contextmanager
def _explaining(shown: str) -> Iterator[None]:
    try:
        with quiet_hub():
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
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return AnalysisError(f"A file of {shown} is missing on the Hub although it is listed: try again later.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return AnalysisError(f"{shown} is not on this disk and HF_HUB_OFFLINE forbids the Hub: unset it and try again.")
    if status in (401, 403):
        return AnalysisError(
            f"The Hub denies access to {shown} ({status}): check HF_TOKEN, or log in with `hf auth login`."
        )
    if status == 429:
        return AnalysisError(f"The Hub has had too many requests (429): wait some minutes and ask for {shown} again.")
    if status is not None:
        return AnalysisError(f"The Hub answered {status} when asked for {shown}: try again later.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return AnalysisError(
            f"{shown} cannot be kept on this disk ({error.strerror}): free some space or point HF_HOME elsewhere."
        )
    cut = "Consistency" in str(error) or type(error).__name__ in ("RemoteProtocolError", "IncompleteRead", "ReadError")
    if cut or isinstance(error, RuntimeError):
        return AnalysisError(f"The download of {shown} broke off: try again, and it goes on from where it stopped.")
    return AnalysisError(
        f"The Hub could not be reached for {shown} ({type(error).__name__}): check the network and HF_ENDPOINT, or "
        "name a folder."
    )
