"""Observe: one streaming pass over a corpus, keeping only what adds up.

alpha_w = (1/N) sum_x p_w(x) needs the sum of the next-token distributions, and everything later needs sums too: of the
hidden states h and h hᵀ, of log Z, of h·log Z, of the corpus's own token counts. So a pass can be cut into chunks,
stopped and resumed, merged across machines, and its memory does not grow with N. Beside the sums travels a bounded,
seeded sample of positions (the reservoir), on which edits are later judged without another forward pass.

Logits are fp32, sums are fp64. Nothing of size N×V is ever held. Source: method §1 (Cho et al. 2025, the definition of alpha).
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from core.corpus import Chunk, Plan
from core.errors import AnalysisError
from core.moments import Moments, Observation, Reservoir
from core.settings import Progress, no_progress
from core.store import read_result, write_result

if TYPE_CHECKING:
    from core.model import Head, LoadedModel

log = logging.getLogger("headscope")
TOP = 16
"""Largest logits kept per position of the reservoir; at most TOP - 1 tokens can be steered together."""
RESERVOIR_BYTES = 192 * 2**20
RESERVOIR_MOST = 16384
HEAD_BLOCK_BYTES = 96 * 2**20
"""Memory for logits while the head is applied: positions go through it in blocks of this many bytes."""
SEEN_AT_ONCE = 1024
"""Positions between two calls of the progress when a sample goes through another head."""
FOLD_EVERY = 16


def reservoir_capacity(dim: int) -> int:
    """Positions kept for a head of `dim` dimensions: the same for every shard of a corpus, so that they merge."""
    return max(256, min(RESERVOIR_MOST, RESERVOIR_BYTES // (4 * dim)))


def position_keys(positions: np.ndarray, seed: int) -> np.ndarray:
    """A pseudo-random uint64 for each position (splitmix64 of position and seed), the same in every process."""
    with np.errstate(over="ignore"):
        x = positions.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def observe(
    model: LoadedModel, plan: Plan, *, seed: int = 0, partial: Path | None = None, progress: Progress = no_progress
) -> Observation:
    """Run the model over a plan's chunks and add up.

    Args:
        model: from `core.model.load_model`; it is not changed.
        plan: from `core.corpus.plan_windows`.
        seed: of the reservoir.
        partial: folder that keeps every finished chunk. A run that was killed goes on from there and ends with the
            same numbers, because chunks are always added in the same order. Removed when the run is complete.
        progress: called before every chunk; may raise `Cancelled`.

    Raises:
        AnalysisError: the hidden states or logits are not finite.
    """
    thresholds = {held: _threshold(plan, held, seed, model.description.dim) for held in (False, True)}
    state = _Resumable(partial, len(plan.chunks))
    for index in range(state.done, len(plan.chunks)):
        progress("Observing the model on the corpus", index / len(plan.chunks))
        chunk = plan.chunks[index]
        state.add(observe_chunk(model, chunk, seed, *thresholds[chunk.held_out]), chunk.held_out)
    progress("Observing the model on the corpus", 1.0)
    fit, held_out = state.fit, state.held_out
    if fit is None or held_out is None:  # a plan always holds both
        raise AnalysisError("The corpus gave no positions.")
    state.clear()
    return Observation(fit, held_out, plan.documents, plan.documents_held_out, plan.note)


def _threshold(plan: Plan, held_out: bool, seed: int, dim: int) -> tuple[int, int]:
    """(capacity, largest key that stays): known before the pass, so that chunks keep only rows that will stay."""
    chunks = [chunk for chunk in plan.chunks if chunk.held_out == held_out]
    keys = np.concatenate([position_keys(chunk.positions[chunk.targets >= 0], seed) for chunk in chunks])
    capacity = reservoir_capacity(dim)
    return capacity, int(np.partition(keys, capacity - 1)[capacity - 1] if capacity < len(keys) else keys.max())


@torch.inference_mode()
def observe_chunk(model: LoadedModel, chunk: Chunk, seed: int, capacity: int, largest_key: int) -> Moments:
    """The sums over one chunk of windows."""
    inputs = torch.from_numpy(chunk.inputs)
    real = torch.from_numpy(chunk.targets >= 0)
    ragged = not bool(real[:, -1].all())
    mask = None
    if ragged:  # right padding: real positions never see it
        lengths = real.sum(1) + (~real[:, 0]).long()
        mask = (torch.arange(inputs.shape[1])[None] < lengths[:, None]).long()
    hidden = model.hidden_states(inputs, mask)
    real = real.to(hidden.device)
    hidden = hidden[real]  # [n, d]
    if not torch.isfinite(hidden).all():
        raise AnalysisError(
            f"{model.files.name} produced hidden states that are not finite numbers with dtype "
            f"{model.description.dtype}: try --dtype float32."
        )
    targets = torch.from_numpy(chunk.targets[chunk.targets >= 0]).to(hidden.device)
    key = position_keys(chunk.positions[chunk.targets >= 0], seed)
    head = _head_pass(model.head, hidden, targets)
    h64 = hidden.double()
    order = np.argsort(key, kind="stable")
    order = order[key[order] <= np.uint64(largest_key)]
    log_z = head.log_z.cpu().numpy()
    reservoir = Reservoir(
        capacity,
        key[order],
        hidden.cpu().numpy()[order],
        log_z[order],
        head.top_ids.cpu().numpy()[order],
        head.top_logits.cpu().numpy()[order],
        targets.cpu().numpy()[order].astype(np.int32),
    )
    return Moments(
        n=len(key),
        sum_p=head.sum_p.cpu().numpy(),
        counts=np.bincount(targets.cpu().numpy(), minlength=len(head.sum_p)).astype(np.int64),
        sum_h=h64.sum(0).cpu().numpy(),
        sum_hh=(h64.T @ h64).cpu().numpy(),
        sum_log_z=float(log_z.sum()),
        sum_log_z2=float((log_z**2).sum()),
        sum_h_log_z=(h64.T @ head.log_z.double()).cpu().numpy(),
        sum_loss=float(head.loss.sum()),
        reservoir=reservoir,
    )


@dataclass(frozen=True)
class _HeadPass:
    sum_p: torch.Tensor  # [V] fp64
    log_z: torch.Tensor  # [n] fp64
    loss: torch.Tensor  # [n] fp64
    top_ids: torch.Tensor  # [n, 16] int32
    top_logits: torch.Tensor  # [n, 16] fp32


def _head_pass(head: Head, hidden: Float[torch.Tensor, "n d"], targets: torch.Tensor) -> _HeadPass:
    """Apply the head block by block, in one buffer that turns from logits into probabilities in place."""
    vocab = head.weight.shape[0]
    if int(targets.max()) >= vocab:
        raise AnalysisError(f"The tokenizer gives token {int(targets.max())}, but the head has only {vocab} rows.")
    block = max(16, min(len(hidden), HEAD_BLOCK_BYTES // (4 * vocab)))
    buffer = torch.empty(block, vocab, dtype=torch.float32, device=hidden.device)
    top = min(TOP, vocab)
    sum_p = torch.zeros(vocab, dtype=torch.float64, device=hidden.device)
    parts: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, len(hidden), block):
        rows = hidden[start : start + block]
        logits = head.logits(rows, out=buffer[: len(rows)])  # [b, V]
        top_logits, top_ids = logits.topk(top, dim=1)
        following = logits.gather(1, targets[start : start + block, None])[:, 0].double()
        largest = top_logits[:, :1].clone()
        total = logits.sub_(largest).exp_().sum(1, dtype=torch.float64)  # [b]
        log_z = largest[:, 0].double() + total.log()
        sum_p += (logits.T @ total.reciprocal().float()).double()  # at most `block` rows are added in fp32
        parts.append((log_z, log_z - following, top_ids.int(), top_logits))
    log_z, loss, top_ids, top_logits = (torch.cat(part) for part in zip(*parts, strict=True))
    if not torch.isfinite(log_z).all():
        raise AnalysisError("The head's logits are not finite numbers: the weights hold NaN or infinite values.")
    return _HeadPass(sum_p, log_z, loss, top_ids, top_logits)


@torch.inference_mode()
def seen_through(head: Head, sample: Reservoir, progress: Progress = no_progress) -> Reservoir:
    """The same positions with another head on the same hidden states: log Z and the largest logits are those it gives."""
    found: list[_HeadPass] = []
    for start in range(0, len(sample), SEEN_AT_ONCE):
        progress("Applying the pruned head to the sample", start / len(sample))
        rows = slice(start, start + SEEN_AT_ONCE)
        hidden = torch.from_numpy(sample.hidden[rows]).to(head.weight.device)
        targets = torch.from_numpy(sample.next_token[rows]).long().to(head.weight.device)
        found.append(_head_pass(head, hidden, targets))
    log_z, ids, logits = (
        np.concatenate([getattr(each, name).cpu().numpy() for each in found])
        for name in ("log_z", "top_ids", "top_logits")
    )
    return replace(sample, log_z=log_z, top_ids=ids, top_logits=logits)


class _Resumable:
    """The running sums and, beside them on disk, every finished chunk.

    A chunk is written as its own small result; every `FOLD_EVERY` chunks the running sums are written and the chunks
    behind them removed. Reading back replays the same additions in the same order, so the numbers are the same bits.
    """

    def __init__(self, folder: Path | None, chunks: int) -> None:
        self.folder = folder
        self.done = 0
        self.fit: Moments | None = None
        self.held_out: Moments | None = None
        if folder is not None:
            self._read(folder, chunks)

    def add(self, moments: Moments, held_out: bool, keep: bool = True) -> None:
        if keep:
            self._write(f"chunk-{self.done:06d}", _Kept(self.done, held_out, moments))
        if held_out:
            self.held_out = moments if self.held_out is None else self.held_out.merge(moments)
        else:
            self.fit = moments if self.fit is None else self.fit.merge(moments)
        self.done += 1
        if (
            keep
            and self.done % FOLD_EVERY == 0
            and self._write(f"sums-{self.done:06d}", _Sums(self.done, self.fit, self.held_out))
        ):
            self._drop_behind()

    def _write(self, name: str, result: _Kept | _Sums) -> bool:
        """Keep a result; a disk that takes no more costs the resume, not the run."""
        if self.folder is None:
            return False
        try:
            write_result(self.folder / f"{name}.safetensors", result)
        except OSError as error:
            log.warning("Finished chunks cannot be kept (%s): if this run is interrupted it starts again.", error)
            self.folder = None
            return False
        return True

    def _read(self, folder: Path, chunks: int) -> None:
        for path in sorted(folder.glob("sums-*.safetensors"), reverse=True):
            sums = read_result(path, _Sums)
            if sums is not None and sums.done <= chunks:
                self.done, self.fit, self.held_out = sums.done, sums.fit, sums.held_out
                break
        while self.done < chunks:
            kept = read_result(folder / f"chunk-{self.done:06d}.safetensors", _Kept)
            if kept is None:
                return
            self.add(kept.moments, kept.held_out, keep=False)

    def _drop_behind(self) -> None:
        for path in _kept_files(self.folder) if self.folder is not None else ():
            if int(path.stem.split("-")[1]) < self.done:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Kept:
    index: int
    held_out: bool
    moments: Moments


@dataclass(frozen=True)
class _Sums:
    done: int
    fit: Moments | None
    held_out: Moments | None


def finished_chunks(folder: Path) -> int:
    """How many chunks of an unfinished run are on disk (for a sentence to the user)."""
    numbers = [int(p.stem.split("-")[1]) + (p.stem.startswith("chunk")) for p in _kept_files(folder)]
    return max(numbers, default=0)


def _kept_files(folder: Path) -> list[Path]:
    return [*folder.glob("chunk-*.safetensors"), *folder.glob("sums-*.safetensors")]
