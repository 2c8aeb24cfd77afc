"""One model, one corpus, one setting: everything the commands and the pages ask for, each computed once.

The paper's pipeline in the order in which it is read:

    observation()  ->  encoding()  ->  steer(), sweep(), few_shot(), compare_directions()  ->  next_token(), generate()

Results are kept in the `Store` under everything they depend on. What is there is served without importing torch, so a
page fills before the model is loaded. An `Analysis` may be shared by threads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.corpus import Corpus, Plan, plan_windows, read_corpus, self_sampled_tokens, tokenise
from core.encoding import Encoding, encode, fit_line
from core.errors import AnalysisError, InputError
from core.foreign import no_panics
from core.model.facts import HeadFacts
from core.model.files import ModelFiles, ready, resolve
from core.moments import Moments, Observation, Reservoir
from core.pruning.names import FAST_MULTIPLE, NEEDS_OWN_TEXT, STANDARD, check_method, check_pruning, check_removed
from core.pruning.result import HeadCost, Pruning
from core.results import DirectionRow, FewShotPoint, Generated, NextToken, Sampling, Similarity, TokenChoice
from core.settings import LEAST_CONTEXT, LEAST_HELD_OUT, OnTokens, Progress, Settings, no_progress
from core.steering import (
    LOGIT_BIAS,
    Edit,
    Steerer,
    Steering,
    SweepPoint,
    check_direction,
    check_tokens,
    direction_vector,
)
from core.store import Store
from core.tokens import kind_of, token_texts
from core.words import plural, quoted, whole_characters

if TYPE_CHECKING:
    from core.export.result import Exported
    from core.model import Head, LoadedModel
    from core.pruning.head import PrunedHead

SHARED_MODELS = 2
NAMED_PIECES = 6
"""Tokens of a word that a sentence shows; of more only the number."""

FEW_CHARACTERS = 1000
"""A text with fewer of which a tokenizer makes nothing is too short, and the tokenizer not to blame."""


class Analysis:
    """What Headscope knows about a model on a corpus.

    Args:
        model: any `MODEL` (`smollm2`, `org/name`, a folder, a .gguf file).
        corpus: any `CORPUS` (`sampler`, `python-docs`, `self:N`, a file or folder).
        settings: positions, window, split, seed, device, precision.
        store: where results are kept; the user's cache if not given.
        local_paths: False refuses paths of this machine, for servers that strangers can reach.
        text: analyse this corpus instead of reading `corpus` (an upload).
        reading: progress of reading the corpus, which whatever first depends on it does.

    Raises:
        InputError, AnalysisError: from every method, as one sentence for the user.
    """

    def __init__(
        self,
        model: str,
        corpus: str = "sampler",
        settings: Settings | None = None,
        store: Store | None = None,
        *,
        local_paths: bool = True,
        text: Corpus | None = None,
        reading: Progress = no_progress,
    ) -> None:
        self.model, self.settings, self.local_paths = model, settings or Settings(), local_paths
        self.corpus_name = corpus if text is None else text.name
        self.store = store or Store()
        self._text, self._reading = text, reading
        self._lock = threading.RLock()
        self._observation: Observation | None = None
        self._encoding: Encoding | None = None
        self.cached = False
        """Whether the encoding came from the store."""
        self.seconds = 0.0
        """Time that `encoding()` took, s."""

    # --- what the numbers depend on --------------------------------------------------------------------------------

    @cached_property
    def corpus(self) -> Corpus:
        """The text. `self:N` is known by its size and the seed; its tokens are sampled when the model is there."""
        if self._text is not None:
            return self._text
        count = self_sampled_tokens(self.corpus_name)
        if count is None:
            return read_corpus(self.corpus_name, local_paths=self.local_paths, progress=self._reading)
        return Corpus(self.corpus_name, (), False, f"self:{count}:{self.settings.seed}")

    def files(self, progress: Progress = no_progress) -> ModelFiles:
        """The model on disk: fetched and converted if need be."""
        with self._lock:
            return resolve(self.model, cache=self.store.folder, progress=progress, local_paths=self.local_paths)

    def known_files(self) -> ModelFiles | None:
        """The model on disk if it is there already; the network is never asked."""
        return ready(self.model, cache=self.store.folder, local_paths=self.local_paths)

    def key(self, files: ModelFiles) -> dict[str, Any]:
        """What observation and encoding are stored under."""
        s = self.settings
        return {
            "model": files.sha256,
            "corpus": self.corpus.sha256,
            "positions": s.positions,
            "context": s.context,
            "held_out": s.held_out,
            "seed": s.seed,
            "device": s.device,
            "dtype": s.dtype,
        }

    # --- observe and encode ----------------------------------------------------------------------------------------

    def cached_encoding(self) -> Encoding | None:
        """The encoding if it was computed before; never downloads, never loads the model."""
        if self._encoding is None:
            files = self.known_files()
            if files is not None:
                self._encoding = self.store.get("encoding", self.key(files), Encoding)
                self.cached = self._encoding is not None
        return self._encoding

    def answers_without_model(self) -> bool:
        """Whether edits can be judged from what is stored: the encoding, the observation and where the head's rows are."""
        if self.cached_encoding() is None or self.cached_head_facts() is None:
            return False
        if self._observation is None:
            files = self.files()
            self._observation = self.store.get("observation", self.key(files), Observation)
        return self._observation is not None

    @property
    def precomputed(self) -> bool:
        """Whether the encoding came with Headscope and was not computed here."""
        files = self.known_files()
        return files is not None and self.store.is_precomputed("encoding", self.key(files))

    def cached_head_facts(self) -> HeadFacts | None:
        """What is known of the model's head since it was loaded last; never loads it."""
        files = self.known_files()
        return None if files is None else self.store.get("head", self._head_key(files), HeadFacts)

    def head_facts(self, progress: Progress = no_progress) -> HeadFacts:
        """What the model's head is and how exactly it is reproduced."""
        found = self.cached_head_facts()
        if found is None:
            from core.model.memory import estimate_ram
            from core.model.rows import find_stored_head

            model = self.loaded(progress)
            files = self.files(progress)  # the model may have been loaded from another copy of these files
            ram = estimate_ram(files.folder, self.settings.dtype)
            found = HeadFacts(
                model.description,
                model.check,
                find_stored_head(files.folder, files.name),
                bool(model.tokenizer.chat_template),
                files.revision,
                files.sha256,
                ram,
                str(model.device),
            )
            self.store.put("head", self._head_key(files), found)
        return found

    def _head_key(self, files: ModelFiles) -> dict[str, Any]:
        return {"model": files.sha256, "device": self.settings.device, "dtype": self.settings.dtype}

    def encoding(self, progress: Progress = no_progress) -> Encoding:
        """Observe the model on the corpus and fit −log alpha = A·E + B."""
        with self._lock:
            started = time.perf_counter()
            if self.cached_encoding() is None:
                observation = self.observation(progress)
                model = self.loaded(progress)
                progress("Fitting the encoding", None)
                head = model.head
                bias = None if head.bias is None else head.bias.cpu().double().numpy()
                found = encode(
                    head.weight.cpu().numpy(), observation, bias=bias, is_token=head.is_token, seed=self.settings.seed
                )
                self._encoding = _named(found, model)
                self.store.put("encoding", self.key(model.files), self._encoding)
                self.head_facts(progress)
            self.seconds = time.perf_counter() - started
            if self._encoding is None:
                raise AnalysisError("The encoding could not be computed.")
            return self._encoding

    def observation(self, progress: Progress = no_progress) -> Observation:
        """The pass over the corpus: from the store, or run (resuming what a killed run left)."""
        with self._lock:
            if self._observation is not None:
                return self._observation
            progress("Looking for the model", None)
            corpus = self.corpus  # a corpus that cannot be read is refused before anything is downloaded
            key = self.key(self.files(progress))
            self._observation = self.store.get("observation", key, Observation)
            if self._observation is None:
                from core.observe import observe

                model = self.loaded(progress)
                plan = self.plan(model, corpus, progress)
                partial = self.store.partial("observation", key) if self.store.enabled else None
                self._observation = observe(model, plan, seed=self.settings.seed, partial=partial, progress=progress)
                self.store.put("observation", key, self._observation)
            return self._observation

    def adopt(self, observation: Observation) -> None:
        """Take an observation that was made elsewhere, as of merged shards, in place of a pass."""
        self._observation = observation

    def keep(self, files: ModelFiles, observation: Observation | None, encoding: Encoding, facts: HeadFacts) -> None:
        """Store what was worked out elsewhere for this model, corpus and settings."""
        if observation is not None:
            self.store.put("observation", self.key(files), observation)
        self.store.put("encoding", self.key(files), encoding)
        self.store.put("head", self._head_key(files), facts)

    def plan(self, model: LoadedModel, corpus: Corpus, progress: Progress = no_progress) -> Plan:
        """The corpus as chunks of windows for this model's tokenizer."""
        progress("Reading the corpus", None)
        s = self.settings
        count = self_sampled_tokens(corpus.name) if not corpus.texts else None
        if count is None:
            documents = tokenise(corpus, model.tokenizer, s.context, progress)
            if not documents and (size := sum(map(len, corpus.texts))) < FEW_CHARACTERS:
                raise AnalysisError(
                    f"The corpus {quoted(corpus.name)} holds only {plural(size, 'character')}: a few hundred words are the "
                    "least."
                )
        else:
            from core.generate import sample_documents

            documents = sample_documents(model, count, 2 * s.context, s.seed, progress)
        first = first_token(model)
        plan = plan_windows(documents, s, first_token=first, name=corpus.name)
        if max(chunk.inputs.shape[1] for chunk in plan.chunks) > model.longest:
            most = model.longest - (first is not None)
            sees = f"{model.files.name} sees {plural(model.longest, 'token')} at once"
            if most < LEAST_CONTEXT:
                raise AnalysisError(
                    f"{sees}, too few to observe anything: check max_position_embeddings in its config.json."
                )
            raise InputError(f"{sees} and --context is {s.context}: choose a --context of at most {most:,}.")
        return plan if not corpus.note else Plan(**{**vars(plan), "note": " ".join([corpus.note, plan.note]).strip()})

    def loaded(self, progress: Progress = no_progress) -> LoadedModel:
        """The model in memory, shared by every analysis of this process."""
        return load_shared(self.files(progress), self.settings.device, self.settings.dtype, progress)

    # --- steer -----------------------------------------------------------------------------------------------------

    def needs_tokenizer(self, text: str) -> bool:
        """Whether `find_token` has to load the model: the text is neither a number nor a token as it stands."""
        return bool(text) and not text.startswith("id:") and text not in self._places

    def find_token(self, text: str) -> TokenChoice:
        """The token a user means by ` Paris` or `id:123`; a word of several tokens is steered by its first.

        Raises:
            InputError: nothing was named, half a character, or an id that is no token.
        """
        if whole_characters(text) != text:
            raise InputError(
                f"{quoted(text)} is not UTF-8: write a token, blank included, as ' river', or its number, id:123."
            )
        if text.startswith("id:"):
            return self._token_by_id(text)
        if not text:
            raise InputError("No token was named: write one, blank included, as ' river', or its number, as id:123.")
        place = self._places.get(text)
        if place is not None:
            return TokenChoice(place, text)
        tokenizer = self.loaded().tokenizer
        with no_panics(self.loaded().files.name):
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise InputError(f"{quoted(text)} is no token of this model: write a word, blank included, or id:123.")
        pieces = token_texts(tokenizer, ids[:NAMED_PIECES])
        if len(ids) == 1:
            return TokenChoice(ids[0], pieces[0], f"{quoted(text)} is read as the token {pieces[0]!r}.")
        shown = " + ".join(map(repr, pieces)) + (" + …" if len(ids) > NAMED_PIECES else "")
        return TokenChoice(
            ids[0],
            pieces[0],
            f"{quoted(text)} is {len(ids):,} tokens ({shown}); its first, {pieces[0]!r}, stands for it.",
        )

    def _token_by_id(self, text: str) -> TokenChoice:
        digits = text.removeprefix("id:").strip()
        encoding = self.encoding()
        if digits.isascii() and digits.isdecimal() and len(digits) < 10:
            place = int(np.searchsorted(encoding.token_ids, int(digits)))
            if place < len(encoding.token_ids) and encoding.token_ids[place] == int(digits):
                return TokenChoice(int(digits), encoding.tokens[place])
            if int(digits) < encoding.vocab_size:
                raise InputError(
                    f"Token {int(digits)} of this model cannot be steered, for it stands for no text or has the probability 0 "
                    "here: choose another."
                )
        raise InputError(f"{quoted(text)} is no token: after id: comes a number from 0 to {encoding.vocab_size - 1}.")

    @cached_property
    def _places(self) -> dict[str, int]:
        encoding = self.encoding()
        return {t: int(i) for t, i in zip(reversed(encoding.tokens), encoding.token_ids[::-1], strict=True)}

    def token_text(self, token_id: int) -> str:
        return self._token_by_id(f"id:{token_id}").token

    def steerer(
        self,
        token_ids: Sequence[int],
        direction: str = "minimum-variance",
        *,
        vector: np.ndarray | None = None,
        progress: Progress = no_progress,
    ) -> Steerer:
        """The tokens' rows and positions, made ready once; every ratio after that is cheap."""
        check_direction(direction)
        check_tokens(token_ids)
        names = [self.token_text(token_id) for token_id in token_ids]
        observation = self.observation(progress)
        rows, bias, softcap = self._rows(token_ids, progress)
        return Steerer(
            observation.fit,
            observation.held_out,
            self.encoding(progress),
            token_ids,
            rows,
            bias,
            names,
            softcap=softcap,
            direction=direction,
            seed=self.settings.seed,
            vector=vector,
        )

    def _rows(self, token_ids: Sequence[int], progress: Progress) -> tuple[np.ndarray, np.ndarray, float | None]:
        """Rows of the head, its bias there, its soft-cap: out of the model's files where it was loaded before."""
        files = self.known_files()
        facts = self.cached_head_facts()
        if files is None or facts is None:
            head = self.loaded(progress).head
            return *head.rows(list(token_ids)), head.softcap
        from core.model.rows import read_rows

        stored = read_rows(files.folder, facts.stored, token_ids, facts.description.logit_scale)
        return *(stored or self.loaded(progress).head.rows(list(token_ids))), facts.description.softcap

    def steer(
        self,
        edits: Sequence[Edit],
        direction: str = "minimum-variance",
        calibrate: bool = True,
        progress: Progress = no_progress,
    ) -> Steering:
        """Solve the edits together and judge them on held-out text."""
        steerer = self.steerer([edit.token_id for edit in edits], direction, progress=progress)
        return steerer.steer([edit.ratio for edit in edits], calibrate)

    # --- prune -----------------------------------------------------------------------------------------------------

    def prune(
        self,
        methods: Sequence[str] = STANDARD,
        removed: Sequence[float] = (0.1, 0.3, 0.5),
        *,
        judge: Analysis | str | None = None,
        seeds: int = 4,
        progress: Progress = no_progress,
    ) -> tuple[Pruning, ...]:
        """Every method at every fraction, found from the fitting part and judged on held-out text. Each is stored when done.

        Args:
            methods: of `core.pruning.names.METHODS`. removed: fractions, 0 ≤ f < 1.
            judge: another corpus (or an analysis of it) whose held-out part judges; this corpus's own if not given.
            seeds: orders of `random`, from the settings' seed on.
            progress: called at every tile of the vocabulary; may raise `Cancelled`.
        """
        for method in methods:
            check_method(method)
        for fraction in removed:
            check_removed(fraction)
        if not methods or not removed:
            raise InputError("Pruning needs at least one method and one fraction: give, for example, rotated and 0.3.")
        other = self.elsewhere(judge) if isinstance(judge, str) else judge or self
        keys = self._pruning_keys(self.files(progress), other, methods, removed, seeds)
        found = {method: self.store.get("pruning", keys[method], Pruning) for method in methods}
        if any(each is None for each in found.values()):
            if any(method in NEEDS_OWN_TEXT and found[method] is None for method in methods):
                from core.generate import check_writes

                check_writes(self.loaded(progress))
            encoding, fit = self.encoding(progress), self.observation(progress).fit
            sample = other.observation(progress).held_out.reservoir
            from core.pruning.curve import Judge
            from core.pruning.study import prune_curve

            head = self.loaded(progress).head
            ready_to_judge = Judge(head, sample, progress=progress)
            first = self.settings.seed
            for method in [method for method in methods if found[method] is None]:
                found[method] = prune_curve(
                    head,
                    encoding,
                    fit,
                    ready_to_judge,
                    method,
                    removed,
                    seeds=range(first, first + seeds),
                    own=self.own_moments(method, progress),
                    corpus=self.corpus_name,
                    judged_on=other.corpus_name,
                    progress=progress,
                )
                self.store.put("pruning", keys[method], found[method])
        # the store knows texts by what they hold: these are the names asked for
        return tuple(
            replace(each, corpus=self.corpus_name, judged_on=other.corpus_name)
            for method in methods
            if (each := found[method]) is not None
        )

    def stored_pruning(
        self, methods: Sequence[str], removed: Sequence[float], *, seeds: int = 4
    ) -> tuple[Pruning, ...] | None:
        """What `prune` gives for the same arguments, if all of it is stored; never loads the model."""
        files = self.known_files()
        if files is None:
            return None
        keys = self._pruning_keys(files, self, methods, removed, seeds)
        found = [self.store.get("pruning", keys[method], Pruning) for method in methods]
        return None if any(each is None for each in found) else tuple(each for each in found if each is not None)

    def _pruning_keys(
        self, files: ModelFiles, other: Analysis, methods: Sequence[str], removed: Sequence[float], seeds: int
    ) -> dict[str, dict[str, Any]]:
        key = self.key(files) | {"judge": other.key(files), "removed": [float(f) for f in removed]}
        return {m: key | {"method": m, "seeds": seeds if m == "random" else 1} for m in methods}

    def elsewhere(self, corpus: str, settings: Settings | None = None) -> Analysis:
        """The same model on another corpus, with the same settings if no others are given."""
        return Analysis(self.model, corpus, settings or self.settings, self.store, local_paths=self.local_paths)

    def pruned_cost(self, method: str, removed: float, progress: Progress = no_progress) -> HeadCost:
        """Measured time and size of a pruned head, its width rounded down to what is fast, against the full head."""
        from core.pruning.speed import measure_cost

        pruned = self.pruned_head(method, removed, progress, multiple=FAST_MULTIPLE)
        return measure_cost(self.loaded(progress).head, pruned, progress=progress)

    def pruned_head(
        self, method: str, removed: float, progress: Progress = no_progress, *, multiple: int = 1
    ) -> PrunedHead:
        """The head without the fraction `removed` of its dimensions, found from the fitting part alone.

        Args:
            multiple: round the width down to a multiple of this, see `core.pruning.names.kept_dims`.

        Raises:
            InputError: no such method, or a fraction out of range.
        """
        check_pruning(method, removed)
        encoding, observation = self.encoding(progress), self.observation(progress)
        from core.pruning.head import prune_head

        progress("Pruning the head", None)
        head, seed = self.loaded(progress).head, self.settings.seed
        own = self.own_moments(method, progress)
        return prune_head(head, encoding, observation.fit, method, removed, seed, own=own, multiple=multiple)

    def own_moments(self, method: str, progress: Progress = no_progress) -> Moments | None:
        """Sums over texts that the model writes itself, for the methods that need them. Observed once, then stored."""
        if method not in NEEDS_OWN_TEXT:
            return None
        from core.pruning.basis import OWN_POSITIONS

        settings = replace(self.settings, positions=OWN_POSITIONS, held_out=LEAST_HELD_OUT)
        return self.elsewhere(f"self:{OWN_POSITIONS}", settings).observation(progress).fit

    def pruned(
        self, method: str | None, removed: float | None, steering: Steering | None, progress: Progress = no_progress
    ) -> tuple[PrunedHead | None, Steering | None]:
        """A pruned head, and what a steering becomes on it: solved anew, to the same ratios of the model as it is.

        Without a method, or where nothing is removed, there is no pruned head and the steering stays as it is.
        """
        check_pruning(method, removed)
        if method is None or not removed:
            return None, steering
        if steering is not None and steering.direction == LOGIT_BIAS:
            raise InputError("A logit bias cannot be solved on a pruned head: choose minimum-variance.")
        head = self.pruned_head(method, removed, progress)
        if steering is None:
            return head, None
        from core.export.change import Change
        from core.export.edits import steer_pruned

        edits, names = zip(*[(Edit(t.id, t.target), t.token) for t in steering.tokens], strict=True)
        change = Change(edits, names, steering.direction, steering.calibrated, head, self.settings.seed)
        full, observation = self.loaded(progress).head, self.observation(progress)
        return head, steer_pruned(full, observation, self.encoding(progress), change, progress)

    def baselines(self, edits: Sequence[Edit], progress: Progress = no_progress) -> tuple[Steering, ...]:
        """The same ratios by a constant logit bias of log r, and along a random direction; neither calibrated."""
        ids, ratios = [edit.token_id for edit in edits], [edit.ratio for edit in edits]
        return tuple(self.steerer(ids, name, progress=progress).steer(ratios, False) for name in (LOGIT_BIAS, "random"))

    def sweep(
        self,
        edits: Sequence[Edit],
        ratios: Sequence[float],
        direction: str = "minimum-variance",
        calibrate: bool = True,
        progress: Progress = no_progress,
    ) -> tuple[SweepPoint, ...]:
        """Target against realised: the first edit at each of `ratios`, the others as they are."""
        steerer = self.steerer([edit.token_id for edit in edits], direction, progress=progress)
        return steerer.sweep(ratios, [edit.ratio for edit in edits[1:]], calibrate)

    def few_shot(
        self,
        edits: Sequence[Edit],
        sizes: Sequence[int] = (16, 64, 256, 1024, 4096, 16384),
        direction: str = "minimum-variance",
        progress: Progress = no_progress,
    ) -> tuple[FewShotPoint, ...]:
        """The edit with its direction estimated from n positions only, uncalibrated, judged on held-out text."""
        check_direction(direction)
        sample = self.observation(progress).fit.reservoir
        if any(size < 2 for size in sizes):
            raise InputError(f"A few-shot size is {min(sizes)}, but at least 2 positions are needed.")
        wanted = sorted({min(size, len(sample)) for size in sizes})
        ids, ratios = [edit.token_id for edit in edits], [edit.ratio for edit in edits]
        points = []
        for size, vector in self._few_shot_vectors(sample, wanted, direction, progress):
            found = self.steerer(ids, direction, vector=vector, progress=progress).steer(ratios, False)
            held_out = tuple(token.realised_held_out for token in found.tokens)
            errors = [abs(np.log(h / r)) for h, r in zip(held_out, ratios, strict=True)]
            points.append(FewShotPoint(size, held_out, float(np.median(errors))))
        return tuple(points)

    def _few_shot_vectors(
        self, sample: Reservoir, sizes: list[int], direction: str, progress: Progress
    ) -> list[tuple[int, np.ndarray]]:
        dim = sample.hidden.shape[1]
        head = self.loaded(progress).head
        vectors = []
        alphas = None if direction in ("minimum-variance", "random") else _alpha_after(head, sample, sizes, progress)
        for place, size in enumerate(sizes):
            progress("Fitting with few positions", place / len(sizes))
            hidden = sample.hidden[:size].astype(np.float64)
            weights, saliency = np.zeros(dim), np.zeros(dim)
            if alphas is not None:
                embedding = head.weight.cpu().numpy()
                rows = np.flatnonzero(head.is_token & (alphas[place] > 0))
                y = -np.log(alphas[place][rows])
                if head.bias is not None:
                    y += head.bias.cpu().double().numpy()[rows]
                weights = fit_line(embedding, rows, y).weights
                saliency = np.abs(weights) * self.encoding(progress).embedding_std
            vector = direction_vector(
                direction,
                weights=weights,
                saliency=saliency,
                mean_hidden=hidden.mean(0),
                covariance=np.cov(hidden.T, bias=True),
                seed=self.settings.seed,
            )
            vectors.append((size, vector))
        return vectors

    def tokens_of_rank(self, first: int, last: int, count: int) -> list[int]:
        """`count` token ids drawn by the seed from those ranked `first` to `last` by mean probability."""
        if not 1 <= first < last:
            raise InputError(
                f"The ranks are {first} to {last}, but the first must be smaller than the last, and 1 or more."
            )
        encoding = self.encoding()
        if first > len(encoding.token_ids):
            raise InputError(
                f"The ranks begin with {first}, but {len(encoding.token_ids)} tokens were fitted: begin with a smaller one."
            )
        order = encoding.token_ids[np.argsort(-encoding.alpha, kind="stable")][first - 1 : last]
        random = np.random.default_rng([self.settings.seed, 5])
        return sorted(int(i) for i in random.choice(order, size=min(count, len(order)), replace=False))

    def compare_directions(
        self,
        token_ids: Sequence[int],
        ratios: Sequence[float] = (0.05, 2, 5, 20, 100),
        directions: Sequence[str] = ("least-norm", "saliency", "minimum-variance", LOGIT_BIAS, "uniform"),
        calibrate: Sequence[bool] = (False, True),
        progress: Progress = no_progress,
    ) -> tuple[DirectionRow, ...]:
        """Median |log(realised / target)| over single-token edits, for every direction and ratio (the table of method §3)."""
        table = []
        for calibrated in calibrate:
            for place, direction in enumerate(directions):
                progress("Comparing directions", place / len(directions))
                table.append(self._direction_row(token_ids, ratios, direction, calibrated, progress))
        return tuple(table)

    def _direction_row(
        self, token_ids: Sequence[int], ratios: Sequence[float], direction: str, calibrated: bool, progress: Progress
    ) -> DirectionRow:
        errors: list[list[tuple[float, float]]] = [[] for _ in ratios]
        vector = None
        for token_id in token_ids:
            steerer = self.steerer([token_id], direction, vector=vector, progress=progress)
            vector = steerer.vector  # the same for every token
            for place, ratio in enumerate(ratios):
                try:
                    steps = steerer.steps([ratio], calibrated)
                except InputError:  # beyond what this token or direction can reach: counted, not hidden
                    continue
                fit, held_out = steerer.fit.realised(steps)[0], steerer.held_out.realised(steps)[0]
                if np.isnan(held_out):  # never likely at all there: as little reached as the above
                    continue
                tiny = np.finfo(float).tiny
                errors[place].append((abs(np.log(max(held_out, tiny) / ratio)), abs(np.log(max(fit, tiny) / ratio))))
        medians = [tuple(np.median(np.array(pairs), axis=0)) if pairs else (np.nan, np.nan) for pairs in errors]
        return DirectionRow(
            direction,
            calibrated,
            tuple(float(ratio) for ratio in ratios),
            tuple(float(m[0]) for m in medians),
            tuple(float(m[1]) for m in medians),
            tuple(len(pairs) / len(token_ids) for pairs in errors),
        )

    # --- at a prompt -----------------------------------------------------------------------------------------------

    def stored_prompt(self, prompt: str, *, top: int = 12, chat: bool = False) -> NextToken | None:
        """The model's next token at a prompt, unedited, if it is stored; never loads the model."""
        key = self._prompt_key(prompt, top, chat)
        return None if key is None else self.store.get("prompt", key, NextToken)

    def next_token(
        self,
        prompt: str,
        steering: Steering | None = None,
        *,
        top: int = 12,
        chat: bool = False,
        method: str | None = None,
        removed: float | None = None,
    ) -> NextToken:
        """The next-token distribution at a prompt, before and after; see `generate` for the edit."""
        pruned, steering = self.pruned(method, removed, steering)
        unedited = steering is None and pruned is None
        stored = self.stored_prompt(prompt, top=top, chat=chat) if unedited else None
        if stored is not None:
            return stored
        from core.generate import next_token

        return next_token(self.loaded(), prompt, steering, pruned=pruned, top=top, chat=chat)

    def keep_prompt(self, prompt: str, *, top: int = 12, chat: bool = False) -> NextToken:
        """Work out the unedited next token at a prompt and store it."""
        found = self.next_token(prompt, top=top, chat=chat)
        self.store.put("prompt", self._prompt_key(prompt, top, chat) or {}, found)
        return found

    def _prompt_key(self, prompt: str, top: int, chat: bool) -> dict[str, Any] | None:
        files = self.known_files()
        return None if files is None else self._head_key(files) | {"prompt": prompt, "top": top, "chat": chat}

    def stored_texts(
        self,
        prompt: str,
        steering: Steering | None,
        sampling: Sampling,
        *,
        chat: bool = False,
        method: str | None = None,
        removed: float | None = None,
    ) -> Generated | None:
        """What `generate` gives for the same arguments, if it is stored; never loads the model."""
        key = self._texts_key(prompt, steering, sampling, chat, method, removed)
        return None if key is None else self.store.get("texts", key, Generated)

    def keep_texts(
        self,
        prompt: str,
        steering: Steering | None,
        sampling: Sampling,
        *,
        chat: bool = False,
        method: str | None = None,
        removed: float | None = None,
    ) -> Generated:
        """Write texts and store them."""
        found = self.generate(prompt, steering, sampling, chat=chat, method=method, removed=removed)
        self.store.put("texts", self._texts_key(prompt, steering, sampling, chat, method, removed) or {}, found)
        return found

    def _texts_key(
        self,
        prompt: str,
        steering: Steering | None,
        sampling: Sampling,
        chat: bool,
        method: str | None,
        removed: float | None,
    ) -> dict[str, Any] | None:
        files = self.known_files()
        if files is None:
            return None
        edit = None
        if steering is not None:
            edit = [steering.direction, steering.calibrated, *([t.id, t.target] for t in steering.tokens)]
        key = self.key(files) | {"prompt": prompt, "edit": edit, "sampling": asdict(sampling), "chat": chat}
        return key | {"pruned": [method, removed]} if removed else key

    def check_prompt(
        self, prompt: str, *, chat: bool = False, new_tokens: int = 0, progress: Progress = no_progress
    ) -> None:
        """Have a prompt refused before an analysis of minutes, for which the model is loaded in any case.

        Does nothing where the encoding is known: the prompt is then refused where it is used, at once too.

        Raises:
            InputError: see `core.generate.encode_prompt`.
        """
        if self.cached_encoding() is None:
            from core.generate import encode_prompt

            encode_prompt(self.loaded(progress), prompt, chat=chat, new_tokens=new_tokens)

    def generate(
        self,
        prompt: str,
        steering: Steering | None = None,
        sampling: Sampling | None = None,
        *,
        chat: bool = False,
        method: str | None = None,
        removed: float | None = None,
        progress: Progress = no_progress,
        on_tokens: OnTokens | None = None,
    ) -> Generated:
        """Texts sampled before and after with the same noise.

        Args:
            steering: from `steer`. method, removed: prune the head first, as for `pruned_head`; the steering is then solved
                anew on what is left, to the same ratios of the model as it is.
            on_tokens: is given the texts while they are written.
        """
        sampling = sampling or Sampling()
        check_pruning(method, removed)
        stored = self.stored_texts(prompt, steering, sampling, chat=chat, method=method, removed=removed)
        if stored is not None:
            return stored
        from core.generate import generate

        model = self.loaded(progress)
        pruned, steering = self.pruned(method, removed, steering, progress)
        return generate(
            model, prompt, steering, sampling, pruned=pruned, chat=chat, progress=progress, on_tokens=on_tokens
        )

    def similarity(
        self,
        prompt: str,
        steering: Steering | None = None,
        sampling: Sampling | None = None,
        *,
        texts: int = 256,
        chat: bool = False,
        method: str | None = None,
        removed: float | None = None,
        progress: Progress = no_progress,
    ) -> Similarity:
        """How alike the texts before and after are as distributions: MAUVE over independent samples. Stored.

        Args:
            steering, method, removed: the edit, as for `generate`. texts: drawn per side; `sampling.samples` is not used.

        Raises:
            InputError: the extra `mauve` is not installed, too few texts, or sampling that leaves no choice.
            Cancelled: from `progress`, between two tokens.
        """
        from core.similarity.mauve import check_similarity

        sampling = sampling or Sampling()
        check_pruning(method, removed)
        check_similarity(texts)
        self.files(progress)
        key = self._texts_key(prompt, steering, replace(sampling, samples=1), chat, method, removed) or {}
        key |= {"texts": texts}
        found = self.store.get("similarity", key, Similarity)
        if found is None:
            from core.similarity.texts import compare_texts

            model = self.loaded(progress)
            pruned, steering = self.pruned(method, removed, steering, progress)
            found = compare_texts(
                model, prompt, steering, sampling, pruned=pruned, texts=texts, chat=chat, progress=progress
            )
            self.store.put("similarity", key, found)
        return found

    # --- an edited model that leaves the house -----------------------------------------------------------------------

    def export(
        self,
        out: str | Path,
        edits: Sequence[Edit] = (),
        direction: str = "minimum-variance",
        calibrate: bool = True,
        *,
        method: str | None = None,
        removed: float | None = None,
        progress: Progress = no_progress,
    ) -> Exported:
        """Write the model with an edited head to a new folder, as a checkpoint that stock transformers loads.

        Args:
            out: the folder; it must not exist yet. Nothing is there until the export has been reloaded and compared.
            edits, direction, calibrate: tokens to steer, as for `steer`; ratios of the model as it is, also if pruned.
            method, removed: prune the head first, as for `prune`.
            progress: may raise `Cancelled`, which leaves nothing.
        """
        from core.export.change import Change, check_change
        from core.export.place import check_target

        if not self.local_paths:
            raise InputError("This server writes no folders of its own: run headscope export on your own computer.")
        check_change(edits, direction, method, removed)
        target = check_target(out)
        from core.export.run import export, prepare

        model = self.loaded(progress)
        draft = prepare(self.files(progress), model, target, self.settings.dtype)
        encoding, observation = self.encoding(progress), self.observation(progress)
        names = [self.token_text(edit.token_id) for edit in edits]
        pruned = None if method is None or removed is None else self.pruned_head(method, removed, progress)
        return export(
            draft,
            Change(edits, names, direction, calibrate, pruned, self.settings.seed),
            observation,
            encoding,
            cache=self.store.folder,
            provenance={
                "corpus": {
                    "name": self.corpus_name.replace("\\", "/").rpartition("/")[2],
                    "sha256": self.corpus.sha256,
                },
                "settings": asdict(self.settings),
            },
            progress=progress,
        )


