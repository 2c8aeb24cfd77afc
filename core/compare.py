"""Compare: does it hold elsewhere? The same few numbers for several models, revisions or corpora, one row each.

    encoding (how well a line explains −log alpha, how few dimensions it takes)  ->  steering (how far off a ratio is on
    text not seen)  ->  pruning (how often the top prediction stays)

Everything is measured as the other rooms measure it, so a row's numbers are those of its pages and commands. A row is
read from the store where it is there, without the model; rows of a sweep are read from its data set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from core.encoding import Encoding, SparsityPoint
from core.pruning.result import Pruning
from core.results import DirectionRow
from core.settings import Progress, no_progress
from core.show import Shown
from core.words import quoted, without_folders

if TYPE_CHECKING:
    from core.analysis import Analysis

RATIOS = (0.05, 2.0, 5.0, 20.0, 100.0)
TOKENS = 24
"""Tokens that are steered, one at a time, drawn by the seed from `RANKS`."""
RANKS = (200, 5000)
METHODS = ("rotated", "saliency")
"""Ours at its best, and the paper's order."""
FRACTIONS = tuple(round(0.05 * step, 2) for step in range(1, 19))
"""Shares of the dimensions that go: every twentieth."""

NO_WEIGHTS = np.zeros(0)


@dataclass(frozen=True)
class Row(Shown):
    """One model on one corpus.

    Attributes:
        model, revision, corpus: as they are named. positions, seed: of the analysis.
        vocab_size, dim: V and d. r2 … perplexity_held_out: see `core.encoding.Encoding`.
        sparsity: R² with the most salient dimensions only.
        weights: [d] A; empty where only numbers are known (rows of a sweep).
        steering: median |log(realised / asked)| on held-out text, minimum-variance, calibrated; None: not measured.
        pruning: the curves of `METHODS`; empty: not measured.
        error: why there are no numbers; the row is then empty.
    """

    _first = ("model", "corpus", "r2", "r2_held_out_tokens", "r2_held_out_text", "effective_dims", "log_z_std")

    model: str
    corpus: str
    revision: str = ""
    positions: int = 0
    seed: int = 0
    vocab_size: int = 0
    dim: int = 0
    r2: float = float("nan")
    r2_held_out_tokens: float = float("nan")
    r2_held_out_text: float = float("nan")
    residual_std: float = float("nan")
    effective_dims: float = float("nan")
    cosine_minus_mean_hidden: float = float("nan")
    log_z_std: float = float("nan")
    perplexity_held_out: float = float("nan")
    sparsity: tuple[SparsityPoint, ...] = ()
    weights: Float64[np.ndarray, "d"] = field(default_factory=lambda: NO_WEIGHTS)
    steering: DirectionRow | None = None
    pruning: tuple[Pruning, ...] = ()
    error: str = ""

    @property
    def of_sweep(self) -> bool:
        """Whether only numbers are known, as of the rows of a sweep."""
        return not self.error and not len(self.weights)

    @property
    def title(self) -> str:
        """Model and corpus; a damaged file of a sweep's data set has no corpus."""
        return " on ".join(filter(None, (self.model, self.corpus)))

    @property
    def complete(self) -> bool:
        return self.steering is not None and bool(self.pruning)


NUMBERS = (
    "vocab_size",
    "dim",
    "r2",
    "r2_held_out_tokens",
    "r2_held_out_text",
    "residual_std",
    "effective_dims",
    "cosine_minus_mean_hidden",
    "log_z_std",
    "perplexity_held_out",
)
"""Fields that a row takes from an encoding, and that the JSON of `headscope fit` has too."""


def _row(analysis: Analysis, found: Encoding, model: str, corpus: str) -> Row:
    files = analysis.known_files()
    return Row(
        model=model or analysis.model,
        corpus=corpus or analysis.corpus_name,
        revision="" if files is None else files.revision,
        positions=found.positions,
        seed=analysis.settings.seed,
        sparsity=found.sparsity,
        weights=found.weights,
        **{name: getattr(found, name) for name in NUMBERS},
    )


def stored_row(analysis: Analysis, *, model: str = "", corpus: str = "") -> Row | None:
    """What is stored of a row, None where not even its encoding is; never loads the model.

    Args:
        model, corpus: how they are called, if not as the analysis calls them.
    """
    found = analysis.cached_encoding()
    if found is None:
        return None
    return replace(
        _row(analysis, found, model, corpus),
        steering=_stored_accuracy(analysis),
        pruning=analysis.stored_pruning(METHODS, FRACTIONS) or (),
    )


