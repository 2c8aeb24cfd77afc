"""The lesson's questions against brute force on the same arrays: what is asked is what was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.lesson import questions
from app.lesson.questions import Question, check
from core.dynamics import Checkpoint, Dynamics
from core.results import NextToken
from core.steering import SteeredToken
from tests.app.arrays import DIM, RIVER, TOKENS, VOCAB, planted

ENCODING = planted()[2]
PROMPT = NextToken(
    np.arange(5), TOKENS[:5], np.array([0.4, 0.2, 0.1, 0.05, 0.01]), np.zeros(5), np.zeros(5, bool), 1.0, 2.0, 2.0,
    np.ones(DIM), 0.0,
)  # fmt: skip


def dynamics(r2: tuple[float, ...], losses: tuple[float | None, ...]) -> Dynamics:
    """A run with a checkpoint at steps 0, 1, 2, 4, …"""
    nothing = np.zeros(0, np.float32)
    checkpoints = tuple(
        Checkpoint(0 if not i else 2 ** (i - 1), "", str(i), None, a, None, b, np.ones(2), None, nothing, None, nothing)
        for i, (a, b) in enumerate(zip(r2, losses, strict=True))
    )
    return Dynamics("run", "text", False, np.arange(2), ("a", "b"), np.array([3, 4]), 0, checkpoints)


def all_questions() -> list[Question]:
    token = SteeredToken(RIVER, " river", 0.01, 20.0, 1.0, 20.0, 19.0, 100.0, 1.0, 1.0)
    late = questions.times_as_late(dynamics((0, 0.5, 0.9, 0.9, 0.9, 0.9), (8.0, 7.9, 7.0, 6.0, 5.0, 4.0)))
    assert late is not None
    return [
        questions.first_three(PROMPT),
        questions.tokens_for_half(ENCODING),
        questions.off_the_line(ENCODING, RIVER),
        questions.clear_weights(ENCODING),
        questions.largest_ratio(token),
        questions.dimensions_for_most(ENCODING),
        late,
        questions.here_against_average(PROMPT, ENCODING, 3),
    ]


def test_what_is_measured_is_what_brute_force_finds() -> None:
    alpha = ENCODING.alpha.tolist()
    half, count, left = sum(alpha) / 2, 0, sorted(alpha, reverse=True)
    while half > 0:
        half -= left.pop(0)
        count += 1
    predicted = np.exp(-(ENCODING.neg_log_alpha - ENCODING.residual))
    clear = sum(abs(w) > 1.96 * e for w, e in zip(ENCODING.weights, ENCODING.standard_errors, strict=True))
    enough = min(p.dims for p in ENCODING.sparsity if p.r2_refitted >= 0.9 * ENCODING.r2)
    expected = [70, count, alpha[RIVER] / predicted[RIVER], 10 * clear / DIM, 100, enough, 16 / 2, 0.05 / alpha[3]]
    assert [q.measured for q in all_questions()] == pytest.approx(expected)


@pytest.mark.parametrize("number", range(8))
def test_right_near_and_wrong_answers(number: int) -> None:
    asked = all_questions()[number]
    assert asked.low <= asked.measured <= asked.high
    assert check(asked, asked.measured).right and "Right" in check(asked, asked.measured).told
    assert check(asked, asked.low).right and check(asked, asked.high).right
    for wrong, told in ((0.5 * asked.low - 1, "too small"), (3 * asked.high + 1, "too large")):
        verdict = check(asked, wrong)
        assert not verdict.right
        assert told in verdict.told and asked.hint in verdict.told


@pytest.mark.parametrize("number", range(8))
def test_a_known_slip_gets_its_own_hint(number: int) -> None:
    asked = all_questions()[number]
    for value, told in asked.traps:
        if not asked.low <= value <= asked.high:
            assert check(asked, value) == questions.Verdict(False, f"Not yet. {told}")


def test_a_token_is_escaped() -> None:
    asked = questions.off_the_line(ENCODING, TOKENS.index("<script>alert(1)</script>"))
    assert "<script>" not in asked.text and "&lt;script&gt;" in asked.text


def test_one_token_may_have_half() -> None:
    alpha = np.r_[0.6, np.full(VOCAB - 1, 0.4 / (VOCAB - 1))]
    asked = questions.tokens_for_half(replace(ENCODING, alpha=alpha))
    assert asked.measured == 1 and check(asked, 1).right and not check(asked, 2).right
    assert questions.share_of(replace(ENCODING, alpha=alpha), 1) == pytest.approx(0.6)


def test_a_run_that_does_not_say_has_no_question() -> None:
    assert questions.times_as_late(dynamics((0, 0.5, 0.9), (None, None, None))) is None
    assert questions.times_as_late(dynamics((0, -0.1, -0.2), (3.0, 2.0, 1.0))) is None
    assert questions.times_as_late(dynamics((0, 0.5, 0.9), (3.0, 3.0, 3.0))) is None
