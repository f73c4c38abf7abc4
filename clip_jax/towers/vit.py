"""Vision transformer (ViT, Dosovitskiy et al. 2020), the image tower of CLIP and SigLIP.

CLIP's variant is that of Radford et al. 2021 §2.4; SigLIP's has attention pooling in place of the class token (Zhai et
al. 2023).
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
    """Output of an image tower.

    Attributes:
        embed: image embeddings in the joint space, not normalised, [B, D].
        hidden_states: on request, the input of the first block and the output of each block, before the last norm,
            [B, P, C]; of ResNets the output of the stem and of each stage, [B, H, W, C].
    """

    embed: Float[Array, "B D"]
    hidden_states: tuple[Float[Array, "B *P C"], ...] | None = None


def check_images(images: Num[AnyArray, "*N H W c"] | Any, image_size: int, channels: int) -> None:
    """Checks that images fit an image tower.

    Raises:
        UserError: If images are not floats [B, image_size, image_size, channels].
    """
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
    """Patch embedding: a convolution whose stride is its kernel size, [B, H, W, c] -> [B, H/p · W/p, C], row by row.

    It is computed as one matrix product over the patches, which on a CPU is several times faster than a strided
    convolution. Pixels at the lower and right edge that fill no whole patch are left out.
    """

    width: int
    patch_size: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W c"]) -> Float[Array, "B P C"]:
        """Images -> patch embeddings [B, P, C], row by row."""
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
    """Convolutional stem before the patch embedding (Xiao et al. 2021): [B, H, W, c] -> [B, H/2^n, W/2^n, C].

    It is n 3×3 convolutions of stride 2, each with a layer norm and GELU. A linear patch embedding needs separate
    weights for a form in each colour. A stem separates form and colour early, so that the model generalises to
    combinations that are not in the training data: README, "How good it is".
    """

    config: ViTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W c"]) -> Float[Array, "B h w C"]:
        """Images -> feature map [B, H/2^n, W/2^n, C]."""
        x: Any = images
        for i, width in enumerate(self.config.stem):
            x = nn.Conv(width, (3, 3), (2, 2), padding=((1, 1), (1, 1)), dtype=self.dtype, name=f"conv_{i}")(x)
            x = jax.nn.gelu(LayerNorm(self.config.ln_eps, name=f"ln_{i}")(x), approximate=False)
        return x


class MAPHead(nn.Module):
    """Multi-head attention pooling (MAP, Zhai et al. 2021): a learned query `probe` attends to patches; then an MLP."""

    config: ViTConfig
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B C"]:
        """Hidden states of the patches [B, P, C] -> pooled state [B, C]."""
        config, inits = self.config, torch_init(self.config)
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, config.width), jnp.float32).astype(
            self.dtype
        )
        query = jnp.broadcast_to(probe, (x.shape[0], 1, config.width))
        h = Attention(config, inits, self.dtype, self.implementation, name="attention")(x, query=query)
        h = h + MLP(config, inits, self.dtype, name="mlp")(LayerNorm(config.ln_eps, name="layernorm")(h))
        return h[:, 0]


class VisionTransformer(nn.Module):
    """Vision transformer: images -> `ImageFeatures`.

    Patches, class token, positions, `ln_pre`, blocks, `ln_post`, `proj`. With `pool="map"` there is no class token, and
    `head` takes the place of `proj`.
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
        """Encodes images.

        Args:
            images: CLIP-normalised float [B, H, W, c] of the config's image size.
            keep_patches: indices [B, K] of the patches that are kept; the others are dropped after the position
                embeddings are added (FLIP, Li et al. 2022: cheaper training steps, and regularisation). None: all.
            train: ignored; other towers use it.
            hidden_states: whether to return the hidden states of all layers.

        Raises:
            UserError: If the images do not fit the model.
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
