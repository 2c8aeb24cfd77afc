"""Observe: one streaming pass over a corpus, keeping only what adds up.

alpha_w = (1/N) sum_x p_w(x) needs the sum of the next-token distributions, and everything later needs sums too: of the
hidden states h and h hᵀ, of log Z, of h·log Z, of the corpus's own token counts. So a pass can be cut into chunks,
stopped and resumed, merged across machines, and its memory does not grow with N. Beside the sums travels a bounded,
seeded sample of positions (the reservoir), on which edits are later judged without another forward pass.

Logits are fp32, sums are fp64. Nothing of size N×V is ever held. Source: method §1 (Cho et al. 2025, the definition of alpha).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from core import disk
from core.corpus import Chunk, Plan
from core.errors import AnalysisError, not_finite
from core.head_pass import HeadPass
from core.moments import Moments, Observation, Reservoir
from core.settings import Progress, no_progress
from core.store import place_of, read_result, write_result

if TYPE_CHECKING:
    from core.model import Head, LoadedModel

log = logging.getLogger("headscope")
RESERVOIR_BYTES = 192 * 2**20
RESERVOIR_MOST = 16384
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
    head_pass = HeadPass(model.head)
    for index in range(state.done, len(plan.chunks)):
        progress("Observing the model on the corpus", index / len(plan.chunks))
        chunk = plan.chunks[index]
        moments = observe_chunk(model, head_pass, chunk, seed, *thresholds[chunk.held_out])
        state.add(moments, chunk.held_out)
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
def observe_chunk(
    model: LoadedModel, head_pass: HeadPass, chunk: Chunk, seed: int, capacity: int, largest_key: int
) -> Moments:
    """The sums over one chunk of windows. `head_pass` is the model's."""
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
        raise not_finite(
            f"The hidden states of {model.files.name} on this text", half=model.description.dtype != "float32"
        )
    targets = torch.from_numpy(chunk.targets[chunk.targets >= 0]).to(hidden.device)
    key = position_keys(chunk.positions[chunk.targets >= 0], seed)
    stays = key <= np.uint64(largest_key)  # in the reservoir until the end
    head = head_pass(hidden, targets, torch.from_numpy(stays).to(hidden.device))
    log_z, real_targets = head.log_z.numpy(), targets.cpu().numpy()
    order = np.argsort(key[stays], kind="stable")
    kept = np.flatnonzero(stays)[order]
    reservoir = Reservoir(
        capacity,
        key[kept],
        hidden.cpu().numpy()[kept],
        log_z[kept],
        head.top_ids.cpu().numpy()[order],
        head.top_logits.cpu().numpy()[order],
        real_targets[kept].astype(np.int32),
    )
    sum_h, sum_hh, sum_h_log_z = hidden_sums(hidden, log_z)
    return Moments(
        n=len(key),
        sum_p=head.sum_p.numpy(),
        counts=np.bincount(real_targets, minlength=len(head.sum_p)).astype(np.int64),
        sum_h=sum_h,
        sum_hh=sum_hh,
        sum_log_z=float(log_z.sum()),
        sum_log_z2=float((log_z**2).sum()),
        sum_h_log_z=sum_h_log_z,
        sum_loss=float(head.loss.sum()),
        reservoir=reservoir,
    )


def hidden_sums(hidden: torch.Tensor, log_z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Σ h [d], Σ h hᵀ [d, d] and Σ h·log Z [d] of hidden states [n, d], in fp64."""
    if hidden.device.type == "cuda":
        h = hidden.double()
        sums = h.sum(0), h.T @ h, h.T @ torch.from_numpy(log_z).to(h.device)
        return tuple(each.cpu().numpy() for each in sums)  # type: ignore[return-value]
    x = hidden.cpu().numpy().astype(np.float64)  # numpy sees that xᵀx is symmetric and computes half of it
    return x.sum(0), x.T @ x, x.T @ log_z


@torch.inference_mode()
def seen_through(head: Head, sample: Reservoir, progress: Progress = no_progress) -> Reservoir:
    """The same positions with another head on the same hidden states: log Z and the largest logits are those it gives."""
    found, head_pass = [], HeadPass(head)
    for start in range(0, len(sample), SEEN_AT_ONCE):
        progress("Applying the pruned head to the sample", start / len(sample))
        rows = slice(start, start + SEEN_AT_ONCE)
        hidden = torch.from_numpy(sample.hidden[rows]).to(head.weight.device)
        targets = torch.from_numpy(sample.next_token[rows]).long().to(head.weight.device)
        found.append(head_pass(hidden, targets))
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
        self.folder = self.place = folder
        self.done = 0
        self.fit: Moments | None = None
        self.held_out: Moments | None = None
        if folder is not None:
            with contextlib.suppress(OSError):  # what may not be read is observed again
                self._read(folder, chunks)

    def add(self, moments: Moments, held_out: bool, keep: bool = True) -> None:
        if keep:
            self._write(f"chunk-{self.done:06d}", _Kept(held_out, moments))
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
            path = self.folder / f"{name}.safetensors"
            write_result(path, result, place_of(path))
        except OSError as error:
            log.warning(
                "Finished chunks cannot be kept in %s (%s): if this run is interrupted it starts again. Another folder is "
                "chosen with --cache.",
                self.folder.parent,
                disk.why(error),
            )
            self.folder = None
            return False
        return True

    def _read(self, folder: Path, chunks: int) -> None:
        for path in sorted(folder.glob("sums-*.safetensors"), reverse=True):
            sums = read_result(path, _Sums, place_of(path))
            if sums is not None and sums.done <= chunks:
                self.done, self.fit, self.held_out = sums.done, sums.fit, sums.held_out
                break
        while self.done < chunks:
            path = folder / f"chunk-{self.done:06d}.safetensors"
            kept = read_result(path, _Kept, place_of(path))
            if kept is None:
                return
            self.add(kept.moments, kept.held_out, keep=False)

    def _drop_behind(self) -> None:
        for path in _kept_files(self.folder) if self.folder is not None else ():
            if int(path.stem.split("-")[1]) < self.done:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def clear(self) -> None:
        if self.place is not None:
            shutil.rmtree(self.place, ignore_errors=True)


@dataclass(frozen=True)
class _Kept:
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
