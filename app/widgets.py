"""The few things every page is made of: a sentence, chips, a chart with its data, a job's progress, a problem.

Texts of tokens, models and files are hostile until escaped: they reach the page as escaped HTML, as code spans or
as cells of a table, never as Markdown.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import plotly.graph_objects as go
import streamlit as st

from app import cache, jobs, preload, state
from app.jobs import Job, Lane
from app.live.pictures import pictures
from app.live.plot import plot
from app.rules import rules
from app.state import Choice
from core.errors import HeadscopeError
from core.figures import Chart, pairs, words
from core.show import chip as chip
from core.store import Store
from core.tokens import visible
from core.words import quoted, short

if TYPE_CHECKING:
    import pandas as pd

    from core.analysis import Analysis
    from core.encoding import Encoding

T = TypeVar("T")

END = "\N{NO-BREAK SPACE}"
"""Behind each name of a menu into which others are typed. Streamlit 1.67 reads a text that begins with the name shown as
that name with something put in, and leaves only that: of `demo/step-8`, typed over `demo`, `/step-8`. This nobody types."""

STYLE = """
.stMainBlockContainer {max-width: 1200px; padding-top: 3.2rem; padding-bottom: 4rem;}
.hs-sentence {font-size: 1.3rem; line-height: 1.5; margin: 0 0 .4rem 0; max-width: 60rem; overflow-wrap: anywhere;}
.hs-note {opacity: .78; line-height: 1.5; margin: 0; max-width: 60rem; overflow-wrap: anywhere;}
.hs-chip {font-family: "Source Code Pro", ui-monospace, monospace; font-size: .92em; white-space: pre-wrap;
  background: color-mix(in srgb, currentColor 9%, transparent); border-radius: .3em; padding: .05em .35em;}
.hs-warning {border-left: 4px solid HS_WARNING; padding: .3rem 0 .3rem .8rem; margin: 0;
  max-width: 60rem; line-height: 1.5;}
.hs-facts {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 44%), 1fr)); gap: 1rem 1.5rem;
  margin: .4rem 0 !important; padding: 0 !important;}
.hs-facts dt {font-size: .85rem; opacity: .75;}
.hs-facts dd {margin: 0 !important; padding: 0; font-size: 1.08rem; overflow-wrap: anywhere;}
.hs-held-out dd {color: HS_HELD_OUT; text-decoration: underline dashed; text-underline-offset: .25em;}
.stSkeleton, .stSkeleton * {animation: none !important;}
.stFileChip[aria-invalid="true"] {height: auto; flex-wrap: wrap;}
.stFileChip [role="alert"] {position: static !important; width: 0 !important; min-width: 100%; height: auto !important;
  clip: auto !important; clip-path: none !important; white-space: normal !important; overflow: visible !important;
  padding: .2rem .5rem; font-size: .875rem;}
body:has([data-test-connection-state]:not([data-test-connection-state="CONNECTED"])) [role="dialog"] > h2 + div {
  font-size: 0;
  & > * {display: none;}
  &::after {content: "HS_UNREACHED"; font-size: 1rem;}}
.hs-still:empty {display: none;}
.hs-still {position: fixed; top: .7rem; left: 50%; transform: translateX(-50%); z-index: 1000000; width: max-content;
  max-width: min(38rem, 92vw); padding: .6rem 1rem; border-radius: .5rem; background: #1F2937; color: #FFFFFF;
  line-height: 1.45; font-family: "Source Sans", sans-serif; box-shadow: 0 2px 12px rgb(0 0 0 / .35);}
.st-key-job {min-height: 26rem;}
.st-key-compare-status {min-height: 3.6rem; justify-content: center;}
.st-key-lesson-bar {padding-top: .9rem;}
.hs-progress {display: flex; gap: .9rem; align-items: center; margin: 0; white-space: nowrap;}
@media (max-width: 640px) {.hs-dots, .hs-progress .hs-quiet {display: none !important;}
  .stButtonGroup button {padding-inline: .55rem;}}
