"""Model: what am I looking at?"""

from __future__ import annotations

import html
from typing import Any

import streamlit as st

from app import cache, handout, jobs, state, uploads, widgets
from app.cache import HeadFacts
from app.jobs import Job
from app.rules import rules
from app.state import Choice
from core import summary
from core.encoding import Encoding
from core.figures import head, sentences, words

QUESTION = "What am I looking at?"


def page() -> None:
    choice = state.choice()
    st.title(QUESTION, anchor=False)
    encoding = widgets.need_encoding(choice)
    ready = cache.head_facts(choice)
    found = None if isinstance(ready, Job) else ready
    widgets.say(sentences.model(choice.model, encoding, found))
    if found is not None:
        handout.draw("model", choice, lambda: _result(choice, encoding, found), encoding)
    if choice.model == "demo" and state.class_choice() is None:
        _real_one()
    widgets.facts(_facts(choice, encoding, found))
    for told in (encoding.note, *encoding.warnings):
        if told:
            widgets.warning(html.escape(told))
    if isinstance(ready, Job):
        widgets.progress(ready, jobs.analyses())
    elif found is not None:
        _figures(encoding, found)
    widgets.reading(_reading)


def _real_one() -> None:
    """From the bundled model on to one that people use."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Start with SmolLM2-135M", type="primary", on_click=state.choose, kwargs={"model": "smollm2"})
        more = "" if rules().shared else " For another model, type its name, folder or file into the field on the left."
        widgets.note(
            "The bundled demo is a small model of our own. SmolLM2-135M is one that people use: 93 MB are fetched once, "
            f"then it is observed on a bundled text, a few minutes on two cores.{more}"
        )


def _result(choice: Choice, encoding: Encoding, found: HeadFacts) -> dict[str, Any]:
    fitted = summary.fit(encoding, model=choice.model, corpus=choice.corpus, revision=found.revision, cached=True)
    return {**summary.head(found, model=choice.model), "fit": fitted}


def _facts(choice: Choice, encoding: Encoding, found: HeadFacts | None) -> list[tuple[str, str]]:
    items = []
    if found is not None:
        told = found.description
        items += [
            ("Architecture", told.architecture),
            ("Parameters", words.quantity(told.parameters)),
            ("Head", _form(found)),
            ("Memory needed", words.size(found.ram_bytes)),
            ("Runs on", f"{found.device}, body in {told.dtype}"),
            ("Revision", found.revision or f"sha256 {found.sha256[:12]}"),
        ]
    return [
        *items,
        ("Rows without a token", f"{encoding.padded_rows:,} padding, {encoding.excluded_rows:,} of probability 0"),
        ("Text", f"{uploads.title(choice.corpus)}, {words.plural(encoding.documents, 'document')}"),
        ("Positions that fit", f"{encoding.positions:,}"),
        (
            "Positions that judge",
            f"{encoding.positions_held_out:,}, from {encoding.documents_held_out:,} other documents",
        ),
        ("Perplexity", f"{words.number(encoding.perplexity)}, held-out {words.number(encoding.perplexity_held_out)}"),
    ]


def _form(found: HeadFacts) -> str:
    told = found.description
    parts = ["tied to the input" if told.tied else "untied", "bias" if told.bias else "no bias"]
    if told.softcap is not None:
        parts.append(f"soft-capped at ±{words.number(told.softcap)}")
    if told.logit_scale != 1:
        parts.append(f"logits × {words.number(told.logit_scale)}")
    return ", ".join(parts)


def _figures(encoding: Encoding, found: HeadFacts) -> None:
    look, told, check = state.look(), found.description, found.check
    widgets.chart(
        head.agreement(check.max_logit_error, check.tolerance, check.half_precision_deviation, look),
        "agreement",
        "Are these the model's own logits?",
    )
    share = head.parameter_share(encoding.vocab_size * encoding.dim, told.parameters, told.tied, look)
    widgets.chart(share, "parameters", "How much of the model is its head?")


def _reading() -> None:
    st.latex(r"\text{logits} = f\bigl(c\,(h E^{\top} + b)\bigr), \qquad p_w(x) = \frac{e^{z_w(x)}}{Z(x)}")
    st.markdown(
        "The output head turns what the last layer hands over, $h$, into one score per token. Headscope recomputes "
        "these scores from $h$ in fp32 and compares them with the model's own. Everything on the other pages rests "
        "on this agreement; a head that is not reproduced is refused, by name."
    )


if __name__ == "__main__":
    page()
