"""What pages share: analyses, results and figures, each under everything it depends on, and bounded.

The one file that uses Streamlit's caches. What takes seconds is never computed here but handed to `app.jobs`; a
function that may find nothing yet returns the job instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from app import jobs, preload
from app.jobs import Job
from app.state import Choice
from core.figures import Chart, Look
from core.settings import Progress
from core.steering import Edit

if TYPE_CHECKING:
    from core.analysis import Analysis
    from core.encoding import Encoding
    from core.results import FewShotPoint, Generated, NextToken, TokenChoice
    from core.steering import Steering, SweepPoint


class _NotYet(Exception):
    """Raised inside a cached function so that an absent result is not cached."""


def open_analysis(choice: Choice) -> Analysis:
    """The one place where the dashboard opens an analysis; costs nothing until something is asked of it."""
    from core.analysis import Analysis

    return Analysis(choice.model, choice.corpus, choice.settings)


@st.cache_resource(max_entries=6, show_spinner=False)
def _analysis(choice: Choice) -> Analysis:
    return open_analysis(choice)


# --- what may take long -------------------------------------------------------------------------------------------


@st.cache_resource(max_entries=6, show_spinner=False)
def _encoding(choice: Choice) -> Encoding:
    job = jobs.analyses().find(("encode", choice))
    if job is not None and job.state == "done":
        return job.result
    found = _analysis(choice).cached_encoding()
    if found is None:
        raise _NotYet
    return found


def encoding(choice: Choice) -> Encoding | Job:
    """The encoding if it is in memory or in the store (then torch is not needed), or the job that computes it."""
    try:
        return _encoding(choice)
    except _NotYet:
        return jobs.analyses().submit(("encode", choice), f"Analysing {choice.model}", lambda p: _encode(choice, p))


def _encode(choice: Choice, progress: Progress) -> Encoding:
    progress("Starting torch", None)
    preload.wait()
    return open_analysis(choice).encoding(progress)


@st.cache_resource(max_entries=3, show_spinner=False)
def _prepared(choice: Choice) -> Analysis:
    job = jobs.analyses().find(("prepare", choice))
    if job is None or job.state != "done":
        raise _NotYet
    return job.result


def prepared(choice: Choice) -> Analysis | Job:
    """The analysis with model and observation in memory, ready for quick questions, or the job that gets it there."""
    try:
        return _prepared(choice)
    except _NotYet:
        work = _analysis(choice)
        return jobs.analyses().submit(("prepare", choice), f"Loading {choice.model}", lambda p: _prepare(work, p))


def _prepare(analysis: Analysis, progress: Progress) -> Analysis:
    progress("Starting torch", None)
    preload.wait()
    analysis.encoding(progress)
    analysis.observation(progress)
    analysis.loaded(progress)
    return analysis


def few_shot(choice: Choice, edits: tuple[Edit, ...], direction: str, sizes: tuple[int, ...]) -> FewShotJob:
    """The key and work of the few-shot curve."""
    key = ("few-shot", choice, edits, direction, sizes)
    return FewShotJob(key, lambda progress: _prepared(choice).few_shot(edits, sizes, direction, progress))


class FewShotJob:
    """A job of the generation lane that starts only when it is asked to."""

    def __init__(self, key: tuple[object, ...], work: Callable[[Progress], tuple[FewShotPoint, ...] | Generated]) -> None:
        self.key, self.work = key, work
