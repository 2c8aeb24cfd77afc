"""Series: the checkpoints of a training run, opened one after the other and measured.

A source is `demo`; a folder that `headscope dynamics --train` wrote, or that was kept from one; folders of models, in
order; or revisions on the Hub, as org/name@step{0,1,512}. Of the Hub's only the output heads are read, by range request,
unless whole models are asked for. A checkpoint that cannot be read is named with its reason, and the rest still counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from core.analysis import first_token, load_shared
from core.corpus import Corpus, count_tokens, plan_windows, read_corpus, tokenise
from core.dynamics import Builder, Checkpoint, Dynamics, Missing
from core.errors import AnalysisError, Cancelled, HeadscopeError, InputError
from core.kept import DEMO, KeptCheckpoint, KeptSeries, kept_folder, read_kept, write_kept
from core.model.files import ModelFiles, resolve
from core.model.heads import HeadTensors, fetch_head, fetch_tokenizer, read_head
from core.model.weights import RUN, is_damaged_checkpoint
from core.results import Sampling
from core.settings import Progress, Settings, no_progress
from core.sources import Place, parse_sources
from core.store import Store
from core.tokens import token_texts
from core.train import TrainSettings, read_frequency, read_run, step_folder, train
from core.words import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from core.model import LoadedModel

PROMPT = "The old"
SAMPLING = Sampling(samples=2, new_tokens=32)

Told = Callable[[Dynamics], None]
"""Called with what is known so far, after every checkpoint."""


@dataclass(frozen=True)
class Measured:
    """What a pass of the whole model over the corpus gives: alpha [V], loss (nats, held-out text) and samples."""

    alpha: Float64[np.ndarray, "V"]
    loss: float
    samples: tuple[str, ...]


# --- measuring --------------------------------------------------------------------------------------------------------


def dynamics(
    sources: Sequence[str],
    corpus: str | None = None,
    settings: Settings | None = None,
    store: Store | None = None,
    *,
    whole: bool = False,
    local_paths: bool = True,
    progress: Progress = no_progress,
    on_checkpoint: Told | None = None,
) -> Dynamics:
    """Measure every checkpoint of a series.

    Args:
        sources: see the module's text.
        corpus: whose token frequencies are compared; None takes the text that the run was trained on where it is known,
            else `sampler`.
        settings: positions, window, split and seed of the pass that gives alpha and the loss.
        store: where measurements are kept, so that a run that was killed goes on.
        whole: download whole models from the Hub, for alpha and the loss; folders are always measured whole.
        local_paths: False refuses folders.
        progress: may raise `Cancelled`.
        on_checkpoint: given what is known so far after every checkpoint.

    Raises:
        InputError, AnalysisError: no series, no corpus, or no checkpoint of it that can be read.
    """
    sources = [source.strip() for source in sources]
    kept = kept_folder(sources, local_paths)
    if kept is not None:
        return read_kept(kept, "demo" if kept == DEMO else kept.name, corpus, local_paths=local_paths)
    places = parse_sources(sources, local_paths=local_paths)
    work = _Work(
        " ".join(sources),
        corpus or _trained_on(places, local_paths) or "sampler",
        settings or Settings(positions=4096),
        store or Store(),
        whole,
        local_paths,
        progress,
        on_checkpoint,
    )
    for number, place in enumerate(places):
        progress(f"Reading {place.name}", number / len(places))
        work.add(place)
    return work.result()


def _run_of(places: Sequence[Place]) -> Path | None:
    """The training run that the folders belong to, if they do."""
    parents = {place.folder.parent for place in places if place.folder is not None}
    parent = parents.pop() if len(parents) == 1 else None
    return parent if parent is not None and (parent / RUN).is_file() else None


def _trained_on(places: Sequence[Place], local_paths: bool) -> str | None:
    run = _run_of(places) if local_paths else None
    return str(read_run(run)["corpus"]) if run is not None else None


class _Work:
    """A series while it is measured: one checkpoint after the other, whatever they turn out to be."""

    def __init__(
        self,
        source: str,
        corpus: str,
        settings: Settings,
        store: Store,
        whole: bool,
        local_paths: bool,
        progress: Progress,
        told: Told | None,
        text: Corpus | None = None,
    ) -> None:
        self.source, self.settings, self.store, self.whole = source, settings, store, whole
        self.local_paths, self.progress, self.told = local_paths, progress, told
        self.corpus = text or read_corpus(corpus, local_paths=local_paths, progress=progress)
        self.builder: Builder | None = None
        self.tokens: tuple[str, ...] = ()
        self.stand_in, self.note, self.unseen = True, self.corpus.note, 0
        self.missing: list[Missing] = []

    def add(self, place: Place) -> None:
        """Measure one checkpoint; what is wrong with it is noted and the series goes on."""
        try:
            if place.folder is not None and is_damaged_checkpoint(place.folder):
                raise AnalysisError(f"{place.name} is damaged: it is not what the training run has written.")
            head = self._head(place)
            measured = self.measure(place) if place.folder is not None or self.whole else None
            if self.builder is None:
                self._begin(place, head)
            assert self.builder is not None
            self.builder.add(
                place.step,
                place.name,
                head.weight,
                head.sha256,
                bias=head.bias,
                alpha=measured.alpha if measured else None,
                loss=measured.loss if measured else None,
                samples=measured.samples if measured else (),
            )
        except Cancelled:
            raise
        except HeadscopeError as error:
            self.missing.append(Missing(place.name, str(error)))
        if self.told is not None and self.builder is not None and self.builder.checkpoints:
            self.told(self.result())

    def _head(self, place: Place) -> HeadTensors:
        if place.folder is not None:
            return read_head(place.folder, place.name)
        if self.whole:
            files = self._from_hub(place)
            return read_head(files.folder, place.name)
        return fetch_head(place.repo, place.revision, cache=self.store.folder, progress=self.progress)

    def _from_hub(self, place: Place) -> ModelFiles:
        """The whole model, and never a folder here that happens to have such a name."""
        return resolve(
            f"{place.repo}@{place.revision}", cache=self.store.folder, progress=self.progress, local_paths=False
        )

    def _begin(self, place: Place, head: HeadTensors) -> None:
        """The first checkpoint that can be read brings the tokenizer and with it the frequencies."""
        from core.model.load import read_tokenizer

        folder = place.folder or fetch_tokenizer(place.repo, place.revision, progress=self.progress)
        tokenizer = read_tokenizer(folder, place.name)
        counts = self._counts(place, tokenizer, len(head.weight))
        self.builder = Builder(counts)
        self.tokens = token_texts(tokenizer, self.builder.rows.tolist())
        self.unseen = len(tokenizer) - len(self.builder.rows)

    def _counts(self, place: Place, tokenizer: PreTrainedTokenizerBase, rows: int) -> np.ndarray:
        run = _run_of([place])
        if run is not None and read_run(run)["corpus_sha256"] == self.corpus.sha256:
            frequency = read_frequency(run)
            if frequency is not None and len(frequency.counts) == rows:
                self.stand_in = False
                return frequency.counts
        return count_tokens(tokenise(self.corpus, tokenizer, self.settings.context, self.progress), rows)

    def measure(self, place: Place) -> Measured:
        """Run the whole model over the corpus, or take what was measured before."""
        from core.observe import observe

        if place.folder is None:
            files = self._from_hub(place)
        else:
            files = resolve(str(place.folder), cache=self.store.folder, progress=self.progress)
        settings = self._split(place)
        key = {
            "model": files.sha256,
            "corpus": self.corpus.sha256,
            **asdict(settings),
            "prompt": PROMPT,
            "sampling": asdict(SAMPLING),
        }
        found = self.store.get("checkpoint", key, Measured)
        if found is None:
            progress = _quiet(self.progress)
            model = load_shared(files, settings.device, settings.dtype, progress)
            documents = tokenise(self.corpus, model.tokenizer, settings.context, progress)
            plan = plan_windows(documents, settings, first_token=first_token(model), name=self.corpus.name)
            seen = observe(model, plan, seed=settings.seed, progress=progress)
            loss = seen.held_out.sum_loss / seen.held_out.n
            found = Measured(seen.fit.alpha, float(loss), _samples(model))
            self.store.put("checkpoint", key, found)
        return found

    def _split(self, place: Place) -> Settings:
        """The settings, with the split of the training run where there is one: what judges was never trained on."""
        run = _run_of([place])
        if run is None or read_run(run)["corpus_sha256"] != self.corpus.sha256:
            return self.settings
        trained = TrainSettings(**read_run(run)["settings"])
        return replace(self.settings, context=trained.context, held_out=trained.held_out, seed=trained.seed)

    def result(self) -> Dynamics:
        """All that is known so far.

        Raises:
            AnalysisError: no checkpoint could be read.
        """
        if self.builder is None or not self.builder.checkpoints:
            why = f" The first: {self.missing[0].reason}" if self.missing else ""
            raise AnalysisError(f"No checkpoint of {self.source!r} could be read.{why}")
        return Dynamics(
            source=self.source,
            corpus=self.corpus.name,
            stand_in=self.stand_in,
            token_ids=self.builder.rows,
            tokens=self.tokens,
            counts=self.builder.counts,
            unseen=self.unseen,
            checkpoints=tuple(self.builder.checkpoints),
            missing=tuple(self.missing),
            prompt=PROMPT,
            note=self.note,
        )


def _quiet(progress: Progress) -> Progress:
    """Lets a run be cancelled inside a checkpoint without telling of every chunk."""

    def told(phrase: str, share: float | None) -> None:
        progress("Measuring a checkpoint", None)

    return told


def _samples(model: LoadedModel) -> tuple[str, ...]:
    from core.generate import generate

    return generate(model, PROMPT, None, SAMPLING).before_texts


# --- training ---------------------------------------------------------------------------------------------------------


def run_folder(store: Store, corpus: Corpus, settings: TrainSettings) -> Path:
    """Where a training run is kept when no folder is given: the same text and settings come back to the same place."""
    name = hashlib.sha256(f"{corpus.sha256} {sorted(asdict(settings).items())}".encode()).hexdigest()[:12]
    return store.folder / "runs" / f"run-{name}"


def train_series(
    corpus: str | Corpus,
    training: TrainSettings,
    run: Path | None = None,
    settings: Settings | None = None,
    store: Store | None = None,
    *,
    local_paths: bool = True,
    progress: Progress = no_progress,
    on_checkpoint: Told | None = None,
) -> Dynamics:
    """Train a model and measure every checkpoint as it is made; a run that was killed goes on.

    Args:
        corpus: name of the text, or the text. training: see `TrainSettings`.
        run: its folder; a place in the store's folder that depends on text and settings if not given.
        settings: positions of the pass that measures; window, split and seed are the training's.

    Raises:
        InputError, AnalysisError: see `core.train.train`.
    """
    store = store or Store()
    text = corpus if isinstance(corpus, Corpus) else read_corpus(corpus, local_paths=local_paths, progress=progress)
    run = (run or run_folder(store, text, training)).resolve()
    work = _Work(
        run.name,
        text.name,
        settings or Settings(positions=4096),
        store,
        False,
        local_paths,
        progress,
        on_checkpoint,
        text,
    )
    train(
        run,
        text,
        training,
        progress=progress,
        on_checkpoint=lambda step, folder: work.add(Place(step, folder.name, folder)),
    )
    return work.result()


# --- a run kept small -------------------------------------------------------------------------------------------------


def is_own_text(run: Path, corpus: str | None) -> bool:
    """Whether the folder holds a training run and `corpus`, if there is one, is the text that it was trained on."""
    try:
        own = read_run(run)["corpus_sha256"]
    except InputError:
        return False
    return corpus is None or read_corpus(corpus).sha256 == own


def check_own_text(run: Path, corpus: str | None) -> None:
    """Raises `InputError` if `corpus` is not the text that the run was trained on: with that alone a run is kept."""
    own = read_run(run)
    if not is_own_text(run, corpus):
        raise _of_another_text(own)


def _of_another_text(run: dict[str, Any]) -> InputError:
    return InputError(
        f"A run is kept with the frequencies of the text it was trained on, which was {quoted(str(run['corpus']))}: leave "
        "--corpus away, and give it where the kept run is read."
    )


def keep_series(run: Path, folder: Path, found: Dynamics, store: Store, settings: Settings) -> None:
    """Write the checkpoints of a training run small: heads in half precision, alpha, loss and samples of each.

    Args:
        run: the folder of the run; found: what `dynamics` or `train_series` gave for it, with `store` and `settings`.
        folder: where to; files of that name are replaced.

    Raises:
        InputError: `found` was measured with another text than the run's own; or the folder cannot be written.
    """
    run = run.resolve()
    if found.stand_in:
        raise _of_another_text(read_run(run))
    frequency = read_frequency(run)
    if frequency is None:
        raise InputError(
            f"The folder {run.name!r} holds no training run that can be read, for its frequency.safetensors is missing or "
            "damaged: restore that file, or train once more into another folder."
        )
    work = _Work(run.name, str(read_run(run)["corpus"]), settings, store, False, True, no_progress, None)
    tokens = np.full(len(frequency.counts), "", dtype=object)
    tokens[found.token_ids] = found.tokens
    checkpoints = []
    for each in found.checkpoints:
        head = read_head(step_folder(run, each.step), each.name)
        measured = work.measure(Place(each.step, each.name, step_folder(run, each.step)))
        weight, alpha = head.weight.astype(np.float16), measured.alpha.astype(np.float32)
        checkpoints.append(KeptCheckpoint(each.step, weight, alpha, measured.loss, measured.samples))
    steps = tuple(each.step for each in found.checkpoints)
    series = KeptSeries(Path(found.corpus).name, tuple(map(str, tokens)), frequency.counts, found.prompt, steps)
    write_kept(folder, series, checkpoints)


def summary(found: Dynamics) -> dict[str, object]:
    """The JSON object of `headscope dynamics`."""
    return {
        "source": found.source,
        "corpus": found.corpus,
        "frequency_is_a_stand_in": found.stand_in,
        "tokens_fitted": len(found.token_ids),
        "tokens_unseen": found.unseen,
        "checkpoints": [_row(c, cosine) for c, cosine in zip(found.checkpoints, _all_cosines(found), strict=True)],
        "missing": [asdict(each) for each in found.missing],
        "step_frequency_90": found.step_frequency_90,
        "step_loss_90": found.step_loss_90,
    }


def _row(checkpoint: Checkpoint, cosine: float | None) -> dict[str, object]:
    return {
        "step": checkpoint.step,
        "name": checkpoint.name,
        "r2_corpus_frequency": checkpoint.r2_corpus_frequency,
        "r2_alpha": checkpoint.r2_alpha,
        "loss": checkpoint.loss,
        "head_sha256": checkpoint.head_sha256,
        "duplicate_of": checkpoint.duplicate_of,
        "weights_norm": float(np.linalg.norm(checkpoint.direction)),
        "weights_cosine_to_last": cosine,
    }


def _all_cosines(found: Dynamics) -> list[float | None]:
    known = dict(zip((c.step for c in found.curve), found.cosines.tolist(), strict=True))
    return [known.get(c.step) for c in found.checkpoints]
