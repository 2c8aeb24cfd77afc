"""Many models, revisions and corpora, and one model over the parts of a corpus, on Ray: `headscope sweep PLAN.toml`.

Observations merge by addition, so a corpus can be observed in parts, each a task of its own on any machine of a cluster:

    plan.read_plan  ->  tasks (what a worker does; knows no Ray)  ->  cluster.run_sweep  ->  results (one Parquet data set)

A worker is given names and settings, never a model: it reads the model itself. What is lost with a worker is the one
task it was at, which runs again elsewhere; parts that are finished stay on the disk of the machine that started the
sweep, finished runs in its store and in the data set, so a sweep that was stopped goes on.
"""

from __future__ import annotations

from core.sweep.cluster import Event, Sweep, run_sweep
from core.sweep.plan import Plan, Run, Tasks, read_plan
from core.sweep.results import read_rows

__all__ = ["Event", "Plan", "Run", "Sweep", "Tasks", "read_plan", "read_rows", "run_sweep"]
