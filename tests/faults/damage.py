"""Damage to a file: what disks, copies and killed writers do to bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

KINDS = ("bit", "byte", "zeros", "noise", "cut", "empty", "longer", "moved")


def damaged(raw: bytes, kind: str, random: np.random.Generator) -> bytes:
    """The bytes of a file after something happened to them; they are always others than before."""
    content, size = bytearray(raw), len(raw)
    at = int(random.integers(size))
    end = min(size, at + int(random.integers(1, 600)))
    if kind == "bit":
        content[at] ^= 1 << int(random.integers(8))
    elif kind == "byte":
        content[at] ^= int(random.integers(1, 256))
    elif kind == "zeros":  # a block that never reached the disk
        content[at:end] = bytes(end - at)
    elif kind == "noise":
        content[at:end] = random.bytes(end - at)
    elif kind == "cut":
        del content[at:]
    elif kind == "empty":
        content.clear()
    elif kind == "longer":
        content += random.bytes(int(random.integers(1, 100)))
    else:  # a part stands where another belongs
        to = int(random.integers(size))
        piece = bytes(content[at:end])
        content[to : to + len(piece)] = piece
    return bytes(content) if content != raw else damaged(raw, "byte", random)


def damage(path: Path, kind: str, random: np.random.Generator) -> None:
    """Damages a file where it lies."""
    path.write_bytes(damaged(path.read_bytes(), kind, random))
