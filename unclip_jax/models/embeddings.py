"""Sinusoidal timestep embeddings, and the MLP that is applied to them."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num


def timestep_embedding(t: Num[Array, " B"], width: int, max_period: float = 10_000.0) -> Float[Array, "B width"]:
    """Sinusoidal embedding of timesteps, as in guided-diffusion: cosines first, divisor width / 2.

    Args:
        t: timesteps, [B].
        width: width of the embedding, even.
        max_period: period of the slowest component.

    Returns:
        float32 [B, width].

    Raises:
        ValueError: `width` is odd.
    """
    if width % 2:
        raise ValueError(f"timestep embedding width is {width}; give an even number")
    half = width // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepMLP(nn.Module):
    """Sinusoidal embedding of timesteps, then Linear, SiLU, Linear.

    Attributes:
        embedding_width: width of the sinusoidal embedding, even.
        width: width of both linear layers.
    """

    embedding_width: int
    width: int

    @nn.compact
    def __call__(self, t: Num[Array, " B"]) -> Float[Array, "B C"]:
        """Embeds timesteps [B] -> [B, width]."""
        h = nn.Dense(self.width, name="linear_1")(timestep_embedding(t, self.embedding_width))
        return nn.Dense(self.width, name="linear_2")(nn.silu(h))
