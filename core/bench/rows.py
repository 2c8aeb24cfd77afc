"""The rows of the table: each measures ours and a baseline on one model, and says what is to be reached."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.analysis import Analysis
from core.bench.measure import Ratio, extra_memory, in_turns, seconds
from core.corpus import Plan, plan_windows, tokenise
from core.encoding import encode, fit_line
from core.errors import InputError
from core.head_pass import HeadPass
from core.observe import hidden_sums, observe
from core.settings import Progress, Settings, no_progress
from core.steering import Edit, Steerer, edited_prompt
from core.store import Store
from core.words import quoted

if TYPE_CHECKING:
    from core.model import LoadedModel

PROMPT = "We walked along the"
CORPUS = "python-docs"
SOFTMAX_CHUNK = 512
MEGABYTE = 2**20


@dataclass
class Subject:
    """What is measured: a model, and how many positions and rounds.

    Attributes:
        model: any `MODEL`. positions: of the passes; the head and the slider get up to 4,096.
        rounds: turns of ours and the baseline. store: where models and the observation are kept.
    """

    model: str
    positions: int
    rounds: int
    store: Store
    progress: Progress = no_progress

    @cached_property
    def analysis(self) -> Analysis:
        return Analysis(self.model, CORPUS, Settings(positions=self.positions), self.store)

    @cached_property
    def loaded(self) -> LoadedModel:
        return self.analysis.loaded(self.progress)

    @cached_property
    def hidden(self) -> tuple[Tensor, Tensor]:
        """[n, d] hidden states of at most 2,048 positions, and [n] what followed."""
        sample = self.analysis.observation(self.progress).fit.reservoir.first(2048)
        device = self.loaded.head.weight.device
        return torch.from_numpy(sample.hidden).to(device), torch.from_numpy(sample.next_token).long().to(device)

    def plan(self, batch: int) -> Plan:
        """The windows of the passes, `batch` of them at a time."""
        settings = self.analysis.settings
        documents = tokenise(self.analysis.corpus, self.loaded.tokenizer, settings.context)
        return plan_windows(documents, settings, batch=batch, name=CORPUS)


Row = Callable[[Subject], Iterable[Ratio]]


# --- the head ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def head(subject: Subject) -> Iterable[Ratio]:
    """The head pass against the bare product, and against what one would write without thinking of it."""
    loaded, (hidden, targets) = subject.loaded, subject.hidden
    head_pass = HeadPass(loaded.head)
    none = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)

    def ours(wanted: Tensor | None = none) -> None:
        found = head_pass(hidden, targets, wanted)
        hidden_sums(hidden, found.log_z.numpy())

    bare, how = best_product(loaded.head.weight, hidden)
    name, baseline = "head pass: mean probability, log Z, moments", f"bare product ({how})"
    yield in_turns(name, baseline, 1.2, ours, bare, subject.rounds)
    name = "head pass with the 16 largest logits of every position"
    yield in_turns(name, baseline, 1.2, lambda: ours(None), bare, subject.rounds)
    softmax = plain_softmax(loaded, hidden)
    name, baseline = (
        "head pass: mean probability, log Z, moments",
        f"softmax(lm_head(h)).mean, chunks of {SOFTMAX_CHUNK}",
    )
    yield in_turns(name, baseline, 0.8, ours, softmax, subject.rounds)
    del head_pass
    ours_bytes = extra_memory(lambda: HeadPass(loaded.head)(hidden, targets, none))
    yield of_memory("head pass: peak extra memory", baseline, 0.25, ours_bytes, extra_memory(softmax))


def best_product(weight: Tensor, hidden: Tensor) -> tuple[Callable[[], object], str]:
    """The product of head and hidden states in whatever layout and chunk is fastest here, and which that is."""
    vocab = len(weight)
    buffer = torch.empty(vocab * max(1, min(len(hidden), 2048)), device=weight.device)

    def tokens_first(chunk: int) -> Callable[[], object]:
        def work() -> None:
            for start in range(0, len(hidden), chunk):
                block = hidden[start : start + chunk]
                torch.mm(weight, block.T, out=buffer[: vocab * len(block)].view(vocab, -1))

        return work

    def positions_first(chunk: int) -> Callable[[], object]:
        def work() -> None:
            for start in range(0, len(hidden), chunk):
                block = hidden[start : start + chunk]
                torch.mm(block, weight.T, out=buffer[: vocab * len(block)].view(-1, vocab))

        return work

    found = []
    for layout in (tokens_first, positions_first):
        for chunk in (128, 256, 512, 1024, 2048):
            work = layout(chunk)
            work()
            found.append(
                (min(seconds(work), seconds(work)), f"{layout.__name__.replace('_', ' ')}, {chunk} at a time", work)
            )
    _, how, work = min(found, key=lambda each: each[0])
    return work, how


def plain_softmax(loaded: LoadedModel, hidden: Tensor) -> Callable[[], Tensor]:
    """Mean probabilities as one would write them down."""
    layer = loaded.module.get_output_embeddings()

    def work() -> Tensor:
        total = torch.zeros(loaded.description.vocab_size, device=hidden.device)
        with torch.inference_mode():
            for start in range(0, len(hidden), SOFTMAX_CHUNK):
                block = hidden[start : start + SOFTMAX_CHUNK].to(layer.weight.dtype)
                total += torch.softmax(layer(block).float(), 1).sum(0)
        return total / len(hidden)

    return work


def of_memory(name: str, baseline: str, limit: float, ours: int, theirs: int) -> Ratio:
    return Ratio(name, baseline, ours / max(theirs, 1), limit, ours / MEGABYTE, theirs / MEGABYTE, "MB")


# --- the pass ---------------------------------------------------------------------------------------------------------


def whole_pass(subject: Subject) -> Iterable[Ratio]:
    """All of `observe` against the model's own forward passes, which give logits and nothing else."""
    loaded, plan = subject.loaded, subject.plan(4)
    batches = {batch: forward_passes(loaded, subject.plan(batch)) for batch in (1, 2, 4, 8)}
    for work in batches.values():
        work()
    batch = min(batches, key=lambda each: seconds(batches[each]))
    yield in_turns(
        "whole observe",
        f"forward passes with logits, {batch} windows at a time",
        1.15,
        lambda: observe(loaded, plan),
        batches[batch],
        max(3, subject.rounds // 2),
    )


def forward_passes(loaded: LoadedModel, plan: Plan) -> Callable[[], None]:
    """The model as it is, over the windows of a plan."""

    def work() -> None:
        with torch.inference_mode():
            for chunk in plan.chunks:
                real = torch.from_numpy(chunk.targets >= 0)
                mask = None
                if not bool(real[:, -1].all()):
                    mask = (torch.arange(real.shape[1])[None] < real.sum(1)[:, None]).long().to(loaded.device)
                inputs = torch.from_numpy(chunk.inputs).to(loaded.device)
                loaded.module(input_ids=inputs, attention_mask=mask, use_cache=False)

    return work


def memory_of_a_pass(subject: Subject) -> Iterable[Ratio]:
    """Peak extra memory of `observe`, in MB: for the model, and for a head of 262,144 tokens."""
    loaded, plan = subject.loaded, subject.plan(4)
    warm = replace(plan, chunks=(plan.chunks[0], plan.chunks[-1]))
    observe(loaded, warm)
    used = extra_memory(lambda: observe(loaded, plan)) / MEGABYTE
    name = f"observe: peak extra memory, V = {loaded.description.vocab_size:,}, {plan.positions:,} positions"
    yield Ratio(name, "400 MB", used / 400, 1.0, used, 400.0, "MB")
    large = large_vocabulary(loaded)
    few = replace(plan, chunks=(*plan.chunks[:2], plan.chunks[-1]))
    observe(large, warm)
    used = extra_memory(lambda: observe(large, few)) / MEGABYTE
    name = f"observe: peak extra memory, V = {large.description.vocab_size:,}"
    yield Ratio(name, "1,536 MB", used / 1536, 1.0, used, 1536.0, "MB")


def large_vocabulary(loaded: LoadedModel, rows: int = 262_144, dim: int = 640) -> LoadedModel:
    """A model of one layer with a head as large as the largest there are, its numbers random; the tokenizer is `loaded`'s."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.model.load import open_head

    config = AutoConfig.for_model(
        "llama", vocab_size=rows, hidden_size=dim, num_hidden_layers=1, num_attention_heads=8, intermediate_size=2 * dim,
        tie_word_embeddings=True,
    )  # fmt: skip
    module = AutoModelForCausalLM.from_config(config)
    return open_head(loaded.files, module, loaded.tokenizer, torch.device("cpu"))


# --- the fit ----------------------------------------------------------------------------------------------------------


def fit(subject: Subject) -> Iterable[Ratio]:
    """The fit against scikit-learn's, which gives the weights and the intercept and nothing else."""
    analysis = subject.analysis
    found, observation = analysis.encoding(subject.progress), analysis.observation(subject.progress)
    weight, rows = subject.loaded.head.weight.cpu().numpy(), found.token_ids
    limits = (("the line", 0.3, 0.15), ("everything on the page Encoding", 0.3, 0.15))
    baseline = "scikit-learn LinearRegression, fp64"
    try:
        from sklearn.linear_model import LinearRegression
    except ImportError:
        for name, limit, _ in limits:
            yield Ratio(f"fit: {name}", baseline, None, limit, note="scikit-learn is not installed")
        return

    def sklearn() -> object:
        return LinearRegression().fit(weight[rows].astype(np.float64), found.neg_log_alpha)

    def line() -> object:
        return fit_line(weight, rows, found.neg_log_alpha)

    def everything() -> object:
        return encode(weight, observation, is_token=subject.loaded.head.is_token)

    sklearn()
    theirs = extra_memory(sklearn)
    for (name, limit, memory_limit), ours in zip(limits, (line, everything), strict=True):
        yield in_turns(f"fit: {name}", baseline, limit, ours, sklearn, subject.rounds)
        yield of_memory(f"fit: {name}, peak extra memory", baseline, memory_limit, extra_memory(ours), theirs)


# --- an edit ----------------------------------------------------------------------------------------------------------


def slider(subject: Subject) -> Iterable[Ratio]:
    """One position of a slider (solved, judged on both parts, all side effects, the prompt) against one forward pass."""
    analysis, loaded, count = subject.analysis, subject.loaded, 4096
    observation, encoding = analysis.observation(subject.progress), analysis.encoding(subject.progress)
    fit_part, held_out = observation.fit.reservoir, observation.held_out.reservoir
    judged = min(len(held_out), count // 5)
    fit = replace(observation.fit, reservoir=fit_part.first(count - judged))
    judging = replace(observation.held_out, reservoir=held_out.first(judged))
    ids = analysis.tokens_of_rank(200, min(5000, len(encoding.token_ids)), 1)
    rows, bias = loaded.head.rows(ids)
    steerer = Steerer(fit, judging, encoding, ids, rows, bias, ["token"], softcap=loaded.head.softcap)
    prompt = analysis.next_token(PROMPT)
    ratios = np.geomspace(0.05, 20, 16)

    def moves() -> None:
        for ratio in ratios:
            moved = steerer.steer([float(ratio)])
            steps = np.array([token.step * np.log(token.target) for token in moved.tokens])
            edited_prompt(prompt, steerer, steps)

    plan = subject.plan(4)
    windows, used = [], 0
    for chunk in plan.chunks:
        if used < count:
            windows.append(chunk)
            used += chunk.count
    found = in_turns(
        "one slider position, 4,096 positions",
        f"one edited forward pass over {used:,} positions",
        1 / 1000,
        moves,
        forward_passes(loaded, replace(plan, chunks=tuple(windows))),
        max(3, subject.rounds // 2),
    )
    share = count / used / len(ratios)  # of one position, and of as many positions
    spread = None if found.spread is None else (found.spread[0] * share, found.spread[1] * share)
    ratio = None if found.ratio is None else found.ratio * share
    yield replace(found, ratio=ratio, ours=(found.ours or 0) / len(ratios), spread=spread)


def pruning_curve(subject: Subject) -> Iterable[Ratio]:
    """A 20-point curve with KL and top-1 agreement against 20 products and softmaxes."""
    from core.pruning.basis import find_basis
    from core.pruning.curve import Judge
    from core.pruning.head import cut
    from core.pruning.names import kept_dims

    loaded, analysis = subject.loaded, subject.analysis
    observation = analysis.observation(subject.progress)
    sample = observation.held_out.reservoir.first(1024)
    fractions = [place / 20 for place in range(20)]
    widths = [kept_dims(loaded.description.dim, fraction) for fraction in fractions]
    for method in ("saliency", "rotated"):
        basis = find_basis(method, loaded.head, analysis.encoding(subject.progress), observation.fit)
        heads = [cut(loaded.head, basis, width, method, part) for width, part in zip(widths, fractions, strict=True)]

        def ours(basis: object = basis) -> object:
            return Judge(loaded.head, sample, close=0).measure(basis, widths)  # type: ignore[arg-type]

        @torch.inference_mode()
        def one_by_one(heads: Sequence[object] = heads) -> None:
            for start in range(0, len(sample), SOFTMAX_CHUNK):
                hidden = torch.from_numpy(sample.hidden[start : start + SOFTMAX_CHUNK]).to(loaded.head.weight.device)
                log_p = loaded.head.logits(hidden).log_softmax(1)
                p, top = log_p.exp(), log_p.argmax(1)
                for pruned in heads:
                    log_q = pruned.logits(hidden).log_softmax(1)  # type: ignore[attr-defined]
                    (p * (log_p - log_q)).sum().item(), (log_q.argmax(1) == top).sum().item()

        name = f"20-point pruning curve ({method})"
        yield in_turns(name, "20 pruned products and softmaxes", 0.4, ours, one_by_one, max(3, subject.rounds // 2))


def sampling(subject: Subject) -> Iterable[Ratio]:
    """8 + 8 coupled samples of 64 tokens against `generate` with batch 16."""
    from core.generate import encode_prompt, generate
    from core.results import Sampling

    loaded, analysis, tokens = subject.loaded, subject.analysis, 64
    ids = encode_prompt(loaded, PROMPT).expand(16, -1).to(loaded.device)
    count = len(analysis.encoding(subject.progress).token_ids)
    steering = analysis.steer([Edit(analysis.tokens_of_rank(200, min(5000, count), 1)[0], 20.0)])
    every = {"min_new_tokens": tokens, "max_new_tokens": tokens}  # whatever the model would rather do

    def plain() -> object:
        with torch.inference_mode():
            return loaded.module.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, pad_token_id=0, **every
            )

    def ours() -> object:
        return generate(loaded, PROMPT, steering, Sampling(samples=8, new_tokens=tokens))

    rounds = max(3, subject.rounds // 2)
    yield in_turns(f"8 + 8 coupled samples of {tokens} tokens", "generate, batch 16", 1.2, ours, plain, rounds)


# --- the command ------------------------------------------------------------------------------------------------------


def start(subject: Subject) -> Iterable[Ratio]:
    """`headscope --help` against `python -c "import torch"`."""

    def run(*code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", *code], check=True, capture_output=True)

    ours = run("import sys; sys.argv[0] = 'headscope'; from core.cli import main; main()", "--help")
    yield in_turns("headscope --help", 'python -c "import torch"', 0.5, ours, run("import torch"), subject.rounds)


ROWS: dict[str, Row] = {
    "head": head,
    "observe": whole_pass,
    "memory": memory_of_a_pass,
    "fit": fit,
    "slider": slider,
    "pruning": pruning_curve,
    "sampling": sampling,
    "start": start,
}


def measure(subject: Subject, names: Sequence[str] = ()) -> Iterable[Ratio]:
    """Measure the rows of these names, or all of them; each is given out when it is there.

    Raises:
        InputError: a name that is no row.
    """
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise InputError(f"There is no benchmark {quoted(unknown[0])}: choose from {', '.join(ROWS)}.")
    for place, name in enumerate(names or ROWS):
        subject.progress(f"Measuring {name}", place / len(names or ROWS))
        yield from ROWS[name](subject)
