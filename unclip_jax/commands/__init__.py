"""The commands of `sample.py`, a module each."""
