"""What a worker does, without a word about how it is started: observe a part of a corpus, or fit what was observed.

A worker is given names, paths and settings and reads model and text itself; what it returns are sums and fits. Mistakes
and refusals come back as a sentence, since trying again would not help; anything else that goes wrong is raised, and the
task is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from core.analysis import Analysis
from core.corpus import Corpus, Plan
from core.encoding import Encoding
from core.errors import AnalysisError, HeadscopeError
from core.model.facts import HeadFacts
from core.model.files import ModelFiles
from core.moments import Observation
from core.settings import Progress, no_progress
from core.store import Store
from core.sweep.plan import Run


@dataclass(frozen=True)
class Work:
    """What a worker is told: the run, its own cache folder (None: the worker's default) and torch's threads."""

    run: Run
    cache: str | None
    threads: int

    def analysis(self) -> Analysis:
        """The analysis on this worker. Results are not stored here: who started the sweep stores them."""
        import torch

        torch.set_num_threads(self.threads)
        analysis = Analysis(
            self.run.model_place, self.run.corpus_place, self.run.settings, Store(self.cache, enabled=False)
        )
        if analysis.corpus.sha256 != self.run.corpus_sha256:
            raise AnalysisError(
                f"The corpus {self.run.corpus!r} is another text on the machine of this worker than where the sweep was "
                "started: put it into a folder that all machines share."
            )
        return analysis


@dataclass(frozen=True)
class Shard:
    """The observation of one part of a corpus; None where the corpus has fewer parts than were asked for."""

    model_sha256: str
    observation: Observation | None


@dataclass(frozen=True)
class Fitted:
    """A finished run, and under what its results are stored."""

    model_sha256: str
    revision: str
    encoding: Encoding
    facts: HeadFacts


@dataclass(frozen=True)
class Refused:
    """Why a task cannot be done, as a sentence."""

    reason: str


def shard_of(plan: Plan, index: int, shards: int) -> Plan | None:
    """The `index`-th of `shards` parts of a plan's chunks; every part has some that fit and some that judge.

    The parts are neighbours in the plan's order, so merging them in order adds the same numbers as one pass. Documents are
    counted with the first. None where the plan has fewer chunks than that.
    """
    kinds = [[chunk for chunk in plan.chunks if chunk.held_out == held_out] for held_out in (False, True)]
    shards = min(shards, *map(len, kinds))
    if index >= shards:
        return None
    fit, judge = (chunks[index * len(chunks) // shards : (index + 1) * len(chunks) // shards] for chunks in kinds)
    first = index == 0
    return replace(
        plan,
        chunks=(*fit, *judge),
        positions=sum(chunk.count for chunk in fit),
        positions_held_out=sum(chunk.count for chunk in judge),
        documents=plan.documents if first else 0,
        documents_held_out=plan.documents_held_out if first else 0,
        note=plan.note if first else "",
    )


def observe_shard(work: Work, index: int, progress: Progress = no_progress) -> Shard | Refused:
    """Observe one part of the corpus."""
    from core.observe import observe

    try:
        analysis = work.analysis()
        model = analysis.loaded(progress)
        plan = shard_of(analysis.plan(model, analysis.corpus, progress), index, work.run.shards)
        found = None if plan is None else observe(model, plan, seed=work.run.settings.seed, progress=progress)
    except HeadscopeError as error:
        return Refused(str(error))
    return Shard(model.files.sha256, found)


def fit_run(work: Work, observation: Observation, progress: Progress = no_progress) -> Fitted | Refused:
    """Fit the encoding to a merged observation."""
    try:
        analysis = work.analysis()
        analysis.adopt(observation)
        encoding, facts = analysis.encoding(progress), analysis.head_facts(progress)
    except HeadscopeError as error:
        return Refused(str(error))
    files = analysis.files()
    return Fitted(files.sha256, files.revision, encoding, facts)


def store_results(run: Run, store: Store, found: Fitted, observation: Observation | None) -> None:
    """Put the results of a run where commands and pages look for them."""
    files = ModelFiles(run.model, found.revision, Path(), found.model_sha256)
    _here(run, store).keep(files, observation, found.encoding, found.facts)


def known(run: Run, store: Store) -> tuple[Encoding, str] | None:
    """The encoding of a run and its model's revision, if the store has them; no model is loaded or fetched."""
    analysis = _here(run, store)
    files, encoding = analysis.known_files(), analysis.cached_encoding()
    return None if files is None or encoding is None else (encoding, files.revision)


def revision_on_disk(run: Run, store: Store) -> str | None:
    """Which version of the model lies on this disk; None where none does. The network is never asked."""
    try:
        files = _here(run, store).known_files()
    except HeadscopeError:  # moved away since
        return None
    return None if files is None else files.revision


def _here(run: Run, store: Store) -> Analysis:
    """The analysis where the sweep was started; the text is known by its hash."""
    text = Corpus(run.corpus, (), False, run.corpus_sha256)
    return Analysis(run.model_place, run.corpus, run.settings, store, text=text)
