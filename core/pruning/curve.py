"""The curve: what every width costs, for about the price of one.

Components leave in blocks, the last first; read the other way round, the logits of a width are those of the next smaller
one plus a block: logits += z_b (E C)_bᵀ. So K points cost one product of full width and K log-sum-exps, and with the mean row
Σ_w p_w E_w of every position, found once for all methods,

    KL(p ‖ p′) = Σ_w p_w (l_w − l′_w) − (log Z − log Z′) = z_removed · (Cᵀ Σ_w p_w E_w)_removed − (log Z − log Z′).

Under a soft-cap the logits are not linear in h, so Σ_w p_w l′_w is summed as it stands. The vocabulary and the positions are
tiled: a tile of logits stays in the processor's cache, and memory does not grow with V or N. Log Z is that of the same
arithmetic on both sides, hence nothing removed is KL 0 exactly. Jensen–Shannon and what happens to single tokens need
probabilities, so they are measured on a seeded part of the positions, by a second sweep. Source: method §4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from core.model.head import Head
from core.moments import Reservoir
from core.pruning.basis import Basis
from core.pruning.result import CLOSE_POSITIONS
from core.settings import Progress, no_progress

TOKENS_TILE, POSITIONS_TILE = 2048, 512
"""Logits held at a time: 4 MB."""


@dataclass(frozen=True)
class Measured:
    """What pruning to each of K widths does on the judged positions.

    Attributes:
        widths: components that stay. kl: [K] mean KL(full ‖ pruned), nats. js: [K] mean Jensen–Shannon divergence, nats.
        top1: [K] share of positions whose most likely token stays the most likely.
        loss: [K] mean −log p(true next token), nats; loss_full of the full head.
        token_kl: [K, V] each token's share Σ p log(p/p′) of the KL, mean over positions; sums to that KL.
        token_drift: [K, V] mean over positions of |log(p′/p)|.
    """

    widths: tuple[int, ...]
    kl: Float64[np.ndarray, "K"]
    js: Float64[np.ndarray, "K"]
    top1: Float64[np.ndarray, "K"]
    loss: Float64[np.ndarray, "K"]
    loss_full: float
    token_kl: Float64[np.ndarray, "K V"]
    token_drift: Float64[np.ndarray, "K V"]


class Judge:
    """The judged positions, made ready once for all methods.

    Args:
        head: the full head; it is not changed.
        sample: positions, held out from whatever the bases were made of.
        close: positions for what needs probabilities; the sample is in random order, so the first are a random part. With 0
            none of that is measured.
    """

    def __init__(
        self, head: Head, sample: Reservoir, *, close: int = CLOSE_POSITIONS, progress: Progress = no_progress
    ) -> None:
        self.head, self.device = head, head.weight.device
        self.hidden = torch.from_numpy(sample.hidden).to(self.device)
        self.log_z = torch.from_numpy(sample.log_z).to(self.device)
        self.next = torch.from_numpy(sample.next_token.astype(np.int64)).to(self.device)
        self.top = torch.from_numpy(sample.top_ids[:, 0].astype(np.int64)).to(self.device)
        self.close = min(close, len(sample))
        self.expected = self._expected(progress) if head.softcap is None else None

    def _expected(self, progress: Progress) -> Tensor:
        """[m, d] Σ_w p_w E_w of every position."""
        expected = torch.zeros_like(self.hidden)
        for start, stop in _tiles(len(self.head.weight), TOKENS_TILE, "Measuring the full head", progress):
            rows = self.head.weight[start:stop]
            bias = None if self.head.bias is None else self.head.bias[start:stop]
            for first, last in _tiles(len(self.hidden), POSITIONS_TILE):
                logits = self.hidden[first:last] @ rows.T
                if bias is not None:
                    logits += bias
                logits -= self.log_z[first:last, None].float()
                expected[first:last].addmm_(logits.exp_(), rows)
        return expected

    @torch.inference_mode()
    def measure(self, basis: Basis, widths: Sequence[int], progress: Progress = no_progress) -> Measured:
        """Judge the first k components of a basis, for every k of `widths`.

        Args:
            progress: called before every tile of the vocabulary; may raise `Cancelled`.
        """
        wanted = sorted({*widths} | ({basis.width} if basis.complete else set()))
        sweep = _Sweep(self, basis, wanted, progress)
        found = sweep.run()
        log_z, losses = found.log_z, (found.log_z - found.next_logit).mean(0).cpu().numpy()
        # nothing removed is the reference wherever there is such a width: then rounding cancels
        log_z_full = log_z[:, -1:] if basis.complete else self.log_z[:, None]
        kl = (self._moved(sweep, found, wanted) - (log_z_full - log_z)).mean(0).cpu().numpy()
        token_kl, token_drift, js = sweep.close(log_z[: self.close])
        place = [wanted.index(width) for width in widths]
        return Measured(
            tuple(widths),
            np.maximum(kl, 0.0)[place],
            js[place],
            found.top_stays.double().mean(0).cpu().numpy()[place],
            losses[place],
            float(losses[-1]) if basis.complete else self._loss(),
            token_kl[place],
            token_drift[place],
        )

    def _moved(self, sweep: _Sweep, found: _Found, wanted: Sequence[int]) -> Tensor:
        """[m, K] Σ_w p_w (l_w − l′_w): what the removed components give to the expected row."""
        if self.expected is None:
            full = found.expected_logit[:, -1:] if sweep.basis.complete else found.expected_full[:, None]
            return full - found.expected_logit
        moved = torch.zeros(len(self.hidden), len(wanted), dtype=torch.float64, device=self.device)
        for first, last in _tiles(len(self.hidden), POSITIONS_TILE):
            expected = self.expected[first:last].double()
            given = ((expected @ sweep.columns) * sweep.z[first:last]).cumsum(1)
            full = given[:, -1] if sweep.basis.complete else (expected * self.hidden[first:last]).sum(1)
            moved[first:last] = full[:, None] - given[:, [width - 1 for width in wanted]]
        return moved

    def _loss(self) -> float:
        """Mean −log p(true next token) of the full head, nats."""
        rows, bias = self.head.rows(self.next.cpu().numpy())
        logits = (self.hidden.cpu().numpy() * rows).sum(1) + bias
        if self.head.softcap is not None:
            logits = self.head.softcap * np.tanh(logits / self.head.softcap)
        return float((self.log_z.cpu().numpy() - logits).mean())


@dataclass(frozen=True)
class _Found:
    """[m, K] of every judged position and width, float64. Only under a soft-cap: Σ p l′ and, of the full head, [m] Σ p l."""

    log_z: Tensor
    next_logit: Tensor
    top_stays: Tensor
    expected_logit: Tensor
    expected_full: Tensor


class _Sweep:
    """One basis: its logits, tile by tile and width by width."""

    def __init__(self, judge: Judge, basis: Basis, widths: Sequence[int], progress: Progress) -> None:
        self.judge, self.basis, self.widths, self.progress = judge, basis, list(widths), progress
        device = judge.device
        self.columns = torch.from_numpy(np.ascontiguousarray(basis.columns)).to(device)  # [d, k] float64
        self.order = torch.from_numpy(basis.order).to(device) if basis.plain and basis.order is not None else None
        components = torch.from_numpy(np.ascontiguousarray(basis.components)).to(device)
        self.z = torch.empty(len(judge.hidden), basis.width, device=device)
        for first, last in _tiles(len(judge.hidden), POSITIONS_TILE):
            self.z[first:last] = judge.hidden[first:last].double() @ components
        self.buffers = [torch.empty(POSITIONS_TILE * TOKENS_TILE, device=device) for _ in range(4)]

    def _rows(self, start: int, stop: int) -> Tensor:
        """[t, d] float32 rows of E·C."""
        rows = self.judge.head.weight[start:stop]
        return rows[:, self.order] if self.order is not None else (rows.double() @ self.columns).float()

    def _logits(self, first: int, last: int, rows: Tensor, start: int) -> Iterator[tuple[int, Tensor]]:
        """(place of the width, logits [b, t] there) from the narrowest on; each is overwritten by the next."""
        head, shape = self.judge.head, (last - first, len(rows))
        linear, capped = (buffer[: shape[0] * shape[1]].view(shape) for buffer in self.buffers[:2])
        if head.bias is None:
            linear.zero_()
        else:
            linear.copy_(head.bias[start : start + len(rows)].expand(shape))
        before = 0
        for place, width in enumerate(self.widths):
            linear.addmm_(self.z[first:last, before:width], rows[:, before:width].T)
            before = width
            if head.softcap is None:
                yield place, linear
            else:
                yield place, torch.div(linear, head.softcap, out=capped).tanh_().mul_(head.softcap)

    def run(self) -> _Found:
        judge, points = self.judge, len(self.widths)
        shape, device = (len(judge.hidden), points), judge.device
        largest = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        total, next_logit, top_logit, expected = (
            torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(4)
        )
        expected_full = torch.zeros(len(judge.hidden), dtype=torch.float64, device=device)
        for start, stop in _tiles(len(judge.head.weight), TOKENS_TILE, "Pruning", self.progress):
            rows = self._rows(start, stop)
            for first, last in _tiles(len(judge.hidden), POSITIONS_TILE):
                here = slice(first, last)
                nexts, tops = _within(judge.next[here], start, stop), _within(judge.top[here], start, stop)
                scratch = self.buffers[2][: (last - first) * len(rows)].view(last - first, len(rows))
                p = None
                if judge.expected is None:
                    log_p = self._full(first, last, start, stop)
                    p = log_p.exp()
                    expected_full[here] += (p * (log_p + judge.log_z[here, None].float())).sum(1).double()
                for place, logits in self._logits(first, last, rows, start):
                    most = logits.amax(1)
                    part = torch.sub(logits, most[:, None], out=scratch).exp_().sum(1).double()
                    peak = torch.maximum(largest[here, place], most.double())
                    total[here, place] *= (largest[here, place] - peak).exp_()
                    total[here, place] += part * (most - peak).exp()
                    largest[here, place] = peak
                    next_logit[nexts[0] + first, place] = logits[nexts].double()
                    top_logit[tops[0] + first, place] = logits[tops].double()
                    if p is not None:
                        expected[here, place] += torch.mul(p, logits, out=scratch).sum(1).double()
        return _Found(largest + total.log(), next_logit, top_logit >= largest, expected, expected_full)

    def _full(self, first: int, last: int, start: int, stop: int) -> Tensor:
        """[b, t] log p of the full head."""
        judge = self.judge
        log_p = self.buffers[3][: (last - first) * (stop - start)].view(last - first, stop - start)
        head = judge.head
        part = Head(head.weight[start:stop], None if head.bias is None else head.bias[start:stop], head.softcap,
                    head.is_token[start:stop])  # fmt: skip
        part.logits(judge.hidden[first:last], out=log_p)
        return log_p.sub_(judge.log_z[first:last, None].float())

    def close(self, log_z: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """token_kl [K, V], token_drift [K, V] and js [K] over the positions of `log_z` [c, K]."""
        judge, points, count = self.judge, len(self.widths), len(log_z)
        vocab = len(judge.head.weight)
        if not count:
            return np.full((points, vocab), np.nan), np.full((points, vocab), np.nan), np.full(points, np.nan)
        token_kl, token_drift = np.zeros((points, vocab)), np.zeros((points, vocab))
        js = torch.zeros(points, dtype=torch.float64, device=judge.device)
        for start, stop in _tiles(vocab, TOKENS_TILE, "Pruning, token by token", self.progress):
            rows = self._rows(start, stop)
            for first, last in _tiles(count, POSITIONS_TILE):
                full = self.buffers[3][: (last - first) * len(rows)].view(last - first, len(rows))
                log_z_full = torch.zeros(last - first, 1, dtype=torch.float64, device=judge.device)
                if self.basis.complete:
                    for _, logits in self._logits(first, last, rows, start):
                        full.copy_(logits)  # the last is the full width
                    log_z_full = log_z[first:last, -1:]
                else:
                    full = self._full(first, last, start, stop)  # less log Z already
                log_p = full - log_z_full.float()
                p = log_p.exp()
                for place, logits in self._logits(first, last, rows, start):
                    # log Z − log Z′ is small, so that single precision rounds it less than either of them
                    ratio = (logits - full).sub_((log_z[first:last, place, None] - log_z_full).float())
                    pruned = log_p + ratio  # log p′
                    gain = torch.nn.functional.softplus(ratio).sub_(math.log(2))  # log of (p + p′) / 2p
                    js[place] -= (p * gain).sum(dtype=torch.float64)
                    js[place] -= (pruned.exp_() * (gain - ratio)).sum(dtype=torch.float64)
                    token_kl[place, start:stop] -= (p * ratio).sum(0, dtype=torch.float64).cpu().numpy()
                    token_drift[place, start:stop] += ratio.abs_().sum(0, dtype=torch.float64).cpu().numpy()
        mean_js = np.maximum(js.cpu().numpy() / (2 * count), 0.0)
        return token_kl / count, token_drift / count, mean_js


def _within(ids: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """(row, column in the tile) of the ids [b] that lie in a tile of the vocabulary."""
    row = torch.nonzero((ids >= start) & (ids < stop))[:, 0]
    return row, ids[row] - start


def _tiles(length: int, size: int, phrase: str = "", progress: Progress = no_progress) -> Iterator[tuple[int, int]]:
    for start in range(0, length, size):
        if phrase:
            progress(phrase, start / length)
        yield start, min(start + size, length)
