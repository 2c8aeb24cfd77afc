"""Steer: multiply a token's mean probability by r by editing its row of the output embedding.

The paper's edit is E_w ← E_w − log(r)·Ω A⁻¹ (A⁻¹ elementwise, Σ Ω_i = 1), so that A·ΔE = −log r. Only row w changes, hence
the edited distribution is known exactly, without another forward pass:

    δ(x) = f(z_w + h·ΔE) − f(z_w),     p'_w = p_w e^δ / (1 + p_w (e^δ − 1)),     every other token × 1 / (1 + p_w (e^δ − 1))

with z_w = h·E_w + b_w and f the head's soft-cap (or nothing). What limits the paper's edit is how much δ varies between
contexts. The direction that varies least for its mean is ΔE = log(r)·Σ⁻¹μ / (μᵀΣ⁻¹μ): *minimum-variance* (ours).

All arrays are numpy; m positions, k steered tokens, d dimensions. Source: Cho et al. 2025, abstract and the update in the
TL;DR; method §3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Float64, Int

from core import words
from core.encoding import Encoding
from core.errors import AnalysisError, InputError
from core.moments import Moments, Reservoir
from core.results import NextToken
from core.show import Shown
from core.words import quoted

DIRECTIONS = ("minimum-variance", "saliency", "least-norm", "uniform", "top-k:K", "random")
LOGIT_BIAS = "logit-bias"
RIDGE = 1e-3
MOST_TOKENS = 15
"""Tokens that can be steered together: one fewer than the largest logits kept per position, so that the best token that
is not steered is always known."""
MOST_RATIO = 1e6
SEARCH = np.concatenate([np.geomspace(0.01, 0.5, 5), np.arange(0.7, 2.0, 0.2), np.geomspace(2.0, 60.0, 20)])
"""Multiples of log r that are tried in this order until the mean ratio passes r; the root is then found in between."""
MOST_SHIFT = 600.0
"""Largest change of a logit, nats: beyond it nothing changes any more, and e^600 is still a number."""


@dataclass(frozen=True)
class Edit:
    """Multiply the mean probability of a token by `ratio`."""

    token_id: int
    ratio: float

    def __post_init__(self) -> None:
        if not 1 / MOST_RATIO <= self.ratio <= MOST_RATIO:  # also False for NaN
            raise InputError(
                f"The ratio is {self.ratio:g}, but it must be from 1/1000000 to 1000000 (1 changes nothing)."
            )


@dataclass(frozen=True)
class Judged:
    """What an edit does on one part of the text, exactly, from that part's sample of positions.

    Attributes:
        realised: [k] mean probability of each steered token, edited over unedited.
        kl, js: mean KL(unedited ‖ edited) and Jensen–Shannon divergence, nats.
        top1_agreement: share of contexts in which the most likely token stays.
        others_drift: mean |log s(x)|, s(x) the factor by which every token that is not steered changes there.
    """

    realised: Float64[np.ndarray, "k"]
    kl: float
    js: float
    top1_agreement: float
    others_drift: float


@dataclass(frozen=True)
class SteeredToken:
    """One token of a steering.

    Attributes:
        id, token: the token and its text. alpha: its mean probability on the fitting part.
        target: the ratio asked for. step: the multiple of log(target) that was taken (1 where not calibrated).
        realised, realised_held_out: ratio of mean probabilities on the fitting part and on held-out text.
        max_ratio: the largest ratio possible, 1/alpha (less under a soft-cap).
        delta_norm: Euclidean length of the change of the row; share_of_row: that over the row's own length.
    """

    id: int
    token: str
    alpha: float
    target: float
    step: float
    realised: float
    realised_held_out: float
    max_ratio: float
    delta_norm: float
    share_of_row: float


@dataclass(frozen=True)
class Steering(Shown):
    """A list of edits along one direction, solved and judged. `kl` … `others_drift` are on held-out text.

    Attributes:
        delta: [k, d] what is added to the rows of the output embedding, for hidden states times the logit scale.
        logit_shift: [k] what is added to the logits themselves (the logit-bias baseline only; else 0).
    """

    direction: str
    calibrated: bool
    tokens: tuple[SteeredToken, ...]
    delta: Float64[np.ndarray, "k d"]
    logit_shift: Float64[np.ndarray, "k"]
    kl: float
    js: float
    top1_agreement: float
    others_drift: float
    delta_norm: float

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)


@dataclass(frozen=True)
class SweepPoint:
    """The same edit at another ratio (of the first token; others keep theirs)."""

    ratio: float
    realised: float
    realised_held_out: float
    kl: float
    js: float
    top1_agreement: float
    others_drift: float


@dataclass(frozen=True)
class Curve:
    """What one token's step does over a range of steps, the other tokens staying as they are.

    Attributes:
        steps: [g] nats along the direction, ascending.
        realised, realised_held_out: [g] ratio of the token's mean probability.
        kl, others_drift: [g] of the whole edit, held-out, nats.
    """

    steps: Float64[np.ndarray, "g"]
    realised: Float64[np.ndarray, "g"]
    realised_held_out: Float64[np.ndarray, "g"]
    kl: Float64[np.ndarray, "g"]
    others_drift: Float64[np.ndarray, "g"]

    def solved(self) -> Curve:
        """The part on which `Steerer.steps` looks for a ratio: outwards from no edit, the steps that bring more (or less)
        than all before them. Beyond, a direction that pushes both ways turns back, and reaches the same ratios again; the
        last step before may lie beyond the turn, and is left out too."""

        def outwards(way: np.ndarray) -> np.ndarray:
            further = way[1:] > np.maximum.accumulate(way)[:-1]
            return np.flatnonzero(further & np.append(further[1:], True)) + 1

        start = int(np.abs(self.steps).argmin())
        less, more = outwards(-self.realised[start::-1]), outwards(self.realised[start:])
        kept = np.concatenate([start - less[::-1], [start], start + more])
        return Curve(*(getattr(self, each.name)[kept] for each in fields(self)))


def check_direction(direction: str) -> None:
    """Refuse a direction that does not exist."""
    if direction in (*DIRECTIONS, LOGIT_BIAS) and direction != "top-k:K":
        return
    if re.fullmatch(r"top-k:0*[1-9][0-9]{0,8}", direction):
        return
    raise InputError(
        f"The direction is {quoted(direction)}, but it must be one of {', '.join(DIRECTIONS)} (K a number)."
    )


def check_tokens(ids: Sequence[int]) -> None:
    """Refuse a list of tokens that cannot be steered together."""
    if not 1 <= len(ids) <= MOST_TOKENS:
        raise InputError(f"{len(ids)} tokens are to be steered, but from 1 to {MOST_TOKENS} can be at once.")
    if len(set(ids)) < len(ids):
        raise InputError("A token is in the list twice: give each token once, with one ratio.")


def direction_vector(
    direction: str,
    *,
    weights: Float[np.ndarray, "d"],
    saliency: Float[np.ndarray, "d"],
    mean_hidden: Float[np.ndarray, "d"],
    covariance: Float[np.ndarray, "d d"],
    seed: int = 0,
) -> Float64[np.ndarray, "d"]:
    """[d] u with ΔE = log(r)·u. The paper's have A·u = −1 (u = −Ω/A), minimum-variance and random have μ·u = 1.

    Args:
        direction: one of `DIRECTIONS`; `top-k:50` spreads Ω evenly over the 50 most salient dimensions.
        weights: A. saliency: |A_i|·std(E_·i). mean_hidden, covariance: μ and Σ of the hidden states.

    Raises:
        AnalysisError: there is no such direction, since what it is made of is zero.
    """
    check_direction(direction)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = _direction(direction, weights, saliency, mean_hidden, covariance, seed)
    if not np.isfinite(found).all():
        raise AnalysisError(
            f"This head has no direction {quoted(direction)}, for the weights or the mean hidden state that it is made of are "
            "0: choose another."
        )
    return found


def _direction(
    direction: str,
    weights: np.ndarray,
    saliency: np.ndarray,
    mean_hidden: np.ndarray,
    covariance: np.ndarray,
    seed: int,
) -> np.ndarray:
    dim = len(weights)
    if direction == "minimum-variance":
        import scipy.linalg  # here and below: the lists of edits on a page do not wait for scipy

        ridge = RIDGE * np.trace(covariance) / dim
        ridge = max(ridge, np.finfo(float).tiny)
        try:
            u = scipy.linalg.solve(covariance + ridge * np.eye(dim), mean_hidden, assume_a="pos")
        except np.linalg.LinAlgError as error:
            raise AnalysisError(
                "The hidden states of all contexts are the same, so that no direction varies least: take another text, or "
                "check the model's tokenizer."
            ) from error
        return u / float(mean_hidden @ u)
    if direction == "random":
        u = np.random.default_rng([seed, 3]).standard_normal(dim)
        return u / float(mean_hidden @ u)
    if direction == "least-norm":
        return -weights / float(weights @ weights)
    if direction == "saliency":
        omega = saliency / saliency.sum()
    elif direction == "uniform":
        omega = np.full(dim, 1 / dim)
    elif direction == LOGIT_BIAS:
        return np.zeros(dim)
    else:
        size = int(direction.removeprefix("top-k:"))
        if size > dim:
            raise InputError(f"The direction is {direction!r}, but this head has only {dim} dimensions.")
        omega = np.zeros(dim)
        omega[np.argsort(-saliency, kind="stable")[:size]] = 1 / size
    u = np.where(omega > 0, -omega / np.where(weights == 0, np.inf, weights), 0.0)
    reached = float(-(weights @ u))  # below 1 only where a weight is exactly 0
    return u / reached


class Part:
    """What is needed of one part's positions for given tokens and one direction; O(m·d) once, O(m·k) per change."""

    def __init__(
        self,
        sample: Reservoir,
        ids: Int[np.ndarray, "k"],
        rows: Float64[np.ndarray, "k d"],
        bias: Float64[np.ndarray, "k"],
        direction: Float64[np.ndarray, "d"] | None,
        softcap: float | None,
        mean_p: Float64[np.ndarray, "k"] | None = None,
    ) -> None:
        self.softcap = softcap
        # products in the precision of the hidden states (a copy of them in fp64 would cost more than all the rest)
        self.logits = (sample.hidden @ rows.T.astype(np.float32)).astype(
            np.float64
        ) + bias  # [m, k] before the soft-cap
        self.shift = np.ones(len(sample))  # [m]
        if direction is not None:
            self.shift = (sample.hidden @ direction.astype(np.float32)).astype(np.float64)
        self.on_logits = direction is None
        self.log_p = np.minimum(self._cap(self.logits) - sample.log_z[:, None], -1e-12)
        self.p = np.exp(self.log_p)
        self.rest = np.maximum(1 - self.p.sum(1), 1e-300)  # [m] what is not steered
        own = self.p.mean(0)
        self.mean_p = own if mean_p is None else mean_p  # [k] what ratios are relative to
        # [k] log of the ratio where nothing is edited yet, nats
        self.offset = np.zeros(len(own)) if mean_p is None else np.log(np.maximum(own, 1e-300) / mean_p)
        steered = np.isin(sample.top_ids, ids)
        first = steered.argmin(1)  # the largest logit that is not steered
        place = np.arange(len(sample))
        self.best_other = sample.top_logits[place, first].astype(np.float64) - sample.log_z
        self.top_is = np.where(sample.top_ids[:, :1] == ids, 1, 0) @ np.arange(1, len(ids) + 1) - 1  # [m] index, or -1

    def _cap(self, z: np.ndarray) -> np.ndarray:
        return z if self.softcap is None else self.softcap * np.tanh(z / self.softcap)

    def delta(self, steps: Float64[np.ndarray, "k"]) -> Float64[np.ndarray, "m k"]:
        """[m, k] change of the steered logits when token i moves by steps[i] nats along the direction."""
        if self.on_logits or self.softcap is None:
            return np.clip(self.shift[:, None] * steps, -MOST_SHIFT, MOST_SHIFT)
        return self._cap(self.logits + self.shift[:, None] * steps) - self._cap(self.logits)

    def log_scale(self, delta: Float64[np.ndarray, "m k"]) -> Float64[np.ndarray, "m"]:
        """[m] log s(x): by how much every token that is not steered changes."""
        return -np.log(self.rest + self._pushed(delta).sum(1))

    def _pushed(self, delta: Float64[np.ndarray, "m k"]) -> Float64[np.ndarray, "m k"]:
        """[m, k] p e^δ: what the steered tokens weigh before all are scaled to sum to 1 again."""
        return self.p * np.exp(delta)

    def realised(self, steps: Float64[np.ndarray, "k"]) -> Float64[np.ndarray, "k"]:
        """[k] ratio of mean probabilities, edited over `mean_p`."""
        pushed = self._pushed(self.delta(steps))
        return self._over_before((pushed / (self.rest + pushed.sum(1))[:, None]).mean(0))

    def _over_before(self, after: Float64[np.ndarray, "k"]) -> Float64[np.ndarray, "k"]:
        """[k] over `mean_p`; NaN, for it is no ratio, where a token had no probability at all."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return after / self.mean_p

    def judge(self, steps: Float64[np.ndarray, "k"]) -> Judged:
        delta = self.delta(steps)
        log_s = self.log_scale(delta)
        log_edited = self.log_p + delta + log_s[:, None]
        p, edited, rest = self.p, np.exp(log_edited), self.rest
        kl = -log_s - (p * delta).sum(1)
        log_middle = np.logaddexp(self.log_p, log_edited) - np.log(2)  # steered tokens
        log_rest = np.logaddexp(0.0, log_s) - np.log(2)  # every other token, relative to p
        js = 0.5 * (
            (p * (self.log_p - log_middle)).sum(1)
            + (edited * (log_edited - log_middle)).sum(1)
            - rest * log_rest
            + rest * np.exp(log_s) * (log_s - log_rest)
        )
        best = log_edited.argmax(1)
        wins = log_edited[np.arange(len(best)), best] > self.best_other + log_s
        before, after = self.top_is, np.where(wins, best, -1)
        return Judged(
            realised=self._over_before(edited.mean(0)),
            kl=float(np.maximum(kl, 0).mean()),
            js=float(np.maximum(js, 0).mean()),
            top1_agreement=float((before == after).mean()),
            others_drift=float(np.abs(log_s).mean()),
        )

    def largest_ratio(self, token: int) -> float:
        """The ratio that no step passes: 1/alpha, less where a soft-cap bounds the logit."""
        if self.softcap is None or self.on_logits:
            return float(1 / self.mean_p[token])
        log_odds = self.log_p[:, token] - np.log(-np.expm1(self.log_p[:, token]))
        delta = self.softcap - self._cap(self.logits[:, token])
        return float((1 / (1 + np.exp(-(log_odds + delta)))).mean() / self.mean_p[token])

    def only(self, token: int) -> Part:
        """The same for one of the tokens, as if the others were not steered."""
        part = object.__new__(Part)
        part.softcap, part.shift, part.on_logits = self.softcap, self.shift, self.on_logits
        for name in ("logits", "log_p", "p"):
            setattr(part, name, getattr(self, name)[:, token : token + 1])
        part.rest = np.maximum(1 - part.p[:, 0], 1e-300)
        part.mean_p, part.offset = self.mean_p[token : token + 1], self.offset[token : token + 1]
        return part


class Steerer:
    """Edits of given tokens along one direction: built once for the tokens, then every ratio is cheap.

    Args:
        fit, held_out: the two parts of an observation.
        encoding: the fit, for the paper's directions.
        ids, rows, bias: the tokens, their rows of the output embedding [k, d] and biases [k].
        names: their texts.
        softcap: the head's, if it has one.
        direction: see `direction_vector`; `logit-bias` shifts the logits alike in every context.
        vector: use this direction instead (few-shot estimates).
        relative_to: what the ratios are relative to, if not to the head that is edited: the mean probabilities [k] of the
            tokens on the reservoir that calibrates and on the held-out one (a pruned head is steered to multiples of
            what the model gave before it was pruned).
    """

    def __init__(
        self,
        fit: Moments,
        held_out: Moments,
        encoding: Encoding,
        ids: Sequence[int],
        rows: Float64[np.ndarray, "k d"],
        bias: Float64[np.ndarray, "k"],
        names: Sequence[str],
        *,
        softcap: float | None = None,
        direction: str = "minimum-variance",
        seed: int = 0,
        vector: Float64[np.ndarray, "d"] | None = None,
        calibrate_on: Reservoir | None = None,
        relative_to: tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "k"]] | None = None,
    ) -> None:
        check_tokens(ids)
        check_direction(direction)
        self.direction, self.rows, self.ids, self.names = direction, rows, tuple(ids), tuple(names)
        self.bias, self.softcap = bias, softcap
        if vector is None:
            vector = direction_vector(
                direction,
                weights=encoding.weights,
                saliency=encoding.saliency,
                mean_hidden=fit.mean_hidden,
                covariance=fit.covariance,
                seed=seed,
            )
        self.vector = vector
        along = None if direction == LOGIT_BIAS else vector
        id_array = np.asarray(ids, dtype=np.int64)
        sample = fit.reservoir if calibrate_on is None else calibrate_on
        means = relative_to or (None, None)
        self.fit = Part(sample, id_array, rows, bias, along, softcap, means[0])
        self.held_out = Part(held_out.reservoir, id_array, rows, bias, along, softcap, means[1])
        self.alpha = fit.alpha[id_array]

    def largest_ratios(self) -> tuple[float, ...]:
        """The ratio no edit of each token can pass, on the fitting part."""
        return tuple(self.fit.largest_ratio(i) for i in range(len(self.ids)))

    def steer(self, ratios: Sequence[float], calibrate: bool = True) -> Steering:
        """Solve for the steps (or take log r as it is) and judge.

        Raises:
            InputError: a ratio that no edit reaches, with the largest that is.
        """
        steps = self.steps(ratios, calibrate)
        fit, held_out = self.fit.realised(steps), self.held_out.judge(steps)
        bias_only = self.direction == LOGIT_BIAS
        delta = np.zeros_like(self.rows) if bias_only else np.outer(steps, self.vector)
        norms, rows = np.linalg.norm(delta, axis=1), np.linalg.norm(self.rows, axis=1)
        log_ratios = np.log(np.asarray(ratios, dtype=np.float64))
        tokens = tuple(
            SteeredToken(
                id=self.ids[i],
                token=self.names[i],
                alpha=float(self.alpha[i]),
                target=float(ratios[i]),
                step=float(steps[i] / log_ratios[i]) if log_ratios[i] else 1.0,
                realised=float(fit[i]),
                realised_held_out=float(held_out.realised[i]),
                max_ratio=self.fit.largest_ratio(i),
                delta_norm=float(norms[i]),
                share_of_row=float(norms[i] / rows[i]) if rows[i] > 0 else float("inf"),
            )
            for i in range(len(self.ids))
        )
        return Steering(
            direction=self.direction,
            calibrated=calibrate and self.direction != "random",
            tokens=tokens,
            delta=delta,
            logit_shift=steps if bias_only else np.zeros(len(steps)),
            kl=held_out.kl,
            js=held_out.js,
            top1_agreement=held_out.top1_agreement,
            others_drift=held_out.others_drift,
            delta_norm=float(np.linalg.norm(delta)),
        )

    def sweep(
        self, ratios: Sequence[float], others: Sequence[float] = (), calibrate: bool = True
    ) -> tuple[SweepPoint, ...]:
        """The first token at every one of `ratios`; ratios that cannot be reached are left out."""
        points = []
        for ratio in ratios:
            try:
                steps = self.steps([ratio, *others], calibrate)
            except (InputError, AnalysisError):
                continue
            judged = self.held_out.judge(steps)
            points.append(
                SweepPoint(
                    float(ratio),
                    float(self.fit.realised(steps)[0]),
                    float(judged.realised[0]),
                    judged.kl,
                    judged.js,
                    judged.top1_agreement,
                    judged.others_drift,
                )
            )
        return tuple(points)

    def curve(self, token: int, steps: Float64[np.ndarray, "k"], grid: Float64[np.ndarray, "g"]) -> Curve:
        """The `token`-th token at every step of `grid`, the others at their `steps`: what a live slider needs."""
        rows = []
        for step in grid:
            moved = steps.copy()
            moved[token] = step
            judged = self.held_out.judge(moved)
            realised = self.fit.realised(moved)[token]
            rows.append((step, realised, judged.realised[token], judged.kl, judged.others_drift))
        return Curve(*np.array(rows, dtype=np.float64).T)

    def at_prompt(self, hidden: Float64[np.ndarray, "d"]) -> tuple[Float64[np.ndarray, "k"], float]:
        """[k] logits of the tokens at a prompt before the soft-cap, and the shift of a logit per nat along the direction."""
        shift = 1.0 if self.direction == LOGIT_BIAS else float(hidden @ self.vector)
        return self.rows @ hidden + self.bias, shift

    def steps(self, ratios: Sequence[float], calibrate: bool = True) -> Float64[np.ndarray, "k"]:
        """[k] nats along the direction for each token; calibrated, the mean ratio on the fitting part is exact."""
        if len(ratios) != len(self.ids):
            raise InputError(
                f"There are {len(self.ids)} tokens but {len(ratios)} ratios: give one ratio for each token."
            )
        targets = np.asarray([Edit(0, ratio).ratio for ratio in ratios], dtype=np.float64)
        self._refuse_impossible(targets)
        if not calibrate or self.direction == "random":  # a random direction keeps no sign: nothing to solve
            return np.log(targets) - self.fit.offset
        steps = np.array([self._single(i, float(ratio)) for i, ratio in enumerate(targets)])
        return steps if len(steps) == 1 else self._jointly(targets, steps)

    def _refuse_impossible(self, targets: np.ndarray) -> None:
        for name, mean, ratio, most in zip(self.names, self.fit.mean_p, targets, self.largest_ratios(), strict=True):
            if ratio > 1 and ratio >= most:
                raise InputError(
                    f"{name!r} already has 1 in {1 / mean:,.3g} on average; {ratio:g}× is impossible, at most "
                    f"{words.at_most(most)}×."
                )
        total = float(targets @ self.fit.mean_p)
        if len(targets) > 1 and (targets > 1).any() and total >= 1:
            raise InputError(
                f"Together these tokens would take {100 * total:.0f} % of the probability: lower the ratios until they "
                "sum to less than 100 %."
            )

    def _single(self, token: int, ratio: float) -> float:
        """The step for one token alone: the first root of mean ratio = r on the branch that starts at no edit."""
        import scipy.optimize

        part, log_ratio = self.fit.only(token), float(np.log(ratio))
        missing = log_ratio - float(part.offset[0])
        if missing == 0:
            return 0.0

        def beyond(step: float) -> float:
            """By how many nats the ratio lies beyond the one that is asked for; negative where it is not reached yet."""
            found = float(np.log(np.maximum(part.realised(np.array([step]))[0], 1e-300))) - log_ratio
            return found * float(np.sign(missing))

        def root(low: float, high: float) -> float:
            return float(scipy.optimize.brentq(beyond, low, high, xtol=1e-12, rtol=1e-12))

        far = np.copysign(np.geomspace(min(SEARCH[-1] * abs(missing), MOST_SHIFT), MOST_SHIFT, 40), missing)
        steps, found = [0.0, 0.0], [-abs(missing)] * 2
        for step in map(float, (*(SEARCH * missing), *far)):
            now = beyond(step)
            if found[-1] > max(found[-2], now):  # it turns back here, and may have been beyond in between
                ends = sorted((steps[-2], step))
                turn = scipy.optimize.minimize_scalar(lambda at: -beyond(at), bounds=ends, method="bounded")
                if -turn.fun >= 0:
                    return root(steps[-2], float(turn.x))
                found[-1] = max(found[-1], -turn.fun)
            if now >= 0:
                return root(steps[-1], step)
            steps.append(step)
            found.append(now)
        reached = np.exp(log_ratio + max(found) * np.sign(missing))
        limit = words.at_most if missing > 0 else words.at_least
        digits = next((n for n in range(4, 12) if f"{ratio:.{n}g}" != limit(reached, n)), 12)
        word = "at most" if missing > 0 else "down to"
        raise InputError(
            f"{self.names[token]!r} cannot be brought to {ratio:.{digits}g}× along the direction {self.direction!r}, which "
            f"pushes it up in some contexts and down in others: {word} {limit(reached, digits)}× is reached. "
            + ("Ask for a ratio nearer to 1." if self.direction == "minimum-variance" else "Choose minimum-variance.")
        )

    def _jointly(self, targets: np.ndarray, start: np.ndarray) -> np.ndarray:
        """All steps together: every token's edit takes probability from the others."""
        import scipy.optimize

        log_targets = np.log(targets)

        def miss(steps: np.ndarray) -> np.ndarray:
            return np.log(np.maximum(self.fit.realised(steps), 1e-300)) - log_targets

        found = scipy.optimize.root(miss, start, tol=1e-10)
        if np.abs(miss(found.x)).max() > 1e-4:
            raise InputError(
                "These ratios cannot be reached together along one direction: lower the largest, or steer fewer tokens."
            )
        return found.x


