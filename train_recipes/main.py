"""`train.py`, or `unclip-train` where it is installed: train CLIP and unCLIP.

    python train.py shapes                                  # all four stages, text to image on the shapes world
    python train.py shapes-decoder --optim.lr 5e-4          # one of them
    python train.py shapes-distill                          # its decoder in 4 steps, without guidance
    python train.py small-64 --data.source captions.csv --clip openai/clip-vit-large-patch14
    python train.py mini-fashion --data.files fashion       # a small CLIP on Fashion-MNIST
    python train.py resnet50-bert --data.source captions.csv --vocab vocab.txt
    python train.py shapes-prior --num-steps 2000 --extend  # a run that is finished goes on, with another config
    python train.py shapes-prior --run new --begin-from old # another run begins with its weights
    python train.py shapes --help                           # every field and its value

Run again after an interruption, the same command goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from image_text.command_line import run_main
from train_jax.cli import choose, enable_compilation_cache, missing_device, tune_cpu
from train_recipes.presets import PRESETS

ABOUT = "Train CLIP and unCLIP; an interrupted run goes on where it was. With --debug errors come with a traceback."


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Train what `argv` says (None: the command line) and exit with 0, or with a line that says what is wrong."""
    tune_cpu(training=True)
    run_main(train, sys.argv[1:] if argv is None else argv, name="train", explain=missing_device)


def train(argv: list[str]) -> None:
    """Check the preset that is named, in all of its parts, then train it.

    Raises:
        UserError: something is wrong with what was asked for; nothing was written.
        RunError: a fault on the way.
    """
    rows = {name: (preset.about, preset.options) for name, preset in PRESETS.items()}
    name, options = choose(rows, argv, prog="train.py", description=ABOUT)
    preset = PRESETS[name]
    preset.recipe.check(name, preset, options)
    enable_compilation_cache()
    preset.recipe.train(name, preset, options)
