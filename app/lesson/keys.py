"""The presenter's keys: next and back by arrow keys, Page Up and Page Down (what a clicker sends), Escape to leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from app import state

_component = st.components.v2.component(
    "headscope_keys",
    html='<span class="keys" hidden></span>',
    js=Path(__file__).with_name("keys.js").read_text("utf-8"),
    isolate_styles=False,
)


def keys(*, turned: Callable[[int], None], left: Callable[[], None]) -> None:
    """Listen on the whole page.

    Args:
        turned: called with +1 or -1.
        left: called when the presenter view is left.
    """

    def on_turned() -> None:
        match state.sent("keys", "turned"):  # no browser of ours sends anything else
            case 1 | -1 as by:
                turned(int(by))

    _component(key="keys", data={}, on_turned_change=on_turned, on_left_change=left)
