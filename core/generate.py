"""Generate: what an edit does at a prompt, and to texts sampled with the same noise.

Both sides of a comparison draw each token as argmax(log p + g) with the *same* Gumbel noise g for the same text and step
(coupled sampling), so that only the edit makes a difference: with ratio 1 the two sides are identical, token for token.
All texts, before and after, run in one batch through the model's own `generate`; a pruned head gives the logits of its
side itself, and a steering is applied to logits as δ = f(z + h·ΔE) − f(z), which is what a changed row of the output
embedding would give. The model is not touched. To compare distributions (`core.similarity`) every text has noise of its own.

Source: method §3, "counts of the token in sampled continuations"; Gumbel-max sampling (Gumbel 1954; Maddison et al. 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.errors import InputError, not_finite
from core.foreign import no_panics
from core.model.chat import in_chat
from core.results import Generated, NextToken, Sampling, TokenCount
from core.settings import OnTokens, Progress, Texts, no_progress
from core.steering import Steering
from core.tokens import token_texts
from core.words import whole_characters

if TYPE_CHECKING:
    from core.model import Head, LoadedModel
    from core.pruning.head import PrunedHead

MOST_CHARACTERS = 20_000


class Edited:
    """An edit applied to logits: those of a pruned head, if there is one, then δ(x) added to the steered columns.

    Of a steering it holds only the k rows concerned.
    """

    def __init__(self, head: Head, steering: Steering | None, pruned: PrunedHead | None = None) -> None:
        device, dim, ids = head.weight.device, head.weight.shape[1], [] if steering is None else steering.token_ids
        rows, bias = (head if pruned is None else pruned).rows(ids)
        change = np.zeros((0, dim)) if steering is None else steering.delta
        shift = np.zeros(0) if steering is None else steering.logit_shift
        self.ids = torch.tensor(ids, dtype=torch.long, device=device)
        self.rows = torch.from_numpy(rows).float().to(device)  # [k, d]
        self.bias = torch.from_numpy(bias).float().to(device)  # [k]
        self.change = torch.from_numpy(change).float().to(device)  # [k, d]
        self.shift = torch.from_numpy(shift).float().to(device)  # [k]
        self.softcap, self.pruned = head.softcap, pruned

    def delta(self, hidden: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, "n k"]:
        """[n, k] what the edit adds to the logits of the steered tokens."""
        moved = hidden @ self.change.T
        if self.softcap is not None:
            before = hidden @ self.rows.T + self.bias
            cap = self.softcap
            moved = cap * torch.tanh((before + moved) / cap) - cap * torch.tanh(before / cap)
        return moved + self.shift

    def apply(
        self, logits: Float[torch.Tensor, "n V"], hidden: Float[torch.Tensor, "n d"]
    ) -> Float[torch.Tensor, "n V"]:
        """[n, V] a copy of the full head's logits with the edit."""
        if self.pruned is not None:
            logits = self.pruned.logits(hidden)
        return logits.index_add(1, self.ids, self.delta(hidden).to(logits.dtype))


def edit_of(model: LoadedModel, steering: Steering | None, pruned: PrunedHead | None) -> Edited | None:
    """The edit of a model's logits; None where nothing is edited.

    A pruned head that kept its full width is the head as it is, but for rounding, which must not decide a token.
    """
    if pruned is not None and pruned.dims == pruned.dim:
        pruned = None
    return None if steering is None and pruned is None else Edited(model.head, steering, pruned)


def encode_prompt(model: LoadedModel, prompt: str, *, chat: bool = False, new_tokens: int = 0) -> torch.Tensor:
    """[1, t] token ids of a prompt.

    Args:
        chat: wrap the prompt in the model's chat template, as a user's turn.
        new_tokens: room that must be left in the model's context.

    Raises:
        InputError: an empty prompt where no token of the model begins or ends a text, a prompt that is too long, no
            template.
    """
    tokenizer = model.tokenizer
    if len(prompt) > MOST_CHARACTERS:
        raise InputError(
            f"The prompt has {len(prompt):,} characters; at most {MOST_CHARACTERS:,} are taken: shorten it."
        )
    prompt = whole_characters(prompt)
    if chat and not tokenizer.chat_template:
        raise InputError(f"{model.files.name} has no chat template: leave out --chat, or switch the chat format off.")
    text = in_chat(tokenizer, prompt, model.files.name) if chat else prompt
    with no_panics(model.files.name):
        ids = tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
    if not ids:
        ids = _begun(model)
        if not ids:
            raise InputError("The prompt is empty: write at least one word.")
    if max(ids) >= model.description.vocab_size:
        raise InputError(
            f"The prompt holds token {max(ids)}, but the head has only {model.description.vocab_size} rows."
        )
    most = model.longest
    if len(ids) + new_tokens > most:
        raise InputError(
            f"The prompt has {len(ids):,} tokens and {new_tokens:,} are to follow, but the model's context is {most:,}: "
            + ("shorten the prompt." if new_tokens < len(ids) else "ask for fewer new tokens.")
        )
    return torch.tensor([ids])