.hs-dots {display: inline-flex; gap: .55rem;}
.hs-dot {width: .7rem; height: .7rem; border-radius: 50%; border: 2px solid currentColor; opacity: .45;}
.hs-dot-right {background: currentColor;}
.hs-dot-now {opacity: 1; outline: 2px solid currentColor; outline-offset: 2px;}
.hs-quiet {opacity: .78;}
.hs-question {margin: 0; line-height: 1.5; max-width: 60rem;}
.hs-verdict {margin: 0; line-height: 1.5; padding-left: .8rem; border-left: 4px solid; max-width: 60rem;}
.hs-right {border-color: HS_OURS;} .hs-right::before {content: "✓ "; font-weight: 700;}
.hs-wrong {border-color: HS_WARNING;} .hs-wrong::before {content: "→ "; font-weight: 700;}
.hs-join {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 2rem; align-items: center;
  margin-top: .6rem; font-size: 1.5rem; line-height: 1.6;}
.hs-join li {font-size: 1.5rem; line-height: 1.6;}
.hs-join img {width: 100%; max-width: 30rem; height: auto; display: block; image-rendering: pixelated;}
.hs-join b {display: block; font-size: 2rem; overflow-wrap: anywhere;}
"""


UNREACHED = (
    "This dashboard cannot be reached: it has ended, or the network is away. Start headscope again, or tell whoever runs it; "
    "then this page goes on by itself, and what was finished is kept."
)
"""In place of what Streamlit says, whose command is not ours."""
_HELD_OUT = ' class="hs-held-out"'


def style() -> None:
    """The page's own style sheet, in the colours of the theme that is shown."""
    look = state.look()
    sheet = (STYLE + pairs.STYLE).replace("HS_UNREACHED", UNREACHED)
    for name in ("after_text", "after", "before", "ours", "warning", "held_out"):
        sheet = sheet.replace(f"HS_{name.upper()}", getattr(look, name))
    if look.dark:
        sheet += 'button[kind^="primary"]:enabled, button[kind^="primary"]:enabled p {color: #0B1118 !important;}'
    if look.type_size >= 20:
        # the smallest text is 0.875 of it
        sheet += "html {font-size: 23px;} .knob-value {font-size: .875rem;} .hs-chip {font-size: 1em;}"
    st.html(f"<style>{sheet}</style>")


_ADDRESS = re.compile(r"://|www\.|@[^\s.@]+\.", re.IGNORECASE)


def code_span(text: str) -> str:
    """A token for labels, which are Markdown: as a code span, in which nothing else is markup."""
    shown = visible(text) or "∅"
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def plain(text: str) -> str:
    """Any text as Markdown that reads the same: every sign that could be markup is escaped, and what a reader of Markdown
    would make a link of all the same, an address, is code."""

    def escaped(part: str) -> str:
        return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", part)

    def word(found: re.Match[str]) -> str:
        return (code_span(found[1]) if _ADDRESS.search(found[1]) else escaped(found[1])) + escaped(found[2])

    return re.sub(r"(\S+?)([,.;:]*)(?!\S)", word, text)


def say(sentence: str) -> None:
    """The page's one sentence (HTML, already escaped)."""
    st.html(f'<p class="hs-sentence">{sentence}</p>')


def note(text: str) -> None:
    """A quiet line (HTML, already escaped)."""
    st.html(f'<p class="hs-note">{text}</p>')


def keeps() -> bool:
    """Whether results are kept, as far as one can see; where not, every page says why."""
    return Store().trouble is None


def warning(text: str) -> None:
    """Where a claim does not hold or a limit bites (HTML, already escaped)."""
    st.html(f'<p class="hs-warning" role="note">{text}</p>')


def problem(error: Exception | str) -> None:
    """Something the visitor can mend, in one sentence; the rest of the page goes on."""
    st.error(plain(rules().said(str(error))))


def tell_left_out(key: str) -> None:
    """A line under a field whose value the address cannot carry."""
    if told := state.left_out(key):
        note(html.escape(told))


