"""MAUVE of two samples of texts, by the package `mauve-text`, in a process of its own.

    MAUVE = area under { (exp(−5·KL(Q‖R_w)), exp(−5·KL(P‖R_w))) },  R_w = w·P + (1 − w)·Q,  0 < w < 1

P and Q are histograms of the two samples over k clusters of both samples' features together (k = texts / 10, the package's
own choice). 1 says that the two cannot be told apart, 0 that they share nothing. Even two samples of one distribution stay
below 1, so a value means something only beside that ceiling. K-means starts at random: values are means over `CLUSTERINGS`
runs.

The package is GPLv3 and no part of Headscope: it is installed separately (extra `mauve`) and run as another program, that is
given arrays and answers with numbers. There it may bring its own OpenMP beside torch's and write to stderr as it likes.

    python -m core.similarity.mauve < samples.safetensors

Source: Pillutla et al. 2021 (NeurIPS), "MAUVE: Measuring the Gap Between Neural Text and Human Text".
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from core.errors import AnalysisError, InputError
from core.settings import Progress, no_progress

PACKAGE = "mauve-text"
CLUSTERINGS = 5
FEWEST_TEXTS, MOST_TEXTS = 32, 8192
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class MauveScores:
    """MAUVE of a sample against each of several others.

    Attributes:
        values: [pairs] mean over the clusterings. spreads: [pairs] standard deviation over them. clusters: k.
    """

    values: tuple[float, ...]
    spreads: tuple[float, ...]
    clusters: int


def check_similarity(texts: int) -> None:
    """Refuse what MAUVE cannot be asked, before anything is sampled.

    Raises:
        InputError: too few or too many texts, or the package is missing.
    """
    if not FEWEST_TEXTS <= texts <= MOST_TEXTS:
        raise InputError(
            f"MAUVE is asked of {texts} texts a side, but it must be from {FEWEST_TEXTS} to {MOST_TEXTS} (256 is usual)."
        )
    try:
        importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            'MAUVE comes from mauve-text, which is not installed: pip install "headscope[mauve]".'
        ) from error


def mauve_scores(
    sample: Float32[np.ndarray, "n d"],
    others: Sequence[Float32[np.ndarray, "n d"]],
    seed: int = 0,
    progress: Progress = no_progress,
) -> MauveScores:
    """MAUVE of `sample` against each of `others`, features of one text a row.

    Args:
        seed: of k-means; the same seed gives the same values.
        progress: may raise `Cancelled`, which ends the other process.

    Raises:
        AnalysisError: the package fails; the message says how.
    """
    from safetensors.numpy import save

    arrays = {"sample": sample} | {f"other{i}": other for i, other in enumerate(others)}
    seeds = np.random.SeedSequence([seed, 9]).generate_state(CLUSTERINGS) % 2**30
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile() as given:  # not a pipe: one that is full would be waited for
        given.write(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        given.seek(0)
        with subprocess.Popen(
            [sys.executable, "-m", "core.similarity.mauve", *map(str, seeds)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                told = _answer(process, progress)
            finally:
                process.kill()
    found: dict[str, Any] = json.loads(told or '{"error": "it ended early, perhaps for want of memory"}')
    if "error" in found:
        raise AnalysisError(f"mauve-text could not compare the texts ({found['error']}).")
    values = np.asarray(found["values"])  # [pairs, clusterings]
    return MauveScores(tuple(values.mean(1).tolist()), tuple(values.std(1).tolist()), int(found["clusters"]))


def _answer(process: subprocess.Popen[bytes], progress: Progress) -> bytes:
    while True:
        progress("Comparing the samples", None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=0.1)[0]


class _Without:
    """Stands before the import system: packages that mauve-text takes if they are there and that are not needed here."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in ("torch", "transformers"):
            raise ModuleNotFoundError(f"{name} is left out: features are given")


def main(seeds: Sequence[int]) -> dict[str, Any]:
    """What the other process answers: values [pairs, clusterings] and the number of clusters."""
    from safetensors.numpy import load

    arrays = load(sys.stdin.buffer.read())
    sys.meta_path.insert(0, _Without())
    from mauve import compute_mauve

    sample = arrays.pop("sample")
    found = [
        [compute_mauve(p_features=sample, q_features=arrays[name], seed=seed) for seed in seeds]
        for name in sorted(arrays)
    ]
    return {"values": [[float(each.mauve) for each in row] for row in found], "clusters": found[0][0].num_buckets}


if __name__ == "__main__":
    try:
        answer = main([int(seed) for seed in sys.argv[1:]])
    except Exception as error:
        answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    print(json.dumps(answer))
