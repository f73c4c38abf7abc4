"""What `train.py` can train: `presets.PRESETS`, a row for each name, and the recipes that the rows name.

    presets.py      the table: numbers, parts and data of every preset
    options.py      what can be said on the command line         parts.py     what a row is made of
    data.py         sources: shapes, captions, Fashion-MNIST     pictures.py  which pictures a stage is given
    clip.py  unclip.py  distill.py                               the three families of recipes
    engine.py       one stage, trained to its end                check.py     what is refused before the first step
    evaluation.py   what is measured meanwhile                   sheets.py    what a finished system draws
    main.py         the command

Here models (`clip_jax`, `unclip_jax`) and training (`train_jax`) meet.
"""

from image_text import __version__

__all__ = ["__version__"]
