"""What decides: fingerprints, cache, strategies, policy, admission, money. Imports `models` only, never Ray or torch."""
