"""The presets of `train.py` as tests change, check and train them."""

import dataclasses

from train_recipes.presets import PRESETS


def options(name, **changes):
    """The options of a preset, some of them changed."""
    return dataclasses.replace(PRESETS[name].options, **changes)


def check(name, options):
    """What `train.py NAME` refuses before anything is written."""
    PRESETS[name].recipe.check(name, PRESETS[name], options)


def train(name, options):
    """What `train.py NAME` does."""
    PRESETS[name].recipe.train(name, PRESETS[name], options)