def chat_format(choice: Choice) -> bool:
    """Whether the prompt is to be wrapped in the model's chat template: a switch, where the model has one."""
    return cache.has_chat_template(choice) and st.toggle(
        "Chat format", key="chat", persist_state="session", help="Wrap the prompt in the model's chat template."
    )


def tell_no_chat_format(choice: Choice) -> None:
    """A line under a prompt that an address asks to be wrapped, where the model has no template."""
    if state.chosen("chat") and not cache.has_chat_template(choice):
        note("This model has no chat format: the prompt is taken as it is, whatever the address asks for.")


def names(label: str, known: Iterable[str], *, typed: bool, title: Callable[[str], str] = str, **options: Any) -> None:
    """A menu of names, into which others can be `typed`."""
    end = END if typed else ""
    st.selectbox(
        label,
        list(dict.fromkeys(known)),
        format_func=lambda name: title(name) + end,
        accept_new_options=typed,
        **options,
    )


def facts(items: Iterable[tuple[str, str]]) -> None:
    """A few named values in a grid (plain text)."""
    cells = "".join(
        f"<div{_HELD_OUT if 'held-out' in name else ''}><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in items
    )
    st.html(f'<dl class="hs-facts">{cells}</dl>')


def one_of(label: str, options: Iterable[str], key: str, *, hidden: bool = False, listed: bool = False) -> str:
    """A field for one of some options, the first unless the address says another; one that is none of them is told.

    Args:
        hidden: without its label.
        listed: as a list to fold out, for many options; otherwise they stand side by side.
    """
    first, *_ = names = list(options)
    show: Literal["collapsed", "visible"] = "collapsed" if hidden else "visible"
    found: str | None
    if listed:
        found = st.selectbox(label, names, key=key, bind="query-params", label_visibility=show)
    else:
        found = st.segmented_control(
            label, names, default=first, required=True, key=key, bind="query-params", label_visibility=show
        )
    found = found or first
    asked = state.asked(key)
    if asked and found != (asked[0] if asked[0] in names else first):  # picked by hand
        state.forget_asked(key)
    elif asked and asked[0] not in names:
        which = quoted(short(asked[0], 40))
        problem(f"The address asks for {key} = {which}, which is none of {', '.join(names)}: {first} is shown.")
    else:
        _tell_repeated(key, asked)
    return found


def searched(label: str, key: str, placeholder: str, help: str | None = None) -> str:
    """A field to search by, which the address knows; what was cut of it is told."""
    found = st.text_input(label, key=key, bind="query-params", max_chars=MOST_TYPED, placeholder=placeholder, help=help)
    found = found or ""
    asked = state.asked(key)
    if asked and found != asked[0][:MOST_TYPED]:  # typed by hand
        state.forget_asked(key)
    elif asked and len(asked[0]) > MOST_TYPED:
        problem(
            f"The address gives {key} with {len(asked[0]):,} characters, and at most {MOST_TYPED} are taken: the first ones "
            "were."
        )
    else:
        _tell_repeated(key, asked)
    return found


def _tell_repeated(key: str, asked: list[str]) -> None:
    if len(asked) > 1:
        problem(
            f"The address gives {key} {len(asked):,} times: the first one, {quoted(short(asked[0], 40))}, was taken."
        )


def chart(item: Chart, key: str, title: str, *, alone: bool = False, live: bool = False) -> None:
    """A figure under its title, with its numbers one click away.

    `alone`: without them, as high as its place allows, for a projector. `live`: it changes with every move of a slider.
    """
    if alone:
        st.markdown(f"**{title}**")
    else:
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{title}**")
            data(lambda: item.table, key, picture=title)
    if live:
        plot(item, key)
        return
    config = {"displaylogo": False, "displayModeBar": False, "scrollZoom": False}
    height: Literal["stretch", "content"] = "stretch" if alone else "content"
    st.plotly_chart(item.figure, key=key, theme=None, config=config, alt=item.summary, height=height)


