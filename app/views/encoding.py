"""Encoding: is a token's average probability written in its embedding?"""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import cache, handout, state, widgets
from app.edits import MOST_FOUND, find_tokens
from app.state import Choice
from core import summary
from core.encoding import Encoding
from core.figures import Look, sentences, words
from core.figures import encoding as figures
from core.tables import residual_groups

QUESTION = "Is a token's average probability written in its embedding?"
HOLDS = 0.5
"""R² on held-out text from which on the page says that the encoding holds."""
VIEWS = ("Fit", "Weights", "Sparsity", "Why", "Map", "Tokens")


def page() -> None:
    st.title(QUESTION, anchor=False)
    choice = state.choice()
    encoding, look = widgets.need_encoding(choice), state.look()
    widgets.say(sentences.encoding(encoding))
    place = st.container()
    for told in (encoding.note, *encoding.warnings):
        if told:
            widgets.warning(html.escape(told))
    view = widgets.one_of("Figure", VIEWS, "view", hidden=True)
    with place:
        handout.draw("encoding", choice, lambda: _result(choice, encoding), encoding, figure=view)
    draw = {"Fit": _fit, "Weights": _weights, "Sparsity": _sparsity, "Why": _why, "Map": _map, "Tokens": _tokens}
    draw[view](choice, encoding, look)


def _result(choice: Choice, encoding: Encoding) -> dict[str, Any]:
    revision = cache.open_analysis(choice).files().revision
    return summary.fit(encoding, model=choice.model, corpus=choice.corpus, revision=revision, cached=True)


def _fit(choice: Choice, encoding: Encoding, look: Look) -> None:
    place = st.container()  # the figure stands above the field, but what is looked for is known only after it
    wanted = widgets.searched(
        "Find a token",
        "find-token",
        "for example: river",
        "Marks it in the figure: the token as you write it, blank included; if there is none, the word with a "
        f"blank before it; else up to {MOST_FOUND} that contain it.",
    )
    marked = tuple(edit.token_id for edit in state.edits())
    found = find_tokens(encoding, wanted)
    ids = tuple(int(encoding.token_ids[at]) for at in found)
    chart = cache.chart(figures.fit_scatter, choice, encoding, look, marked, ids)
    with place:
        widgets.chart(chart, "fit", f"{len(encoding.tokens):,} tokens, measured against predicted")
    if wanted:
        widgets.note(_found_line(encoding, wanted, found))
    widgets.facts(
        [
            ("R², fitted tokens", f"{encoding.r2:.3f} (adjusted {encoding.r2_adjusted:.3f})"),
            ("R², held-out tokens", f"{encoding.r2_held_out_tokens:.3f}"),
            ("R², held-out text", f"{encoding.r2_held_out_text:.3f}"),
            ("Spread around the line", f"{words.nats(encoding.residual_std)}, a factor of "
             f"{words.number(float(np.exp(encoding.residual_std)), 2)}"),
            ("Intercept B", f"{words.number(encoding.intercept)} ± {words.number(1.96 * encoding.intercept_error, 2)}"),
            ("Condition number", words.number(encoding.condition_number)),
        ]
    )  # fmt: skip
    if not marked:
        widgets.note("Tokens that you add on the page Steering are marked here.")
    with st.expander("How to read this"):
        st.latex(r"-\log \alpha_w \approx A\cdot E_w + B, \qquad \alpha_w = \frac1N\sum_x p_w(x)")
        st.markdown(
            "Each point is a token: to the right of it stands what the line predicts from the token's row of the "
            "output embedding, upwards what was measured as its mean probability over the text. On the dotted "
            "diagonal both agree. **Held-out tokens**: the line is fitted on four fifths of the tokens and judged "
            "on the rest, five times. **Held-out text**: probabilities of the same tokens on documents that were "
            "not used. The claim would be wrong here if these two were near zero while the fit is high."
        )


def _found_line(encoding: Encoding, wanted: str, found: list[int]) -> str:
    if not found:
        return f"No token contains {widgets.chip(wanted)}."
    at = found[0]
    others = f" {words.plural(len(found) - 1, 'other')} marked too." if len(found) > 1 else ""
    return (
        f"{widgets.chip(encoding.tokens[at], int(encoding.token_ids[at]))}: measured "
        f"<b>{words.one_in(float(encoding.alpha[at]))}</b>, predicted "
        f"<b>{words.one_in(float(np.exp(-encoding.predicted[at])))}</b> "
        f"({words.nats(float(encoding.neg_log_alpha[at]))} and {words.nats(float(encoding.predicted[at]))}).{others}"
    )


