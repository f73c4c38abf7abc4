"""The command `train.py` (installed: `unclip-train`), which trains CLIP and unCLIP.

    python train.py shapes                                  # all four stages, text to image on the shapes world
    python train.py shapes-decoder --optim.lr 5e-4          # one stage of it
    python train.py shapes-distill                          # a decoder distilled to 4 steps, without guidance
    python train.py small-64 --data.source captions.csv --clip openai/clip-vit-large-patch14
    python train.py mini-fashion --data.files fashion       # a small CLIP on Fashion-MNIST
    python train.py resnet50-bert --data.source captions.csv --vocab vocab.txt
    python train.py shapes-prior --num-steps 2000 --extend  # continue a run with another config
    python train.py shapes-prior --run new --begin-from old # fine-tune: a new run begins with the weights of another
    python train.py shapes --help                           # every flag and its default

After an interruption the same command resumes from the newest checkpoint.
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
    """Runs the command with arguments `argv` (None: those of the command line) and exits.

    The exit status is 0 at success; 2 with a one-line message after bad input; 1 after a fault in training; and
    128 + the signal's number if SIGTERM or SIGINT stopped the run.
    """
    tune_cpu(training=True)
    run_main(train, sys.argv[1:] if argv is None else argv, name="train", explain=missing_device)


def train(argv: list[str]) -> None:
    """Checks all stages of the preset that `argv` names, then trains it.

    Raises:
        UserError: a flag, the data or a model does not fit; nothing was written.
        RunError: a fault during training.
    """
    rows = {name: (preset.about, preset.options) for name, preset in PRESETS.items()}
    name, options = choose(rows, argv, prog="train.py", description=ABOUT)
    preset = PRESETS[name]
    preset.recipe.check(name, preset, options)
    enable_compilation_cache()
    preset.recipe.train(name, preset, options)
