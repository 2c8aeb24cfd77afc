"""Text to windows of tokens: every form of `CORPUS`, split by document into a part that fits and one that judges.

A document never gives windows to both parts and a window never crosses two documents. Texts without documents of
their own (.txt, .md) are cut at headings or blank lines into blocks of at least four windows; such a block is a document.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import AnalysisError, InputError
from core.settings import ASSETS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from core.settings import Settings

SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")
READ_AT_MOST = 64 * 2**20
"""Characters read from a corpus; what lies beyond is left unread, and the corpus says so."""
BLOCK_WINDOWS = 4


@dataclass(frozen=True)
class Corpus:
    """Text as it was read, before any tokenizer saw it.

    Attributes:
        name: as the user named it.
        texts: the documents, or, where `cut`, longer texts that are still to be cut into documents.
        cut: whether the texts are cut at headings or blank lines.
        sha256: of all texts; part of every key in the store.
        note: what a reader should know (a file read only in part, …), or "".
    """

    name: str
    texts: tuple[str, ...]
    cut: bool
    sha256: str
    note: str = ""


@dataclass(frozen=True)
class Chunk:
    """A batch of windows of one part, the unit that is observed, stored and merged.

    Attributes:
        held_out: which part it belongs to.
        inputs: [b, t] token ids, padded on the right with 0.
        targets: [b, t] the true next tokens, -1 where there is no position.
        positions: [b, t] a number for each position that is unique in the corpus (document << 32 | offset).
    """

    held_out: bool
    inputs: np.ndarray
    targets: np.ndarray
    positions: np.ndarray

    @property
    def count(self) -> int:
        return int((self.targets >= 0).sum())


@dataclass(frozen=True)
class Plan:
    """All chunks of a run, in order, and what the split came to."""

    chunks: tuple[Chunk, ...]
    positions: int
    positions_held_out: int
    documents: int
    documents_held_out: int
    note: str = ""


def self_sampled_tokens(name: str) -> int | None:
    """N of `self:N`, or None for every other corpus."""
    if not name.startswith("self:"):
        return None
    text = name.removeprefix("self:").replace("_", "").replace(",", "")
    if not text.isdigit() or not 512 <= int(text) <= 10_000_000:
        raise InputError(
            f"The corpus {name!r} is not understood: write self:N with N from 512 to 10000000, as self:20000."
        )
    return int(text)


def read_corpus(name: str, *, local_paths: bool = True) -> Corpus:
    """Read a corpus by its name.

    Args:
        name: `sampler`, `python-docs`, a file (`file.csv:column` for a column) or a folder.
        local_paths: False refuses files and folders (a server that strangers can reach).

    Raises:
        InputError: no such corpus, an unreadable or empty file, a missing column.
    """
    if not name.strip():
        raise InputError("The corpus has no name: give sampler, python-docs, self:N, a file or a folder.")
    if name == "sampler":
        return _corpus(name, tuple(_sampler()), cut=False)
    if name == "python-docs":
        return _corpus(name, tuple(_python_docs()), cut=False)
    if name.startswith("hub:"):
        raise InputError(
            "Corpora from the Hub are not in this version yet: give sampler, python-docs, a file or a folder."
        )
    if not local_paths:
        raise InputError(
            f"The corpus {name!r} is not offered here: this server gives sampler, python-docs and uploads."
        )
    return _read_path(name)


def _corpus(name: str, texts: tuple[str, ...], *, cut: bool, note: str = "") -> Corpus:
    texts = tuple(text for text in texts if text.strip())
    if not texts:
        raise InputError(f"The corpus {name!r} holds no text: give one with at least a few hundred words.")
    digest = hashlib.sha256(b"cut" if cut else b"documents")
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return Corpus(name, texts, cut, digest.hexdigest(), note)


def _sampler() -> Iterator[str]:
    """The bundled passages: one file per kind, each passage a document under its `# ` title."""
    for path in sorted((ASSETS / "sampler").glob("*.md")):
        yield from (passage.strip() for passage in re.split(r"(?m)^# ", path.read_text("utf-8")) if passage.strip())


def _python_docs() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError("This Python comes without its help topics (pydoc_data): choose another corpus.") from error
    yield from (topics[name] for name in sorted(topics))


def _read_path(name: str) -> Corpus:
    path, column = _split_column(name)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise InputError(f"The folder {name!r} holds no {', '.join(SUFFIXES)} file.")
    elif path.is_file():
        files = [path]
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"The corpus {name!r} is no text that can be read here: give one of {', '.join(SUFFIXES)}."
            )
    else:
        raise InputError(
            f"There is no corpus {name!r}: give sampler, python-docs, self:N, or a file or folder that exists "
            f"({', '.join(SUFFIXES)})."
        )
    texts: list[str] = []
    cut = True
    left = READ_AT_MOST
    for file in files:
        plain = file.suffix.lower() in (".txt", ".md")
        cut = cut and plain
        for text in _texts(file, column, left):
            texts.append(text[:left])
            left -= len(text)
            if left <= 0:
                break
        if left <= 0:
            break
    note = f"Only the first {READ_AT_MOST // 2**20} million characters were read." if left <= 0 else ""
    if not cut:  # records are documents; a plain file among them stays whole
        return _corpus(name, tuple(texts), cut=False, note=note)
    return _corpus(name, tuple(texts), cut=True, note=note)


def _split_column(name: str) -> tuple[Path, str | None]:
    """`file.csv:column` in its two halves; a file whose own name holds a colon is found as it is."""
    if Path(name).exists() or ":" not in name:
        return Path(name).expanduser(), None
    path, _, column = name.rpartition(":")
    if Path(path).suffix.lower() in (".csv", ".parquet", ".jsonl"):
        return Path(path).expanduser(), column
    return Path(name).expanduser(), None


def _texts(file: Path, column: str | None, limit: int) -> Iterator[str]:
    try:
        match file.suffix.lower():
            case ".jsonl":
                yield from _jsonl(file, column)
            case ".csv":
                yield from _csv(file, column)
            case ".parquet":
                yield from _parquet(file, column)
            case _:
                with file.open("rb") as opened:
                    yield _decode(opened.read(4 * limit), file.name)[:limit]
    except OSError as error:
        raise InputError(f"The file {file.name!r} cannot be read: {error.strerror or error}.") from error


def _decode(raw: bytes, name: str) -> str:
    if b"\0" in raw:
        raise InputError(f"The file {name!r} is binary, not text: give {', '.join(SUFFIXES)}, text in UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start >= len(raw) - 4:  # a character cut by the reading limit
            return raw[: error.start].decode("utf-8-sig")
        raise InputError(
            f"The file {name!r} is not UTF-8 text (byte 0x{raw[error.start]:02x} at {error.start:,}): save it as UTF-8."
        ) from error


def _jsonl(file: Path, column: str | None) -> Iterator[str]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = _decode(line, file.name)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"Line {number} of {file.name!r} is not JSON: one JSON value a line is expected."
                ) from error
            if isinstance(record, str):
                yield record
                continue
            if not isinstance(record, dict):
                raise InputError(f"Line {number} of {file.name!r} is neither a text nor an object with a text.")
            name = column or _text_column(file.name, {k: isinstance(v, str) for k, v in record.items()})
            if name not in record:
                raise InputError(f"Line {number} of {file.name!r} has no {name!r}; it has {_listed(record)}.")
            if isinstance(record[name], str):
                yield record[name]


def _csv(file: Path, column: str | None) -> Iterator[str]:
    import pandas as pd

    with file.open("rb") as opened:
        _decode(opened.read(2**16), file.name)
    try:
        with pd.read_csv(file, chunksize=2048, dtype=str, keep_default_na=False, encoding="utf-8-sig") as frames:
            for frame in frames:
                words = {str(c): bool(pd.to_numeric(frame[c], errors="coerce").isna().any()) for c in frame.columns}
                name = column or _text_column(file.name, words)
                if name not in frame.columns:
                    raise InputError(f"{file.name!r} has no column {name!r}; it has {_listed(frame.columns)}.")
                yield from frame[name]
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"The file {file.name!r} is no CSV that can be read: {_first_line(error)}.") from error


def _parquet(file: Path, column: str | None) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            strings = {f.name: pa.types.is_string(f.type) or pa.types.is_large_string(f.type) for f in schema}
            name = column or _text_column(file.name, strings)
            if not strings.get(name, False):
                raise InputError(f"{file.name!r} has no text column {name!r}; it has {_listed(strings)}.")
            for batch in table.iter_batches(batch_size=1024, columns=[name]):
                yield from (text for text in batch.column(0).to_pylist() if text)
    except pa.ArrowException as error:
        raise InputError(
            f"The file {file.name!r} is no Parquet file that can be read: {_first_line(error)}."
        ) from error


def _text_column(file: str, strings: dict[str, bool]) -> str:
    """`text` if there is one, else the only column of strings."""
    if strings.get("text"):
        return "text"
    names = [name for name, is_string in strings.items() if is_string]
    if len(names) == 1:
        return names[0]
    raise InputError(f"Which column of {file!r} is the text? Write {file}:COLUMN; it has {_listed(strings)}.")


def _listed(names: object) -> str:
    items = [repr(str(name)) for name in list(names)[:8]]  # type: ignore[call-overload]
    return ", ".join(items) or "no columns"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def tokenise(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: int) -> list[np.ndarray]:
    """The corpus as documents of token ids, int32 [length] each; special tokens are not added."""
    if not corpus.cut:
        return [document for document in _encode(tokenizer, corpus.texts) if len(document) > 1]
    documents: list[np.ndarray] = []
    for text in corpus.texts:
        pieces = _encode(tokenizer, _pieces(text))
        documents += _blocks(pieces, BLOCK_WINDOWS * context)
    return [document for document in documents if len(document) > 1]


CUTS = (r"(?m)(?<=\n)(?=#{1,6} )|(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?] )")
"""Where a text is cut: at headings and blank lines; one that has none at line ends, and one without lines at sentences."""


def _pieces(text: str) -> list[str]:
    pieces = [text]
    for cut in CUTS:
        pieces = [piece for piece in re.split(cut, text) if piece]
        if len(pieces) > 1:
            break
    return pieces


def _blocks(pieces: list[np.ndarray], least: int) -> list[np.ndarray]:
    """Join neighbouring pieces until each block has at least `least` tokens; a short rest joins the last block."""
    blocks: list[list[np.ndarray]] = []
    size = least
    for piece in pieces:
        if size >= least:
            blocks.append([])
            size = 0
        blocks[-1].append(piece)
        size += len(piece)
    if len(blocks) > 1 and size < least:
        blocks[-2] += blocks.pop()
    return [np.concatenate(block) for block in blocks]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...] | list[str]) -> list[np.ndarray]:
    if not texts:
        return []
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), 1024):
        encoded = tokenizer(
            list(texts[start : start + 1024]), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids += [np.asarray(document, dtype=np.int32) for document in encoded["input_ids"]]
    return ids


def count_tokens(documents: list[np.ndarray], rows: int) -> np.ndarray:
    """[rows] how often each token stands in the documents; ids beyond the head's rows are not counted."""
    counts = np.zeros(rows, dtype=np.int64)
    for document in documents:
        counts += np.bincount(document[document < rows], minlength=rows)
    return counts


