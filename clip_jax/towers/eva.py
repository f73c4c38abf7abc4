"""The image tower of EVA-02-CLIP (Fang et al. 2023, arXiv:2303.11331; Sun et al. 2023, arXiv:2303.15389).

A vision transformer with rotary position embeddings (RoPE) on the patches, a gated MLP (SwiGLU), and a layer norm
before the output projection of attention and MLP. Queries and values have a bias, keys have none. Parameters have the
names of the original.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from clip_jax.arrays import AnyArray
from clip_jax.config import EVA02Config
from clip_jax.towers.attention import Implementation, attend, join_heads, split_heads
from clip_jax.towers.layers import LayerNorm, make_blocks, per_channel, run_blocks
from clip_jax.towers.vit import ImageFeatures, PatchConv, check_images

NORMAL = nn.initializers.truncated_normal(0.02)


def rotary_angles(grid: int, head_width: int, rope_grid: int) -> Float[np.ndarray, "P K"]:
    """RoPE in two dimensions (Su et al. 2021): the angle of each channel of a head at each patch, row by row.

    The row determines the angles of the first half of the channels, the column those of the second. Channels 2i and
    2i + 1 share an angle. The position of a patch is (row, column) · rope_grid / grid.

    Args:
        grid: patches along one side.
        head_width: channels K of a head.
        rope_grid: patches along one side in pre-training.

    Returns:
        Radians [grid², K].
    """
    frequencies = 10000.0 ** (-np.arange(0, head_width // 2, 2) / (head_width // 2))  # [K / 4]
    along = np.arange(grid)[:, None] / grid * rope_grid * frequencies
    along = along.repeat(2, axis=-1)  # [grid, K / 2]
    rows = np.broadcast_to(along[:, None], (grid, grid, head_width // 2))
    columns = np.broadcast_to(along[None], (grid, grid, head_width // 2))
    return np.concatenate([rows, columns], axis=-1).reshape(grid * grid, head_width)


def rotate(x: Float[Array, "B P N K"], cos: Float[Array, "*B P 1 K"], sin: Float[Array, "*B P 1 K"]) -> Array:
    """Rotates each pair of channels (a, b) = (2i, 2i + 1) by its angle: (a cos − b sin, b cos + a sin).

    Args:
        x: queries or keys of the patches.
        cos: of the angles; the result has its dtype.
        sin: of the angles.
    """
    x = x.astype(cos.dtype)
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    quarter = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return x * cos + quarter * sin


class EVAAttention(nn.Module):
    """Self-attention with RoPE and a layer norm before the output projection."""

    config: EVA02Config
    dtype: Any
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], cos: Array, sin: Array) -> Float[Array, "B L C"]:
        """Attention of the class token and the patches; `cos` and `sin` [1 or B, P, 1, K] rotate the patches (RoPE)."""
        width, heads = self.config.width, self.config.heads

        def project(name: str, bias: bool) -> Array:
            y = nn.Dense(width, use_bias=False, kernel_init=NORMAL, dtype=self.dtype, name=f"{name}_proj")(x)
            if bias:
                added = self.param(f"{name}_bias", nn.initializers.zeros, (width,), jnp.float32)
                y = y + per_channel(added, y).astype(self.dtype)
            return split_heads(y, heads)

        def rotated(y: Array) -> Array:  # the class token, which comes first, has no position
            return jnp.concatenate([y[:, :1], rotate(y[:, 1:], cos, sin).astype(y.dtype)], axis=1)

        q, k, v = rotated(project("q", True)), rotated(project("k", False)), project("v", True)
        out = join_heads(attend(q, k, v, implementation=self.implementation))
        out = LayerNorm(self.config.ln_eps, name="inner_attn_ln")(out)
        return nn.Dense(width, kernel_init=NORMAL, dtype=self.dtype, name="proj")(out)


class SwiGLU(nn.Module):
    """w3(ffn_ln(silu(w1 x) · w2 x))."""

    config: EVA02Config
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        """The gated MLP on the last axis."""
        config = self.config
        hidden = config.mlp_width or int(config.width * 2.6667)

        def dense(name: str, features: int, x: Array) -> Array:
            return nn.Dense(features, kernel_init=NORMAL, dtype=self.dtype, name=name)(x)

        h = nn.silu(dense("w1", hidden, x)) * dense("w2", hidden, x)
        return dense("w3", config.width, LayerNorm(config.ln_eps, name="ffn_ln")(h))


class EVABlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    config: EVA02Config
    dtype: Any
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], cos: Array, sin: Array) -> Float[Array, "B L C"]:
        """Hidden states [B, L, C] -> those of the next block."""
        eps = self.config.ln_eps
        attention = EVAAttention(self.config, self.dtype, self.implementation, name="attn")
        x = x + attention(LayerNorm(eps, name="norm1")(x), cos, sin)
        return x + SwiGLU(self.config, self.dtype, name="mlp")(LayerNorm(eps, name="norm2")(x))


class EVAVisionTransformer(nn.Module):
    """Images -> `ImageFeatures`: patches, class token, positions, blocks, `norm` of the class token, `head`."""

    config: EVA02Config
    embed_dim: int | None  # None: no head
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        images: Num[AnyArray, "*N H W c"] | Any,
        keep_patches: Int[AnyArray, "B K"] | None = None,
        *,
        train: bool = False,
        hidden_states: bool = False,
    ) -> ImageFeatures:
        """Encodes images; arguments and errors as of `clip_jax.towers.vit.VisionTransformer`."""
        config, width = self.config, self.config.width
        check_images(images, config.image_size, config.channels)
        cls_token = self.param("cls_token", NORMAL, (1, 1, width), jnp.float32).astype(self.dtype)
        positions = self.param("pos_embed", NORMAL, (1, config.grid**2 + 1, width), jnp.float32).astype(self.dtype)
        angles = jnp.asarray(rotary_angles(config.grid, width // config.heads, config.rope_grid), jnp.float32)[None]

        x = _PatchEmbed(config, self.dtype, name="patch_embed")(images) + positions[:, 1:]
        if keep_patches is not None:
            x = jnp.take_along_axis(x, keep_patches[..., None], axis=1)  # [B, K, C]
            angles = angles[0][keep_patches]  # [B, K, head]
        first = jnp.broadcast_to(cls_token + positions[:, :1], (x.shape[0], 1, width))
        x = jnp.concatenate([first, x], axis=1)
        block = nn.remat(EVABlock) if config.remat else EVABlock
        block = functools.partial(block, config, self.dtype, self.implementation)
        cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]  # [1 or B, P, 1, head]
        blocks = make_blocks(block, "blocks", config)
        states = run_blocks(blocks, config, x, cos, sin, hidden_states=hidden_states)
        embed = LayerNorm(config.ln_eps, name="norm")(states[-1][:, 0])
        if self.embed_dim is not None:
            embed = nn.Dense(self.embed_dim, kernel_init=NORMAL, dtype=self.dtype, name="head")(embed)
        return ImageFeatures(embed, states if hidden_states else None)


class _PatchEmbed(nn.Module):
    config: EVA02Config
    dtype: Any

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W c"]) -> Float[Array, "B P C"]:
        return PatchConv(self.config.width, self.config.patch_size, True, self.dtype, name="proj")(images)
