"""OpenAI's API: a file for each of its doors. `import openai` anywhere is the SDK, since imports are absolute."""