@torch.inference_mode()
def next_token(
    model: LoadedModel,
    prompt: str,
    steering: Steering | None = None,
    *,
    pruned: PrunedHead | None = None,
    top: int = 12,
    chat: bool = False,
) -> NextToken:
    """The next-token distribution at a prompt, before and after an edit: the `top` most likely of either, and the steered.

    Args:
        steering, pruned: as for `generate`.

    Raises:
        InputError: see `encode_prompt`. AnalysisError: logits that are no numbers.
    """
    hidden = model.hidden_states(encode_prompt(model, prompt, chat=chat))[:, -1]  # [1, d]
    logits = model.head.logits(hidden)
    edit = edit_of(model, steering, pruned)
    edited = logits if edit is None else edit.apply(logits, hidden)
    for each in (logits, edited):
        _check_finite(each, model)
    before, after = (x[0].double().log_softmax(0).cpu() for x in (logits, edited))
    real = torch.from_numpy(model.head.is_token)
    steered = [] if steering is None else list(steering.token_ids)
    wanted = dict.fromkeys([*steered, *_largest(before, real, top), *_largest(after, real, top)])
    ids = np.array(sorted(wanted, key=lambda i: -float(before[i])), dtype=np.int64)
    others = torch.ones_like(before, dtype=torch.bool)
    others[torch.tensor(steered, dtype=torch.long)] = False
    place = int(torch.where(others, before, -torch.inf).argmax())
    return NextToken(
        token_ids=ids,
        tokens=token_texts(model.tokenizer, ids.tolist()),
        before=before[ids].exp().numpy(),
        after=after[ids].exp().numpy(),
        steered=np.isin(ids, steered),
        others_factor=math.nan
        if edit is not None and edit.pruned is not None
        else float((after[place] - before[place]).exp()),
        entropy_before=_entropy(before),
        entropy_after=_entropy(after),
        hidden=hidden[0].double().cpu().numpy(),
        log_z=float(logits[0].double().logsumexp(0)),
    )


def _check_finite(logits: torch.Tensor, model: LoadedModel) -> None:
    """Raises `AnalysisError` where a row of logits [n, V] gives no probabilities; columns that are no tokens may be -inf."""
    if not logits.amax(1).isfinite().all():
        raise not_finite(f"The logits of {model.files.name} at this prompt", half=model.description.dtype != "float32")


def _largest(log_p: torch.Tensor, real: torch.Tensor, top: int) -> list[int]:
    return torch.where(real, log_p, -torch.inf).topk(min(top, int(real.sum()))).indices.tolist()


def _entropy(log_p: torch.Tensor) -> float:
    return float(-(log_p.exp() * log_p).nansum())


@torch.inference_mode()
def generate(
    model: LoadedModel,
    prompt: str,
    steering: Steering | None = None,
    sampling: Sampling | None = None,
    *,
    pruned: PrunedHead | None = None,
    chat: bool = False,
    progress: Progress = no_progress,
    on_tokens: OnTokens | None = None,
) -> Generated:
    """Sample continuations before and after an edit, coupled, in one batch.

    Without an edit both sides are the model as it is. See `Generated` for what comes back.

    Args:
        steering: added to the logits of the after side; solved on the pruned head if there is one.
        pruned: the head of the after side; with its full width it is taken for the full head.
        on_tokens: given the texts so far after every token; a finished text ends with its end token there too.

    Raises:
        InputError: see `encode_prompt` and `Sampling`. AnalysisError: logits that are no numbers.
        Cancelled: from `progress`, between two tokens.
    """
    sampling = sampling or Sampling()
    prompt_ids = encode_prompt(model, prompt, chat=chat, new_tokens=sampling.new_tokens)
    count = sampling.samples
    texts, draw = draw_pairs(
        model, prompt_ids, edit_of(model, steering, pruned), sampling, progress=progress, on_tokens=on_tokens
    )
    before, after = texts[:count], texts[count:]
    return Generated(
        prompt=prompt,
        before=before,
        after=after,
        before_tokens=tuple(token_texts(model.tokenizer, ids) for ids in before),
        after_tokens=tuple(token_texts(model.tokenizer, ids) for ids in after),
        before_texts=_decoded(model, before),
        after_texts=_decoded(model, after),
        counts=_counts(model, steering, before, after, draw),
        steps_before=sum(map(len, before)),
        steps_after=sum(map(len, after)),
    )