def data(
    table: Callable[[], pd.DataFrame],
    key: str,
    most: int = 200,
    *,
    picture: str = "",
    figure: Callable[[], go.Figure] | None = None,
) -> None:
    """The numbers of a figure: the first rows to look at, all of them to download, and the figure as a file.

    Args:
        table: makes the numbers; called when somebody opens them.
        picture: title of the figure in the file; "" where there is no figure.
        figure: makes the figure, where it is not the Plotly chart with this key.
    """
    with st.container(width="content"):  # a fragment alone would take the whole rest of the line
        _data(table, key, most, picture, figure)


@st.fragment
def _data(
    table: Callable[[], pd.DataFrame], key: str, most: int, picture: str, figure: Callable[[], go.Figure] | None
) -> None:
    place = st.popover("Data and picture" if picture else "Data", key=f"{key}-data", on_change="rerun")
    if not place.open:
        return
    preload.tables()
    found = table()
    with place:
        rows(found.head(most), min(360, 38 + 35 * min(len(found), most)), f"{key}-rows")
        if len(found) > most:
            st.caption(f"The first {most} of {len(found):,} rows; the file has them all.")
        with st.container(horizontal=True):
            download(found, key)
            if picture:
                pictures(key, picture, state.look(), figure() if figure else None)


@st.fragment
def reading(draw: Callable[[], None], key: str = "reading", title: str = "How to read this") -> None:
    """More about what stands above, drawn for whoever asks."""
    place = st.expander(title, key=key, on_change="rerun")
    if place.open:
        with place:
            draw()


def download(table: pd.DataFrame, key: str) -> None:
    """A CSV that is only written when somebody asks for it."""
    from core.tables import csv_text

    st.download_button(
        "Download CSV",
        data=lambda: csv_text(table).encode(errors="surrogatepass"),
        file_name=f"headscope-{key}.csv",
        mime="text/csv",
        key=f"{key}-csv",
        on_click="ignore",
    )


def rows(table: pd.DataFrame, height: int, key: str) -> None:
    """A table as it is looked at: tokens with visible blanks, numbers with four significant digits."""
    copy = table.copy()
    if "token" in copy:
        copy["token"] = [visible(text) for text in copy["token"]]
    columns = {
        name: st.column_config.NumberColumn(format="%.4g") for name in copy.columns if copy[name].dtype.kind == "f"
    }
    st.dataframe(copy, hide_index=True, height=height, key=key, column_config=columns)


MOST_TYPED = 200
"""Characters of a field for a token or a name, also of one that a message made by hand fills."""

PRECOMPUTED = "Precomputed: the analysis came with Headscope. What you change is computed here."
"""Said where a page is filled from them."""


PACE, PACE_IN_LINE = 0.5, 2.5
"""Seconds between two looks at a job that runs or is next, and at one that waits behind others."""


def start(work: Callable[[], object]) -> None:
    """Begin what a button asks for and draw the page anew, or say why it cannot be."""
    try:
        work()
    except HeadscopeError as error:
        problem(error)
        return
    st.rerun()


# --- work in progress -----------------------------------------------------------------------------------------------


def need_encoding(choice: Choice) -> Encoding:
    """The encoding; while it is being computed the page shows how far it is, and ends there."""
    return _need(cache.encoding, choice)


def need_prepared(choice: Choice) -> Analysis:
    """The analysis with its model in memory; the page ends with the progress until it is."""
    return _need(cache.prepared, choice)


def _need(ask: Callable[[Choice], T | Job], choice: Choice) -> T:
    try:
        found = ask(choice)
    except HeadscopeError as error:
        problem(error)
        st.stop()
    if isinstance(found, Job):
        progress(found, jobs.analyses())
        st.stop()
    return found


