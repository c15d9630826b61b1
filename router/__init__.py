"""What decides: fingerprints, cache, strategies, policy, admission and money. Imports `models` only, never Ray or torch."""