def split_documents(
    documents: list[np.ndarray], held_out: float, seed: int, name: str = "corpus"
) -> tuple[list[int], list[int]]:
    """Which documents fit and which only judge: the split that `plan_windows` makes with the same seed.

    Raises:
        AnalysisError: fewer than two documents.
    """
    return _split(documents, held_out, np.random.default_rng([seed, 1]), name)


def _split(
    documents: list[np.ndarray], held_out: float, random: np.random.Generator, name: str
) -> tuple[list[int], list[int]]:
    """Documents in a seeded order, each to the part that is behind its share, so both get whole documents."""
    if len(documents) < 2:
        raise AnalysisError(
            f"The corpus {name!r} is one document of {sum(map(len, documents)):,} tokens, and one that fits and one that "
            f"judges are needed: give a longer text or a smaller --context (a block is {BLOCK_WINDOWS}×context tokens)."
        )
    parts: tuple[list[int], list[int]] = ([], [])
    tokens = [0.0, 0.0]
    for index in random.permutation(len(documents)):
        judge = tokens[1] < held_out * tokens[0] or (not parts[1] and len(parts[0]) == len(documents) - 1)
        parts[judge].append(int(index))
        tokens[judge] += len(documents[index]) - 1
    return parts


def plan_windows(
    documents: list[np.ndarray],
    settings: Settings,
    *,
    first_token: int | None = None,
    batch: int = 4,
    name: str = "corpus",
) -> Plan:
    """Split documents into the two parts and cut them into chunks of windows.

    Documents are visited in a seeded order and each goes to the part that is behind its share, so both parts get
    whole documents. Within a part the windows are shuffled by the seed and taken until the part has its positions:
    N to fit and F·N to judge. A corpus with fewer tokens gives what it has, in the same proportion.

    Args:
        documents: token ids per document.
        first_token: put before every window where the model expects one (its beginning-of-text token); the
            position after it is no position of the corpus and is not counted.
        batch: windows a chunk.

    Raises:
        AnalysisError: fewer than two documents, or too few tokens to fit anything.
    """
    random = np.random.default_rng([settings.seed, 1])
    parts = _split(documents, settings.held_out, random, name)
    tokens = [float(sum(len(documents[i]) - 1 for i in part)) for part in parts]
    wanted = [settings.positions, settings.positions_held_out]
    share = min(1.0, *(have / want for have, want in zip(tokens, wanted, strict=True)))
    note = ""
    if share < 1:
        note = f"The corpus has text for {int(share * wanted[0]):,} of the {wanted[0]:,} positions asked for."
    chunks: list[Chunk] = []
    counts = [0, 0]
    for held_out in (False, True):
        quota = max(1, int(share * wanted[held_out]))
        windows = _windows(documents, sorted(parts[held_out]), settings.context, quota, random)
        counts[held_out] = sum(len(targets) for _, targets, _ in windows)
        for start in range(0, len(windows), batch):
            chunks.append(_chunk(windows[start : start + batch], held_out, first_token))
    if min(counts) < 16:
        raise AnalysisError(f"The corpus {name!r} has only {sum(counts)} positions: a few hundred words are the least.")
    return Plan(tuple(chunks), counts[0], counts[1], len(parts[0]), len(parts[1]), note)


