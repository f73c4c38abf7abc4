"""Shortcuts to change, check and train the presets of `train.py` in tests."""

import dataclasses

from train_recipes.presets import PRESETS


def options(name, **changes):
    """The options of a preset, with `changes`."""
    return dataclasses.replace(PRESETS[name].options, **changes)


def check(name, options):
    """Runs the checks of `train.py NAME` with these options."""
    PRESETS[name].recipe.check(name, PRESETS[name], options)


def train(name, options):
    """Trains as `train.py NAME` does, without the checks."""
    PRESETS[name].recipe.train(name, PRESETS[name], options)
