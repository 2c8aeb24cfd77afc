"""What pages share: analyses, results and figures, each under everything it depends on, and bounded.

The one file that uses Streamlit's caches. What takes seconds is never computed here but handed to `app.jobs`; a
function that may find nothing yet returns the job instead.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import streamlit as st

from app import begun, jobs, preload, runs, state, uploads
from app.jobs import Job
from app.rules import rules
from app.runs import Run
from app.state import Choice
from core.errors import HeadscopeError, InputError
from core.figures import Chart, Look
from core.model.facts import HeadFacts
from core.pruning.names import STANDARD
from core.results import Sampling
from core.settings import Progress, Texts, local_path
from core.steering import Edit, edited_prompt

if TYPE_CHECKING:
    from core.analysis import Analysis
    from core.compare import Row
    from core.corpus import Corpus
    from core.dynamics import Dynamics
    from core.encoding import Encoding
    from core.export.result import Exported
    from core.pruning.result import HeadCost, Pruning
    from core.results import FewShotPoint, Generated, NextToken, TokenChoice
    from core.steering import Curve, Steerer, Steering

P = ParamSpec("P")
T = TypeVar("T")

GRID = np.arange(-8.0, 12.01, 0.5)
"""Steps (nats) at which curves are known; between them the browser draws straight lines in log scale."""


def _bounded(entries: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Kept for all visitors, so many; values of our own are told apart as they are written, not field by field."""
    return st.cache_resource(max_entries=entries, show_spinner=False, hash_funcs={Choice: repr, Edit: repr, Look: repr})


LOOKED_AT = 1000
"""Entries of a folder that are looked at for changes."""
QUICKLY_READ, QUICKLY_UNPACKED = 2**22, 2**16
"""Bytes of a file, and of one that is compressed, which a page reads itself."""

_stamps: dict[str, object] = {}
_began_before: list[Job] = []  # jobs that may have read files as they were before a change that was noticed


def notice_changes(*names: str) -> None:
    """Forget everything that was computed if a file or folder of these names has changed since it was named last.

    Models, texts and series on the user's own disk are known by their names until here; the store knows them by their
    contents, so what did not change is there again at once. A shared server reads nothing that could change.
    """
    if rules().shared:
        return
    changed = False
    for name in names:
        stamp = _stamp(name)
        changed |= _stamps.setdefault(name, stamp) != stamp
        _stamps[name] = stamp
    if changed or any(not job.active for job in _began_before):
        active = jobs.analyses().forget_finished() + jobs.generation().forget_finished()
        _began_before[:] = active if changed else [job for job in _began_before if job.active]
        st.cache_resource.clear()


def _place(name: str) -> Path | None:
    """Where a model, a text or the table of a text may lie on this disk."""
    place = local_path(name)
    if place is not None and not place.exists() and ":" in name:
        return local_path(name.rpartition(":")[0])  # a column of a table
    return place


def _is_large(file: Path) -> bool:
    """Whether reading it as a text may take more than a moment."""
    try:
        return file.stat().st_size > (QUICKLY_UNPACKED if file.suffix.lower() == ".parquet" else QUICKLY_READ)
    except OSError:
        return False