Window = tuple[np.ndarray, np.ndarray, np.ndarray]


def _windows(
    documents: list[np.ndarray], chosen: list[int], context: int, quota: int, random: np.random.Generator
) -> list[Window]:
    """Windows (inputs, targets, positions) of the chosen documents, shuffled, `quota` positions in all, longest first."""
    places = [(i, start) for i in chosen for start in range(0, len(documents[i]) - 1, context)]
    windows: list[Window] = []
    for place in random.permutation(len(places)):
        index, start = places[place]
        ids = documents[index][start : start + min(context, quota) + 1]
        offsets = (np.int64(index) << 32) + np.arange(start, start + len(ids) - 1, dtype=np.int64)
        windows.append((ids[:-1], ids[1:], offsets))
        quota -= len(ids) - 1
        if quota <= 0:
            break
    return sorted(windows, key=lambda window: -len(window[0]))  # stable: only the last batches need padding


def _chunk(windows: list[Window], held_out: bool, first_token: int | None) -> Chunk:
    lead = 0 if first_token is None else 1
    shape = (len(windows), lead + max(len(inputs) for inputs, _, _ in windows))
    inputs = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, -1, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    if first_token is not None:
        inputs[:, 0] = first_token
    for row, (ids, following, places) in enumerate(windows):
        span = slice(lead, lead + len(ids))
        inputs[row, span], targets[row, span], positions[row, span] = ids, following, places
    return Chunk(held_out, inputs, targets, positions)
