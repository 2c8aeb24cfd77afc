"""What a visitor takes along from a page: its address, a command and Python for its numbers, its result, a report."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from app import cache, edits, jobs, preload, share, state, uploads, widgets
from app.rules import rules
from app.share import View
from app.state import Choice
from core.encoding import Encoding
from core.figures import words
from core.model.weights import write_atomically
from core.results import plain
from core.settings import Progress
from core.store import Store
from core.words import whole_characters

KEPT = 20
"""Reports on disk; the oldest leave first."""
GONE = (
    "<!doctype html><title>Headscope</title><p>This report has made room for newer ones: load Headscope's page again, open "
    "Share and have it written anew.</p>"
)


def draw(
    page: str,
    choice: Choice,
    result: Callable[[], dict[str, Any]],
    encoding: Encoding | None = None,
    *,
    report: bool = True,
    told: str = "",
    **more: Any,
) -> None:
    """A button that opens all of it, beside a quiet line.

    Args:
        page: its name in the address. choice, encoding: what it shows.
        result: gives the page's result as JSON; asked only when somebody downloads it.
        report: whether a report can be made of this view.
        told: the quiet line (HTML, escaped); where the results came with Headscope it says so.
        more: fields of a `View` that the page knows better than the session.
    """
    shown = _view(page, choice, encoding, more)
    with st.container(horizontal=True, vertical_alignment="center"):
        if not told and cache.precomputed(choice):
            told = widgets.PRECOMPUTED
        if told:
            widgets.note(told)
        else:
            st.space("stretch")
        with st.container(width="content"):
            _popover(shown, result, report)


@st.fragment
def _popover(shown: View, result: Callable[[], dict[str, Any]], report: bool) -> None:
    place = st.popover("Share", key="share", on_change="rerun")
    if place.open:  # most never look, and a slider that moves would send it all anew
        with place:
            _content(shown, result, report)


def _content(shown: View, result: Callable[[], dict[str, Any]], report: bool) -> None:
    _copied("Address", state.address())
    _copied("Command", share.command(shown))
    _copied("Python", share.python(shown).rstrip())
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Result as JSON",
            data=lambda: json.dumps(plain(result()), ensure_ascii=False, allow_nan=False, indent=1).encode(),
            file_name=f"headscope-{shown.page}.json",
            mime="application/json",
            key="share-json",
            on_click="ignore",
        )
        if report:
            _report(shown)


def _view(page: str, choice: Choice, encoding: Encoding | None, more: dict[str, Any]) -> View:
    told: dict[str, Any] = {
        "edits": state.edits(),
        "direction": str(state.chosen("direction")),
        "calibrate": bool(state.chosen("calibrate")),
    } | more
    known = {} if encoding is None else edits.alphas(encoding, told["edits"])
    steered = tuple(edit for edit in told.pop("edits") if edit.token_id in known)
    return View(page, choice, steered, tuple(known[edit.token_id][0] for edit in steered), **told)


def _copied(title: str, text: str) -> None:
    st.markdown(f"**{title}**")
    st.code(text, language=None, wrap_lines=True)


# --- the report -------------------------------------------------------------------------------------------------------


def _report(shown: View) -> None:
    """A button that has the report written; once it is there, one that downloads it."""
    shown = replace(shown, page="", figure="", series="")  # these change nothing in the report
    lane, key = jobs.generation(), ("report", shown)
    job = lane.find(key)
    size = _size(job.result) if job is not None and job.state == "done" else 0
    if size is None:
        lane.forget(key)
        job = None
    if job is None:
        if st.button("Write a report", key="share-report", help="One HTML file with every figure; needs no network."):
            widgets.start(lambda: _start(shown))
    elif job.state == "done":
        path: Path = job.result
        st.download_button(
            f"Report, {words.size(size or 0)}",
            data=lambda: _read(path),
            file_name="headscope-report.html",
            mime="text/html",
            key="share-report-file",
            on_click="ignore",
        )
    else:
        widgets.waiting(job, lane, lambda: _start(shown), key="share-report-again")


def _size(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return None


def _read(path: Path) -> bytes:
    """A report for the browser that asked for it: others may have had theirs written since it was offered."""
    try:
        return path.read_bytes()
    except OSError:
        return GONE.encode()


def _start(shown: View) -> None:
    rules().check_prompt(shown.prompt or "")
    if shown.sampling is not None:
        rules().check_sampling(shown.sampling)
    jobs.generation().submit(
        ("report", shown), "Writing a report", lambda progress: write(shown, progress), owner=state.session()
    )


def write(shown: View, progress: Progress) -> Path:
    """Write the report of a view and return its place; reports are bounded in number."""
    analysis = cache.open_analysis(shown.choice)
    progress("Starting torch", None)
    preload.wait()
    from core.kept import bundled
    from core.report import Wanted, report_of
    from core.report import page as html_of

    found = report_of(
        analysis,
        Wanted(shown.edits, shown.direction, shown.calibrate, shown.prompt, shown.chat, shown.sampling),
        dynamics=bundled() if shown.choice.model == "demo" else None,
        name=uploads.title(shown.choice.model),
        corpus=uploads.title(shown.choice.corpus),
        command=share.report_command(shown),
        progress=progress,
    )
    folder = Store().folder / "reports"
    path = folder / f"{hashlib.sha256(repr(shown).encode()).hexdigest()[:16]}.html"
    try:
        write_atomically(path, whole_characters(html_of(found)).encode())
    except OSError as error:
        raise uploads.not_kept("report", error) from error
    written: list[tuple[float, Path]] = []
    for each in folder.glob("*.html"):
        with contextlib.suppress(OSError):  # another session removes too
            written.append((each.stat().st_mtime, each))
    for _, old in sorted(written, reverse=True)[KEPT:]:
        old.unlink(missing_ok=True)
    return path
