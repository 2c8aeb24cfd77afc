"""Benchmarks: what Headscope costs, as ratios against a baseline that is measured in the same run.

A ratio holds on another machine where seconds do not: ours and the baseline take turns, so whatever else the machine does
meets both, and the median over the rounds is told beside its limit. What needs a browser is measured in
`tests/benchmarks`.
"""

from __future__ import annotations

from core.bench.growth import Growth, measure_growth
from core.bench.measure import Ratio
from core.bench.rows import ROWS, Subject, measure

__all__ = ["ROWS", "Growth", "Ratio", "Subject", "measure", "measure_growth"]
