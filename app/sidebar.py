"""The sidebar: which model, on which text, and how much of it."""

from __future__ import annotations

import streamlit as st

from app import state, uploads, widgets
from core.figures import words

MODELS = ["demo", "smollm2"]
CORPORA = ["sampler", "python-docs"]


def draw() -> None:
    """The choices, on every page."""
    with st.sidebar:
        _model()
        _corpus()
        with st.expander("Settings"):
            st.segmented_control(
                "Positions that fit",
                state.POSITIONS,
                format_func=lambda n: f"{n // 1024}k",
                required=True,
                key="positions",
                help="Contexts over which probabilities are averaged (k = 1,024). A quarter as many again, from other "
                "documents, only judge. More is slower and steadier.",
            )
            st.number_input(
                "Seed", min_value=0, max_value=2**32 - 1, step=1, key="seed", help="Same seed, same numbers."
            )
            st.toggle("Large type", key="large", persist_state="session", help="For a projector: 20 pixels and more.")


def _model() -> None:
    current = state.chosen("model")
    st.selectbox(
        "Model",
        list(dict.fromkeys([*MODELS, *([current] if current else [])])),
        index=None,
        accept_new_options=True,
        placeholder="Choose or type a model",
        key="model",
        on_change=state.model_chosen,
        help="`demo` (bundled), `smollm2` (93 MB, fetched once), a model on the Hugging Face Hub "
        "as `org/name` or `org/name@revision`, a "
        "folder written by `save_pretrained`, or a `.gguf` file. Type it and press Enter.",
    )


def _corpus() -> None:
    st.selectbox(
        "Text",
        list(dict.fromkeys([*CORPORA, str(state.chosen("corpus") or CORPORA[0])])),
        format_func=uploads.title,
        accept_new_options=True,
        key="corpus",
        help="The text over which probabilities are averaged. `sampler`: original prose that comes with Headscope. "
        "`python-docs`: Python's help topics. `self:20000`: as many tokens written by the model itself. Or the "
        "path of a .txt, .md, .jsonl, .csv or .parquet file, or of a folder of them.",
    )
    with st.popover("Upload a text", width="stretch"):
        st.file_uploader(
            "Text file",
            type=list(uploads.KINDS),
            key="upload",
            on_change=_take_upload,
            max_upload_size=uploads.MOST_MEGABYTES,
            help=f"Up to {uploads.MOST_MEGABYTES} MB. It stays on this computer.",
        )
        st.text_area(
            "…or paste it",
            key="pasted",
            height=140,
            persist_state="session",
            placeholder="Any text, a page or more",
            help=f"Up to {uploads.MOST_CHARACTERS:,} characters, with blank lines between its paragraphs: there it is "
            "cut into a part that fits and one that judges. It stays on this computer.",
        )
        st.button("Use this text", key="use-pasted", on_click=_take_pasted)
        if refused := state.chosen("upload_refused"):
            widgets.problem(str(refused))


def _take_upload() -> None:
    file = state.chosen("upload")
    if file is None:
        return
    content = file.getvalue()  # type: ignore[attr-defined]
    if len(content) > uploads.MOST_MEGABYTES * 2**20:
        state.choose(
            upload_refused=f"The file has {words.size(len(content))}; at most {uploads.MOST_MEGABYTES} MB are taken. "
            "Give its path in the field Text instead."
        )
        return
    state.choose(corpus=uploads.keep(file.name, content), upload_refused="")  # type: ignore[attr-defined]


def _take_pasted() -> None:
    text = str(state.chosen("pasted") or "")
    if not text.strip():
        state.choose(upload_refused="")
        return
    if len(text) > uploads.MOST_CHARACTERS:
        state.choose(
            upload_refused=f"The text has {len(text):,} characters; at most {uploads.MOST_CHARACTERS:,} can be pasted. "
            "Save it as a .txt file and upload that."
        )
        return
    path = uploads.keep("pasted.txt", text.encode("utf-8", errors="replace"))
    state.choose(corpus=path, pasted="", upload_refused="")
