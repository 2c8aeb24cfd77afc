"""Models: naming them, bringing their files here, loading them, and opening their output head."""
