"""Text to windows of tokens: every form of `CORPUS`, split by document into a part that fits and one that judges.

A document never gives windows to both parts and a window never crosses two documents. Texts without documents of
their own (.txt, .md) are cut at headings or blank lines into blocks of at least four windows; such a block is a document.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from core.errors import AnalysisError, InputError
from core.foreign import no_panics
from core.records import SUFFIXES, texts_in
from core.settings import ASSETS, FEWEST_SAMPLED, MOST_SAMPLED, Progress, no_progress
from core.words import quoted, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from core.settings import Settings

T = TypeVar("T")
READ_AT_MOST = 64 * 2**20
"""Characters read from a corpus; what lies beyond is left unread, and the corpus says so."""
MOST_TEXTS = 1_000_000
"""Records read from a corpus; likewise."""
PIECE = 2**18
"""Characters that the tokenizer gets as one text; a longer one is cut before a blank, where nothing changes by it."""
MOST_PIECES = 200_000
"""Pieces into which a text is cut; neighbours among more of them are joined."""
AT_ONCE = 2**20
"""Characters that are tokenised in one call."""
BLOCK_WINDOWS = 4
TOLD_EVERY = 500
"""Files or texts after which a reader tells how many there were."""


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


MOST_COPIED = 0.1
"""Share of the text that judges: where more of it is a copy of what fits, it is said."""


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
    if not re.fullmatch(r"[0-9]{3,12}", text) or not FEWEST_SAMPLED <= int(text) <= MOST_SAMPLED:
        raise InputError(
            f"The corpus {quoted(name)} is not understood: write self:N with N from {FEWEST_SAMPLED:,} to {MOST_SAMPLED:,}, as "
            "self:20000."
        )
    return int(text)


def read_corpus(name: str, *, local_paths: bool = True, shown: str = "", progress: Progress = no_progress) -> Corpus:
    """Read a corpus by its name.

    Args:
        name: `sampler`, `python-docs`, a file (`file.csv:column` for a column) or a folder.
        local_paths: False refuses files and folders (a server that strangers can reach).
        shown: what a file or folder is called in place of its path, in its result and in every sentence.

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
    if self_sampled_tokens(name) is not None:
        raise InputError(
            f"{quoted(name)} is text that a model writes itself, and is taken only where one model is analysed: give sampler, "
            "python-docs, a file or a folder."
        )
    if not local_paths:
        raise InputError(
            f"The corpus {quoted(name)} is not offered here: this server gives sampler, python-docs and uploads."
        )
    return _read_path(name, shown or name, progress)


def _corpus(name: str, texts: tuple[str, ...], *, cut: bool, note: str = "") -> Corpus:
    texts = tuple(text for text in texts if text.strip())
    if not texts:
        read = f" ({note[:1].lower()}{note[1:].rstrip('.')})" if note else ""
        raise InputError(f"The corpus {quoted(name)} holds no text{read}: give one with at least a few hundred words.")
    if (only := _only_character(texts)) is not None:
        raise InputError(f"The corpus {quoted(name)} holds nothing but {quoted(only)}: give a text of words.")
    digest = hashlib.sha256(
        b"cut, rest joined" if cut else b"documents"
    )  # what was stored of other cuts is another corpus
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


def _only_character(texts: tuple[str, ...]) -> str | None:
    """The one character, blanks aside, of which a long text consists; None for every real one."""
    seen: set[str] = set()
    if sum(map(len, texts)) < 10_000:
        return None
    for text in texts:
        for start in range(0, len(text), 2**16):
            seen.update(text[start : start + 2**16].replace(" ", "").replace("\n", ""))
            if len(seen) > 1:
                return None
    return min(seen, default=None)


def _what(error: OSError) -> str:
    """What failed, and at which file."""
    told = error.strerror or str(error)
    return told if error.filename is None else f"{told}: {short(str(error.filename))}"


