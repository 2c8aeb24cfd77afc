"""A prompt in a model's chat template: a small program in Jinja that comes with the model, so it is kept on a short lead.

It runs in a process of its own (`core.model.template`), in Jinja's immutable sandbox, where it reaches neither files nor
Python's objects, and with bounded time and memory; so is what it may make of a prompt. Whatever goes wrong in it is one
sentence.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import AnalysisError
from core.words import short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROGRAM = Path(__file__).with_name("template.py")
SECONDS = 5
"""Of a processor that a template may take; real ones take milliseconds."""
PATIENCE = 30.0
"""Seconds until an answer has to be there, however busy the machine is."""
MOST_ADDED = 50_000
"""Characters that a template may put around a prompt."""


def in_chat(tokenizer: PreTrainedTokenizerBase, prompt: str, name: str) -> str:
    """The prompt as a user's turn, followed by the beginning of the answer.

    Raises:
        AnalysisError: the template of the model `name` fails, takes too long, does not come to an end, or gives the same
            whatever the prompt.
    """
    try:
        template = str(tokenizer.get_chat_template())
    except Exception as error:  # several templates and none of them the usual one
        raise _refusal(name, str(error)) from error
    try:
        tokens = json.dumps(tokenizer.special_tokens_map)
        text = _render(template, prompt, tokens, SECONDS)
        if prompt.strip() not in text and text == _render(template, f"{prompt} {prompt} else", tokens, SECONDS):
            raise _NoText("it leaves the prompt out")
        return text
    except _NoText as error:
        raise _refusal(name, str(error)) from error


class _NoText(Exception):
    """Why a template makes nothing of a prompt."""


@lru_cache(maxsize=64)
def _render(template: str, prompt: str, tokens: str, seconds: int) -> str:
    """What the template makes of a prompt, or `_NoText`. `tokens`: the special ones by name, as JSON."""
    turns = [{"role": "user", "content": prompt}]
    variables = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
    asked = {
        "template": template,
        "variables": variables | json.loads(tokens),
        "seconds": seconds,
        "most": len(prompt) + MOST_ADDED,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(PROGRAM)],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=PATIENCE,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise _NoText("it takes too long") from error
    except ValueError as error:  # ended by the system
        raise _NoText("it takes too long or too much memory") from error
    if "text" not in answer:
        raise _NoText(answer["error"])
    return str(answer["text"])


def _refusal(name: str, why: str) -> AnalysisError:
    return AnalysisError(
        f"The chat template of {name} cannot be applied ({short(why)}): leave out --chat, or switch the chat "
        "format off."
    )
