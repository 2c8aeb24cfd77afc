"""Everything that Headscope's speed and memory are measured by, one after the other: `python -m tests.benchmarks`.

Takes half an hour; leave the machine otherwise idle.
"""

from __future__ import annotations

import subprocess
import sys


def main() -> None:
    for arguments in (
        ("core.cli", "bench"),
        ("core.cli", "bench", "--growth"),
        ("tests.benchmarks.pruning",),
        ("tests.benchmarks.browser",),
    ):
        subprocess.run([sys.executable, "-m", *arguments], check=True)


if __name__ == "__main__":
    main()
