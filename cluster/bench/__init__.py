"""Benchmarks. Each prints a short table and writes JSON."""
