"""The results of a sweep: a folder of Parquet files, one row a run, that together are one data set.

Every run is a file of its own, written whole or not at all, so rows appear as runs finish and a sweep that is stopped
leaves what it had. `pandas.read_parquet(folder)` reads them all. Columns: `run` (names model, text and settings), the keys
of `headscope fit`'s JSON, `settings`, and `status` (done, failed), `error`, `seconds` (of all its tasks).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import disk, summary
from core.encoding import Encoding
from core.errors import InputError
from core.settings import local_path
from core.sweep.plan import Run
from core.words import quoted

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


def row_of(run: Run, encoding: Encoding, revision: str, seconds: float, cached: bool) -> Row:
    """The row of a finished run."""
    record = summary.fit(
        encoding, model=run.model, corpus=run.corpus, revision=revision, seconds=seconds, cached=cached
    )
    return {"run": run.key, **record, "settings": asdict(run.settings), "status": "done", "error": None}


def failed_row(run: Run, reason: str, seconds: float) -> Row:
    """The row of a run that could not be done, and why."""
    known = {"run": run.key, "model": run.model, "corpus": run.corpus, "settings": asdict(run.settings)}
    return dict.fromkeys(_schema().names) | known | {"status": "failed", "error": reason, "seconds": seconds}


def write_row(folder: Path, row: Row) -> None:
    """Put a run's row in the data set, in place of the row it had.

    Raises:
        InputError: the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"run-{row['run']}.parquet"
    temporary = folder / f".{path.name}.{os.getpid()}.writing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([row], schema=_schema())
        pq.write_table(table.replace_schema_metadata({"digest": _digest(table)}), temporary)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"{quoted(str(folder))} cannot be written ({disk.why(error)}): {disk.room(error)}choose another folder."
        ) from error


def read_row(folder: Path, key: str) -> Row | None:
    """The row of a run; None where there is none or its file is damaged."""
    return _read(folder / f"run-{key}.parquet")


def read_rows(folder: str | Path) -> list[Row]:
    """All rows of a data set, by model and corpus; damaged files are left out, see `read_data_set`.

    Raises:
        InputError: there is no such folder.
    """
    return read_data_set(folder)[0]


def read_data_set(folder: str | Path) -> tuple[list[Row], list[str]]:
    """All rows of a data set, by model and corpus, and the names of files that are damaged.

    Raises:
        InputError: there is no such folder.
    """
    place = local_path(str(folder))
    if place is None or not place.is_dir():
        raise InputError(f"There is no folder {quoted(str(folder))}: give the one that headscope sweep wrote.")
    try:
        files = sorted(path for path in place.iterdir() if path.match("run-*.parquet"))
    except OSError as error:
        raise InputError(f"The folder {quoted(str(folder))} cannot be read ({disk.why(error)}).") from error
    read = {path.name: _read(path) for path in files}
    rows = [row for row in read.values() if row is not None]
    damaged = [name for name, row in read.items() if row is None]
    return sorted(rows, key=lambda row: (row["corpus"], row["model"])), damaged


def _read(path: Path) -> Row | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        rows = table.to_pylist()
        if (table.schema.metadata or {}).get(b"digest") != _digest(table).encode():
            return None
    except (OSError, pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
    right = len(rows) == 1 and set(rows[0]) == set(_schema().names) and path.stem == f"run-{rows[0]['run']}"
    return rows[0] if right else None


def _digest(table: pa.Table) -> str:
    """Of a row as it is read: a damaged byte must not become another number."""
    return hashlib.sha256(json.dumps(table.to_pylist(), sort_keys=True).encode()).hexdigest()[:16]


def _schema() -> pa.Schema:
    """The same for every file, so that they are one data set also where a run failed and its columns are empty."""
    import pyarrow as pa

    text, whole, real, texts = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.string())
    settings = {"positions": whole, "context": whole, "held_out": real, "seed": whole, "device": text, "dtype": text}
    predictor = {"name": text, "r2": real, "squared_correlation": real, "fitted_numbers": whole}
    sparsity = {"dims": whole, "r2": real, "r2_kept": real}
    columns = {"run": text, "model": text, "revision": text, "corpus": text}
    columns |= dict.fromkeys(("positions", "positions_held_out", "documents", "documents_held_out"), whole)
    columns |= dict.fromkeys(("vocab_size", "dim", "rows_fitted", "padded_rows", "excluded_rows"), whole)
    columns |= dict.fromkeys(("r2", "r2_adjusted", "r2_held_out_tokens", "r2_held_out_text", "residual_std"), real)
    columns |= {"intercept": real, "condition_number": real, "rank": whole, "cosine_minus_mean_hidden": real}
    columns |= dict.fromkeys(("log_z_mean", "log_z_std", "effective_dims", "perplexity", "perplexity_held_out"), real)
    columns |= {"predictors": pa.list_(pa.struct(predictor)), "sparsity": pa.list_(pa.struct(sparsity))}
    columns |= {"warnings": texts, "note": text, "seconds": real, "cached": pa.bool_()}
    columns |= {"settings": pa.struct(settings), "status": text, "error": text}
    return pa.schema(list(columns.items()))
