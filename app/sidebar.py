"""The sidebar: which model, on which text, and how much of it."""

from __future__ import annotations

import html
from pathlib import Path

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from app import state, uploads, widgets
from app.environment import SHARED_MEGABYTES
from app.rules import rules
from core.errors import InputError
from core.figures import words
from core.words import quoted, short

MORE_TEXTS = (
    "`self:20000`: as many tokens written by the model itself. Or the path of a .txt, .md, .jsonl, .csv or .parquet file, "
    "or of a folder of them."
)


def draw() -> None:
    """The choices, on every page; a class has none.

    No field has a default of its own: a browser that has not shown a choice yet then sends nothing, and not another choice.
    All keep their state: only then a browser that is late is told again what they show.
    """
    with st.sidebar:
        if (fixed := rules().fixed) is not None:
            model, corpus = (f"<b>{html.escape(name)}</b>" for name in fixed)
            widgets.note(f"This class works with {model} on the text {corpus}.")
            _large()
            return
        _model()
        _corpus()
        with st.expander("Settings"):
            st.segmented_control(
                "Positions that fit",
                state.positions(),
                format_func=lambda n: f"{n // 1024}k",
                required=True,
                key="positions",
                persist_state="session",
                help="Contexts over which probabilities are averaged (k = 1,024). A quarter as many again, from other "
                "documents, only judge. More is slower and steadier.",
            )
            st.number_input(
                "Seed", 0, 2**32 - 1, None, 1, key="seed", persist_state="session", help="Same seed, same numbers."
            )
            _large()


def _large() -> None:
    st.toggle("Large type", key="large", persist_state="session", help="For a projector: 20 pixels and more.")


def _model() -> None:
    current = state.chosen("model")
    if rules().shared:
        st.selectbox(
            "Model",
            list(rules().models),
            None,
            key="model",
            persist_state="session",
            on_change=state.model_chosen,
        )
        return
    widgets.names(
        "Model",
        [*rules().models, *([str(current)] if current else [])],
        typed=True,
        index=None,
        placeholder="Choose or type a model",
        key="model",
        persist_state="session",
        on_change=state.model_chosen,
        help="`demo` (bundled), `smollm2` (93 MB, fetched once), a model on the Hugging Face Hub "
        "as `org/name` or `org/name@revision`, a "
        "folder written by `save_pretrained`, or a `.gguf` file. Type it and press Enter.",
    )


def _corpus() -> None:
    widgets.names(
        "Text",
        [*rules().corpora, str(state.chosen("corpus") or rules().corpora[0])],
        typed=not rules().shared,
        title=uploads.title,
        index=None,
        key="corpus",
        persist_state="session",
        on_change=_column_of_an_upload,
        help="The text over which probabilities are averaged. `sampler`: original prose that comes with Headscope. "
        "`python-docs`: Python's help topics." + ("" if rules().shared else f" {MORE_TEXTS}"),
    )
    most = _most_megabytes()
    where = "It is kept on the computer that serves this page." if rules().shared else "It stays on this computer."
    with st.popover("Upload a text", width="stretch"):
        st.file_uploader(  # of any kind: what Streamlit says of a wrong one does not name it
            f"File (.{', .'.join(_kinds())})",
            key="upload",
            on_change=_take_upload,
            max_upload_size=most,
            help=f"Up to {most} MB. {where}",
        )
        st.text_area(
            "…or paste it",
            key="pasted",
            height=140,
            persist_state="session",
            placeholder="Any text, a page or more",
            help=f"Up to {uploads.MOST_CHARACTERS:,} characters, with blank lines between its paragraphs: there it is "
            f"cut into a part that fits and one that judges. {where}",
        )
        st.button("Use this text", key="use-pasted", on_click=_take_pasted)
        if refused := state.chosen("upload_refused"):
            widgets.problem(str(refused))


def _column_of_an_upload() -> None:
    """Callback of the field: `file.csv:column` is a column of the upload that was shown, which is known by its name alone."""
    shown = Path(str(state.chosen("last-corpus")))
    file, _, column = str(state.chosen("corpus") or "").strip().partition(":")
    if column and file == shown.name.partition(":")[0] and uploads.is_kept(str(shown)):
        state.choose(corpus=f"{shown.with_name(file)}:{column}")


def _kinds() -> tuple[str, ...]:
    return uploads.SHARED_KINDS if rules().shared else uploads.KINDS


def _most_megabytes() -> int:
    return SHARED_MEGABYTES if rules().shared else uploads.MOST_MEGABYTES


def _use(name: str, content: bytes, **also: object) -> None:
    """Choose a text that was given by hand; a shared server does not tell where on its disk it lies."""
    try:
        path = uploads.keep(name, content)
    except InputError as error:
        state.choose(upload_refused=str(error))
        return
    state.choose(corpus=uploads.public_name(path) if rules().shared else path, upload_refused="", **also)


def _take_upload() -> None:
    file = state.chosen("upload")
    if not isinstance(file, UploadedFile):  # none any more, or one that Streamlit has let go of
        state.choose(upload_refused="")
        return
    content = file.getvalue()
    most, kind = _most_megabytes(), file.name.rpartition(".")[2].lower()
    if len(content) > most * 2**20:
        remedy = "Take a part of it." if rules().shared else "Give its path in the field Text instead."
        state.choose(upload_refused=f"The file has {words.size(len(content))}; at most {most} MB are taken. {remedy}")
        return
    if "." not in file.name or kind not in _kinds():
        shown = quoted(short(file.name, 40))
        state.choose(
            upload_refused=f"The file {shown} is not taken, only .{', .'.join(_kinds())}: save its text as .txt."
        )
        return
    _use(file.name, content)


def _take_pasted() -> None:
    text = str(state.chosen("pasted") or "")
    if not text.strip():
        state.choose(upload_refused="There is no text in the field: paste one of a page or more.")
        return
    if len(text) > uploads.MOST_CHARACTERS:
        state.choose(
            upload_refused=f"The text has {len(text):,} characters; at most {uploads.MOST_CHARACTERS:,} can be pasted. "
            "Save it as a .txt file and upload that."
        )
        return
    _use("pasted.txt", text.encode("utf-8", errors="replace"), pasted="")
