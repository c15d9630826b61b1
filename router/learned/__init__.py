"""The learned classifier: from a prompt's text to the probability that a small or a large model answers it well."""
