"""Anthropic's API: a file for each of its doors. `import anthropic` anywhere is the SDK, since imports are absolute."""
