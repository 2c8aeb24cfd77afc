"""Make the bundled model `demo` anew: its text, its training, its checkpoints, its precomputed results and its card.

    python assets/demo/build.py WORK_FOLDER

Needs Headscope with PyTorch, Debian's apt-get for the text, and most of an hour on two cores. A run that was stopped goes
on when it is started again. Everything lands beside this file: `model/`, `checkpoints/`, `results/`, `README.md`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from app import edits, state
from app.cache import PRUNED
from core.analysis import Analysis
from core.corpus import read_corpus
from core.dynamics import Dynamics, finding
from core.kept import DEMO, DEMO_KEY, read_kept
from core.model.files import DEMO as MODEL
from core.pruning.names import STANDARD
from core.results import Sampling
from core.series import keep_series, read_run, step_folder, train_series
from core.settings import Settings
from core.store import BUNDLED, Store
from core.train import HASHES, SIZES

HERE = Path(__file__).resolve().parent
MEASURED = Settings(positions=32768)
"""Positions behind every checkpoint's loss and alpha; a tenth as many again judge."""
RESULTS = ("sampler",)


def main(work: Path) -> None:
    corpus = work / "debian-prose"
    if not (corpus / "sources.json").is_file():
        subprocess.run([sys.executable, str(HERE / "corpus.py"), str(corpus)], check=True)
    run, store = work / "run", Store(work / "cache")
    found = train_series(read_corpus(str(corpus)), SIZES["demo"], run, MEASURED, store, progress=tell())
    shutil.rmtree(HERE / "checkpoints", ignore_errors=True)
    keep_series(run, HERE / "checkpoints", found, store, MEASURED)
    halve(step_folder(run, SIZES["demo"].steps), MODEL)
    precompute(work / "results")
    settings = read_run(run)["settings"]
    (HERE / "README.md").write_text(card(found, settings, json.loads((corpus / "sources.json").read_text("utf-8"))))
    print(finding(found))


def tell():
    """Progress on stderr, a line a hundred steps."""
    last = [""]

    def told(phrase: str, share: float | None) -> None:
        mark = phrase.partition(",")[0] + (f" {int(100 * share)} %" if share else "")
        if mark != last[0]:
            last[0] = mark
            print(phrase, file=sys.stderr, flush=True)

    return told


def halve(source: Path, target: Path) -> None:
    """The model with its numbers in half precision; it is loaded in single precision, as its configuration says."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", HASHES))  # of the full numbers
    tensors = {name: tensor.half().contiguous() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})


def precompute(scratch: Path) -> None:
    """What the pages show when they are first opened, as the same calls would compute it."""
    shutil.rmtree(BUNDLED, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)
    for corpus in RESULTS:
        analysis = Analysis("demo", corpus, Settings(positions=state.DEMO_POSITIONS), Store(scratch))
        encoding = analysis.encoding()
        analysis.observation()
        analysis.head_facts()
        analysis.prune(STANDARD, PRUNED)
        analysis.keep_prompt(state.DEFAULT_PROMPT)
        first = edits.offered(encoding)
        if first is not None:
            steering = analysis.steer([first])
            analysis.keep_texts(state.DEFAULT_PROMPT, steering, Sampling(samples=6))
    Store(scratch).put("dynamics", DEMO_KEY, read_kept(DEMO, "demo"))
    shutil.copytree(Store(scratch).results, BUNDLED)


def card(found: Dynamics, settings: dict[str, object], sources: list[dict[str, object]]) -> str:
    """The model card."""
    last, tokens = found.curve[-1], int(found.counts.sum())
    rows = [
        f"| {s['package']} | {s['version']} | {s['licence']} | {s['documents']:,} | {s['characters']:,} |"
        for s in sources
    ]
    curve = [f"| {c.step:,} | {c.r2_corpus_frequency:.3f} | {c.r2_alpha:.3f} | {c.loss:.2f} |" for c in found.curve]
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    parameters = sum(int(np.prod(t.shape)) for t in load_file(MODEL / "model.safetensors").values())
    made = f"{settings['layers']} layers, {settings['dim']} dimensions, untied head"
    run = f"{settings['steps']:,} steps of {settings['batch']} windows of {settings['context']} tokens"
    judging = float(str(settings["held_out"]))
    return f"""# The model `demo`

A GPT-NeoX of {parameters / 1e6:.1f} million parameters ({made}, byte-level BPE of {settings["vocab"]:,} tokens),
trained from nothing with Headscope's own trainer so that every page works without a download and the encoding can be
watched while it appears. It is made to be looked into, not to be used: its texts are grammatical at best.

- **Made by** `python assets/demo/build.py WORK_FOLDER`, seed {settings["seed"]}, {settings["threads"]} threads, {run},
  AdamW, peak learning rate {settings["learning_rate"]}.
- **Loss** {last.loss:.2f} nats per token on documents that it was not trained on.
- **Text** {tokens:,} tokens of English prose out of the Debian packages below, markup stripped (`corpus.py`).
  Another {judging / (1 + judging):.0%} of the text, whole documents, only judges. The text itself is not part of Headscope.
- **Stored** in half precision ({size / 1e6:.0f} MB in this folder), run in single precision. `checkpoints/` holds the
  output embedding of {len(found.checkpoints)} steps with the mean probabilities, loss and samples measured there;
  `results/` what the dashboard shows first, computed by the same code.

| step | R² of corpus frequency | R² of −log alpha | loss (nats) |
|---|---|---|---|
{chr(10).join(curve)}

{finding(found)}

| package | version | licence | documents | characters |
|---|---|---|---|---|
{chr(10).join(rows)}

The weights come under the licence of Headscope as far as it is ours to give; the texts stay under the licences above.
"""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python assets/demo/build.py WORK_FOLDER")
    main(Path(sys.argv[1]).resolve())
