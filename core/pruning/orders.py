"""In which order the dimensions of the output embedding leave: the paper's (least salient first) and its baselines.

Everything is computed from the fitting part and from the head's own numbers. Source: Cho et al. 2025 (dimensions with small
weights in the encoding can be removed); std, rms, random and reverse order are baselines of ours; method §4.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from core.encoding import Encoding
from core.moments import Moments


def leaving_order(method: str, encoding: Encoding, fit: Moments, seed: int = 0) -> Int64[np.ndarray, "d"]:
    """[d] the dimensions in the order in which they leave.

    Args:
        method: `saliency` |A_i|·std(E_·i), least first; `reverse` of it; `std` std(E_·i); `rms` rms(h_i)·std(E_·i), how much
            the dimension moves logits at all; `random` by `seed`.
    """
    if method == "random":
        return np.random.default_rng([seed, 7]).permutation(len(encoding.saliency))
    if method in ("saliency", "reverse"):
        score = encoding.saliency if method == "saliency" else -encoding.saliency
    else:
        score = encoding.embedding_std
        if method == "rms":
            score = score * np.sqrt(np.diag(fit.sum_hh) / fit.n)
    return np.argsort(score, kind="stable")