def compare_row(
    analysis: Analysis,
    *,
    model: str = "",
    corpus: str = "",
    steering: bool = True,
    pruning: bool = True,
    progress: Progress = no_progress,
    on_row: Callable[[Row], None] | None = None,
) -> Row:
    """Measure a row; what is stored is not measured again.

    Args:
        model, corpus: how they are called, if not as the analysis calls them.
        steering, pruning: whether to measure these too.
        on_row: given the row as far as it is known, after every step.

    Raises:
        InputError, AnalysisError: as the steps of the analysis raise them.
    """

    def tell(row: Row) -> Row:
        if on_row is not None:
            on_row(row)
        return row

    row = tell(_row(analysis, analysis.encoding(progress), model, corpus))
    if steering:
        row = tell(replace(row, steering=steering_accuracy(analysis, progress)))
    if pruning:
        row = tell(replace(row, pruning=analysis.prune(METHODS, FRACTIONS, progress=progress)))
    return row


def steering_accuracy(analysis: Analysis, progress: Progress = no_progress) -> DirectionRow:
    """How far the realised ratio is from the asked one on held-out text, over `TOKENS` tokens; kept in the store."""
    analysis.encoding(progress)
    found = _stored_accuracy(analysis)
    if found is None:
        size = len(analysis.encoding().token_ids)
        first, last = min(RANKS[0], max(1, size // 10)), min(RANKS[1], size)
        ids = analysis.tokens_of_rank(first, last, TOKENS)
        errors: list[DirectionRow] = []
        for place, token in enumerate(ids):  # one by one, so that it can be stopped
            progress("Steering tokens, one after the other", place / len(ids))
            errors += analysis.compare_directions([token], RATIOS, ("minimum-variance",), (True,))
        found = _median(errors)
        key = _accuracy_key(analysis)
        if key is not None:
            analysis.store.put("accuracy", key, found)
    return found


def _stored_accuracy(analysis: Analysis) -> DirectionRow | None:
    key = _accuracy_key(analysis)
    return None if key is None else analysis.store.get("accuracy", key, DirectionRow)


def _median(each: Sequence[DirectionRow]) -> DirectionRow:
    """The rows of single tokens as one row over all of them."""
    held_out, fit, reached = (np.array([getattr(row, name) for row in each]) for name in ("held_out", "fit", "reached"))
    nobody = np.isnan(held_out).all(0)
    medians = [np.where(nobody, np.nan, np.nanmedian(np.where(nobody, 0.0, v), axis=0)) for v in (held_out, fit)]
    return replace(
        each[0],
        held_out=tuple(medians[0].tolist()),
        fit=tuple(medians[1].tolist()),
        reached=tuple(reached.mean(0).tolist()),
    )


def _accuracy_key(analysis: Analysis) -> dict[str, Any] | None:
    files = analysis.known_files()
    if files is None:
        return None
    return analysis.key(files) | {"tokens": TOKENS, "ranks": list(RANKS), "ratios": list(RATIOS)}


def read_data(folder: str | Path) -> tuple[Row, ...]:
    """The finished runs of a sweep's data set, and of those that failed, or whose file is damaged, the reason.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    from core.errors import InputError
    from core.sweep.results import read_data_set

    records, damaged = read_data_set(folder)
    if not records and not damaged:
        raise InputError(f"There is no run in {quoted(str(folder))}: give the folder that headscope sweep wrote.")
    return (
        *(_of_record(record) for record in records),
        *(Row(name, "", error="It is damaged and left out: the same sweep measures it again.") for name in damaged),
    )


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Rows without copies: what was measured once, and is read from the store and from a sweep's data set, is one row, the
    first of them. Runs of the same name with other numbers stay apart."""
    found: list[Row] = []
    alike: defaultdict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        others = alike[row.model, row.revision, row.corpus, row.positions, row.seed, bool(row.error)]
        if not any(_has_numbers_of(row, other) for other in others):
            others.append(row)
            found.append(row)
    return found


def _has_numbers_of(row: Row, other: Row) -> bool:
    """Whether both are the same measurement; shards are added up in another order, which rounds."""
    ours, theirs = ([float(getattr(each, name)) for name in NUMBERS] for each in (row, other))
    return bool(np.allclose(ours, theirs, rtol=1e-6, atol=1e-9, equal_nan=True))


def _of_record(record: dict[str, Any]) -> Row:
    """A row of the data set; its columns are the keys of `headscope fit`'s JSON."""
    named = {"model": record["model"], "corpus": record["corpus"], "seed": int(record["settings"]["seed"])}
    if record["status"] != "done":
        return Row(**named, positions=int(record["settings"]["positions"]), error=record["error"] or "It failed.")
    numbers: dict[str, Any] = {name: float("nan") if record[name] is None else record[name] for name in NUMBERS}
    sparsity = tuple(SparsityPoint(int(p["dims"]), p["r2"], p["r2_kept"]) for p in record["sparsity"] or ())
    return Row(
        **named, revision=record["revision"] or "", positions=int(record["positions"]), sparsity=sparsity, **numbers
    )


# --- what the rows say together ---------------------------------------------------------------------------------------


def cosines(rows: Sequence[Row]) -> Float64[np.ndarray, "n n"]:
    """[n, n] cosine between the weights of two rows; NaN where their widths differ or are not known.

    Only between revisions of one model, or one model on several corpora, do the dimensions mean the same.
    """
    found = np.full((len(rows), len(rows)), np.nan)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if len(one.weights) and len(one.weights) == len(other.weights):
                scale = float(np.linalg.norm(one.weights) * np.linalg.norm(other.weights))
                found[i, j] = float(one.weights @ other.weights) / scale if scale > 0 else np.nan
    return found


def names(rows: Sequence[Row]) -> list[str]:
    """What tells the rows apart: model, corpus, positions and seed, without what they all share."""
    parts = [
        [without_folders(row.model)] + ([row.revision] if "@" not in row.model and _differs(rows, row) else [])
        for row in rows
    ]
    if len({row.corpus for row in rows}) > 1 or len({tuple(part) for part in parts}) < len(rows):
        parts = [[*part, without_folders(row.corpus)] for part, row in zip(parts, rows, strict=True)]
    for name, told in (("positions", "{:,} positions"), ("seed", "seed {}")):
        if len({tuple(part) for part in parts}) < len(rows) and len({getattr(row, name) for row in rows}) > 1:
            parts = [[*part, told.format(getattr(row, name))] for part, row in zip(parts, rows, strict=True)]
    if len({part[0] for part in parts}) == 1 and all(len(part) > 1 for part in parts) and len(rows) > 1:
        parts = [part[1:] for part in parts]
    found = [" · ".join(part) for part in parts]
    return [
        f"{name} ({found[: at + 1].count(name)})" if found.count(name) > 1 else name for at, name in enumerate(found)
    ]


def _differs(rows: Sequence[Row], row: Row) -> bool:
    """Whether rows of the same model were read at another revision of it."""
    return len({other.revision for other in rows if other.model == row.model and other.revision}) > 1


HOLDS = 0.5
"""R² on held-out text from which on the encoding counts as holding."""


def finding(rows: Sequence[Row]) -> str:
    """What the rows say about the claim, in one sentence."""
    known = [row for row in rows if np.isfinite(row.r2_held_out_text)]
    if not known:
        return "Nothing is measured yet."
    low, high = (f"{100 * f(row.r2_held_out_text for row in known):.0f}" for f in (min, max))
    share = f"a line explains {low if low == high else f'{low}–{high}'} % of −log α on text it has not seen"
    if len(known) == 1:
        return f"So far one row: {share}."
    holding = sum(row.r2_held_out_text > HOLDS for row in known)
    return f"It holds in {f'all {holding}' if holding == len(known) else f'{holding} of {len(known)}'}: {share}."


def as_record(row: Row) -> dict[str, Any]:
    """A row as plain values, for JSON: without the weights."""
    record = {name: getattr(row, name) for name in ("model", "revision", "corpus", "positions", "seed", *NUMBERS)}
    return record | {
        "sparsity": [{"dims": p.dims, "r2": p.r2_refitted, "r2_kept": p.r2_kept} for p in row.sparsity],
        "steering": None if row.steering is None else asdict(row.steering),
        "pruning": [
            {"method": each.method, "removed": p.removed, "kl": p.kl, "top1_agreement": p.top1_agreement}
            for each in row.pruning
            for p in each.points
        ],
        "error": row.error or None,
    }


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The JSON object of `headscope compare`."""
    return {"rows": [as_record(row) for row in rows], "cosines": cosines(rows).tolist(), "finding": finding(rows)}
