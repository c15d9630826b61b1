"""What decides: fingerprints, cache, strategies, policy, admission, money. Imports only `models`, no Ray, no torch."""
