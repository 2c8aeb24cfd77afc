"""The lesson's questions: what is asked, what this run measured, how near an answer must be, and what is said to it.

Pure functions of results: nothing here is known beforehand, every accepted answer comes from the numbers that were
measured for the student's own model, text, prompt and token.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np

from core import words
from core.dynamics import Dynamics
from core.encoding import Encoding
from core.results import NextToken
from core.steering import SteeredToken
from core.tokens import visible

HALF = 0.5
MOST_OF_IT = 0.9
CONFIDENCE = 1.96
"""Half width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Question:
    """A question whose answer is a number (texts are HTML, escaped).

    Attributes:
        text: what is asked, and how near is near enough.
        unit: what the number counts.
        measured: the answer of this run. low, high: answers from and to which it counts as right.
        right: what a right answer shows. hint: where in the figure a wrong one finds the right one.
        traps: other numbers that students give for a known reason, with what is said to them.
    """

    text: str
    unit: str
    measured: float
    low: float
    high: float
    right: str
    hint: str
    traps: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether an answer was right, and the sentence that is said to it (HTML)."""

    right: bool
    told: str


def check(question: Question, answer: float) -> Verdict:
    """Judge an answer against what was measured."""
    if question.low <= answer <= question.high:
        return Verdict(
            True, f"Right: <b>{_with_unit(question.measured, question.unit)}</b> in this run. {question.right}"
        )
    for value, told in question.traps:
        if abs(answer - value) <= 0.05 * abs(value):
            return Verdict(False, f"Not yet. {told}")
    way = "too small" if answer < question.low else "too large"
    return Verdict(False, f"Not yet: {words.number(answer)} is {way}. {question.hint}")


def _with_unit(value: float, unit: str) -> str:
    return words.ratio(value) if unit == "×" else f"{words.number(value)} {unit}"


def _name(token: str) -> str:
    return f'<span class="hs-chip">{html.escape(visible(token))}</span>'


def first_three(prompt: NextToken) -> Question:
    """Step 1: the share of the three likeliest next tokens, per cent."""
    top = np.sort(prompt.before)[::-1][:3]
    share = 100 * float(top.sum())
    return Question(
        "How much do the three likeliest tokens have together, in per cent? (Within one point.)",
        "%",
        share,
        share - 1,
        share + 1,
        f"All other tokens share the remaining {words.percent(1 - share / 100)}.",
        "Add up what stands at the three longest bars.",
        ((100 * float(top[0]), "That is the longest bar alone: add the next two."),) if top[1] > 0.1 * top[0] else (),
    )


def tokens_for_half(encoding: Encoding) -> Question:
    """Step 2: how many of the likeliest tokens share half of all probability."""
    count = tokens_for(encoding, HALF)
    rows = len(encoding.alpha)
    return Question(
        "How many of the likeliest tokens share half of all probability? (Within a third.)",
        words.plural(count, "token").partition(" ")[2],
        count,
        count / 1.35,
        count * 1.35,
        f"The other {rows - count:,} share the other half: most tokens are rare on average.",
        "Move the slider until the sentence says 50 %.",
        ((rows / 2, "That is half of the tokens, not of the probability: move the slider and read the sentence."),),
    )


def tokens_for(encoding: Encoding, share: float) -> int:
    """How many of the likeliest tokens have `share` of the mean probability together."""
    shares = np.cumsum(np.sort(encoding.alpha)[::-1])
    return min(int(np.searchsorted(shares, share * shares[-1])) + 1, len(shares))


def share_of(encoding: Encoding, count: int) -> float:
    """The share of the mean probability that the `count` likeliest tokens have."""
    ranked = np.sort(encoding.alpha)[::-1]
    return float(ranked[:count].sum() / ranked.sum())


def off_the_line(encoding: Encoding, place: int) -> Question:
    """Step 3: how many times as often as the line says a token comes. `place`: its row in the encoding."""
    measured, predicted = float(encoding.alpha[place]), float(np.exp(-encoding.predicted[place]))
    times = measured / predicted
    return Question(
        f"How many times as often as the line says does {_name(encoding.tokens[place])} come? Less than 1 if it comes less "
        "often. (Within 10 %.)",
        "×",
        times,
        0.9 * times,
        1.1 * times,
        f"On average over all tokens the line is off by a factor of "
        f"{words.number(float(np.exp(np.sqrt((encoding.residual**2).mean()))), 2)}.",
        "Two numbers stand above the figure, “1 in N” measured and by the line: divide the line's N by the measured N.",
        ((1 / times, "That is the other way round: divide the line's N by the measured N."),)
        if abs(np.log(times)) > 0.11
        else (),
    )


def clear_weights(encoding: Encoding) -> Question:
    """Step 4: of every ten weights, how many differ from zero beyond doubt."""
    clear = int((np.abs(encoding.t_values) > CONFIDENCE).sum())
    of_ten = 10 * clear / encoding.dim
    return Question(
        "Of every 10 weights, how many can be told from zero? (Within a half.)",
        "of 10",
        of_ten,
        of_ten - 0.5,
        of_ten + 0.5,
        f"{clear:,} of {encoding.dim:,}; if there were nothing in them, 1 in 20 would look so by chance.",
        f"The key of the figure counts the blue ones: divide by {encoding.dim:,} and take 10 times that.",
        ((float(clear), f"That is how many of all {encoding.dim:,}; the question is of every 10."),),
    )


def largest_ratio(token: SteeredToken) -> Question:
    """Step 5: the largest ratio that can be asked of the steered token."""
    most = token.max_ratio
    return Question(
        f"How many times as often can {_name(token.token)} come at most? (Within 5 %.)",
        "×",
        most,
        0.95 * most,
        1.05 * most,
        "Then it would be all that the model ever writes: no probability passes 1.",
        "The slider's label says how often it comes now, “1 in N”. What is the most that a probability can be?",
        ((token.target, "That is what the slider asks now. What is the most that could be asked?"),),
    )


def dimensions_for_most(encoding: Encoding) -> Question:
    """Step 6: how many dimensions the line needs for 90 % of its R²."""
    points = encoding.sparsity
    enough = next(i for i, p in enumerate(points) if p.r2_refitted >= MOST_OF_IT * encoding.r2)
    count = points[enough].dims
    below = points[enough - 1].dims + 1 if enough else 1
    above = points[enough + 1].dims - 1 if enough + 1 < len(points) else count
    return Question(
        f"How many dimensions does the line need for 90 % of its full R², that is for "
        f"{words.number(MOST_OF_IT * encoding.r2)}? (To the nearest mark of the curve.)",
        words.plural(count, "dimension").partition(" ")[2],
        count,
        below,
        above,
        f"The other {encoding.dim - count:,} add the last tenth.",
        "Move the slider until the solid curve passes that height.",
        (
            (
                MOST_OF_IT * encoding.dim,
                "That is 90 % of the dimensions: the curve passes 90 % of its height much earlier.",
            ),
        ),
    )


def times_as_late(found: Dynamics) -> Question | None:
    """Step 7: how many times as late the loss is learned as frequency; None where the run does not say."""
    frequency, loss = found.step_frequency_90, found.step_loss_90
    if not frequency or loss is None:
        return None
    times = loss / frequency
    return Question(
        "How many times as many steps does the loss need as the embedding, each for 90 % of its way? (Within 10 %.)",
        "×",
        times,
        0.9 * times,
        1.1 * times,
        f"Frequencies are there at step {frequency:,}, the loss at step {loss:,}.",
        "Two dotted lines in the figure name two steps: divide the loss's by the other.",
        ((1 / times, "That is the other way round: divide the loss's step by that of R²."),) if times > 1.2 else (),
    )


def here_against_average(prompt: NextToken, encoding: Encoding, token_id: int) -> Question:
    """Step 8: how many times as likely as on average a token is at the prompt."""
    here, average = at_prompt(prompt, token_id), mean_of(encoding, token_id)
    times = here / average
    name = encoding.tokens[int(np.searchsorted(encoding.token_ids, token_id))]
    return Question(
        f"How many times as likely as on average is {_name(name)} here? (Within 10 %.)",
        "×",
        times,
        0.9 * times,
        1.1 * times,
        "So the embedding gives the average and not the moment: what stands before decides.",
        "Multiply its probability here by the N of its “1 in N” on average; both stand above the figure.",
    )


def at_prompt(prompt: NextToken, token_id: int) -> float:
    """Its probability at the prompt, unedited."""
    return float(prompt.before[int(np.flatnonzero(prompt.token_ids == token_id)[0])])


def mean_of(encoding: Encoding, token_id: int) -> float:
    """Its mean probability over the fitting text."""
    return float(encoding.alpha[int(np.searchsorted(encoding.token_ids, token_id))])
