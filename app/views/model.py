"""Model: what am I looking at?"""

from __future__ import annotations

import html

import streamlit as st

from app import cache, state, widgets
from app.cache import HeadFacts
from app.state import Choice
from core.figures import head, words

QUESTION = "What am I looking at?"


def page() -> None:
    choice = state.choice()
    if choice is None:
        _welcome()
        return
    st.title(QUESTION, anchor=False)
    encoding = widgets.need_encoding(choice)
    sentence, details = st.container(), st.container()
    with sentence:
        widgets.sentence(f"<b>{html.escape(choice.model)}</b>: {_size(encoding.vocab_size, encoding.dim)}.")
    analysis = widgets.need_prepared(choice)
    del analysis
    found = cache.head_facts(choice)
    with sentence:
        pass
    with details:
        _details(choice, found)


def _size(vocab: int, dim: int) -> str:
    return f"{vocab:,} tokens × {dim:,} dimensions"
