"""Loads published unCLIP weights (Karlo, Kandinsky 2.2, ECLIPSE): name tables for `clip_jax.weights.rules`, readers."""