def _weights(choice: Choice, encoding: Encoding, look: Look) -> None:
    with st.container(horizontal=True):
        what = widgets.one_of("Show", ("weight", "saliency"), "weights-what")
        order = widgets.one_of("Order", ("saliency", "index"), "weights-order")
    chart = cache.chart(figures.weights, choice, encoding, look, what, order == "saliency")
    widgets.chart(chart, "weights", "The fitted direction, with 95 % intervals")
    widgets.note(html.escape(chart.summary))
    with st.expander("How to read this"):
        st.latex(r"s_i = |A_i|\cdot\operatorname{std}(E_{\cdot i})")
        st.markdown(
            "A weight says how many nats rarer a token gets per unit of that dimension. Weights of columns with "
            "different spread cannot be compared; the saliency can. Intervals are ±1.96 standard errors of the "
            "linear model, which takes the tokens as independent."
        )


def _sparsity(choice: Choice, encoding: Encoding, look: Look) -> None:
    chart = cache.chart(figures.sparsity, choice, encoding, look)
    widgets.chart(chart, "sparsity", "How many dimensions does it take?")
    widgets.note(html.escape(chart.summary))
    with st.expander("How to read this"):
        st.latex(r"d_{\mathrm{eff}} = \Bigl(\sum_i s_i\Bigr)^2 \Big/ \sum_i s_i^2")
        st.markdown(
            "Solid: the line is fitted again on only the most salient dimensions. Dashed: the weights of the full "
            "fit are kept and the other dimensions dropped. R² is on the fitted tokens; the held-out values are "
            "under *Fit*."
        )


def _why(choice: Choice, encoding: Encoding, look: Look) -> None:
    chart = cache.chart(figures.predictors, choice, encoding, look)
    widgets.chart(chart, "predictors", "From no fitted number to the fitted line")
    widgets.facts(
        [
            ("Direction A against −mean(h)", f"cosine {encoding.cosine_minus_mean_hidden:.3f}"),
            ("Tokens per dimension, V/d", words.number(encoding.output_space_ratio)),
            ("log Z between contexts", f"{words.number(encoding.log_z_mean)} ± {words.nats(encoding.log_z_std)}"),
        ]
    )
    if encoding.log_z_std > 1:
        held_out = encoding.r2_held_out_text
        verdict = (
            f"The encoding does hold (R² {held_out:.2f} on held-out text): it does not rest on that premise here."
            if held_out > HOLDS
            else f"Nor does a line explain most of the probabilities here (R² {held_out:.2f} on held-out text)."
        )
        widgets.warning(
            "“Concentrated logits” does not hold for this model: log Z spreads by "
            f"<b>{words.nats(encoding.log_z_std)}</b> between contexts, and far less than 1 would be needed. {verdict}"
        )
    with st.expander("How to read this"):
        st.latex(
            r"-\log\alpha_w \approx -E_w\cdot\mu + \overline{\log Z}"
            r" - \tfrac12\operatorname{Var}(E_w\cdot h-\log Z)"
        )
        st.markdown(
            "First order uses only the mean of $h$ (μ) and of log Z; second order adds how much the logit varies. "
            "Neither has a fitted number, so bars show the squared correlation, which forgives an offset and a "
            "scale; the plain R² is in the data. For the two fits both are the same. If A were not close to −μ, "
            "the explanation would fail."
        )


def _map(choice: Choice, encoding: Encoding, look: Look) -> None:
    chart = cache.chart(figures.output_space, choice, encoding, look)
    widgets.chart(chart, "map", "The output embedding on its two main axes")
    widgets.note(html.escape(chart.summary))


def _tokens(choice: Choice, encoding: Encoding, look: Look) -> None:
    table = figures.token_table(encoding)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        wanted = widgets.searched("Contains", "tokens-search", "river")
        kinds = sorted(set(encoding.kinds))
        kind = widgets.one_of("Kind", ["all kinds", *kinds], "tokens-kind", listed=True)
        order = widgets.one_of("Sorted by", ["largest residual", "most probable", "id"], "tokens-order", listed=True)
    table = _chosen(table, wanted, kind, order)
    widgets.note(
        f"{words.plural(len(table), 'token')}; residual = measured − predicted, nats: positive is rarer than its "
        "embedding says."
    )
    widgets.rows(table.head(500), look.height, "tokens-table")
    widgets.download(table, "tokens")
    with st.expander("Which kinds of tokens are off?"):
        widgets.rows(residual_groups(encoding), 420, "tokens-groups")
        widgets.note(
            "By kind, and by how often the token follows in the fitting text. share_off: further from the line than twice "
            f"the spread of all residuals, {words.nats(encoding.residual_std)}."
        )


def _chosen(table: pd.DataFrame, wanted: str, kind: str, order: str) -> pd.DataFrame:
    if wanted:
        table = table[table["token"].str.contains(wanted, case=False, regex=False)]
    if kind != "all kinds":
        table = table[table["kind"] == kind]
    if order == "id":
        return table
    by = -table["residual"].abs() if order == "largest residual" else -table["alpha"]
    return table.loc[by.sort_values(kind="stable").index]


if __name__ == "__main__":
    page()
