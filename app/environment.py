"""How what was said on the command line reaches the server's pages; light, so that the server is there at once."""

from __future__ import annotations

MODEL_VARIABLE = "HEADSCOPE_MODEL"
CORPUS_VARIABLE = "HEADSCOPE_CORPUS"
AUDIENCE_VARIABLE = "HEADSCOPE_AUDIENCE"
ADDRESS_VARIABLE = "HEADSCOPE_ADDRESS"
SHARED_MEGABYTES = 5
"""Of a file that a stranger may upload."""
