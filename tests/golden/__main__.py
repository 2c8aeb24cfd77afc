"""`python -m tests.golden`: write the golden file anew; with `--print` the results on stdout. See `tests.golden.results`."""

from __future__ import annotations

import json
import os
import sys

from tests.golden import results

if threads := os.environ.get("HEADSCOPE_GOLDEN_THREADS"):
    import torch

    torch.set_num_threads(int(threads))
if sys.argv[1:] == ["--print"]:
    json.dump(results.compute(), sys.stdout, ensure_ascii=False)
else:
    results.write()
