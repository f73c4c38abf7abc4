"""unCLIP (DALL·E 2, Ramesh et al. 2022) for JAX: text to image, variations, edits, and their training.

In short:

    unclip, params, tokenize = unclip_jax.load()                            # the weights that come with the package
    keys = unclip_jax.sample_keys(jax.random.key(0), jnp.arange(4))         # one per picture
    images = unclip_jax.generate_jit(unclip, params, tokenize(["a small red circle in the top left"] * 4), keys).images
    unclip_jax.to_uint8(images)                                             # uint8 [4, 64, 64, 3]
"""

from image_text import __version__
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.keys import sample_keys
from unclip_jax.pipeline import (
    Generation,
    Guidance,
    LoadedUnCLIP,
    UnCLIP,
    generate,
    generate_jit,
    load,
    load_stage,
    save_stage,
)
from unclip_jax.presets import PRESETS, preset
from unclip_jax.priors import ARStage, OneStepStage
from unclip_jax.stage import Sampling, Stage
from unclip_jax.tasks import (
    ARPriorTask,
    DecoderTask,
    OneStepPriorTask,
    PriorTask,
    UpsamplerTask,
    to_signed,
    to_uint8,
)

__all__ = [
    "PRESETS",
    "ARPriorTask",
    "ARStage",
    "Cond",
    "DecoderTask",
    "Generation",
    "Guidance",
    "LoadedUnCLIP",
    "OneStepPriorTask",
    "OneStepStage",
    "PriorTask",
    "Sampling",
    "Stage",
    "UnCLIP",
    "UpsamplerTask",
    "__version__",
    "generate",
    "generate_jit",
    "load",
    "load_stage",
    "preset",
    "sample_keys",
    "save_stage",
    "to_signed",
    "to_uint8",
]
