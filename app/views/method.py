"""Method: what is claimed, what is not, and where it comes from."""

from __future__ import annotations

import streamlit as st

QUESTION = "What does this claim, and what not?"


def page() -> None:
    st.title(QUESTION, anchor=False)
    st.markdown(
        "Headscope follows Cho, Sakai, Tanaka, Kato and Inoue, *Understanding Token Probability Encoding in Output "
        "Embeddings* (COLING 2025), and measures its claims on the model that you load. Every number on these "
        "pages was measured here; what was estimated is judged on text or tokens that were not used for it."
    )
    st.header("Observe", anchor=False)
    st.latex(r"\alpha_w = \frac1N \sum_x p_w(x)")
    st.latex(r"p_w(x) = \frac{e^{E_w\cdot h(x) + b_w}}{Z(x)}")
    st.markdown(
        "One pass over a text gives every token's mean probability. The text is split by document: one part fits, the "
        "other only judges."
    )
    st.header("Encode", anchor=False)
    st.latex(r"-\log \alpha_w + b_w \;\approx\; A\cdot E_w + B")
    st.markdown(
        "Ordinary least squares over all tokens. **Claimed:** the fit holds on held-out tokens and text, and few "
        "dimensions carry most of it. **Not claimed:** that a token's probability in one context can be read off its "
        "embedding; only the mean over a text can. **Ours:** the second-order and quadratic terms beside the fit."
    )
    st.header("Steer", anchor=False)
    st.latex(r"E_w \leftarrow E_w - \log(r)\,\Omega A^{-1}, \quad \textstyle\sum_i \Omega_i = 1")
    st.latex(r"\delta(x) = h(x)\cdot\Delta E")
    st.latex(r"p'_w = \frac{p_w e^{\delta}}{1 + p_w(e^{\delta}-1)}")
    st.markdown(
        "**Claimed:** changing one row multiplies that token's mean probability by a chosen ratio, with little else "
        "moving. **Not claimed:** that the ratio is the same in every context; it holds on average. A token that is "
        "already frequent has a ceiling of 1/α. **Ours:** the minimum-variance direction, the calibration of the step, "
        "and reading the paper's Ω as uniform, proportional to saliency, top-k or least-norm."
    )
    st.latex(r"\Delta E = \log(r)\,\frac{\Sigma^{-1}\mu}{\mu^{\top}\Sigma^{-1}\mu}")
    st.latex(r"\mu=\overline{h}, \quad \Sigma=\operatorname{Cov}(h)")
    st.header("Prune", anchor=False)
    st.latex(r"\mathrm{KL} = \sum_w p_w\,\log\frac{p_w}{p'_w}")
    st.markdown(
        "**Claimed:** the encoding is sparse, so dimensions of the output embedding can go. The paper's order drops those "
        "with the least saliency $|A_i|\\,\\mathrm{std}(E_i)$. **Not claimed:** that nothing is lost; the page says how "
        "much. **Ours:** what the kept dimensions can predict of the dropped ones is folded into them (compensated), and "
        "the head as a product of two thin matrices, the best ones for the hidden states (rotated)."
    )
    st.header("Watch", anchor=False)
    st.latex(r"-\log f_w \approx A\cdot E_w + B")
    st.markdown(
        "$f_w$ is a token's share of the training text. **Claimed:** frequencies are written into the embedding long "
        "before the loss has fallen. **Not claimed:** that one causes the other."
    )
    st.header("Where it fails", anchor=False)
    st.markdown(
        "- The paper's derivation assumes concentrated logits. Where log Z spreads by more than a nat between "
        "contexts, the page *Encoding* says so.\n- With few positions, the mean probabilities of rare tokens are "
        "uncertain, and the fit inherits it.\n- Intervals of the weights treat tokens as independent, which they "
        "are not quite.\n- A model whose logits cannot be recomputed from its head is refused."
    )


if __name__ == "__main__":
    page()