@st.fragment(run_every=0.5)
def waiting(job: Job, lane: Lane, again: Callable[[], object] = lambda: None, key: str = "waiting-again") -> None:
    """One quiet line in place of what a job will bring; the page is drawn again when it is done.

    Args:
        again: begins it anew after it has ended, where the page itself only does so for a button of its own.
        key: of the button that asks for it.
    """
    job.seen[state.session()] = jobs.now()
    if job.state == "done":
        st.rerun()
    if job.active:
        note(f"{html.escape(job.title)}: {html.escape(standing(job, lane))} …")
    else:
        problem(job.error or "Cancelled.")
        if st.button("Try again", key=key):
            lane.forget(job.key)
            start(again)


def standing(job: Job, lane: Lane) -> str:
    """Where a job stands, for the middle of a sentence, as plain text: its place in line and since when, or what it does."""
    place = lane.place(job)
    if not place:
        return job.phrase[:1].lower() + job.phrase[1:] or "starting"
    line = f"number {place} in line" if place > 1 else "next in line"
    served = None if rules().shared else lane.at_work()  # what others do is their own business
    if served is not None:
        line += f" behind “{served.title}”" + ("" if served.share is None else f" ({100 * served.share:.0f} %)")
    return f"{line}, for {words.duration(job.seconds_waiting())}"


def progress(
    job: Job,
    lane: Lane,
    show: Callable[[Any], None] | None = None,
    *,
    again: Callable[[], object] | None = None,
) -> None:
    """A job from waiting to done, in a place that keeps its size; the page is drawn again when it is done.

    Args:
        show: draws what there is of the result so far, under the progress.
        again: begins it anew after it has ended, where the page itself only does so for a button of its own. Such a job keeps
            nothing before its end.
    """
    with st.container(key="job"):
        pace = PACE_IN_LINE if lane.place(job) > 1 else PACE
        st.fragment(_progress, run_every=pace)(job, lane, show, pace, again)


def _progress(
    job: Job, lane: Lane, show: Callable[[Any], None] | None, pace: float, again: Callable[[], object] | None
) -> None:
    job.seen[state.session()] = jobs.now()
    if job.state == "done":
        st.rerun()
    if job.state in ("failed", "cancelled"):
        _ended(job, lane, again)
        return
    if pace == PACE_IN_LINE and lane.place(job) <= 1:
        st.rerun()
    if job.state == "waiting":
        line, left = f"Waiting: {plain(standing(job, lane))}", lane.seconds_to_wait(job)
        st.progress(0.0, text=line + (f", about {words.duration(left)} more." if left and left >= 1 else "."))
    else:
        left = job.seconds_left()
        parts = [plain(job.phrase) or "Starting"]
        if job.share is not None:
            parts.append(f"{100 * job.share:.0f} %")
        if silent := job.seconds_silent():
            parts.append(f"nothing new for {words.duration(silent)}")
        elif left is not None:
            parts.append(f"{words.duration(left)} left")
        st.progress(min(1.0, max(0.0, job.share or 0.0)), text=" · ".join(parts))
    note(f"{html.escape(job.title)}. It goes on if this page is closed{'; the result is kept' if keeps() else ''}.")
    if cancelled(job, lane):
        st.rerun(scope="fragment")
    if show is not None and job.partial is not None:
        show(job.partial)


def cancelled(job: Job, lane: Lane) -> bool:
    """A button that ends a job for which nobody else waits; whether it has just done so."""
    if not st.button("Cancel", key="job-cancel", disabled=job.stop.is_set()):
        return False
    others = job.wanted_by_others(state.session())
    if others:
        st.toast(f"{words.plural(others, 'other visitor waits', 'other visitors wait')} for this too, so it goes on.")
        return False
    lane.cancel(job)
    return True


def _ended(job: Job, lane: Lane, again: Callable[[], object] | None) -> None:
    if job.state == "failed":
        problem(job.error)
    else:
        kept = (
            " What was finished of the analysis is kept; starting again goes on from there."
            if keeps() and not again
            else ""
        )
        st.info(f"Cancelled.{kept}")
    if st.button("Try again" if job.state == "failed" else "Start again", key="job-again"):
        lane.forget(job.key)
        start(again or (lambda: None))
