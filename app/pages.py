"""The dashboard's pages, in the order of the method, and what stands around each of them."""

from __future__ import annotations

import contextlib
import html
from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from app import cache, guard, jobs, preload, sidebar, state, widgets
from app.rules import rules
from app.turns import taking_turns
from core.figures import Look, head, words
from core.store import Store

LOGO = Path(__file__).with_name("logo.svg")
HISTORY = (Path(__file__).parent / "live" / "history.html").read_text("utf-8").replace("SERVER-OF-THIS", guard.SERVER)
LOOKED_AFTER = 3.0
"""Seconds after which it is looked again whether results can be kept."""
MOST_MISREAD = 3
"""Sentences about what the address asks for in vain; the others are counted."""


def draw() -> None:
    """One run of the script for one visitor."""
    with taking_turns(state.place()) if rules().shared else contextlib.nullcontext():
        _draw()


def _draw() -> None:
    st.set_page_config(page_title="Headscope", page_icon=LOGO, layout="wide")
    state.start()
    chosen = st.navigation(_pages())
    st.logo(LOGO, size="large")
    widgets.style()
    st.html(HISTORY, unsafe_allow_javascript=True)  # our own, the same for everybody
    sidebar.draw()
    state.publish()
    if chosen.url_path:  # all but the first page show tables
        preload.tables()
    misread = state.misread(chosen.url_path)
    for sentence in misread[:MOST_MISREAD]:
        widgets.problem(sentence)
    if more := len(misread[MOST_MISREAD:]):
        widgets.problem(f"So it is with {words.plural(more, 'more field', 'more fields')} of the address.")
    if Store().trouble:
        _tell_of_trouble()
    with preload.drawing(), jobs.answering():
        chosen.run()
    state.publish()
    preload.torch_behind()


@st.fragment(run_every=LOOKED_AFTER)
def _tell_of_trouble() -> None:
    """That nothing can be kept, for as long as that is so."""
    trouble = Store().trouble
    if trouble is None:
        st.rerun()
    widgets.warning(
        f"Results cannot be kept on the disk of this server ({html.escape(trouble)}): until it can be written to again "
        "they are in memory only, and gone when the server ends."
        + ("" if rules().shared else " Another folder is chosen with --cache.")
    )


def _pages() -> dict[str, list[StreamlitPage]]:
    pages = {
        "Begin": [st.Page("views/learn.py", title="Learn", url_path="learn")],
        "Look": [
            st.Page("views/model.py", title="Model", url_path="model", default=True),
            st.Page("views/encoding.py", title="Encoding", url_path="encoding"),
        ],
        "Change": [
            st.Page("views/steering.py", title="Steering", url_path="steering"),
            st.Page("views/samples.py", title="Samples", url_path="samples"),
            st.Page("views/pruning.py", title="Pruning", url_path="pruning"),
        ],
        "Watch": [
            st.Page("views/dynamics.py", title="Dynamics", url_path="dynamics"),
            st.Page("views/compare.py", title="Compare", url_path="compare"),
        ],
        "About": [st.Page("views/method.py", title="Method", url_path="method")],
    }
    if rules().audience == "classroom":
        pages["Begin"].append(st.Page("views/join.py", title="Join", url_path="join"))
    return pages


def read_ahead() -> None:
    """Have what the first page shows at hand before a browser asks for it, where it was computed before."""
    facts = cache.read_ahead(state.first_choice())
    if facts is not None:  # plotly imports the parts of a figure when the first one is made
        check = facts.check
        head.agreement(check.max_logit_error, check.tolerance, check.half_precision_deviation, Look())


def get_ready() -> None:
    """Have what a class works with computed and loaded before anybody comes."""
    cache.get_ready(state.first_choice())
