"""The sentence that answers a page's question with the numbers that were measured: HTML, already escaped.

Pages and reports begin with it.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from core.figures import words
from core.show import chip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core.encoding import Encoding
    from core.export.result import Exported
    from core.model.facts import HeadFacts
    from core.pruning.result import Pruning
    from core.results import Generated
    from core.steering import Steering


def model(name: str, encoding: Encoding, found: HeadFacts | None) -> str:
    """How large the head is, and how exactly it is reproduced (where that is known)."""
    size = f"<b>{encoding.vocab_size:,} tokens × {encoding.dim:,} dimensions</b>"
    if found is None:
        return f"{html.escape(name)}: {size}."
    kind = "tied head" if found.description.tied else "a head of its own"
    error = found.check.max_logit_error
    exact = "exactly" if error == 0 else f"to <b>{words.number(error, 2)}</b>"
    return f"{html.escape(name)}: {size}, {kind}; our logits equal the model's {exact}."


def encoding(found: Encoding) -> str:
    """How much of −log alpha the line explains, also on tokens and text it has not seen."""
    low, high = sorted((found.r2_held_out_tokens, found.r2_held_out_text))
    share = f"A straight line through its {found.dim:,} numbers explains <b>{100 * found.r2:.0f} %</b> of it"
    spread = f"{100 * low:.0f} %" if f"{low:.2f}" == f"{high:.2f}" else f"{100 * low:.0f}–{100 * high:.0f} %"
    return f"{share} ({spread} on tokens and text it has not seen)."


def steering(found: Steering) -> str:
    """For every token what was asked and what came of it on held-out text, and how far the rest moved."""
    told = [
        f"{chip(t.token, t.id, steered=True)} asked {words.ratio(t.target)}, got <b>{words.ratio(t.realised_held_out)}</b>"
        for t in found.tokens
    ]
    return (
        f"{'; '.join(told)} on new text. The rest of the distribution moved by <b>{words.nats(found.others_drift)}</b>."
    )


def texts(found: Generated) -> str:
    """How often each steered token came, and how often it should have."""
    if not found.counts:
        return "Nothing is steered: both sides are the same, token for token."
    told = [
        f"{chip(c.token, c.id, steered=True)} <b>{c.after}</b> of {found.steps_after:,} tokens, "
        f"{c.before} before; expected {words.number(c.expected_after)}"
        for c in found.counts
    ]
    return "; ".join(told) + "."


def pruning(found: Sequence[Pruning], best: str, removed: float) -> str:
    """What a fraction costs by the best method, in the paper's order and at random, in contexts that stay."""
    from core.figures.pruning import at, name_of

    stays = {each.method: point for each in found if (point := at(each, removed)) is not None}
    point = stays[best]
    told = (
        f"<b>{100 * removed:.0f} %</b> of the dimensions gone: the top prediction stays in "
        f"<b>{100 * point.top1_agreement:.0f} of 100</b> contexts ({html.escape(name_of(best))}, KL {words.nats(point.kl)})"
    )
    others = [
        f"{name} keeps {100 * stays[method].top1_agreement:.0f}"
        for method, name in (("saliency", "the paper's order"), ("random", "random"))
        if method in stays and method != best
    ]
    return f"{told}; {', '.join(others)}." if others else f"{told}."


def exported(found: Exported) -> str:
    """That stock transformers loads it, and how exactly it is what was shown."""
    error = found.max_logit_error
    exact = "exactly" if error == 0 else f"to <b>{words.number(error, 2)}</b>"
    return f"Exported: stock transformers loads it, and its logits are the promised ones {exact}."
