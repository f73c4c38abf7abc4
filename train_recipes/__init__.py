"""What `train.py` can train, a module for each kind of run.

Each has `PRESETS`, name to (what it is, config); `check(name, config)`, which refuses what can be seen to be wrong
before anything is prepared or written; and `train(name, config)`, which does it and says what came of it. Here, on the
roof, models (`clip_jax`, `unclip_jax`) and training (`train_jax`) meet.
"""

from image_text import __version__

__all__ = ["__version__"]
