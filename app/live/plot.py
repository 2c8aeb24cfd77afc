"""A figure that changes with every move of a slider: drawn with the plotly.js of the live sliders, unchecked by Plotly.

`st.plotly_chart` has every value checked and brings a plotly.js of its own, which together took a third of a move.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.live.routes import PLOTLY_URL
from core.figures import Chart

_FOLDER = Path(__file__).parent
_component = st.components.v2.component(
    "headscope_plot",
    html='<div class="plot" role="img"></div>',
    js=(_FOLDER / "load.js").read_text("utf-8") + (_FOLDER / "plot.js").read_text("utf-8"),
    isolate_styles=False,
)


def plot(chart: Chart, key: str) -> None:
    """Draw a chart that was made from `parts`; like `st.plotly_chart` with that key."""
    _component(key=key, data={"figure": chart.made, "summary": chart.summary, "plotly": PLOTLY_URL})
