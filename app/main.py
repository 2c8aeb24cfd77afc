"""Headscope's dashboard: the pages, in the order of the method."""

from pathlib import Path

import pandas  # noqa: F401  (here and at the top: never first imported by several sessions at once)
import plotly.graph_objects  # noqa: F401
import streamlit as st

from app import sidebar, state, widgets
from app.views import encoding, method, model, samples, steering

st.set_page_config(page_title="Headscope", page_icon="🔭", layout="wide")
state.start()

PAGES = {
    "Look": [
        st.Page(model.page, title="Model", url_path="model", default=True),
        st.Page(encoding.page, title="Encoding", url_path="encoding"),
    ],
    "Change": [
        st.Page(steering.page, title="Steering", url_path="steering"),
        st.Page(samples.page, title="Samples", url_path="samples"),
    ],
    "About": [st.Page(method.page, title="Method", url_path="method")],
}

chosen = st.navigation(PAGES)
st.logo(Path(__file__).with_name("logo.svg"), size="large")
widgets.style()
sidebar.draw()
state.publish()
chosen.run()
state.publish()
