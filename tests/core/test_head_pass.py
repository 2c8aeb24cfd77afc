"""The head pass against the same sums in fp64, over heads that reach every branch of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import AnalysisError
from core.head_pass import GROUP, TILE, TOP, HeadPass
from core.model import Head

DIM, POSITIONS = 24, 300


def head_of(vocab: int, *, biased: bool = False, softcap: float | None = None, shift: float = 0.0) -> Head:
    draw = torch.Generator().manual_seed(vocab)
    bias = torch.randn(vocab, generator=draw) + shift if biased or shift else None
    return Head(torch.randn(vocab, DIM, generator=draw), bias, softcap, np.ones(vocab, dtype=bool))


def positions(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(POSITIONS, DIM, generator=draw), torch.randint(vocab, (POSITIONS,), generator=draw)


def check(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> None:
    logits = hidden.double() @ head.weight.double().T
    if head.bias is not None:
        logits += head.bias.double()
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    found = HeadPass(head)(hidden, targets)
    torch.testing.assert_close(found.log_z, logits.logsumexp(1), rtol=2e-7, atol=5e-6)
    torch.testing.assert_close(found.sum_p, logits.softmax(1).sum(0), rtol=2e-5, atol=0.0)
    assert abs(float(found.sum_p.sum()) / len(hidden) - 1) < 1e-6
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=2e-5)
    values, ids = logits.topk(min(TOP, len(head.weight)), dim=1)
    torch.testing.assert_close(found.top_logits.double(), values, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(logits.gather(1, found.top_ids.long()), values, rtol=1e-6, atol=2e-5)
    assert (found.top_ids.long() == ids).float().mean() > 0.99


@pytest.mark.parametrize("vocab", [3, 40, TILE, 2 * TILE + GROUP + 5])
@pytest.mark.parametrize(("biased", "softcap"), [(False, None), (True, None), (True, 6.0)])
def test_sums_are_those_of_fp64(vocab: int, biased: bool, softcap: float | None) -> None:
    check(head_of(vocab, biased=biased, softcap=softcap), *positions(vocab))


@pytest.mark.parametrize("shift", [-90.0, 90.0])
def test_logits_far_from_zero(shift: float) -> None:
    """Nothing overflows, and what is small next to its own context does not underflow."""
    check(head_of(3 * TILE, shift=shift), *positions(3 * TILE))


@pytest.mark.parametrize("lift", [60.0, 300.0])
def test_a_late_tile_far_above_the_first(lift: float) -> None:
    """The reference comes from the first tile; where a later one would overflow the block is done again."""
    head = head_of(3 * TILE, biased=True)
    assert head.bias is not None
    head.bias[-50:] += lift
    hidden, targets = positions(3 * TILE)
    found = HeadPass(head)(hidden, targets)
    logits = hidden.double() @ head.weight.double().T + head.bias.double()
    torch.testing.assert_close(found.log_z, logits.logsumexp(1), rtol=2e-7, atol=5e-6)
    torch.testing.assert_close(found.sum_p[-50:], logits.softmax(1).sum(0)[-50:], rtol=1e-4, atol=0.0)
    torch.testing.assert_close(found.top_logits.double(), logits.topk(TOP).values, rtol=1e-6, atol=2e-5)


def test_only_the_positions_asked_for_get_their_largest_logits() -> None:
    head, (hidden, targets) = head_of(TILE + 7), positions(TILE + 7)
    head_pass = HeadPass(head)
    every = head_pass(hidden, targets)
    wanted = torch.arange(POSITIONS) % 7 == 3
    some = head_pass(hidden, targets, wanted)  # the buffers are used again
    torch.testing.assert_close(some.sum_p, every.sum_p, rtol=0.0, atol=0.0)
    assert torch.equal(some.top_ids, every.top_ids[wanted])
    assert torch.equal(some.top_logits, every.top_logits[wanted])
    none = head_pass(hidden[:5], targets[:5], torch.zeros(5, dtype=torch.bool))
    assert none.top_ids.shape == (0, TOP)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(value: float) -> None:
    head, (hidden, targets) = head_of(2 * TILE), positions(2 * TILE)
    head.weight[TILE + 3, 2] = value
    with pytest.raises(AnalysisError, match="not finite"):
        HeadPass(head)(hidden, targets)


def test_targets_beyond_the_head() -> None:
    head, (hidden, targets) = head_of(40), positions(40)
    with pytest.raises(AnalysisError, match="gives token 40, but the head has only 40 rows"):
        HeadPass(head)(hidden, targets + 1)
