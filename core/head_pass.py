"""The head pass: from hidden states to mean probabilities, log Z and the largest logits, holding little and reading it once.

For a block of positions the head goes by in tiles of tokens, and each tile is worked on while it is in the cache:

    z = E_tile · H  ->  largest of every 32  ->  e = 2^(z − c)  ->  Σ e        (then, once all tiles are by)  Σ_x e / Z(x)

What a profile taught, SmolLM2-135M (V = 49,152, d = 576) on two cores, in shares of the bare product's time: with tokens
as rows the product alone is 1.5 times as fast for narrow blocks; the sum of a row in fp64 costs 40 %, a cascaded fp32 sum
of a tile added up in fp64 1 %; `exp` goes through a vector library that is slow on some processors (7–15 %), `exp2` does
not (3 %), and its factor log2 e costs nothing on the hidden states; a matrix–vector product over e costs 9 %, multiplying
tile by tile and summing 3 %; `topk` over V costs 10 %, over the maxima of groups of 32 and then over 16 groups 2 %.

Logits are fp32, sums over tokens and positions fp64 (at most a tile, or a block, is added in fp32). Source: method §1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float32, Float64, Int, Int32
from torch import Tensor

from core.errors import AnalysisError

if TYPE_CHECKING:
    from core.model import Head

TOP = 16
"""Largest logits kept per position of the reservoir; at most TOP - 1 tokens can be steered together."""
HEAD_BLOCK_BYTES = 42 * 2**20
"""Memory for one block's e. Wider blocks make the product a little faster, up to `WIDEST` positions."""
NARROWEST, WIDEST = 128, 256
TILE = 2048
"""Tokens in a tile, so that a tile of a block stays in the cache of the cores."""
ON_DEVICE = 8
"""How many times larger blocks and tiles are on a GPU, which has to be kept busy."""
GROUP = 32
LOG2_E = math.log2(math.e)
SAFE = 100.0
"""Binary exponents that a tile may reach above the reference c without overflow of a sum (fp32 ends at 128)."""


@dataclass(frozen=True)
class HeadSums:
    """What a head pass over n positions gives; logits in nats.

    Attributes:
        sum_p: [V] sum over the positions of their next-token probabilities.
        log_z, loss: [n] log of the sum of exponentials, and −log p of the target.
        top_ids, top_logits: [m, 16] the largest logits of the m positions asked for, descending.
    """

    sum_p: Float64[Tensor, "V"]
    log_z: Float64[Tensor, "n"]
    loss: Float64[Tensor, "n"]
    top_ids: Int32[Tensor, "m top"]
    top_logits: Float32[Tensor, "m top"]


