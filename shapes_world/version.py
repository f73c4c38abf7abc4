"""The version of the distribution `unclip-jax`; every package of it has it as `__version__`."""

__version__ = "0.1.0"
