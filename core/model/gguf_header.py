"""What the header of a GGUF file announces, held against the file before any of it is believed."""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import Any

from core.errors import AnalysisError
from core.model.weights import readable
from core.words import short, size

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value → its bytes. Source: the GGUF specification, as are the two types below."""
STRING, LIST = 8, 9
MOST_ENTRIES = 3_000_000
"""Of all lists of a header together, each of which the reader makes an object of; with a vocabulary of 262,144 and its
merges they are about 1,300,000."""
DEEPEST = 8
"""Lists within lists."""
LONGEST_TEMPLATE = 2**20
"""Bytes of a chat template, whose tokenizer would else be written and read for minutes."""
NO_WEIGHTS = re.compile(r"(^|\.)(rope_|attn_rot_embd|nextn)")
"""Tensors that may be left aside: what positions are turned by, which is worked out, and layers for guessing ahead."""


def check_lengths(path: Path) -> None:
    """Whether the file is as long as its header announces; the reader would go on beyond its end until memory is full.

    Raises:
        AnalysisError: it is shorter, or its lists are longer than those of any model.
    """
    with readable(path), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        try:
            _Walk(raw).through()
        except (struct.error, EOFError) as error:
            raise AnalysisError(f"{path.name} ends inside of its header: it is damaged, so copy it again.") from error
        except OverflowError as error:
            raise AnalysisError(
                f"The header of {path.name} holds lists of more than {MOST_ENTRIES:,} entries, or {DEEPEST} of them within "
                "each other, as no model has: it is damaged, so copy it again."
            ) from error


class _Walk:
    """From one value of a header to the next, by the lengths that they announce."""

    def __init__(self, raw: mmap.mmap) -> None:
        self.raw, self.at, self.entries = raw, 4, 0
        swapped = not struct.unpack_from("<I", raw, 4)[0] & 0xFFFF  # of a version in the other order
        self.order = ">" if swapped else "<"

    def through(self) -> None:
        self._number("I")  # the version
        self._number("Q")  # tensors
        for _ in range(self._number("Q")):
            self._skip(self._number("Q"))
            self._value(self._number("I"), 0)

    def _number(self, kind: str) -> int:
        found = struct.unpack_from(self.order + kind, self.raw, self.at)[0]
        self.at += struct.calcsize(kind)
        return int(found)

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.raw):
            raise EOFError

    def _value(self, kind: int, depth: int) -> None:
        if kind in SCALARS:
            self._skip(SCALARS[kind])
        elif kind == STRING:
            self._skip(self._number("Q"))
        elif kind == LIST:
            inner, count = self._number("I"), self._number("Q")
            self.entries += count * (100 if inner == LIST else 1)  # of those each takes the reader so much longer
            if self.entries > MOST_ENTRIES or depth == DEEPEST:
                raise OverflowError
            if inner in SCALARS:
                self._skip(count * SCALARS[inner])
            else:
                for _ in range(count):
                    self._value(inner, depth + 1)
        else:
            raise EOFError  # there is no such type: what stands there is no header any more


def check_header(path: Path, read: Any) -> None:
    """Raises `AnalysisError` if a file speaks of more layers than it has, its tensors do not lie one behind the other, as
    other readers demand it (of two that overlap one would be the other's numbers), or a template is too long."""
    place = int(read.data_offset)
    for tensor in read.tensors:
        if int(tensor.data_offset) != place:
            raise AnalysisError(
                f"The tensors of {path.name} do not lie one behind the other ({short(tensor.name)} is out of place): it is "
                "damaged, so copy it again."
            )
        place += -(-int(tensor.n_bytes) // read.alignment) * read.alignment
    for key, field in read.fields.items():
        if "chat_template" in key and (length := sum(part.nbytes for part in field.parts)) > LONGEST_TEMPLATE:
            raise AnalysisError(
                f"A chat template of {path.name} has {size(length)}, and at most {size(LONGEST_TEMPLATE)} are read: copy it "
                "again, or use another file of the same model."
            )
        if key.endswith(".block_count") and not 0 < (layers := int(field.contents())) <= max(len(read.tensors), 1000):
            raise AnalysisError(
                f"{path.name} speaks of {layers:,} layers and holds {len(read.tensors):,} tensors: it is damaged, so copy it "
                "again."
            )


def weights(read: Any) -> int:
    """How many numbers of a GGUF file make the model."""
    return sum(int(tensor.n_elements) for tensor in read.tensors if not NO_WEIGHTS.search(tensor.name))
