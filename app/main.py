"""Headscope's dashboard: what Streamlit runs for every visitor and every change."""

from app import preload

preload.pages().draw()
