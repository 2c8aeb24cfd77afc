"""The run-time checker around `core` is on: otherwise the shapes in its signatures would be decoration."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from core.observe import Reservoir
from core.settings import Settings


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="hidden"):
        Reservoir(
            capacity=2,
            key=np.zeros(2, np.uint64),
            hidden=np.zeros((3, 4), np.float32),
            log_z=np.zeros(2),
            top_ids=np.zeros((2, 16), np.int32),
            top_logits=np.zeros((2, 16), np.float32),
            next_token=np.zeros(2, np.int32),
        )


def test_an_int_may_stand_for_a_float_but_not_a_text_for_an_int() -> None:
    assert Settings(held_out=1).held_out == 1
    with pytest.raises(TypeCheckError, match="positions"):
        Settings(positions="16384")  # type: ignore[arg-type]
