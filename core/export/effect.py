"""What another head does to the next-token distributions of a sample, from whole distributions: no closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from core.export.result import ExportEffect
from core.head_pass import HEAD_BLOCK_BYTES
from core.moments import Reservoir
from core.settings import Progress

if TYPE_CHECKING:
    from core.model import Head


@torch.inference_mode()
def measure_effect(
    before: Head, after: Head, sample: Reservoir, token_ids: Sequence[int], progress: Progress
) -> ExportEffect:
    """Compare two heads on the hidden states of a sample.

    Args:
        before, after: heads on the same device.
        token_ids: the tokens whose mean probabilities are compared.
    """
    vocab, device = before.weight.shape[0], before.weight.device
    block = max(16, HEAD_BLOCK_BYTES // (8 * vocab))
    ids = torch.as_tensor(list(token_ids), dtype=torch.long, device=device)
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    means = torch.zeros(2, len(ids), dtype=torch.float64, device=device)
    for start in range(0, len(sample), block):
        progress("Measuring what is exported on held-out text", start / len(sample))
        rows = slice(start, start + block)
        hidden = torch.from_numpy(sample.hidden[rows]).to(device)
        following = torch.from_numpy(sample.next_token[rows]).long().to(device)[:, None]
        z, changed = before.logits(hidden), after.logits(hidden)
        same = z.argmax(1) == changed.argmax(1)
        log_z, log_changed = (each.double().logsumexp(1) for each in (z, changed))
        losses = [log - each.gather(1, following)[:, 0].double() for log, each in ((log_z, z), (log_changed, changed))]
        p = (z - log_z.float()[:, None]).exp_()
        q = (changed - log_changed.float()[:, None]).exp_()
        means += torch.stack([p[:, ids].sum(0, dtype=torch.float64), q[:, ids].sum(0, dtype=torch.float64)])
        kl = (p * z.sub_(changed)).sum(1, dtype=torch.float64) - (log_z - log_changed)
        js = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
        sums += torch.stack(
            [kl.sum(), js.sum(), same.double().sum(), losses[0].sum(), losses[1].sum(), kl.new_ones(())]
        )
    kl, js, agreement, loss, loss_after = (sums[:5] / len(sample)).tolist()
    ratio = (means[1] / means[0]).cpu().numpy()
    with np.errstate(over="ignore"):
        perplexity, perplexity_before = np.exp(loss_after), np.exp(loss)
    return ExportEffect(
        positions=len(sample),
        realised=tuple(float(each) for each in ratio),
        kl=max(kl, 0.0),
        js=max(js, 0.0),
        top1_agreement=agreement,
        perplexity=float(perplexity),
        perplexity_before=float(perplexity_before),
    )


def _entropy(p: torch.Tensor) -> torch.Tensor:
    """[n] nats; p = 0 adds nothing."""
    return -torch.special.xlogy(p, p).sum(1, dtype=torch.float64)
