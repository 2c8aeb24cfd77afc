"""Tables: every token once, and a CSV that comes back as it was, line breaks in tokens included."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.errors import InputError
from core.tables import csv_text, residual_groups, token_table, weight_table, write_csv


def test_a_csv_comes_back_as_it_was(tiny_analysis) -> None:
    encoding = tiny_analysis("gpt2").encoding()
    table = token_table(encoding)
    table.loc[0, "token"] = 'a\r\nb,"c"\r'
    again = pd.read_csv(io.StringIO(csv_text(table)), keep_default_na=False, lineterminator="\n")
    assert again["token"][0] == 'a\r\nb,"c"\r' and len(again) == len(table)
    np.testing.assert_allclose(again["residual"], table["residual"], rtol=1e-12)
    assert len(weight_table(encoding)) == encoding.dim


def test_groups_split_the_tokens_twice(tiny_analysis) -> None:
    encoding = tiny_analysis("gpt2").encoding()
    groups = residual_groups(encoding)
    assert groups["tokens"].sum() == 2 * len(encoding.tokens)  # once by kind, once by count
    total = (groups["tokens"] * groups["mean_residual"]).sum() / 2
    assert total == pytest.approx(encoding.residual.sum(), abs=1e-6)
    assert groups["share_off"].between(0, 1).all()


def test_a_place_that_cannot_be_written_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_csv(pd.DataFrame({"a": [1]}), str(tmp_path / "missing" / "x.csv"))
    assert list(tmp_path.iterdir()) == []
