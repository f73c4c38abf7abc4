"""Trains CLIP and unCLIP.

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
from typing import Any

from image_text.command_line import run_main
from train_jax.cli import choose, enable_compilation_cache, missing_device, tune_cpu

if __name__ == "__main__":
    tune_cpu(training=True)

from train_recipes import clip as image_captions
from train_recipes import distill, mini_fashion, shapes, unclip

RECIPES: tuple[Any, ...] = (shapes, distill, unclip, mini_fashion, image_captions)
PRESETS = {name: row for recipe in RECIPES for name, row in recipe.PRESETS.items()}


def main(argv: list[str]) -> None:
    about = "Train CLIP and unCLIP; an interrupted run goes on where it was. With --debug errors come with a traceback."
    name, config = choose(PRESETS, argv, prog="train.py", description=about)
    recipe = next(recipe for recipe in RECIPES if name in recipe.PRESETS)
    recipe.check(name, config)
    enable_compilation_cache()
    recipe.train(name, config)


if __name__ == "__main__":
    run_main(main, sys.argv[1:], name="train", explain=missing_device)