def edited_prompt(base: NextToken, steerer: Steerer, steps: Float64[np.ndarray, "k"]) -> NextToken:
    """The next-token distribution of `base` (of the model as it is) after an edit, in closed form: no forward pass.

    Args:
        base: from `core.generate.next_token` without a steering.
        steerer, steps: the tokens and their steps, nats along the direction.
    """
    logits, shift = steerer.at_prompt(base.hidden)

    def cap(z: np.ndarray) -> np.ndarray:
        return z if steerer.softcap is None else steerer.softcap * np.tanh(z / steerer.softcap)

    if steerer.direction == LOGIT_BIAS:
        delta = steps
    else:
        delta = np.clip(cap(logits + shift * steps) - cap(logits), -MOST_SHIFT, MOST_SHIFT)
    log_p = np.minimum(cap(logits) - base.log_z, 0.0)
    p = np.exp(log_p)
    rest = max(1 - float(p.sum()), 0.0)
    log_s = -float(np.log(max(rest + float((p * np.exp(delta)).sum()), 1e-300)))
    log_edited = log_p + delta + log_s
    steered = dict(zip(steerer.ids, range(len(steerer.ids)), strict=True))
    known = dict(zip(base.token_ids.tolist(), zip(base.tokens, base.before, strict=True), strict=True))
    shown = {i: (steerer.names[j], float(p[j])) for i, j in steered.items() if i not in known} | known
    ids = np.array(sorted(shown, key=lambda i: -shown[i][1]), dtype=np.int64)
    after = [np.exp(log_edited[steered[i]]) if i in steered else shown[i][1] * np.exp(log_s) for i in ids.tolist()]
    entropy_rest = base.entropy_before + float((p * log_p).sum())  # of the tokens that are not steered
    return NextToken(
        token_ids=ids,
        tokens=tuple(shown[i][0] for i in ids.tolist()),
        before=np.array([shown[i][1] for i in ids.tolist()], dtype=np.float64),
        after=np.array(after, dtype=np.float64),
        steered=np.isin(ids, steerer.ids),
        others_factor=float(np.exp(log_s)),
        entropy_before=base.entropy_before,
        entropy_after=float(np.exp(log_s) * (entropy_rest - log_s * rest) - (np.exp(log_edited) * log_edited).sum()),
        hidden=base.hidden,
        log_z=base.log_z,
    )