# --- shared models ------------------------------------------------------------------------------------------------------

_shared: OrderedDict[tuple[str, ...], LoadedModel] = OrderedDict()
_shared_lock = threading.Lock()


def load_shared(files: ModelFiles, device: str, dtype: str, progress: Progress = no_progress) -> LoadedModel:
    """The model from this process's memory, loaded once; the least recently used leaves when there are too many."""
    from core.model.load import load_model

    key = (files.sha256, device, dtype)
    with _shared_lock:
        if key not in _shared:
            while len(_shared) >= SHARED_MODELS:
                _shared.popitem(last=False)
            _shared[key] = load_model(files, device=device, dtype=dtype, progress=progress)
        _shared.move_to_end(key)
        return _shared[key]


def first_token(model: LoadedModel) -> int | None:
    """The beginning-of-text token where the tokenizer puts one before every text, else None."""
    bos = model.tokenizer.bos_token_id
    ids = model.tokenizer("a", verbose=False)["input_ids"]
    return bos if bos is not None and ids and ids[0] == bos else None


def _named(encoding: Encoding, model: LoadedModel) -> Encoding:
    texts = token_texts(model.tokenizer, encoding.token_ids.tolist())
    special = set(model.tokenizer.all_special_ids)
    kinds = tuple(kind_of(text, int(i) in special) for text, i in zip(texts, encoding.token_ids, strict=True))
    return encoding.named(texts, kinds)


def _alpha_after(head: Head, sample: Reservoir, sizes: list[int], progress: Progress) -> list[np.ndarray]:
    """[V] mean probabilities over the first n positions of a sample, for every n of ascending `sizes`."""
    import torch

    total = np.zeros(len(head.is_token))
    alphas, start = [], 0
    with torch.inference_mode():
        for size in sizes:
            for block in range(start, size, 256):
                progress("Averaging over few positions", block / sizes[-1])
                hidden = torch.from_numpy(sample.hidden[block : min(block + 256, size)]).to(head.weight.device)
                total += head.logits(hidden).softmax(1).sum(0, dtype=torch.float64).cpu().numpy()
            start = size
            alphas.append(total / size)
    return alphas
