"""The demo models: three small chat models trained from scratch on text that this folder writes itself."""
