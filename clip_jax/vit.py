"""The image tower: a vision transformer (Dosovitskiy et al. 2020, with the changes of Radford et al. 2021 §2.4)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from clip_jax.config import ViTConfig
from clip_jax.layers import LayerNorm, Transformer, fan_in_uniform, torch_init


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel, without bias: [B, H, W, 3] -> [B, H/P · W/P, C], row by row.

    Written as one matrix product over cut-out patches, several times faster than a strided convolution on a CPU.
    """

    width: int
    patch_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B P C"]:
        b, h, w, c = images.shape
        p = self.patch_size
        kernel = self.param("kernel", fan_in_uniform(p * p * c), (p, p, c, self.width))
        patches = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, (h // p) * (w // p), p * p * c)
        return patches.astype(self.dtype) @ kernel.reshape(p * p * c, self.width).astype(self.dtype)


class VisionTransformer(nn.Module):
    """Images -> embedding: patches, class token, positions, `ln_pre`, blocks, `ln_post` of the class token, `proj`."""

    config: ViTConfig
    embed_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], keep_patches: Int[Array, "B K"] | None = None
    ) -> Float[Array, "B D"]:
        """CLIP-normalised float images of the config's size -> embeddings, not normalised.

        `keep_patches` names the patches to look at; the others are dropped after they got their positions (FLIP,
        Li et al. 2022: a cheaper step and a regulariser in training). None looks at all of them.
        """
        config, std = self.config, self.config.width**-0.5
        size = (config.image_size, config.image_size)
        if images.shape[1:3] != size:
            raise ValueError(f"images are {images.shape[1:3]}, the model takes {size}: use its preprocess")
        class_embedding = self.param("class_embedding", nn.initializers.normal(std), (config.width,))
        positions = self.param(
            "positional_embedding", nn.initializers.normal(std), (config.grid**2 + 1, config.width)
        ).astype(self.dtype)

        x = PatchConv(config.width, config.patch_size, self.dtype, name="conv1")(images) + positions[1:]
        if keep_patches is not None:
            x = jnp.take_along_axis(x, keep_patches[..., None], axis=1)  # [B, K, C]
        first = jnp.broadcast_to(class_embedding.astype(self.dtype) + positions[0], (x.shape[0], 1, config.width))
        x = LayerNorm(config.ln_eps, name="ln_pre")(jnp.concatenate([first, x], axis=1))
        x = Transformer(config, torch_init(config), self.dtype, name="transformer")(x)
        x = LayerNorm(config.ln_eps, name="ln_post")(x[:, 0])
        return x @ self.param("proj", nn.initializers.normal(std), (config.width, self.embed_dim)).astype(self.dtype)