def _stamp(name: str) -> object:
    """What shows that a file, or one directly in a folder, was written anew; None for what is no place on this disk."""
    place = _place(name)
    try:
        if place is None or not place.is_dir():
            return None if place is None else (place.stat().st_mtime_ns, place.stat().st_size)
        with os.scandir(place) as entries:
            found = [(e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in islice(entries, LOOKED_AT)]
        return tuple(sorted(found))
    except (OSError, ValueError):
        return None


class _NotYet(Exception):
    """Raised inside a cached function so that an absent result is not cached."""


def open_analysis(choice: Choice) -> Analysis:
    """The one place where the dashboard opens an analysis; costs nothing until something is asked of it."""
    from core.analysis import Analysis
    from core.corpus import read_corpus

    allowed = rules()
    model, corpus = allowed.admit(choice.model, choice.corpus, choice.positions)
    place = str(uploads.find(corpus) or corpus)
    # others are not told where on this disk it lies, and nobody knows an upload by its place there
    shown = Path(place).name if allowed.shared or uploads.is_kept(place) else place
    text = read_corpus(place, shown=shown) if place != corpus or shown != place else _at_hand(corpus)
    own_disk = not allowed.shared or allowed.model == model or allowed.corpus == corpus
    return Analysis(model, corpus, choice.settings, local_paths=own_disk, text=text)


@_bounded(2)
def _folder(name: str) -> Corpus:
    """The texts of a folder or file that a job has read; they stay here, for jobs are remembered for longer."""
    job = jobs.analyses().find(("read", name))
    if job is None or job.state != "done":
        raise _NotYet
    jobs.analyses().forget(job.key)
    return job.result


def _at_hand(corpus: str) -> Corpus | None:
    try:
        return _folder(corpus)
    except _NotYet:
        return None


def _reading(corpus: str) -> Job | None:
    """The job that reads a folder or a large file of the user's own disk; None for other texts, and when it is done."""
    from core.corpus import read_corpus

    place = None if rules().shared else _place(corpus)
    if place is None or not (place.is_dir() or _is_large(place)) or _at_hand(corpus) is not None:
        return None

    def read(progress: Progress) -> Corpus:
        found = read_corpus(corpus, progress=progress)
        progress("Reading texts", 1.0)  # the last moment at which it can be cancelled
        return found

    return jobs.analyses().submit(("read", corpus), f"Reading {corpus}", read, owner=state.session())


@_bounded(4)
def _analysis(choice: Choice) -> Analysis:
    return open_analysis(choice)


# --- what may take long -------------------------------------------------------------------------------------------


@_bounded(6)
def _encoding(choice: Choice) -> Encoding:
    job = jobs.analyses().find(("encode", choice))
    if job is not None and job.state == "done":
        return job.result
    found = _analysis(choice).cached_encoding()
    if found is None:
        raise _NotYet
    return found


def encoding(choice: Choice) -> Encoding | Job:
    """The encoding if it is in memory or in the store (then torch is not needed), or the job that gets it there."""
    notice_changes(choice.model, choice.corpus)
    if (reading := _reading(choice.corpus)) is not None:
        return reading
    try:
        return _encoding(choice)
    except _NotYet:
        return _submit_encoding(choice, state.session())


def _submit_encoding(choice: Choice, owner: str) -> Job:
    return jobs.analyses().submit(
        ("encode", choice), f"Analysing {choice.model}", lambda p: _encode(choice, p), owner=owner
    )


def read_ahead(choice: Choice) -> HeadFacts | None:
    """Take what was computed before from the store into memory; starts nothing. Returns what is known of the head."""
    try:
        _encoding(choice)
        return _head_facts(choice)
    except (_NotYet, HeadscopeError):  # a page asks again, and says it
        return None


def get_ready(choice: Choice) -> None:
    """Have everything that pages ask of this choice computed and loaded before anybody comes; the log says if that fails."""
    begun = [_submit_encoding(choice, ""), _submit_loading(choice, _analysis(choice), "")]

    def tell() -> None:
        for job in begun:
            job.finished.wait()
        if (why := next((job.error for job in begun if job.error), None)) is not None:
            logging.getLogger("headscope").error("This class finds nothing to work with: %s", why)

    threading.Thread(target=tell, name="headscope-ready", daemon=True).start()


def _encode(choice: Choice, progress: Progress) -> Encoding:
    _start_torch(progress)
    return open_analysis(choice).encoding(progress)


def prepared(choice: Choice) -> Analysis | Job:
    """The analysis, ready to judge edits: at once where all that takes is stored, else the job that gets it there."""
    return _ready(choice, lambda analysis: analysis.answers_without_model())


def loaded(choice: Choice) -> Analysis | Job:
    """The analysis with its model in memory, or the job that loads it."""
    return _ready(choice, lambda analysis: False)


def _ready(choice: Choice, answers: Callable[[Analysis], bool]) -> Analysis | Job:
    work = _analysis(choice)
    job = jobs.analyses().find(("prepare", choice))
    if (job is not None and job.state == "done") or answers(work):
        return work
    return _submit_loading(choice, work, state.session())


def _submit_loading(choice: Choice, work: Analysis, owner: str) -> Job:
    return jobs.analyses().submit(
        ("prepare", choice), f"Loading {choice.model}", lambda p: _prepare(work, p), owner=owner
    )


@_bounded(6)
def precomputed(choice: Choice) -> bool:
    """Whether the results of this choice came with Headscope."""
    return _analysis(choice).precomputed


def _prepare(analysis: Analysis, progress: Progress) -> None:
    """Its result stays in the analysis: jobs are remembered for longer than analyses are."""
    _start_torch(progress)
    analysis.encoding(progress)
    analysis.observation(progress)
    analysis.loaded(progress)


def few_shot_key(choice: Choice, edits: tuple[Edit, ...], direction: str) -> tuple[object, ...]:
    return ("few-shot", choice, edits, direction)


def few_shot(choice: Choice, edits: tuple[Edit, ...], direction: str) -> Job:
    """The job of the few-shot curve; its result is a tuple of `FewShotPoint`."""
    analysis = _analysis(choice)

    def estimate(progress: Progress) -> tuple[FewShotPoint, ...]:
        _start_torch(progress)
        return analysis.few_shot(edits, direction=direction, progress=progress)

    return jobs.generation().submit(
        few_shot_key(choice, edits, direction), "Estimating from few positions", estimate, owner=state.session()
    )


def _start_torch(progress: Progress) -> None:
    progress("Starting torch", None)
    preload.wait()


@dataclass(frozen=True)
class Writing:
    """What is to be written: the edit, the prompt and how texts are drawn."""

    edits: tuple[Edit, ...]
    direction: str
    calibrate: bool
    prompt: str
    chat: bool
    sampling: Sampling


def texts(choice: Choice, wanted: Writing) -> Job:
    """The job that samples texts before and after; its result is a `Generated`, its partial result the two `Texts`."""
    rules().check_prompt(wanted.prompt)
    rules().check_sampling(wanted.sampling)
    analysis = _analysis(choice)
    return jobs.generation().submit(
        ("texts", choice, wanted),
        "Writing samples",
        lambda progress: _write(analysis, choice, wanted, progress),
        owner=state.session(),
    )


def find_texts(choice: Choice, wanted: Writing) -> Job | None:
    return jobs.generation().find(("texts", choice, wanted))


def _write(analysis: Analysis, choice: Choice, wanted: Writing, progress: Progress) -> Generated:
    def show(before: Texts, after: Texts) -> None:
        if (job := find_texts(choice, wanted)) is not None:
            job.partial = (before, after)

    steering = analysis.steer(wanted.edits, wanted.direction, wanted.calibrate) if wanted.edits else None
    stored = analysis.stored_texts(wanted.prompt, steering, wanted.sampling, chat=wanted.chat)
    if stored is not None:
        return stored
    _start_torch(progress)
    return analysis.generate(
        wanted.prompt, steering, wanted.sampling, chat=wanted.chat, progress=progress, on_tokens=show
    )


# --- pruning ----------------------------------------------------------------------------------------------------------

PRUNED = tuple(round(0.05 * step, 2) for step in range(1, 19))
"""Fractions that are measured: every twentieth."""


@dataclass(frozen=True)
class Pruned:
    """Texts of a pruned head: how it is pruned, what is gone on from, how texts are drawn."""

    method: str
    removed: float
    prompt: str
    sampling: Sampling


@_bounded(6)
def _pruning(choice: Choice) -> tuple[Pruning, ...]:
    job = jobs.analyses().find(("prune", choice))
    if job is not None and job.state == "done":
        return job.result
    found = _analysis(choice).stored_pruning(STANDARD, PRUNED)
    if found is None:
        raise _NotYet
    return found


def pruning(choice: Choice) -> tuple[Pruning, ...] | Job:
    """The curves of all methods if they are stored (then torch is not needed), or the job that measures them."""
    try:
        return _pruning(choice)
    except _NotYet:
        return jobs.analyses().submit(
            ("prune", choice), f"Pruning {choice.model}", lambda p: _prune(choice, p), owner=state.session()
        )


def _prune(choice: Choice, progress: Progress) -> tuple[Pruning, ...]:
    _start_torch(progress)
    return open_analysis(choice).prune(STANDARD, PRUNED, progress=progress)


def find_pruned_texts(choice: Choice, wanted: Pruned) -> Job | None:
    return jobs.generation().find(("pruned texts", choice, wanted))


def pruned_texts(choice: Choice, wanted: Pruned) -> Job:
    """The job that samples texts of the full and of a pruned head; its result is a `Generated`."""
    rules().check_prompt(wanted.prompt)
    rules().check_sampling(wanted.sampling)
    analysis = _analysis(choice)

    def write(progress: Progress) -> Generated:
        _start_torch(progress)
        return analysis.generate(
            wanted.prompt, None, wanted.sampling, method=wanted.method, removed=wanted.removed, progress=progress
        )

    key = ("pruned texts", choice, wanted)
    return jobs.generation().submit(key, "Writing samples", write, owner=state.session())


def find_pruned_cost(choice: Choice, method: str, removed: float) -> Job | None:
    return jobs.generation().find(("pruned cost", choice, method, removed))


def pruned_cost(choice: Choice, method: str, removed: float) -> Job:
    """The job that measures size and time of a pruned head; its result is a `HeadCost`."""
    analysis = _analysis(choice)

    def measure(progress: Progress) -> HeadCost:
        _start_torch(progress)
        return analysis.pruned_cost(method, removed, progress)

    key = ("pruned cost", choice, method, removed)
    return jobs.generation().submit(key, "Measuring the smaller head", measure, owner=state.session())


def find_export(choice: Choice, folder: str) -> Job | None:
    return jobs.generation().find(("export", choice, folder)) if folder else None


def export(choice: Choice, folder: str, edits: tuple[Edit, ...], method: str | None, removed: float | None) -> Job:
    """The job that writes an edited model to a new folder; its result is an `Exported`.

    Raises:
        InputError: no folder is named, or there is nothing to change; what else is wrong with it the job says.
    """
    rules().check_own("an export")
    folder = folder.strip()
    if not folder:
        raise InputError("No folder was named: write where the model is to go, as my-edited-model.")
    if not edits and method is None:
        raise InputError("There is nothing to export yet: prune the head, steer a token, or both.")
    analysis = _analysis(choice)
    direction, calibrate = str(state.chosen("direction")), bool(state.chosen("calibrate"))

    def write(progress: Progress) -> Exported:
        with begun.noted(folder):
            _start_torch(progress)
            return analysis.export(
                folder, edits, direction, calibrate, method=method, removed=removed, progress=progress
            )

    key = ("export", choice, folder)
    jobs.generation().forget(key)
    if jobs.generation().find(key) is not None:  # with what was chosen when it began, here or on another page
        raise InputError("An export to that folder is under way: wait for its end, or name another folder.")
    return jobs.generation().submit(key, "Exporting the model", write, owner=state.session())


# --- comparison -------------------------------------------------------------------------------------------------------


@_bounded(16)
def _row(choice: Choice) -> Row:
    from core.compare import stored_row

    job = jobs.analyses().find(("compare", choice))
    if job is not None and job.state == "done":
        return job.result
    model, corpus = _names(choice)
    found = stored_row(_analysis(choice), model=model, corpus=corpus)
    if found is None or not found.complete:
        raise _NotYet(found)
    return found


def _names(choice: Choice) -> tuple[str, str]:
    """Model and text of a row, as the command line names them."""
    return choice.model, uploads.named(choice.corpus)


def failed_row(choice: Choice, why: str) -> Row:
    """A row of the comparison that cannot be measured."""
    from core.compare import Row

    model, corpus = _names(choice)
    return Row(model, corpus, positions=choice.positions, seed=choice.seed, error=rules().said(why))


def row(choice: Choice) -> tuple[Row | None, Job | None]:
    """A row of the comparison as far as it is known, and the job that measures it, if it was begun and is not done.

    Raises:
        InputError: this server does not analyse that.
    """
    notice_changes(choice.model, choice.corpus)
    job = jobs.analyses().find(("compare", choice))
    try:
        return _row(choice), None
    except _NotYet as stored:
        partial = None if job is None else job.partial
        return partial or stored.args[0], job


def measure_row(choice: Choice) -> Job:
    """The job that measures what is missing of a row; its partial result is the row so far."""

    def measure(progress: Progress) -> Row:
        from core.compare import compare_row

        def show(found: Row) -> None:
            if (job := jobs.analyses().find(("compare", choice))) is not None:
                job.partial = found

        _start_torch(progress)
        return compare_row(open_analysis(choice), model=model, corpus=corpus, progress=progress, on_row=show)

    model, corpus = _names(choice)
    title = f"Measuring {model} on {corpus}"
    return jobs.analyses().submit(("compare", choice), title, measure, owner=state.session())


def data_rows(folder: str) -> tuple[Row, ...]:
    """The rows of a sweep's data set; only the user of this computer may name one."""
    rules().check_own("reading a sweep's data set")
    notice_changes(folder)
    return _data_rows(folder)


@_bounded(4)
def _data_rows(folder: str) -> tuple[Row, ...]:
    from core.compare import read_data

    return read_data(folder)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@_bounded(2)
def bundled_dynamics() -> Dynamics:
    """The training run of the model `demo`."""
    from core.kept import bundled

    return bundled()


def dynamics(series: str) -> Dynamics | Job:
    """A series of checkpoints as it was measured: the bundled one at once, of any other the job that measures it."""
    if series == "demo":
        return bundled_dynamics()
    rules().check_own("measuring other checkpoints, or training,")
    run = runs.parse(series)
    if run is None and not dynamics_begun(series):
        _check_series(runs.places(series))
    notice_changes(*([run.corpus] if run else runs.places(series)))
    title = f"Measuring {series}" if run is None else run.title
    job = jobs.analyses().submit(("dynamics", series), title, lambda p: _measure(series, run, p), owner=state.session())
    return job.result if job.state == "done" else job


def _check_series(sources: list[str]) -> None:
    """What is no series is told at once, not when its turn comes."""
    from core.kept import kept_folder
    from core.sources import parse_sources

    local_paths = not rules().shared
    if kept_folder(sources, local_paths) is None:
        parse_sources(sources, local_paths=local_paths)


def _measure(series: str, run: Run | None, progress: Progress) -> Dynamics:
    def show(found: Dynamics) -> None:
        if (job := jobs.analyses().find(("dynamics", series))) is not None:
            job.partial = found

    _start_torch(progress)
    from core.series import dynamics as measure
    from core.series import train_series

    if run is None:
        return measure(runs.places(series), progress=progress, on_checkpoint=show)
    return train_series(run.text(), run.settings, progress=progress, on_checkpoint=show)


def dynamics_begun(series: str) -> bool:
    return jobs.analyses().find(("dynamics", series)) is not None


def measured_dynamics(series: str) -> Dynamics | None:
    """A series that has been measured in this process; starts nothing."""
    job = jobs.analyses().find(("dynamics", series))
    return job.result if job is not None and job.state == "done" else None


def forget_ended_dynamics(series: str) -> None:
    """A run that was cancelled or failed, so that it goes on."""
    job = jobs.analyses().find(("dynamics", series))
    if job is not None and job.state != "done":
        forget_dynamics(series)


def forget_dynamics(series: str) -> None:
    jobs.analyses().forget(("dynamics", series))


# --- quick questions to a prepared analysis -------------------------------------------------------------------------


@_bounded(32)
def steerer(choice: Choice, token_ids: tuple[int, ...], direction: str) -> Steerer:
    return _analysis(choice).steerer(token_ids, direction)


def _steerer(choice: Choice, edits: tuple[Edit, ...], direction: str) -> Steerer:
    return steerer(choice, tuple(edit.token_id for edit in edits), direction)


@_bounded(256)
def steer(choice: Choice, edits: tuple[Edit, ...], direction: str, calibrate: bool) -> Steering:
    return _steerer(choice, edits, direction).steer([edit.ratio for edit in edits], calibrate)


def curves(choice: Choice, edits: tuple[Edit, ...], direction: str, calibrate: bool) -> tuple[Curve, ...]:
    """Of every token, what its step does while the others stay: what the live sliders read off. Of a calibrated edit only
    where a step is looked for."""
    ids = tuple(edit.token_id for edit in edits)
    solved = steer(choice, edits, direction, calibrate).calibrated
    steps = tuple(_steps(choice, edits, direction, calibrate).tolist())
    return tuple(
        _curve(choice, ids, direction, place, (*steps[:place], 0.0, *steps[place + 1 :]), solved)
        for place in range(len(ids))
    )


@_bounded(256)
def _curve(
    choice: Choice, token_ids: tuple[int, ...], direction: str, place: int, steps: tuple[float, ...], solved: bool
) -> Curve:
    """Its own step is not among what it depends on: moving the only slider costs nothing here."""
    curve = steerer(choice, token_ids, direction).curve(place, np.array(steps), GRID)
    return curve.solved() if solved else curve


def _steps(choice: Choice, edits: tuple[Edit, ...], direction: str, calibrate: bool) -> np.ndarray:
    tokens = steer(choice, edits, direction, calibrate).tokens
    return np.array([token.step * np.log(token.target) for token in tokens])


@_bounded(128)
def baselines(choice: Choice, edits: tuple[Edit, ...]) -> tuple[Steering, ...]:
    return _analysis(choice).baselines(edits)


@_bounded(64)
def _prompt(choice: Choice, text: str, chat: bool) -> NextToken:
    analysis = _analysis(choice)
    found = analysis.stored_prompt(text, chat=chat)
    if found is not None:
        return found
    if isinstance(loaded(choice), Job):
        raise _NotYet
    return analysis.next_token(text, None, chat=chat)


def prompt(choice: Choice, text: str, chat: bool) -> NextToken | Job:
    """The next token of the model as it is: the one forward pass that a prompt costs; or the job that loads the model."""
    rules().check_prompt(text)
    try:
        return _prompt(choice, text, chat)
    except _NotYet:
        ready = loaded(choice)
        return ready if isinstance(ready, Job) else _prompt(choice, text, chat)


@_bounded(256)
def next_token(
    choice: Choice, text: str, chat: bool, edits: tuple[Edit, ...], direction: str, calibrate: bool
) -> NextToken:
    """The same after the edit, in closed form; `prompt` has found it before."""
    steps = _steps(choice, edits, direction, calibrate)
    return edited_prompt(_prompt(choice, text, chat), _steerer(choice, edits, direction), steps)


@_bounded(256)
def _find_token(choice: Choice, text: str) -> TokenChoice:
    return _analysis(choice).find_token(text)


def find_token(choice: Choice, text: str) -> TokenChoice | Job:
    """The token that a text means, or, where only the tokenizer can tell, the job that loads the model."""
    if _analysis(choice).needs_tokenizer(text) and isinstance(ready := loaded(choice), Job):
        return ready
    return _find_token(choice, text)


@_bounded(6)
def has_chat_template(choice: Choice) -> bool:
    found = head_facts(choice)
    if isinstance(found, Job):
        raise _NotYet
    return found.chat_template


@_bounded(6)
def _head_facts(choice: Choice) -> HeadFacts:
    found = _analysis(choice).cached_head_facts()
    if found is None:
        raise _NotYet
    return found


def head_facts(choice: Choice) -> HeadFacts | Job:
    """What the Model page says of the head: from the store (then torch is not needed), or the job that loads the model."""
    try:
        return _head_facts(choice)
    except _NotYet:
        ready = loaded(choice)
        return ready if isinstance(ready, Job) else ready.head_facts()


@_bounded(48)
def _chart(name: str, choice: Choice, look: Look, options: tuple[object, ...], _make: Callable[[], Chart]) -> Chart:
    return _make()


def chart(make: Callable[..., Chart], choice: Choice, encoding: Encoding, look: Look, *options: object) -> Chart:
    """`make(encoding, look, *options)`, kept: the figures of tens of thousands of tokens take a moment to build."""
    name = f"{make.__module__}.{make.__qualname__}"
    return _chart(name, choice, look, options, lambda: make(encoding, look, *options))


@_bounded(256)
def _of_curve(key: tuple[object, ...], _make: Callable[[], Any]) -> Any:
    return _make()


def of_first_curve(
    make: Callable[[Curve], T], choice: Choice, edits: tuple[Edit, ...], direction: str, calibrate: bool, look: Look
) -> T:
    """What is made of the first token's curve, kept while all but that token's own ratio stays."""
    ids = tuple(edit.token_id for edit in edits)
    others = tuple(_steps(choice, edits, direction, calibrate)[1:].tolist())
    key = (choice, ids, direction, calibrate, others, look)
    found: T = _of_curve(key, lambda: make(curves(choice, edits, direction, calibrate)[0]))
    return found
