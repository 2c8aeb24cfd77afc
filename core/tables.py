"""Results as tables: what the CSV files and the pages' tables hold."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd

from core.encoding import Encoding
from core.store import write_text


def weight_table(encoding: Encoding) -> pd.DataFrame:
    """One row per dimension: dim, weight, stderr, t, p, saliency."""
    return pd.DataFrame(
        {
            "dim": np.arange(encoding.dim),
            "weight": encoding.weights,
            "stderr": encoding.standard_errors,
            "t": encoding.t_values,
            "p": encoding.p_values,
            "saliency": encoding.saliency,
        }
    )


def token_table(encoding: Encoding) -> pd.DataFrame:
    """One row per fitted token: id, token, kind, count, alpha, alpha_held_out, neg_log_alpha, predicted, residual (nats)."""
    return pd.DataFrame(
        {
            "id": encoding.token_ids,
            "token": encoding.tokens,
            "kind": encoding.kinds,
            "count": encoding.counts,
            "alpha": encoding.alpha,
            "alpha_held_out": encoding.alpha_held_out,
            "neg_log_alpha": encoding.neg_log_alpha,
            "predicted": encoding.predicted,
            "residual": encoding.residual,
        }
    )


def residual_groups(encoding: Encoding) -> pd.DataFrame:
    """Which tokens are off the line: by kind, and by how often they occur in the fitting text.

    Columns: group, tokens, mean residual (nats; positive is rarer than the embedding says), spread (standard deviation,
    nats), share_off (share of tokens further off than twice the residual spread of all).
    """
    residual, counts = encoding.residual, encoding.counts
    kinds = np.array(encoding.kinds)
    groups = {kind: kinds == kind for kind in sorted(set(encoding.kinds))}
    groups |= {
        "never in the text": counts == 0,
        "1 to 9 times": (counts > 0) & (counts < 10),
        "10 times or more": counts > 9,
    }
    return pd.DataFrame(
        [
            {
                "group": name,
                "tokens": int(there.sum()),
                "mean_residual": float(residual[there].mean()),
                "spread": float(residual[there].std()),
                "share_off": float((np.abs(residual[there]) > 2 * encoding.residual_std).mean()),
            }
            for name, there in groups.items()
            if there.any()
        ]
    )


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV; texts are quoted, since a token may be a line break."""
    return table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def write_csv(table: pd.DataFrame, path: str) -> None:
    """Write a table whole or not at all.

    Raises:
        InputError: the place cannot be written.
    """
    write_text(path, csv_text(table))
