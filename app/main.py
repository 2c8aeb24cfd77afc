"""Headscope's dashboard: the pages, in the order of the method."""

from pathlib import Path

import pandas  # noqa: F401  (here and at the top: never first imported by several sessions at once)
import plotly.graph_objects  # noqa: F401
import streamlit as st

from app import preload, sidebar, state, widgets
from app.rules import rules

st.set_page_config(page_title="Headscope", page_icon="🔭", layout="wide")
state.start()

PAGES = {
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
    PAGES["Begin"].append(st.Page("views/join.py", title="Join", url_path="join"))

chosen = st.navigation(PAGES)
st.logo(Path(__file__).with_name("logo.svg"), size="large")
widgets.style()
sidebar.draw()
state.publish()
chosen.run()
state.publish()
preload.start_behind()
