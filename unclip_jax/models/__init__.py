"""The networks, each beside its config."""
