"""The training recipes of `train.py`: `presets.PRESETS` is the table of everything that it trains.

    presets.py      the preset table: hyperparameters, stages and data of every preset
    options.py      option dataclasses: every field is a command-line flag
    parts.py        types that a preset is made of: parts, kinds of stages, recipes
    data.py         training data: shapes world, captioned pictures, Fashion-MNIST
    pictures.py     which pictures a stage reads, and a source that decodes them
    draw.py         random subsets of a source
    clip.py         recipe: CLIP
    unclip.py       recipe: prior, decoder and upsamplers over a CLIP
    distill.py      recipe: progressive distillation of a decoder or upsampler
    engine.py       trains one stage to its last step
    check.py        checks before the first step
    evaluation.py   metrics and sample pictures during training
    sheets.py       contact sheet of a finished system
    main.py         the command

This package connects the models (`clip_jax`, `unclip_jax`) with the training loop (`train_jax`).
"""

from image_text import __version__

__all__ = ["__version__"]
