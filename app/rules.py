"""What this server allows: everything to the user of this computer, less to strangers, one model and one text to a class.

The command line decides and tells the pages through the environment (`app.launch`). Limits are kept where work is
started (`app.cache`), not only where widgets are drawn: an address or a message made by hand gets the same sentence.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from app import uploads
from app.environment import ADDRESS_VARIABLE, AUDIENCE_VARIABLE, CORPUS_VARIABLE, MODEL_VARIABLE
from core.errors import InputError
from core.results import MOST_NEW_TOKENS, MOST_SAMPLES, Sampling
from core.settings import FEWEST_SAMPLED, local_path
from core.store import default_folder
from core.words import short

Audience = Literal["own", "public", "classroom"]

KNOWN_MODELS = ("demo", "smollm2")
KNOWN_CORPORA = ("sampler", "python-docs")
MOST_PROMPT = 2000
SHARED_SAMPLES = 8
SHARED_NEW_TOKENS = 64
SHARED_PROMPT = 500
SHARED_POSITIONS = 16384
SHARED_SELF_TOKENS = 20_000
ADVICE_TO_THE_HOST = re.compile(r": [^:]*(--[a-z]+|HEADSCOPE_CACHE|HF_[A-Z]+)[^:]*$")
ADVICE_TO_TYPE = re.compile(r", or give the file alone, as .*:COLUMN(?=; )")
"""Nobody types the name of a text on a shared server."""
ADVICE_TO_A_TERMINAL = re.compile(r" \([^()]*--[a-z]+[^()]*\)")
"""An aside about an option that no page has."""
ADVICE_ON_AN_ANALYSIS = re.compile(r"(?<!on the command line, )\b(choose a|try) --(context|dtype)\b")
"""Options that no page has, and without which a model may not be analysed at all."""
JOBS_EACH = 2
"""Jobs that one visitor of a shared server may have in line; asking for another drops the oldest."""


@dataclass(frozen=True)
class Rules:
    """Who is served, and the bounds that follow from it.

    Attributes:
        audience: `own`: only this computer; `public`: whoever reaches the address; `classroom`: a class with a fixed
            model and text.
        model, corpus: as named on the command line, or None.
        address: where others reach this server, or "".
    """

    audience: Audience = "own"
    model: str | None = None
    corpus: str | None = None
    address: str = ""

    @property
    def shared(self) -> bool:
        return self.audience != "own"

    @property
    def named_model(self) -> str | None:
        """The command line's model as pages name it: to others a folder by its name, for its place is not their business."""
        return told(self.model) if self.model and self.shared else self.model

    @property
    def named_corpus(self) -> str | None:
        return told(self.corpus) if self.corpus and self.shared else self.corpus

    @property
    def fixed(self) -> tuple[str, str] | None:
        """Model and text of a class, as pages name them; None where everybody chooses."""
        if self.audience != "classroom":
            return None
        return self.named_model or KNOWN_MODELS[0], self.named_corpus or KNOWN_CORPORA[0]

    @property
    def models(self) -> tuple[str, ...]:
        """What the list of models begins with; on a shared server all that it holds."""
        return tuple(dict.fromkeys([*KNOWN_MODELS, *([self.named_model] if self.named_model else [])]))

    @property
    def corpora(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*KNOWN_CORPORA, *([self.named_corpus] if self.named_corpus else [])]))

    @property
    def most_samples(self) -> int:
        return SHARED_SAMPLES if self.shared else MOST_SAMPLES

    @property
    def most_new_tokens(self) -> int:
        return SHARED_NEW_TOKENS if self.shared else MOST_NEW_TOKENS

    @property
    def most_prompt(self) -> int:
        """Characters."""
        return SHARED_PROMPT if self.shared else MOST_PROMPT

    @property
    def jobs_each(self) -> int:
        """Jobs of one visitor at a time; 0: any number."""
        return JOBS_EACH if self.shared else 0

    def admit(self, model: str, corpus: str, positions: int) -> tuple[str, str]:
        """What a choice really names, once it is allowed.

        Raises:
            InputError: this server does not analyse that.
        """
        if not self.shared:
            return model, corpus
        if self.fixed is not None and (model, corpus) != self.fixed:
            raise InputError(f"This class works with {self.fixed[0]} on {self.fixed[1]}; nothing else is opened here.")
        if model not in self.models:
            raise InputError(
                f"This server is open to others, so it opens only {', '.join(self.models)}. Start Headscope on your own "
                "computer for any other model."
            )
        if positions > SHARED_POSITIONS:
            raise InputError(
                f"This server is open to others: at most {SHARED_POSITIONS:,} positions are analysed here, so choose "
                "fewer."
            )
        if uploads.NAMED.fullmatch(corpus):
            if uploads.find(corpus) is None:
                raise InputError(f"The text {uploads.title(corpus)} is not kept here any more: upload it again.")
        elif corpus not in self.corpora and not _small_sample(corpus):
            raise InputError(
                f"This server is open to others, so it reads only {', '.join(self.corpora)}, texts that are uploaded, and "
                f"self:N with N from {FEWEST_SAMPLED:,} to {SHARED_SELF_TOKENS:,}."
            )
        real_model = self.model if self.model and model == self.named_model else model
        return real_model, self.corpus if self.corpus and corpus == self.named_corpus else corpus

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that is too long to be shared; elsewhere the model's own limit holds."""
        if self.shared and len(prompt) > self.most_prompt:
            raise InputError(
                f"The prompt has {len(prompt):,} characters; this server is shared, so at most {self.most_prompt:,}: "
                "shorten it."
            )

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse more texts than are written for one visitor of a shared server."""
        for what, value, most in (
            ("texts per side", sampling.samples, self.most_samples),
            ("new tokens", sampling.new_tokens, self.most_new_tokens),
        ):
            if value > most:
                raise InputError(f"{value:,} {what} are asked for; this server is shared, so at most {most:,}.")

    def said(self, sentence: str) -> str:
        """A sentence as it is shown: without asides for who types commands, and to others without places on this disk and
        without advice that only the host can take."""
        sentence = ADVICE_TO_A_TERMINAL.sub("", sentence)
        sentence = ADVICE_ON_AN_ANALYSIS.sub(r"on the command line, \g<0>", sentence)
        if not self.shared:
            return sentence
        for place, name in _places(self.model, self.corpus, str(default_folder())):
            sentence = sentence.replace(place, name)
        sentence = ADVICE_TO_TYPE.sub("", sentence.replace(", .parquet", ""))  # is read, but not of strangers
        return ADVICE_TO_THE_HOST.sub(": tell whoever runs this server.", sentence)

    def check_own(self, what: str) -> None:
        """Refuse what only the user of this computer may start."""
        if self.shared:
            raise InputError(
                f"This server is shared: {what} is switched off. Start Headscope on your own computer for it."
            )


def rules() -> Rules:
    """The rules of this server."""
    audience = os.environ.get(AUDIENCE_VARIABLE, "own")
    return Rules(
        "classroom" if audience == "classroom" else "public" if audience == "public" else "own",
        os.environ.get(MODEL_VARIABLE) or None,
        os.environ.get(CORPUS_VARIABLE) or None,
        os.environ.get(ADDRESS_VARIABLE, ""),
    )


@cache  # a folder that is removed while it is served keeps its name
def told(name: str) -> str:
    """A model or text as others may read it: a place on this computer's disk by its last name."""
    if name.startswith(("/", "~", ".")) or "\\" in name or _is_here(name) or _is_here(name.rpartition(":")[0]):
        return _absolute(name).name
    return name


def _is_here(name: str) -> bool:
    place = local_path(name) if name else None
    return place is not None and place.exists()


def _absolute(name: str) -> Path:
    return (local_path(name) or Path(name)).absolute()


@cache
def _places(*names: str | None) -> tuple[tuple[str, str], ...]:
    """What sentences may call the places of these names, the longest first, and what each is told as."""
    found: dict[str, str] = {}
    for name in names:
        for each in {name, name.rpartition(":")[0]} if name else ():  # the file of a column
            for place in map(str, (each, Path(each), _absolute(each), _absolute(each).resolve())):
                found = {
                    place: told(each),
                    short(place): told(each),
                } | found  # shortened, two may read the same: the model
    return tuple(sorted(((p, n) for p, n in found.items() if n and os.sep in p), key=lambda pair: -len(pair[0])))


def _small_sample(corpus: str) -> bool:
    count = corpus.removeprefix("self:")
    return (
        corpus.startswith("self:")
        and re.fullmatch("[0-9]{1,9}", count) is not None
        and FEWEST_SAMPLED <= int(count) <= SHARED_SELF_TOKENS
    )
