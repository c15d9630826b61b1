"""What answers a prompt: messages, errors, the catalogue, engines, adapters. Imports nothing of `router`."""
