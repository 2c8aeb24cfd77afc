"""How alike texts before and after an edit are, as distributions and not pair by pair."""
