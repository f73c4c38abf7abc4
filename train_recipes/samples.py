"""Pictures for people to look at: what a decoder makes of real pictures, and what a finished system draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def decoded_examples(stage: Any, clip: Any, images: Any, tokens: Any) -> Callable[[Any], dict[str, Any]]:
    """An evaluation that decodes a few training examples from their own embeddings: a grid, real above decoded."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from clip_jax.encode import joined
    from unclip_jax import stage as stages
    from unclip_jax.diffusion.keys import sample_keys
    from unclip_jax.tasks import encode, to_uint8

    size = stage.model.image_size
    cond = encode(clip.model.config, joined(clip.variables), jnp.asarray(images), jnp.asarray(tokens))
    keys = sample_keys(jax.random.key(0), jnp.arange(len(images)))
    real = images.reshape(len(images), size, images.shape[1] // size, size, images.shape[1] // size, 3).mean((2, 4))
    draw = jax.jit(lambda variables: to_uint8(stages.run(stage, variables, cond, keys)))

    def evaluate(state: Any) -> dict[str, Any]:
        drawn = np.asarray(draw({"params": state.ema_params, **state.model_state}))
        rows = [np.hstack(list(pictures)) for pictures in (real.astype(np.uint8), drawn)]
        return {"samples": np.vstack(rows)}

    return evaluate


def write_samples(run: Path) -> Path:
    """A sheet of pictures for a few captions, seen and held out in turn: ``run/samples.png``."""
    import shapes_world

    picked = [shapes_world.combinations(split)[i] for i in (3, 11, 20) for split in ("train", "heldout")]
    return draw_sheet(run, [shapes_world.caption(labels) for labels in picked])


def draw_sheet(run: Path, prompts: list[str]) -> Path:
    """Four pictures for each prompt, by the system in the run directory: ``run/samples.png``."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax import pipeline
    from unclip_jax.diffusion.keys import sample_keys
    from unclip_jax.pictures import contact_sheet, save_png
    from unclip_jax.tasks import to_uint8

    loaded = pipeline.load(run)
    captions = [prompt for prompt in prompts for _ in range(4)]
    keys = sample_keys(jax.random.key(0), jnp.arange(len(captions)))
    generation = pipeline.generate_jit(loaded.unclip, loaded.params, loaded.tokenize(captions), keys)
    images = np.asarray(to_uint8(generation.images))
    rows = [(captions[i], list(images[i : i + 4])) for i in range(0, len(captions), 4)]
    save_png(run / "samples.png", contact_sheet(rows))
    return run / "samples.png"
