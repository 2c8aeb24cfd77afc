"""The one way into a forward pass: a permanent forward-pre-hook on the output head.

It hands what the head is about to receive to a visitor held in a ContextVar. A thread, or a context, sees only its
own visitor, so many can run the same model at once, and nothing is registered or removed while they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

Visitor = Callable[[torch.Tensor], None]

_VISITOR: ContextVar[Visitor | None] = ContextVar("headscope_visitor", default=None)


class HeadReached(BaseException):
    """Ends a forward pass at the head, carrying its input [b, t, d].

    It is no `Exception`, so that no model's own error handling can swallow it.
    """

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def stop(hidden: torch.Tensor) -> None:
    """The visitor that ends the forward pass."""
    raise HeadReached(hidden)


@contextlib.contextmanager
def visiting(visitor: Visitor) -> Iterator[None]:
    """Inside, and in this context only, `visitor` gets every input of a hooked head."""
    token = _VISITOR.set(visitor)
    try:
        yield
    finally:
        _VISITOR.reset(token)


def install(layer: nn.Module) -> None:
    """Puts the hook on a head, once for the life of the model."""
    layer.register_forward_pre_hook(_visit, with_kwargs=True)


def _visit(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if (visitor := _VISITOR.get()) is not None:
        visitor(args[0] if args else kwargs["input"])
