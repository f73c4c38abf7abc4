"""The image tower: a vision transformer (ViT, Dosovitskiy et al. 2020).

As CLIP changed it (Radford et al. 2021 §2.4), and as SigLIP has it (Zhai et al. 2023: no class token, pooled by
attention).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from clip_jax.arrays import AnyArray, check_is_array
from clip_jax.config import ViTConfig
from clip_jax.errors import UserError
from clip_jax.towers.attention import Implementation
from clip_jax.towers.layers import (
    MLP,
    Attention,
    LayerNorm,
    Transformer,
    fan_in_uniform,
    per_channel,
    sinusoids,
    torch_init,
)


class ImageFeatures(NamedTuple):
    """What an image tower knows about a batch of images."""

    embed: Float[Array, "B D"]  # in the joint space, not normalised
    hidden_states: tuple[Float[Array, "B *P C"], ...] | None = None  # on request: the input of the first block, then
    # the output of each, before the last norm (ResNets: [B, H, W, C], the stem's and each stage's)


def check_images(images: Num[AnyArray, "*N H W c"] | Any, image_size: int, channels: int) -> None:
    """Raises UserError for images that are no batch, no floats, or not of the model's size."""
    size = (image_size, image_size)
    check_is_array("images", images)
    if images.ndim != 4:
        raise UserError(
            f"images have the shape {list(images.shape)}, not [B, H, W, c]: for one image give images[None]"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}, the model takes CLIP-normalised floats: use its preprocess, or "
            "clip_jax.images.normalise for pixels of the right size"
        )
    if images.shape[1] == channels and images.shape[2:] == size and channels != image_size:
        raise UserError(f"images are [B, c, H, W] {list(images.shape)}: transpose them to [B, H, W, c]")
    if images.shape[1:3] != size:
        raise UserError(f"images are {images.shape[1:3]}, the model takes {size}: use its preprocess")
    if images.shape[3] != channels:
        raise UserError(f"images have {images.shape[3]} channels, the model takes {channels}: use its preprocess")


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel: [B, H, W, c] -> [B, H/P · W/P, C], row by row; no bias by default.

    Written as one matrix product over cut-out patches, several times faster than a strided convolution on a CPU.
    Pixels at the lower and right edge that fill no whole patch are left out.
    """

    width: int
    patch_size: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W c"]) -> Float[Array, "B P C"]:
        """Images -> patches [B, P, C], row by row."""
        b, h, w, c = images.shape
        p = self.patch_size
        kernel = self.param("kernel", fan_in_uniform(p * p * c), (p, p, c, self.width), jnp.float32)
        patches = images[:, : h - h % p, : w - w % p].reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, (h // p) * (w // p), p * p * c)
        out = patches.astype(self.dtype) @ kernel.reshape(p * p * c, self.width).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
            out = out + per_channel(bias, out).astype(self.dtype)
        return out


class ConvStem(nn.Module):
    """3×3 convolutions of stride 2, each with a norm and GELU: [B, H, W, c] -> [B, H/2^n, W/2^n, C] (Xiao et al. 2021).

    A linear patch embedding has to see a form anew in every colour. Behind a stem, forms and colours come apart early,
    so that pairs of them that were never seen in training are understood: README, "How good it is".
    """

    config: ViTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W c"]) -> Float[Array, "B h w C"]:
        """Images -> features at 1 / 2^n of the size."""
        x: Any = images
        for i, width in enumerate(self.config.stem):
            x = nn.Conv(width, (3, 3), (2, 2), padding=((1, 1), (1, 1)), dtype=self.dtype, name=f"conv_{i}")(x)
            x = jax.nn.gelu(LayerNorm(self.config.ln_eps, name=f"ln_{i}")(x), approximate=False)
        return x


class MAPHead(nn.Module):
    """Multi-head attention pooling (Zhai et al. 2021): a learned query `probe` looks at all patches, then an MLP."""

    config: ViTConfig
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B C"]:
        """Patches [B, P, C] -> the pooled state [B, C]."""
        config, inits = self.config, torch_init(self.config)
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, config.width), jnp.float32).astype(
            self.dtype
        )
        query = jnp.broadcast_to(probe, (x.shape[0], 1, config.width))
        h = Attention(config, inits, self.dtype, self.implementation, name="attention")(x, query=query)
        h = h + MLP(config, inits, self.dtype, name="mlp")(LayerNorm(config.ln_eps, name="layernorm")(h))
        return h[:, 0]


class VisionTransformer(nn.Module):
    """Images -> `ImageFeatures`: patches, class token, positions, `ln_pre`, blocks, `ln_post`, `proj`.

    With `pool="map"` there is no class token, and `head` takes the place of `proj`.
    """

    config: ViTConfig
    embed_dim: int | None  # None: no projection
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
        """CLIP-normalised float images of the config's size -> embeddings, not normalised.

        `keep_patches` names the patches to look at; the others are dropped after they got their positions (FLIP,
        Li et al. 2022: a cheaper step and a regulariser in training). None looks at all of them. `train` is for towers
        that differ in training; this one does not.
        """
        config, std = self.config, self.config.width**-0.5
        check_images(images, config.image_size, config.channels)
        classed = config.pool == "cls"
        if classed:
            class_embedding = self.param("class_embedding", nn.initializers.normal(std), (config.width,), jnp.float32)
        num_positions = config.grid**2 + classed
        if config.positions == "learned":
            positions = self.param(
                "positional_embedding", nn.initializers.normal(std), (num_positions, config.width), jnp.float32
            ).astype(self.dtype)
        else:
            positions = jnp.asarray(sinusoids(num_positions, config.width), self.dtype)

        patch_size = config.patch_size
        if config.stem:
            images = ConvStem(config, self.dtype, name="stem")(images)
            patch_size //= 2 ** len(config.stem)
        x = PatchConv(config.width, patch_size, config.patch_bias, self.dtype, name="conv1")(images)
        x = x + positions[None, classed:]
        if keep_patches is not None:
            x = jnp.take_along_axis(x, keep_patches[..., None], axis=1)  # [B, K, C]
        if classed:
            first = jnp.broadcast_to(class_embedding.astype(self.dtype) + positions[0], (x.shape[0], 1, config.width))
            x = jnp.concatenate([first, x], axis=1)
        if config.ln_pre:
            x = LayerNorm(config.ln_eps, name="ln_pre")(x)
        transformer = Transformer(config, torch_init(config), self.dtype, self.implementation, name="transformer")
        states = transformer.hidden_states(x) if hidden_states else (transformer(x),)
        ln_post = LayerNorm(config.ln_eps, name="ln_post")
        x = (
            ln_post(states[-1][:, 0])
            if classed
            else MAPHead(config, self.dtype, self.implementation, name="head")(ln_post(states[-1]))
        )
        if classed and self.embed_dim is not None:
            x = x @ self.param("proj", nn.initializers.normal(std), (config.width, self.embed_dim), jnp.float32).astype(
                self.dtype
            )
        return ImageFeatures(x, states if hidden_states else None)