def _read_path(name: str, shown: str, progress: Progress) -> Corpus:
    path, column = _split_column(name)
    if path.is_dir():
        try:
            entries = list(_told_of(islice(path.rglob("*"), MOST_TEXTS + 1), progress, "Looking through the folder"))
            named = sorted(p for p in entries if p.suffix.lower() in SUFFIXES)
            files = [p for p in _told_of(named, progress, "Looking through the folder") if not p.is_dir()]
            odd = next((p for p in files if not p.is_file()), None)
        except RecursionError as error:
            raise InputError(
                f"The folders in {quoted(shown)} are nested hundreds deep: name a folder of texts."
            ) from error
        except OSError as error:  # something in it left while it was listed, or may not be looked at
            raise InputError(
                f"The folder {quoted(shown)} cannot be listed as a whole ({_what(error)}): name a folder of texts."
            ) from error
        if len(entries) > MOST_TEXTS:
            raise InputError(
                f"The folder {quoted(shown)} holds more than {MOST_TEXTS:,} files: name one of texts only."
            )
        if odd is not None:
            raise InputError(
                f"{quoted(str(odd.relative_to(path)))} in the folder {quoted(shown)} is no ordinary file, or a link to "
                "nowhere: remove it, or name a folder of texts."
            )
        if not files:
            raise InputError(f"The folder {quoted(shown)} holds no {', '.join(SUFFIXES)} file.")
    elif path.is_file():
        files = [path]
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"The corpus {quoted(shown)} is no text that can be read here: give one of {', '.join(SUFFIXES)}."
            )
    elif path.exists():
        raise InputError(f"The corpus {quoted(shown)} is neither a file nor a folder: give one of them.")
    else:
        raise InputError(
            f"There is no corpus {quoted(shown)}: give sampler, python-docs, self:N, or a file or folder that exists "
            f"({', '.join(SUFFIXES)})."
        )
    texts: list[str] = []
    left, notes = READ_AT_MOST, []
    for text in _told_of(chain.from_iterable(_texts(file, column, path) for file in files), progress, "Reading texts"):
        texts.append(text[:left])
        left -= len(text)
        if left <= 0 or len(texts) >= MOST_TEXTS:
            break
    if left <= 0:
        notes.append(f"Only the first {READ_AT_MOST // 2**20} million characters were read.")
    elif len(texts) >= MOST_TEXTS:
        notes.append(f"Only the first {MOST_TEXTS:,} records were read.")
    # records are documents, and a plain file among them stays whole
    return _corpus(
        shown, tuple(texts), cut=all(f.suffix.lower() in (".txt", ".md") for f in files), note=" ".join(notes)
    )


def _told_of(items: Iterable[T], progress: Progress, phrase: str) -> Iterator[T]:
    """The same items; how many there were is told now and then, which is also where the work can be stopped."""
    progress(phrase, None)
    for number, item in enumerate(items):
        if number and number % TOLD_EVERY == 0:
            progress(f"{phrase}: {number:,}", None)
        yield item


def _texts(file: Path, column: str | None, corpus: Path) -> Iterator[str]:
    """The texts of a file; sentences name one of a folder by its path in it."""
    try:
        yield from texts_in(file, column, READ_AT_MOST)
    except InputError as error:
        inside = file.name if file == corpus else str(file.relative_to(corpus))
        raise InputError(str(error).replace(repr(file.name), repr(inside))) from error


def _split_column(name: str) -> tuple[Path, str | None]:
    """`file.csv:column` in its two halves; a file whose own name holds a colon is found as it is."""
    try:
        path = Path(name).expanduser()
        path.is_dir()  # raises where the system cannot look such a name up
        if path.exists() or ":" not in name:
            return path, None
        start, _, column = name.rpartition(":")
        if Path(start).suffix.lower() in (".csv", ".parquet", ".jsonl"):
            path = Path(start).expanduser()
            path.is_dir()
            return path, column
        return path, None
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(
            f"The corpus {quoted(name)} cannot be looked up here ({why}): give sampler, python-docs, self:N, a file or a "
            "folder."
        ) from error


