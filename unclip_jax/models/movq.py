"""The decoder of MoVQ (Zheng et al. 2022, arXiv:2209.09002), which decodes the latents of Kandinsky to pictures.

Scale and shift of every norm are computed per pixel from the latents. The latents are not quantised first, because
Kandinsky decodes what its U-Net drew.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.errors import UserError
from clip_jax.towers.attention import attend, join_heads, split_heads
from unclip_jax.models.unet import Level, nearest_double


@dataclass(frozen=True)
class MoVQConfig:
    """Architecture of the decoder.

    Attributes:
        levels: resolutions from the finest to the coarsest, each half of the one before, with their blocks.
        latent_channels: channels of the latents.
        channels: channels of the pictures.
        dtype: dtype of the matrix products; parameters, norms and softmax are always float32.

    Raises:
        UserError: there are no levels, or a width is not divisible by the groups of the norms.
    """

    levels: tuple[Level, ...]
    latent_channels: int = 4
    channels: int = 3
    dtype: str = "float32"

    def __post_init__(self):
        if not self.levels:
            raise UserError("levels is empty: give at least one")
        for level in self.levels:
            if level.width % GROUPS:
                raise UserError(f"level width {level.width} is not divisible by {GROUPS}, the groups of MoVQ's norms")

    @property
    def scale(self) -> int:
        """Factor between the side of a picture and the side of its latents."""
        return 2 ** (len(self.levels) - 1)


GROUPS = 32


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift are linear functions of the latents at each pixel."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], latents: Float[Array, "B h w c"]) -> Float[Array, "B ..."]:
        """Applies the module; the norms are modulated by `latents`."""
        width, factor = x.shape[-1], x.shape[1] // latents.shape[1]
        latents = jnp.repeat(jnp.repeat(latents, factor, axis=1), factor, axis=2)
        h = nn.GroupNorm(GROUPS, epsilon=1e-6, use_fast_variance=False, name="norm")(x).astype(x.dtype)
        scale, shift = (nn.Dense(width, dtype=self.dtype, name=name)(latents) for name in ("scale", "shift"))
        return h * scale + shift


class Block(nn.Module):
    """Residual block: two times norm, SiLU and convolution, plus a skip connection."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], latents: Float[Array, "B h w c"]) -> Float[Array, "B ..."]:
        """Applies the module; the norms are modulated by `latents`."""
        conv = functools.partial(nn.Conv, self.width, (3, 3), dtype=self.dtype)
        h = conv(name="conv1")(nn.silu(SpatialNorm(self.dtype, name="norm1")(x, latents)))
        h = conv(name="conv2")(nn.silu(SpatialNorm(self.dtype, name="norm2")(h, latents)))
        return h + (x if x.shape[-1] == self.width else nn.Dense(self.width, dtype=self.dtype, name="conv_shortcut")(x))


class Attention(nn.Module):
    """Self-attention over pixels with one head, plus a skip connection."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], latents: Float[Array, "B h w c"]) -> Float[Array, "B ..."]:
        """Applies the module; the norms are modulated by `latents`."""
        b, height, width, c = x.shape
        dense = functools.partial(nn.Dense, c, dtype=self.dtype)
        h = SpatialNorm(self.dtype, name="spatial_norm")(x, latents).reshape(b, height * width, c)
        query, key, value = (split_heads(dense(name=name)(h), 1) for name in ("to_q", "to_k", "to_v"))
        h = join_heads(attend(query, key, value))
        return x + dense(name="to_out")(h).reshape(x.shape)


class MoVQDecoder(nn.Module):
    """Decodes latents [B, h, w, c] to pictures float32 [B, H, W, 3], approximately in [−1, 1]."""

    config: MoVQConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W 3"]:
        """Decodes latents."""
        config, dtype = self.config, self.config.dtype
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), dtype=dtype)
        coarsest = config.levels[-1].width
        h = nn.Dense(config.latent_channels, dtype=dtype, name="post_quant_conv")(latents)
        h = conv(coarsest, name="conv_in")(h)
        h = Block(coarsest, dtype, name="middle_block_0")(h, latents)
        h = Attention(dtype, name="middle_attention")(h, latents)
        h = Block(coarsest, dtype, name="middle_block_1")(h, latents)
        for i, level in reversed(list(enumerate(config.levels))):
            for j in range(level.blocks):
                h = Block(level.width, dtype, name=f"up_{i}_block_{j}")(h, latents)
                if level.attention:
                    h = Attention(dtype, name=f"up_{i}_attention_{j}")(h, latents)
            if i > 0:
                h = Upsample(level.width, dtype, name=f"up_{i}_upsample")(h)
        h = nn.silu(SpatialNorm(dtype, name="norm_out")(h, latents))
        return conv(config.channels, name="conv_out")(h).astype(jnp.float32)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, and a convolution."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Upsamples [B, H, W, C] -> [B, 2H, 2W, width]."""
        return nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv")(nearest_double(x))
