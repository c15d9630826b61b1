"""What answers a prompt: messages, errors, the catalogue, engines and provider adapters. Imports nothing of `router`."""
