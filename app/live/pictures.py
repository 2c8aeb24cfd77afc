"""A figure as a file: two buttons that save it as PNG or SVG, drawn by the browser that shows it."""

from __future__ import annotations

import html
import json
from pathlib import Path

import plotly.graph_objects as go
import streamlit as st

from app.live.routes import PLOTLY_URL
from core.figures import Look

_FOLDER = Path(__file__).parent
_component = st.components.v2.component(
    "headscope_pictures",
    html='<div class="pictures"><button type="button" data-format="png">Picture, PNG</button>'
    '<button type="button" data-format="svg">Picture, SVG</button></div>',
    css=(_FOLDER / "pictures.css").read_text("utf-8"),
    js=(_FOLDER / "load.js").read_text("utf-8") + (_FOLDER / "pictures.js").read_text("utf-8"),
    isolate_styles=False,
)


def pictures(key: str, title: str, look: Look, figure: go.Figure | None = None) -> None:
    """Draw the buttons.

    Args:
        key: of the figure's `st.plotly_chart`; the file is named after it.
        title: stands above the figure in the file.
        figure: what is drawn, where it stands nowhere on the page as a Plotly chart of that key.
    """
    _component(
        key=f"{key}-pictures",
        data={
            "key": key,
            "file": f"headscope-{key}",
            "title": html.escape(title, quote=False),
            "paper": look.paper,
            "ink": look.ink,
            "size": look.type_size + 2,
            "plotly": PLOTLY_URL,
            "figure": None if figure is None else json.loads(figure.to_json()),
        },
    )
