"""How the cache's verifier was trained: pairs that this package writes itself, and the fit. Not needed to serve."""
