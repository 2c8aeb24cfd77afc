"""The server: Streamlit with the files of the live sliders and a sentence for our own mistakes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import streamlit as st

from app import preload
from app.environment import AUDIENCE_VARIABLE
from app.live.routes import ROUTES


@contextlib.asynccontextmanager
async def lifespan(server: st.App) -> AsyncIterator[None]:
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    # threads that read ahead belong to no visitor
    logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context").setLevel(logging.ERROR)
    preload.pages_behind()
    if os.environ.get(AUDIENCE_VARIABLE) == "classroom":  # a class finds everything ready
        preload.pages().get_ready()
    yield


def on_script_error(error: Exception) -> bool:
    """A mistake of ours: the log gets the details, the page one sentence."""
    logging.getLogger("headscope").error("A page failed.", exc_info=error)
    st.error(
        "This page failed because of a mistake in Headscope. The terminal it runs in shows the details; reload to "
        "go on."
    )
    return True


app = st.App(Path(__file__).with_name("main.py"), lifespan=lifespan, routes=ROUTES, on_script_error=on_script_error)
