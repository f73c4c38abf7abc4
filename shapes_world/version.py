"""The version of the distribution `unclip-jax`, which every package of it exports as `__version__`."""

__version__ = "0.1.0"
