"""The server: Streamlit with the files of the live sliders and a sentence for our own mistakes."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from streamlit import net_util
from streamlit.components.v2.bidi_component import serialization
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.NewSession_pb2 import CustomThemeConfig
from streamlit.runtime import app_session

from app import guard, memory, preload
from app.environment import AUDIENCE_VARIABLE
from app.intake import Intake
from app.live.routes import ROUTES
from core.errors import HeadscopeError

SWITCH = 0.0005
"""Seconds after which a thread that computes lets another one go on; each of some fifty messages of an answer waits for it,
and Python's own 5 ms would add up while a job runs."""
LOG_AGAIN = 60.0
"""Seconds after which the details of a failure that was told are told again: a stranger can fail a page at will."""
READING = {"deserialize", "get_serialized", "unpack_widget_state_value", "enforce_filename_restriction"}
"""Functions of Streamlit that take apart what a browser sent."""
LEFT = {"WebSocketDisconnected", "ClientDisconnect", "LocalProtocolError"}
"""Errors that say no more than that who asked is gone, or broke off in the middle of a request."""
_told: dict[tuple[str, str], float] = {}


@contextlib.asynccontextmanager
async def lifespan(server: st.App) -> AsyncIterator[None]:
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_worth_telling)
    # `on_script_error` tells it
    logging.getLogger("streamlit.error_util").addFilter(lambda record: "Uncaught app" not in str(record.msg))
    # threads that read ahead belong to no visitor
    logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context").setLevel(logging.ERROR)
    logging.getLogger("asyncio").addFilter(guard.Seldom("socket.accept() out of system resource"))
    logging.getLogger("streamlit.web.server.starlette.starlette_websocket").addFilter(guard.Seldom("Rejecting"))
    # to who has gone meanwhile; a traceback of it is nothing that a stranger should be able to write into the log
    logging.getLogger("streamlit.web.server.starlette.starlette_websocket").addFilter(
        lambda record: not str(record.msg).startswith("Error sending websocket payload")
    )
    logging.getLogger(serialization.__name__).addFilter(guard.Seldom("Failed to deserialize component state"))
    sys.setswitchinterval(SWITCH)
    guard.open_many_files()
    memory.keep_flat()
    _keep_theme()
    _keep_place()
    # asked of a service outside while everybody waits, whenever a page from elsewhere tries to connect
    net_util.get_external_ip = lambda: None
    preload.pages_behind()
    if os.environ.get(AUDIENCE_VARIABLE) == "classroom":  # a class finds everything ready
        preload.pages().get_ready()
    yield


def _keep_theme() -> None:
    """Have the theme, which every answer carries, put together once.

    Streamlit looks for it among all its settings, six times, for each move of a slider: a fifth of what an answer costs
    its event loop, through which everybody's answers go. Nothing changes where a version does that otherwise.
    """
    fill = getattr(app_session, "_populate_theme_msg", None)
    if fill is None or hasattr(fill, "__wrapped__"):
        return
    made: dict[str, CustomThemeConfig] = {}

    @functools.wraps(fill)
    def filled(message: CustomThemeConfig, section: str = "theme") -> None:
        if section not in made:
            fresh = CustomThemeConfig()
            fill(fresh, section)
            made[section] = fresh
        message.MergeFrom(made[section])

    app_session._populate_theme_msg = filled  # type: ignore[assignment]


def _keep_place() -> None:
    """Have visitors not be told where on this computer Headscope lies; the page makes no use of it."""
    create = getattr(app_session.AppSession, "_create_new_session_message", None)
    if create is None or hasattr(create, "__wrapped__"):
        return

    @functools.wraps(create)
    def created(*given: Any, **named: Any) -> ForwardMsg:
        message = create(*given, **named)
        message.new_session.main_script_path = Path(message.new_session.main_script_path).name
        return message

    app_session.AppSession._create_new_session_message = created  # type: ignore[method-assign]


def _worth_telling(record: logging.LogRecord) -> bool:
    """All but that somebody left just when something was on its way, which Streamlit lets through."""
    return record.exc_info is None or type(record.exc_info[1]).__name__ not in LEFT


def on_script_error(error: Exception) -> bool:
    """The page gets a sentence. The log gets the details of a mistake of ours, of each kind once in a while."""
    if isinstance(error, HeadscopeError):
        from app import widgets

        widgets.problem(error)
        return True
    logger, frames = logging.getLogger("headscope"), traceback.extract_tb(error.__traceback__)
    kind = (type(error).__name__, str(frames[-1]) if frames else "")
    told = time.monotonic() - _told.get(kind, -LOG_AGAIN) < LOG_AGAIN
    if not told:
        if len(_told) > 1000:
            _told.clear()
        _told[kind] = time.monotonic()
    if any(frame.name in READING for frame in frames):
        if not told:
            logger.warning("A page was sent what no browser sends (%s).", kind[0])
        st.error("This page was sent something that it cannot read: reload it to go on.")
        return True
    if told:
        logger.error("A page failed as before (%s).", kind[0])
    else:
        logger.error("A page failed.", exc_info=error)
    st.error(
        "This page failed because of a mistake in Headscope. The terminal it runs in shows the details; reload to "
        "go on."
    )
    return True


def is_shared() -> bool:
    return os.environ.get(AUDIENCE_VARIABLE, "own") != "own"


def own_hosts() -> list[str]:
    """The names under which this computer's own dashboard may be asked for.

    A page from elsewhere whose name is made to mean this computer (DNS rebinding) would otherwise reach what its user
    may: local files and exports. What is open to others holds none of that and goes by any name.
    """
    if is_shared():
        return ["*"]
    address = str(st.get_option("server.address") or "localhost")
    # an IPv6 address is read without or with its brackets, or as the first of them, as versions of the check have it
    return ["localhost", "127.0.0.1", "::1", "[::1]", "[", address, f"[{address}]"]


app = st.App(
    Path(__file__).with_name("main.py"),
    lifespan=lifespan,
    routes=ROUTES,
    middleware=[
        Middleware(TrustedHostMiddleware, allowed_hosts=own_hosts(), www_redirect=False),
        Middleware(Intake),
        Middleware(guard.Guard, shared=is_shared()),
    ],
    on_script_error=on_script_error,
)
