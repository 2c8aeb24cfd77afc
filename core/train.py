"""Train: a small GPT-NeoX from nothing, its checkpoints log-spaced in steps, so that the encoding is seen to appear.

A run is a folder. `step-N/` is an ordinary checkpoint that stock transformers loads, `run.json` says what it depends on,
`frequency.safetensors` counts the tokens it was trained on, and `state.safetensors` is the last state of model and
optimiser. A run that was killed goes on from there to the same bits: batches are drawn from (seed, step) alone, nothing
is dropped out, and the number of threads is kept. Source: method §5; the architecture is that of Pythia, untied.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core import disk
from core.corpus import Corpus, split_documents, tokenise
from core.errors import AnalysisError, Cancelled, InputError, is_out_of_memory
from core.model.fetch import locked
from core.model.memory import require_free
from core.model.quiet import quiet_transformers
from core.model.weights import HASHES, RUN, is_damaged, sha256_of
from core.settings import Progress, check_new_folder, no_progress
from core.store import read_result, write_result
from core.words import short

if TYPE_CHECKING:
    import torch
    from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
KEEP_STATE_EVERY = 256
"""Steps between two saved states; besides them one is saved with every checkpoint, and when a run is cancelled."""
KEEP_STATE_SECONDS, KEEP_STATE_SHARE = 20.0, 0.05
"""Where steps are slow a state is saved after so many seconds, unless saving would take more than this share of them."""
WARMUP_SHARE, FINAL_SHARE = 0.01, 0.1
RUN_FORMAT = 1
WRITING = ".writing-"
"""How the names of files and folders begin that are not complete yet."""


@dataclass(frozen=True)
class TrainSettings:
    """What a training run depends on besides its corpus.

    Attributes:
        vocab: rows of the embeddings: 256 bytes, one end-of-text token, the rest merges. dim, layers, heads: of the model.
        context: tokens in a window. batch: windows a step. steps: optimiser steps.
        learning_rate: peak of a cosine schedule with 1 % warm-up, ending at a tenth. weight_decay: of matrices.
        held_out: share of the text, relative to the training part, that is never trained on.
        seed: of the weights and the batches. threads: of torch; 0 takes those of this machine.
    """

    vocab: int = 2048
    dim: int = 64
    layers: int = 2
    heads: int = 2
    context: int = 128
    batch: int = 8
    steps: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    held_out: float = 0.25
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for name, value, fine, allowed in (
            ("--vocab", self.vocab, 320 <= self.vocab <= 65536, "from 320 to 65536"),
            ("--dim", self.dim, 8 <= self.dim <= 2048, "from 8 to 2048"),
            ("--layers", self.layers, 1 <= self.layers <= 48, "from 1 to 48"),
            ("--steps", self.steps, 2 <= self.steps <= 1_000_000, "from 2 to 1000000"),
            ("--batch", self.batch, 1 <= self.batch <= 1024, "from 1 to 1024"),
            ("--context", self.context, 16 <= self.context <= 2048, "from 16 to 2048 for training"),
            ("--seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295"),
        ):
            if not fine:
                raise InputError(f"{name} is {short(str(value))}, but it must be {allowed}.")
        if self.dim % 8:
            raise InputError(f"--dim is {self.dim}, but it must be a multiple of 8.")
        if self.heads not in (fitting := [n for n in range(1, self.dim // 8 + 1) if not self.dim % (8 * n)]):
            raise InputError(
                f"--heads is {short(str(self.heads))}, but each head takes a multiple of 8 of the dimensions: with --dim "
                f"{self.dim} there can be {' or '.join(map(str, fitting))}."
            )
        if self.vocab <= self.dim + 1:
            raise InputError(
                f"--vocab {self.vocab} is too small for --dim {self.dim}: a line through as many tokens as dimensions is not "
                "determined, so take a larger --vocab or a smaller --dim."
            )

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps that are kept: 0, the powers of two, beyond 1,024 those half-way between them too, the last."""
        powers = [2**k for k in range(self.steps.bit_length())]
        halves = [3 * power // 2 for power in powers if power >= 1024]
        return (0, *sorted(step for step in (*powers, *halves) if step < self.steps), self.steps)

    @property
    def ram_bytes(self) -> int:
        """About what training takes: weights, gradients and two moments; of a batch, what the backward pass comes back to."""
        weights = 2 * self.vocab * self.dim + 12 * self.layers * self.dim**2
        a_token = 3 * self.vocab + 16 * self.layers * self.dim
        return 4 * (4 * weights + self.batch * self.context * a_token)


SIZES = {
    "small": TrainSettings(),
    "medium": TrainSettings(vocab=4096, dim=128, layers=4, heads=4, batch=8, steps=2048, learning_rate=2e-3),
    "demo": TrainSettings(
        vocab=4096, dim=160, layers=6, heads=5, context=256, batch=6, steps=4096, learning_rate=2e-3, held_out=0.1
    ),
}
"""`small` shows the effect in minutes on two cores; `demo` is how the bundled model was made, in under an hour."""


@dataclass(frozen=True)
class Frequency:
    """How often each token stands in the text that a run was trained on.

    Attributes:
        counts: [V]. tokens: their sum.
    """

    counts: np.ndarray
    tokens: int


def step_folder(run: Path, step: int) -> Path:
    return run / f"step-{step}"


def train(
    run: Path,
    corpus: Corpus,
    settings: TrainSettings,
    *,
    progress: Progress = no_progress,
    on_checkpoint: Callable[[int, Path], None] | None = None,
) -> None:
    """Train a model into the folder `run`, or go on with what is there.

    Args:
        run: the folder; made if it is not there. One that holds a run of other settings or text is refused.
        corpus: what is read; split by document into a part to train on and one that is never seen.
        settings: see `TrainSettings`.
        progress: called at every step; may raise `Cancelled`, after which the run can go on later.
        on_checkpoint: called with every step that is kept and its folder, also with those of an earlier, killed part.

    Raises:
        InputError: the folder holds something else. AnalysisError: too little text, disk or memory, a
            loss that is no number.
    """
    import torch

    check_new_folder(run)
    advice = "close other programs, or try a smaller --batch or --context: they count the most"
    require_free(settings.ram_bytes, "Training this model", advice=advice)
    progress("Reading the corpus", None)
    settings = _claim(run, corpus, settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with _memory(), _disk(run), locked(run / "training", progress, "trains the same run"):
            _train(run, corpus, settings, progress, on_checkpoint or (lambda step, folder: None))
    finally:
        torch.set_num_threads(threads)


def _claim(run: Path, corpus: Corpus, settings: TrainSettings) -> TrainSettings:
    """Write down what the run depends on, or check it against what was written; the threads are then those of the start."""
    import torch

    if not settings.threads:
        settings = replace(settings, threads=torch.get_num_threads())
    wanted = {"format": RUN_FORMAT, "corpus": corpus.name, "corpus_sha256": corpus.sha256, "settings": asdict(settings)}
    path = run / RUN
    with _disk(run):
        begun = path.is_file()
    if begun:
        found = read_run(run)
        wanted["settings"]["threads"] = found["settings"].get("threads", settings.threads)  # type: ignore[index]
        if {k: found.get(k) for k in ("format", "corpus_sha256", "settings")} != {
            k: wanted[k] for k in ("format", "corpus_sha256", "settings")
        }:
            raise InputError(
                f"The folder {run.name!r} holds another training run: choose another folder, or remove it."
            )
        return TrainSettings(**found["settings"])
    with _disk(run):
        if run.is_dir() and any(not each.name.startswith((WRITING, ".training")) for each in run.iterdir()):
            raise InputError(f"The folder {run.name!r} is not empty and holds no training run: choose another folder.")
        with _file_appearing(path) as temporary:
            temporary.write_text(json.dumps(wanted | {"digest": _digest_of(wanted)}, indent=1), "utf-8")
    return settings


def _digest_of(record: dict[str, Any]) -> str:
    """Of what a run depends on, so that a damaged byte of it is noticed."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def read_run(run: Path) -> dict[str, Any]:
    """What `run.json` of a training run says.

    Raises:
        InputError: the folder holds no run that can be read.
    """
    try:
        found = json.loads(disk.content(run / RUN))
        TrainSettings(**found["settings"])
        if found.pop("digest", None) not in (None, _digest_of(found)):
            raise ValueError("digest")
        return dict(found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"The folder {run.name!r} holds no training run that can be read, for its run.json is missing or damaged: restore "
            "that file, or name another folder."
        ) from error


@contextmanager
def _disk(run: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:  # the second is how safetensors reports a full disk
        kept = "; what was kept so far is complete" if os.path.isfile(run / RUN) else ""  # noqa: PTH113 (never raises)
        raise AnalysisError(
            f"The run cannot be kept in {run.name!r} ({disk.why(error)}): {disk.room(error, 'free some space or ')}choose "
            f"another folder with --cache or --out{kept}."
        ) from error


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise AnalysisError(
            "There is not enough memory to train: choose a smaller --batch, --context or --dim, or close other programs."
        ) from error


def _train(
    run: Path, corpus: Corpus, settings: TrainSettings, progress: Progress, on_checkpoint: Callable[[int, Path], None]
) -> None:
    import torch

    _sweep(run)
    progress("Making the tokenizer", None)
    tokenizer = _tokenizer(run, corpus, settings)
    stream = _stream(run, corpus, tokenizer, settings, progress)
    model = _model(tokenizer, settings)
    optimiser = _optimiser(model, settings)
    done = _restore(run, model, optimiser)
    for step in settings.checkpoints:
        if step < done and step_folder(run, step).is_dir():
            if is_damaged(step_folder(run, step)):
                raise AnalysisError(
                    f"Checkpoint step-{step} of the run in {run.name!r} is damaged: remove it and state.safetensors, and "
                    "start again."
                )
            on_checkpoint(step, step_folder(run, step))
    loss, state = math.nan, _State(run, model, optimiser, done)
    for step in range(done, settings.steps + 1):
        if step in settings.checkpoints:
            # it may be there with its state not written, or removed
            if not step_folder(run, step).is_dir() or is_damaged(step_folder(run, step)):
                _keep_checkpoint(run, step, model, tokenizer)
            if step > done or step == 0:
                state.keep(step)
            on_checkpoint(step, step_folder(run, step))
        elif state.is_due(step):
            state.keep(step)
        if step == settings.steps:
            break
        try:
            progress(_told(step, settings.steps, loss), step / settings.steps)
        except Cancelled:
            if step > state.step:
                state.keep(step)
            raise
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
        batch = torch.from_numpy(_batch(stream, step, settings))
        found = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss = float(found.detach())
        if not math.isfinite(loss):
            raise AnalysisError(f"The training loss is no number at step {step}: choose a smaller --learning-rate.")
        optimiser.zero_grad(set_to_none=True)
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    progress(_told(settings.steps, settings.steps, loss), 1.0)


def _told(step: int, steps: int, loss: float) -> str:
    return f"Training, step {step:,} of {steps:,}" + (f", loss {loss:.2f} nats" if math.isfinite(loss) else "")


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up over the first hundredth, then a cosine down to a tenth."""
    warmup = max(1, math.ceil(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batch(stream: np.ndarray, step: int, settings: TrainSettings) -> np.ndarray:
    """[b, t] windows that begin anywhere in the stream, drawn from (seed, step)."""
    random = np.random.default_rng([settings.seed, 11, step])
    starts = random.integers(0, len(stream) - settings.context, size=settings.batch)
    return np.stack([stream[start : start + settings.context] for start in starts]).astype(np.int64)


def _tokenizer(run: Path, corpus: Corpus, settings: TrainSettings) -> PreTrainedTokenizerFast:
    """A byte-level BPE learnt from the corpus, made once and kept with the run."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    folder = run / "tokenizer"
    if not folder.is_dir() or is_damaged(folder):
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=settings.vocab,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        raw.train_from_iterator(corpus.texts, trainer)
        made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
        with _appearing(folder) as temporary:
            made.save_pretrained(temporary)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _stream(
    run: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, settings: TrainSettings, progress: Progress
) -> np.ndarray:
    """The training part as one stream of token ids, documents in a seeded order with an end of text after each."""
    documents = tokenise(corpus, tokenizer, settings.context, progress)
    train_part, _ = split_documents(documents, settings.held_out, settings.seed, corpus.name)
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    order = np.random.default_rng([settings.seed, 12]).permutation(train_part)
    stream = np.concatenate([piece for index in order for piece in (documents[index], end)])
    if len(stream) < 4 * settings.context:
        raise AnalysisError(
            f"The corpus {corpus.name!r} has {len(stream):,} tokens to train on: a few thousand words are the least."
        )
    counts = np.bincount(stream, minlength=len(tokenizer)).astype(np.int64)
    if (seen := int((counts > 0).sum())) <= settings.dim + 1:
        raise AnalysisError(
            f"Only {seen:,} of the tokens stand in the text, too few for --dim {settings.dim}: take a longer text, a larger "
            "--vocab or a smaller --dim."
        )
    write_result(run / "frequency.safetensors", Frequency(counts, len(stream)))
    return stream


def read_frequency(run: Path) -> Frequency | None:
    """The token counts of the text that a run was trained on, or None."""
    return read_result(run / "frequency.safetensors", Frequency)


def _model(tokenizer: PreTrainedTokenizerFast, settings: TrainSettings) -> GPTNeoXForCausalLM:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.dim,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.dim,
        max_position_embeddings=max(1024, settings.context),
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return GPTNeoXForCausalLM(config).train()


def _optimiser(model: GPTNeoXForCausalLM, settings: TrainSettings) -> torch.optim.AdamW:
    import torch

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


# --- what is kept -----------------------------------------------------------------------------------------------------


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its place only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=WRITING))
    try:
        yield temporary
        hashes = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        (temporary / HASHES).write_text(json.dumps(hashes, indent=1), "utf-8")
        if folder.is_dir():
            shutil.rmtree(folder)
        temporary.chmod(0o755)
        temporary.replace(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if type(error) is Exception and "os error" in str(error):  # how tokenizers reports a full disk
            raise OSError(str(error)) from error
        raise


@contextmanager
def _file_appearing(path: Path) -> Iterator[Path]:
    """The same for a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=WRITING)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _sweep(run: Path) -> None:
    """Remove what a killed process was writing."""
    for path in run.glob(f"{WRITING}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _keep_checkpoint(run: Path, step: int, model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with _appearing(step_folder(run, step)) as temporary, quiet_transformers():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


class _State:
    """The state of a run on the disk, from which it goes on: when it was kept last, and whether it is time again.

    Attributes:
        step: the one that the kept state belongs to.
    """

    def __init__(self, run: Path, model: GPTNeoXForCausalLM, optimiser: torch.optim.AdamW, step: int) -> None:
        self._run, self._model, self._optimiser, self.step = run, model, optimiser, step
        self._kept, self._seconds = time.monotonic(), 0.0

    def is_due(self, step: int) -> bool:
        waited = time.monotonic() - self._kept
        slow = waited > max(KEEP_STATE_SECONDS, self._seconds / KEEP_STATE_SHARE)
        return step > self.step and (slow or step % KEEP_STATE_EVERY == 0)

    def keep(self, step: int) -> None:
        from safetensors.torch import save_file

        begun = time.monotonic()
        tensors = {"step": _number(step)}
        for name, parameter in self._model.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for key, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        with _file_appearing(self._run / "state.safetensors") as temporary:
            save_file(tensors, temporary, {"digest": _digest(tensors)})
        self.step, self._kept = step, time.monotonic()
        self._seconds = self._kept - begun


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _number(value: int) -> torch.Tensor:
    import torch

    return torch.tensor([value], dtype=torch.int64)


def _restore(run: Path, model: GPTNeoXForCausalLM, optimiser: torch.optim.AdamW) -> int:
    """Put the last kept state into model and optimiser; the step it belongs to, 0 where there is none."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(run / "state.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = (file.metadata() or {}).get("digest")
        if known is not None and known != _digest(tensors):
            raise ValueError("digest")
        step = int(tensors["step"])
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            found = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if step > 0}
            if found:
                optimiser.state[parameter] = found
        return step
    except FileNotFoundError:
        return 0
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise AnalysisError(
            f"The kept state of the run in {run.name!r} is damaged: remove its state.safetensors and start again."
        ) from error