class HeadPass:
    """A head made ready to go over many positions: the buffers are kept from call to call. Not for several threads."""

    def __init__(self, head: Head) -> None:
        self.head = head
        weight = head.weight
        self.vocab, self.device = weight.shape[0], weight.device
        larger = 1 if self.device.type == "cpu" else ON_DEVICE
        self.tile = TILE * larger
        fitting = HEAD_BLOCK_BYTES * larger // (4 * self.vocab)
        self.width = larger * max(NARROWEST, min(WIDEST, fitting // larger))
        self.bias = None if head.bias is None else (head.bias * LOG2_E)[:, None]
        self.cap = None if head.softcap is None else head.softcap * LOG2_E
        self.buffers: tuple[Tensor, Tensor] | None = None
        # sums over many numbers: fp64, which Apple's GPUs lack
        self.exact = torch.float32 if self.device.type == "mps" else torch.float64

    def __call__(
        self,
        hidden: Float32[Tensor, "n d"],
        targets: Int[Tensor, "n"],
        wanted: Bool[Tensor, "n"] | None = None,
    ) -> HeadSums:
        """Apply the head to positions.

        Args:
            hidden: [n, d] what the head receives. targets: [n] the true next tokens.
            wanted: [n] the positions whose largest logits are asked for; all if not given.

        Raises:
            AnalysisError: a target beyond the head's rows, logits that are not finite.
        """
        if int(targets.max()) >= self.vocab:
            raise AnalysisError(
                f"The tokenizer gives token {int(targets.max())}, but the head has only {self.vocab} rows."
            )
        n = len(hidden)
        width = min(self.width, n)
        width = -(-n // -(-n // width))  # blocks of nearly one width
        width = min(n, -(-width // 16) * 16)
        sum_p = torch.zeros(self.vocab, dtype=self.exact, device=self.device)
        parts = []
        for start in range(0, n, width):
            block = slice(start, start + width)
            chosen = None if wanted is None else wanted[block]
            log_z, *top = self._block(hidden[block], sum_p, chosen)
            parts.append((log_z, log_z - self._logits_of(hidden[block], targets[block]), *top))
        log_z, loss, top_ids, top_logits = (torch.cat(part) for part in zip(*parts, strict=True))
        if not torch.isfinite(log_z).all():
            raise AnalysisError(
                "The head's logits are not finite numbers, for the weights hold NaN or infinite values: choose another "
                "checkpoint."
            )
        return HeadSums(sum_p.cpu().double(), log_z.cpu().double(), loss.cpu().double(), top_ids, top_logits)

    def _block(
        self, hidden: Float32[Tensor, "b d"], sum_p: Tensor, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log Z [b], ids and values of the largest logits of the positions asked for; adds to `sum_p`."""
        scaled = (hidden * LOG2_E).T  # [d, b]: from here on logits are binary exponents
        e, tile = self._buffers(len(hidden))
        largest = torch.empty(-(-self.vocab // GROUP), len(hidden), device=self.device)
        shift, total = self._exponentials(scaled, e, tile, largest, None)
        above = largest.amax(0)
        if bool((above - (0.0 if shift is None else shift) > SAFE).any()):  # the reference was too low: now it is known
            shift, total = self._exponentials(scaled, e, tile, largest, above)
        share = total.reciprocal().float()
        for start in range(0, self.vocab, self.tile):
            rows = slice(start, min(start + self.tile, self.vocab))
            sum_p[rows] += torch.mul(e[rows], share, out=tile[: rows.stop - start]).sum(1)
        log_z = total.log2() if shift is None else total.log2() + shift
        return log_z / LOG2_E, *self._largest(e, largest, shift, wanted)

    def _buffers(self, width: int) -> tuple[Tensor, Tensor]:
        """e [V, width] and one tile [T, width]."""
        if self.buffers is None or self.buffers[1].numel() < self.tile * width:
            self.buffers = (
                torch.empty(self.vocab * width, device=self.device),
                torch.empty(self.tile * width, device=self.device),
            )
        e, tile = self.buffers
        return e[: self.vocab * width].view(self.vocab, width), tile[: self.tile * width].view(self.tile, width)

    def _exponentials(
        self, scaled: Tensor, e: Tensor, tile: Tensor, largest: Tensor, shift: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Fills e with 2^(z − shift) and `largest` with the maxima of groups; returns the shift [b] (None: 0) and Σ e [b].

        Without a shift given the first tile tells: none is needed where all maxima are small positive numbers, since then
        nothing overflows and no less underflows than after subtracting the maximum; else its maxima are the reference.
        """
        given, total = shift is not None, torch.zeros(e.shape[1], dtype=self.exact, device=self.device)
        for start in range(0, self.vocab, self.tile):
            rows = slice(start, min(start + self.tile, self.vocab))
            z = tile[: rows.stop - start]
            torch.mm(self.head.weight[rows], scaled, out=z)
            if self.bias is not None:
                z += self.bias[rows]
            if self.cap is not None:
                z.div_(self.cap).tanh_().mul_(self.cap)
            groups = _maxima(z, largest[start // GROUP :])
            if start == 0 and not given:
                first = groups.amax(0)
                shift = None if bool(first.min() >= 0) and bool(first.max() <= 0.6 * SAFE) else first
            if shift is not None:
                z -= shift
            total += torch.exp2(z, out=e[rows]).sum(0)
        return shift, total

    def _largest(
        self, e: Tensor, largest: Tensor, shift: Tensor | None, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Ids and values of the largest logits: they are in the groups with the largest maxima."""
        columns = torch.arange(e.shape[1], device=self.device) if wanted is None else wanted.nonzero()[:, 0]
        top = min(TOP, self.vocab)
        groups = largest.T[columns].topk(min(TOP, len(largest)), dim=1).indices
        ids = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=self.device)).flatten(1)  # [m, 16·32]
        inside = ids < self.vocab
        found = e.flatten()[ids.clamp(max=self.vocab - 1) * e.shape[1] + columns[:, None]]
        values, places = torch.where(inside, found, -1.0).topk(top, dim=1)
        exponents = values.clamp(min=torch.finfo(torch.float32).tiny).to(self.exact).log2()
        if shift is not None:
            exponents += shift[columns, None]
        return ids.gather(1, places).int(), (exponents / LOG2_E).float()

    def _logits_of(self, hidden: Float32[Tensor, "b d"], ids: Int[Tensor, "b"]) -> Tensor:
        """[b] the logit of one token for each position."""
        z = (hidden * self.head.weight[ids]).sum(1)
        if self.head.bias is not None:
            z += self.head.bias[ids]
        if self.head.softcap is not None:
            z = self.head.softcap * torch.tanh(z / self.head.softcap)
        return z.to(self.exact)


def _maxima(z: Tensor, out: Tensor) -> Tensor:
    """The largest of every `GROUP` rows of z [t, b], into the first rows of `out`; the last group may be smaller."""
    whole, rest = divmod(len(z), GROUP)
    torch.amax(z[: whole * GROUP].view(whole, GROUP, z.shape[1]), 1, out=out[:whole])
    if rest:
        torch.amax(z[whole * GROUP :], 0, out=out[whole])
    return out[: whole + bool(rest)]