def tokenise(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: int, progress: Progress = no_progress
) -> list[np.ndarray]:
    """The corpus as documents of token ids, int32 [length] each; special tokens are not added.

    Raises:
        Cancelled: from `progress`, between two batches of texts.
    """
    total, done = max(1, sum(map(len, corpus.texts))), 0

    def tell(characters: int) -> None:
        nonlocal done
        progress("Reading the corpus", done / total)
        done += characters

    if not corpus.cut:
        return [document for document in _encode(tokenizer, corpus.texts, tell) if len(document) > 1]
    documents: list[np.ndarray] = []
    for text in corpus.texts:
        pieces = _encode(tokenizer, _pieces(text), tell)
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
    together = -(-len(pieces) // MOST_PIECES)  # 1 but for millions of lines
    return ["".join(pieces[at : at + together]) for at in range(0, len(pieces), together)] if together > 1 else pieces


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
        rest = blocks.pop()
        blocks[-1] += rest
    return [np.concatenate(block) for block in blocks]


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...] | list[str], tell: Callable[[int], None]
) -> list[np.ndarray]:
    """Token ids of each text. What the tokenizer holds meanwhile is bounded, however long a text is.

    `tell` is called before each batch with its characters.
    """
    found: list[list[np.ndarray]] = [[] for _ in texts]
    for batch in _batches(texts):
        tell(sum(len(part) for _, part in batch))
        with no_panics("this model"):
            encoded = tokenizer(
                [part for _, part in batch], add_special_tokens=False, return_attention_mask=False, verbose=False
            )
        for (place, _), ids in zip(batch, encoded["input_ids"], strict=True):
            try:
                found[place].append(np.asarray(ids, dtype=np.int32))
            except OverflowError as error:
                raise AnalysisError(
                    f"The model's tokenizer gives the token id {max(ids):,}, and no model has so many tokens: use the "
                    "tokenizer that belongs to it."
                ) from error
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]


def _batches(texts: tuple[str, ...] | list[str]) -> Iterator[list[tuple[int, str]]]:
    """Parts of texts, each with its text's place, as many at once as the tokenizer gets."""
    batch: list[tuple[int, str]] = []
    size = 0
    for place, text in enumerate(texts):
        for part in _parts(text):
            if batch and (len(batch) == 1024 or size + len(part) > AT_ONCE):
                yield batch
                batch, size = [], 0
            batch.append((place, part))
            size += len(part)
    if batch:
        yield batch


def _parts(text: str) -> Iterator[str]:
    """The text, or its parts of at most `PIECE` characters."""
    start = 0
    while len(text) - start > PIECE:
        middle, end = start + PIECE // 2, start + PIECE
        at = max(text.rfind(" ", middle, end), text.rfind("\n", middle, end))
        at = end if at < 0 else at
        yield text[start:at]
        start = at
    yield text[start:]


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
    if not sum(map(len, documents)):
        raise AnalysisError(
            f"The model's tokenizer makes no more than a token of any text of {quoted(name)}: it is damaged, or the text is in "
            "a writing that it does not know, so choose another model or another text."
        )
    if len(documents) < 2:
        raise AnalysisError(
            f"The corpus {quoted(name)} is one document of {sum(map(len, documents)):,} tokens, and two documents are needed: "
            "give more records, or more text with line breaks in it (there a .txt or .md is cut into blocks of "
            f"{BLOCK_WINDOWS}×context tokens, so a smaller --context helps)."
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
    if (copied := _copied(documents, parts)) >= MOST_COPIED:
        note += (
            f" Of the text that only judges {100 * copied:.0f} % is, word for word, also in the text that fits, so that it is "
            "not unseen: give every document once."
        )
    chunks: list[Chunk] = []
    counts = [0, 0]
    for held_out in (False, True):
        quota = max(1, int(share * wanted[held_out]))
        windows = _windows(documents, sorted(parts[held_out]), settings.context, quota, random)
        counts[held_out] = sum(len(targets) for _, targets, _ in windows)
        for start in range(0, len(windows), batch):
            chunks.append(_chunk(windows[start : start + batch], held_out, first_token))
    if min(counts) < 16:
        raise AnalysisError(
            f"The corpus {quoted(name)} has only {sum(counts)} positions: a few hundred words are the least."
        )
    return Plan(tuple(chunks), counts[0], counts[1], len(parts[0]), len(parts[1]), note.strip())


def _copied(documents: list[np.ndarray], parts: tuple[list[int], list[int]]) -> float:
    """The share of the tokens that judge which lie in documents of which the fitting part has a copy."""
    fitted = {hash(documents[i].tobytes()) for i in parts[0]}
    copies = sum(len(documents[i]) for i in parts[1] if hash(documents[i].tobytes()) in fitted)
    return copies / max(1, sum(len(documents[i]) for i in parts[1]))


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
