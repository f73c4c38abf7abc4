"""The contact sheet of pictures that a system draws at the end of its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax import pipeline
from unclip_jax.diffusion.keys import sample_keys
from unclip_jax.pictures import contact_sheet, save_png
from unclip_jax.tasks import to_uint8

FOR_EACH = 4  # pictures per prompt


def draw_sheet(run: Path, prompts: Sequence[str]) -> Path:
    """Draws four pictures per prompt with the system in a run directory, and saves them as RUN/samples.png.

    Returns:
        The path of the contact sheet.
    """
    loaded = pipeline.load(run)
    captions = [prompt for prompt in prompts for _ in range(FOR_EACH)]
    keys = sample_keys(jax.random.key(0), jnp.arange(len(captions)))
    generation = pipeline.generate_jit(loaded.unclip, loaded.params, loaded.tokenize(captions), keys)
    images = np.asarray(to_uint8(generation.images))
    rows = [(captions[i], list(images[i : i + FOR_EACH])) for i in range(0, len(captions), FOR_EACH)]
    save_png(run / "samples.png", contact_sheet(rows))
    return run / "samples.png"
