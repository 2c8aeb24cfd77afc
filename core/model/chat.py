"""A prompt in a model's chat template: a small program in Jinja that comes with the model, so it is kept on a short lead.

transformers runs it in Jinja's immutable sandbox, where it reaches neither files nor Python's objects. Here its time is
bounded too, and so is what it may make of a prompt; whatever goes wrong in it is one sentence.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from core.errors import AnalysisError
from core.words import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 5.0
"""That a template may take; real ones take milliseconds."""
MOST_ADDED = 50_000
"""Characters that a template may put around a prompt."""


def in_chat(tokenizer: PreTrainedTokenizerBase, prompt: str, name: str) -> str:
    """The prompt as a user's turn, followed by the beginning of the answer.

    Raises:
        AnalysisError: the template of the model `name` fails, takes too long or does not come to an end.
    """
    turns = [{"role": "user", "content": prompt}]
    try:
        with _within(SECONDS):
            text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template can fail in any way
        why = "it takes too long" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
        raise AnalysisError(
            f"The chat template of {name} cannot be applied ({quoted(why)[1:-1]}): switch the chat format off."
        ) from error
    if len(text) > len(prompt) + MOST_ADDED:
        raise AnalysisError(
            f"The chat template of {name} makes {len(text):,} characters of {len(prompt):,}: switch the chat format off."
        )
    return text


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` in whatever Python code runs inside for longer, in this thread."""
    end = time.monotonic() + seconds

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
