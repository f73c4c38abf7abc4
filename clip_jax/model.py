"""CLIP: an image tower and a text tower that meet in one space (Radford et al. 2021)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from clip_jax.config import CLIPConfig
from clip_jax.text import TextFeatures, TextTransformer
from clip_jax.vit import VisionTransformer


class CLIPOutput(NamedTuple):
    image_features: Float[Array, "B D"]  # unit norm
    text_features: Float[Array, "B D"]  # unit norm
    logit_scale: Float[Array, ""]  # log of the inverse temperature


def unit_norm(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x / ‖x‖ in float32; a zero vector stays zero, also in its gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


class CLIP(nn.Module):
    """The model. Parameters: `visual`, `text`, `logit_scale`; so `params["text"]` alone drives a `TextTransformer`.

    Images are CLIP-normalised float NHWC (see `clip_jax.images`), tokens int32 [B, L].
    """

    config: CLIPConfig
    dtype: Any = jnp.float32  # of the matrix products; parameters stay float32

    def setup(self) -> None:
        config = self.config
        self.visual = VisionTransformer(config.vision, config.embed_dim, self.dtype)
        self.text = TextTransformer(config.text, config.embed_dim, self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(config.logit_scale_init), ())

    def encode_image(
        self, images: Float[Array, "B H W 3"], keep_patches: Int[Array, "B K"] | None = None
    ) -> Float[Array, "B D"]:
        """Image embeddings, not normalised."""
        return self.visual(images, keep_patches)

    def encode_text(self, tokens: Int[Array, "B L"]) -> TextFeatures:
        """Text embeddings (not normalised), per-token states and their mask."""
        return self.text(tokens)

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        tokens: Int[Array, "B L"],
        keep_patches: Int[Array, "B K"] | None = None,
    ) -> CLIPOutput:
        """Unit-norm features of both, and the (log) scale of their similarity."""
        return CLIPOutput(
            unit_norm(self.encode_image(images, keep_patches)),
            unit_norm(self.encode_text(tokens).embed),
            self.logit_scale,
        )


def init(config: CLIPConfig, key: Array) -> dict[str, Any]:
    """Fresh variables `{"params": …}`; give it to `jax.eval_shape` for shapes without memory."""
    size = config.vision.image_size
    return CLIP(config).init(key, jnp.zeros((1, size, size, 3)), jnp.zeros((1, config.text.context_length), jnp.int32))
