"""Weights on disk: `native` is our own format; each published format gets a table of its own beside it."""
