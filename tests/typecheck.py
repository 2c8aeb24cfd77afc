"""The run-time type checker that `tests/conftest.py` puts around every function and dataclass of `core`.

It is beartype, with one allowance that static checkers make too: an int may stand where a float is expected.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_CONF = BeartypeConf(is_pep484_tower=True)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotated arguments and result checked at every call."""
    return beartype(conf=_CONF)(function)
