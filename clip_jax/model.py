"""CLIP: an image tower and a text tower that meet in one space (Radford et al. 2021)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num, Shaped

from clip_jax.arrays import AnyArray
from clip_jax.config import (
    BertConfig,
    CLIPConfig,
    EVA02Config,
    PlainResNetConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from clip_jax.errors import UserError
from clip_jax.towers.attention import Implementation
from clip_jax.towers.bert import BertTower
from clip_jax.towers.eva import EVAVisionTransformer
from clip_jax.towers.resnet import ModifiedResNet, ResNet
from clip_jax.towers.text import TextFeatures, TextTransformer
from clip_jax.towers.vit import ImageFeatures, VisionTransformer

VISION_TOWERS: dict[type, type[nn.Module]] = {
    ViTConfig: VisionTransformer,
    EVA02Config: EVAVisionTransformer,
    ResNetConfig: ModifiedResNet,
    PlainResNetConfig: ResNet,
}
TEXT_TOWERS: dict[type, type[nn.Module]] = {TextConfig: TextTransformer, BertConfig: BertTower}


class CLIPOutput(NamedTuple):
    """Unit-norm features of both towers, and the scale and bias of their similarities."""

    image_features: Float[Array, "B D"]  # unit norm
    text_features: Float[Array, "T D"]  # unit norm
    logit_scale: Float[Array, ""]  # log of the inverse temperature
    logit_bias: Float[Array, ""] | None = None  # SigLIP's; None for the softmax loss


def unit_norm(x: Float[AnyArray, "*B D"]) -> Float[Array, "*B D"]:
    """L2 normalisation over the last axis, x / max(‖x‖, 1e-12), in float32.

    No finite x overflows. A zero vector stays zero, and its gradient is finite.
    """
    h: Any = x.astype(jnp.float32)
    # The square of a float32 from 2^64 on is infinite. Vectors below 2^60 are multiplied by 1, which is exact.
    largest = jax.lax.stop_gradient(jnp.abs(h).max(-1, keepdims=True, initial=0.0))
    h = h * jnp.where(largest > 2.0**60, jnp.float32(2.0**-70), jnp.float32(1))
    return h * jax.lax.rsqrt(jnp.maximum(jnp.square(h).sum(-1, keepdims=True), 1e-24))


class CLIP(nn.Module):
    """CLIP: an image tower, a text tower, and the scale of their similarities.

    The parameters are `visual`, `text`, `logit_scale` and `logit_bias`, as far as the config has them; `params["text"]`
    alone are the parameters of a `TextTransformer`. ResNets also have a collection `batch_stats`.

    Images are CLIP-normalised float NHWC [B, H, W, c] (see `clip_jax.images`), tokens integers [B, L].

    Attributes:
        config: the architecture.
        dtype: of the matrix products; parameters, norms and softmax are float32.
        implementation: attention kernel, see `clip_jax.towers.attention.attend`.

    Raises:
        UserError: If images are integers or have another size or layout; or if tokens are not integers, too long, or
            not in the vocabulary. Under `jit` ids are not checked, as their values are unknown: an id that is too high
            gives NaN.
    """

    config: CLIPConfig
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    def setup(self) -> None:
        """Makes the towers, scale and bias that the config has."""
        config, constant = self.config, nn.initializers.constant
        if config.vision is not None:
            self.visual = VISION_TOWERS[type(config.vision)](
                config.vision, config.embed_dim, self.dtype, self.implementation
            )
        if config.text is not None:
            self.text = TEXT_TOWERS[type(config.text)](config.text, config.embed_dim, self.dtype, self.implementation)
        if config.two_towers and config.logit_scale_learned:
            self.logit_scale = self.param("logit_scale", constant(config.logit_scale_init), (), jnp.float32)
        else:
            self.logit_scale = jnp.float32(config.logit_scale_init)
        self.logit_bias = None
        if config.two_towers and config.logit_bias_init is not None:
            self.logit_bias = self.param("logit_bias", constant(config.logit_bias_init), (), jnp.float32)

    def encode_image(
        self,
        images: Num[AnyArray, "*N H W c"] | Any,
        keep_patches: Int[AnyArray, "B K"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B D"]:
        """Image embeddings, not normalised.

        Args:
            images: CLIP-normalised float [B, H, W, c].
            keep_patches: indices of the K patches that are kept, the others are dropped; None: all patches.
            train: batch norms use the statistics of the batch and update `batch_stats`, which has to be mutable.

        Returns:
            [B, D].

        Raises:
            UserError: If the model has no image tower, or the images do not fit it.
        """
        return self.image_states(images, keep_patches, train=train, hidden_states=False).embed

    def image_states(
        self,
        images: Num[AnyArray, "*N H W c"] | Any,
        keep_patches: Int[AnyArray, "B K"] | None = None,
        *,
        train: bool = False,
        hidden_states: bool = True,
    ) -> ImageFeatures:
        """Image embeddings as of `encode_image`, with the hidden states before and after each block.

        Args:
            images: CLIP-normalised float [B, H, W, c].
            keep_patches: as of `encode_image`.
            train: as of `encode_image`.
            hidden_states: False leaves the hidden states out.

        Raises:
            UserError: If the model has no image tower, or the images do not fit it.
        """
        if self.config.vision is None:
            raise UserError("this model has no image tower: it encodes texts only")
        return self.visual(images, keep_patches, train=train, hidden_states=hidden_states)

    def encode_text(
        self, tokens: Shaped[AnyArray, "*N L"] | Any, *, hidden_states: bool = False, **positions_and_mask: Any
    ) -> TextFeatures:
        """Text embeddings (not normalised), per-token hidden states and their mask.

        Args:
            tokens: integers [B, L].
            hidden_states: whether to return the hidden states of all layers too.
            positions_and_mask: `attention_mask` and `position_ids` of a `TextTransformer`.

        Raises:
            UserError: If the model has no text tower, or the tokens do not fit it.
        """
        if self.config.text is None:
            raise UserError("this model has no text tower: it encodes images only")
        return self.text(tokens, hidden_states=hidden_states, **positions_and_mask)

    def __call__(
        self,
        images: Num[AnyArray, "*N H W c"] | Any,
        tokens: Shaped[AnyArray, "*M L"],
        keep_patches: Int[AnyArray, "B K"] | None = None,
        *,
        train: bool = False,
    ) -> CLIPOutput:
        """Unit-norm features of images and texts, with the log scale and the bias of their similarities.

        Args:
            images: CLIP-normalised float [B, H, W, c].
            tokens: integers [T, L].
            keep_patches: as of `encode_image`.
            train: as of `encode_image`.

        Raises:
            UserError: If the images or tokens do not fit the model.
        """
        return CLIPOutput(
            unit_norm(self.encode_image(images, keep_patches, train=train)),
            unit_norm(self.encode_text(tokens).embed),
            self.logit_scale,
            self.logit_bias,
        )


def init(config: CLIPConfig, key: Array) -> dict[str, Any]:
    """Randomly initialised variables `{"params": …}`, with `batch_stats` where there are batch norms.

    `jax.eval_shape(lambda key: init(config, key), key)` gives the shapes without allocating memory.

    Args:
        config: the architecture.
        key: PRNG key.
    """
    model, vision, text = CLIP(config), config.vision, config.text
    images = None if vision is None else jnp.zeros((1, vision.image_size, vision.image_size, vision.channels))
    tokens = None if text is None else jnp.zeros((1, text.context_length), jnp.int32)
    if images is None:
        return model.init(key, tokens, method="encode_text")
    if tokens is None:
        return model.init(key, images, method="encode_image")
    return model.init(key, images, tokens)
