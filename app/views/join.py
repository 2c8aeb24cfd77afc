"""Join: how does a class get here?"""

from __future__ import annotations

import html

import segno
import streamlit as st

from app import state, widgets
from app.rules import rules

QUESTION = "How do I get here?"
FIRST_PAGE = "/learn"
"""Where a class begins."""


def page() -> None:
    st.title(QUESTION, anchor=False)
    address = state.reached_at(rules().address) + FIRST_PAGE
    shown = html.escape(address.removeprefix("http://"))
    st.html(
        f'<div class="hs-join"><img alt="QR code of {html.escape(address)}" src="{qr_code(address)}">'
        f"<ol><li>Join the network that this computer is in.</li><li>Point your camera at the code, or open"
        f"<b>{shown}</b></li></ol></div>"
    )
    widgets.note(
        "Everybody steers a state of their own; nobody sees what others do. Texts are written in turn, and each page says "
        "which place in line it has."
    )


def qr_code(text: str) -> str:
    """A QR code as the address of a picture, for `st.html` drops an SVG; black on white, or cameras do not read it."""
    return segno.make(text, error="m", micro=False).png_data_uri(scale=12, border=3, dark="#000", light="#fff")


if __name__ == "__main__":
    page()
