"""Prune: delete dimensions of the output embedding, or give it a lower rank, and measure what that costs."""
