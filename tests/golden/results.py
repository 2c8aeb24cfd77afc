"""What is computed for the golden file: every step of the method on `demo`, with few positions, from nothing kept.

`python -m tests.golden` writes `demo.json` anew, after a change that is meant to change numbers; say in the commit why.
`python -m tests.golden --print` writes the results to stdout instead, with all their digits.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from core import summary
from core.analysis import Analysis
from core.results import Sampling, plain
from core.series import dynamics
from core.series import summary as series_summary
from core.settings import Settings
from core.steering import Edit
from core.store import Store

FILE = Path(__file__).with_name("demo.json")
DIGITS = 4
"""Significant digits that hold on every machine: logits are sums in fp32, whose order a processor chooses."""
SAME_DIGITS = 6
"""Significant digits that hold on one machine with any number of threads."""
SETTINGS = Settings(positions=768, context=64, seed=5)
PROMPT = "We walked along the"


def compute() -> dict[str, Any]:
    """Everything, in a few seconds; nothing that was stored before is read."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        analysis = Analysis("demo", "sampler", SETTINGS, store)
        encoding = analysis.encoding()
        tokens = [int(i) for i in encoding.token_ids[encoding.alpha.argsort()[::-1]][[30, 200, 900]]]
        edits = [Edit(token, ratio) for token, ratio in zip(tokens, (5.0, 0.2, 2.0), strict=True)]
        steering = analysis.steer(edits)
        return plain(
            {
                "fit": summary.fit(encoding, model="demo", corpus="sampler") | {"seconds": 0.0},
                "steer": summary.steer(
                    steering,
                    model="demo",
                    corpus="sampler",
                    baselines=analysis.baselines(edits),
                    sweep=analysis.sweep(edits, [0.1, 1, 10]),
                    few_shot=analysis.few_shot(edits, [16, 256]),
                    at_prompt=analysis.next_token(PROMPT, steering),
                ),
                "prune": summary.prune(
                    analysis.prune(("saliency", "random", "compensated", "rotated"), (0.0, 0.3), seeds=2), model="demo"
                ),
                "generate": list(analysis.generate(PROMPT, None, Sampling(2, 12)).before),
                "dynamics": series_summary(dynamics(["demo"], None, Settings(), store)),
            }
        )


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """The same with every number at so many significant digits."""
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each, digits) for each in value]
    if isinstance(value, float) and math.isfinite(value) and value:
        return float(f"{value:.{digits}g}")
    return value


def differences(a: Any, b: Any, digits: int, smallest: float = 1e-6, at: str = "") -> list[str]:
    """Where two results are not the same to so many significant digits; what is below `smallest` counts as nothing."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [each for key in a for each in differences(a[key], b[key], digits, smallest, f"{at}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [each for i in range(len(a)) for each in differences(a[i], b[i], digits, smallest, f"{at}[{i}]")]
    if isinstance(a, float) and isinstance(b, float):
        close = math.isclose(a, b, rel_tol=0.5 * 10 ** (1 - digits), abs_tol=smallest)
        return [] if close or a == b else [f"{at}: {a!r} and {b!r}"]
    return [] if a == b else [f"{at}: {a!r} and {b!r}"]


def write() -> None:
    FILE.write_text(json.dumps(rounded(compute(), DIGITS + 1), indent=1, ensure_ascii=False) + "\n", "utf-8")