def draw_pairs(
    model: LoadedModel,
    prompt_ids: torch.Tensor,
    edited: Edited | None,
    sampling: Sampling,
    *,
    coupled: bool = True,
    progress: Progress = no_progress,
    on_tokens: OnTokens | None = None,
) -> tuple[Texts, Draw]:
    """K texts as the model is and K with the edit, in one batch, and what was noted while they were drawn.

    Args:
        prompt_ids: [1, t]. coupled: the i-th text of both sides has the same noise; else each of the 2K has its own.
    """
    count, ends = sampling.samples, _end_ids(model)
    with model.recording() as recorded:
        draw = Draw(model, edited, sampling, ends, recorded, coupled)
        output = _run(model)(
            prompt_ids.expand(2 * count, -1).to(model.device),
            attention_mask=torch.ones(2 * count, prompt_ids.shape[1], dtype=torch.long, device=model.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=sampling.new_tokens,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
                repetition_penalty=1.0,
                use_cache=True,
            ),
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=StoppingCriteriaList(
                [_Told(progress, on_tokens, draw, prompt_ids.shape[1], sampling.new_tokens)]
            ),
        )
    return _cut(output[:, prompt_ids.shape[1] :].cpu().numpy(), draw.active_steps()), draw


class Draw(LogitsProcessor):
    """Turns logits into (log-probabilities + Gumbel noise), of which `generate` takes the largest."""

    def __init__(
        self,
        model: LoadedModel,
        edited: Edited | None,
        sampling: Sampling,
        ends: list[int],
        recorded: list[torch.Tensor],
        coupled: bool,
    ) -> None:
        self.recorded, self.sampling, self.ends = recorded, sampling, torch.tensor(ends, device=model.device)
        self.edited, self.coupled, self.model = edited, coupled, model
        self.noise = torch.Generator().manual_seed(sampling.seed)
        self.shape: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_k:
            self.shape.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.shape.append(TopPLogitsWarper(sampling.top_p))
        self.finished = torch.zeros(2 * sampling.samples, dtype=torch.bool, device=model.device)
        self.active: list[torch.Tensor] = []
        self.expected: list[torch.Tensor] = []
        self.seen = torch.zeros(2 * sampling.samples, model.head.weight.shape[1], device=model.device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        count = self.sampling.samples
        hidden = self.recorded[-1][:, -1]  # [2K, d]
        self.recorded.clear()
        self.seen += torch.where(self.finished[:, None], 0.0, hidden)
        scores = scores.float()
        if self.edited is not None:
            scores = torch.cat([scores[:count], self.edited.apply(scores[count:], hidden[count:])])
        _check_finite(scores, self.model)
        for shape in self.shape:
            scores = shape(input_ids, scores)
        self.active.append(~self.finished)
        if self.edited is not None:
            p = scores[:, self.edited.ids].sub(scores.logsumexp(1, keepdim=True)).exp()
            self.expected.append(torch.where(self.finished[:, None], 0.0, p).cpu())
        rows = count if self.coupled else 2 * count
        uniform = torch.rand(rows, scores.shape[1], generator=self.noise, dtype=torch.float32)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-30, 1 - 2**-24))).to(scores.device)
        drawn = scores + gumbel.repeat(2 * count // rows, 1)
        self.finished = self.finished | torch.isin(drawn.argmax(1), self.ends)
        return drawn

    def active_steps(self) -> np.ndarray:
        """[2K] tokens drawn for each text, its end token among them."""
        return torch.stack(self.active).sum(0).cpu().numpy()

    def mean_hidden(self) -> np.ndarray:
        """[2K, d] of each text, the mean of what the head received when its tokens were drawn."""
        return self.seen.cpu().numpy() / self.active_steps()[:, None]

    def expected_counts(self) -> np.ndarray:
        """[2K, k] sum over the drawn steps of the probability of each steered token."""
        return torch.stack(self.expected).double().sum(0).numpy()


class _Told(StoppingCriteria):
    """Tells the progress and the texts so far after every token; never stops by itself."""

    def __init__(self, progress: Progress, on_tokens: OnTokens | None, draw: Draw, start: int, total: int) -> None:
        self.progress, self.on_tokens, self.draw, self.start, self.total = progress, on_tokens, draw, start, total
        self.rows: list[list[int]] = [[] for _ in draw.finished]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **_: object) -> torch.Tensor:
        if self.on_tokens is not None:
            drawn = zip(self.rows, input_ids[:, -1].tolist(), self.draw.active[-1].tolist(), strict=True)
            for row, token, active in drawn:
                if active:
                    row.append(token)
            texts: Texts = tuple(map(tuple, self.rows))
            self.on_tokens(texts[: len(texts) // 2], texts[len(texts) // 2 :])
        self.progress("Sampling texts", min(1.0, (input_ids.shape[1] - self.start) / self.total))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _run(model: LoadedModel) -> Callable[..., torch.Tensor]:
    """The model's own `generate` (transformers types it too loosely to be called)."""
    return cast("Callable[..., torch.Tensor]", model.module.generate)


def _decoded(model: LoadedModel, texts: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    return tuple(str(model.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in texts)


def _begun(model: LoadedModel) -> list[int]:
    """The token with which a text begins that nobody has written yet, or with which another ends; [] if there is none."""
    first = model.tokenizer.bos_token_id
    first = model.tokenizer.eos_token_id if first is None else first
    return [] if first is None else [first]


def _end_ids(model: LoadedModel) -> list[int]:
    configured = getattr(model.module.generation_config, "eos_token_id", None)
    if configured is None:
        configured = model.tokenizer.eos_token_id
    ids = [] if configured is None else configured if isinstance(configured, list) else [configured]
    return [int(i) for i in ids if 0 <= i < model.description.vocab_size]


def _cut(output: np.ndarray, steps: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in row[:length]) for row, length in zip(output, steps, strict=True))


def _counts(
    model: LoadedModel,
    steering: Steering | None,
    before: Sequence[tuple[int, ...]],
    after: Sequence[tuple[int, ...]],
    draw: Draw,
) -> tuple[TokenCount, ...]:
    if steering is None:
        return ()
    expected, half = draw.expected_counts(), len(before)
    counts = []
    for column, token in enumerate(steering.tokens):
        seen = np.array([text.count(token.id) for text in after], dtype=np.float64)
        low, high = _interval(seen, draw.sampling.seed)
        counts.append(
            TokenCount(
                id=token.id,
                token=token.token,
                before=sum(text.count(token.id) for text in before),
                after=int(seen.sum()),
                expected_before=float(expected[:half, column].sum()),
                expected_after=float(expected[half:, column].sum()),
                low=low,
                high=high,
            )
        )
    return tuple(counts)


def _interval(per_text: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of the total by bootstrap over texts."""
    if len(per_text) < 2:
        return float("nan"), float("nan")
    found = scipy.stats.bootstrap(
        (per_text,), np.sum, method="percentile", n_resamples=4000, rng=np.random.default_rng([seed, 4])
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def check_writes(model: LoadedModel) -> None:
    """Raises `InputError` where a model cannot write from nothing, for no token of it begins or ends a text."""
    if not model.tokenizer("", verbose=False)["input_ids"] and not _begun(model):
        raise InputError(
            f"{model.files.name} cannot write a text of its own, for its tokenizer names no token with which one begins or "
            "ends: choose another text than self:N, and another method than rotated-self."
        )


@torch.inference_mode()
def sample_documents(
    model: LoadedModel, tokens: int, length: int, seed: int, progress: Progress = no_progress
) -> list[np.ndarray]:
    """The corpus `self:N`: documents of about `length` tokens that the model samples itself, `tokens` in all.

    Each starts from the model's beginning-of-text token (or its end-of-text token), at temperature 1, nothing cut off.
    """
    ends = set(_end_ids(model))
    check_writes(model)
    start = encode_prompt(model, "")
    draw = torch.Generator().manual_seed(seed)
    documents: list[np.ndarray] = []
    have, batch = 0, 16
    whole = batch * (length + start.shape[1])
    expected = -(-tokens // whole) * whole  # for a batch is written to its end

    class _Draw(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            _check_finite(scores, model)
            progress("Sampling the model's own text", min(1.0, (have + batch * input_ids.shape[1]) / expected))
            uniform = torch.rand(scores.shape, generator=draw, dtype=torch.float32)
            return scores.float() - torch.log(-torch.log(uniform.clamp(1e-30, 1 - 2**-24))).to(scores.device)

    while have < tokens:
        output = _run(model)(
            start.expand(batch, -1).to(model.device),
            attention_mask=torch.ones(batch, start.shape[1], dtype=torch.long, device=model.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=length,
                eos_token_id=sorted(ends) or None,
                pad_token_id=min(ends, default=0),
                repetition_penalty=1.0,
            ),
            logits_processor=LogitsProcessorList([_Draw()]),
        )
        for row in output[:, start.shape[1] :].cpu().numpy().astype(np.int32):
            end = next((i for i, token in enumerate(row) if int(token) in ends), len(row))
            if end > 1:
                documents.append(row[:end])
                have += end
        if not documents:
            raise InputError("The model ends every text of its own at once: choose another corpus.")
    return documents
