"""ResNet image towers: CLIP's, with attention pooling (Radford et al. 2021 §2.4), and torchvision's (He et al. 2015).

Parameters and running statistics have the names of the originals; `downsample_0` and `downsample_1` are the convolution
and the norm of the shortcut.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from clip_jax.arrays import AnyArray
from clip_jax.config import PlainResNetConfig, ResNetConfig
from clip_jax.errors import UserError
from clip_jax.towers.attention import Implementation, attend, join_heads, split_heads
from clip_jax.towers.layers import fan_in_uniform, per_channel
from clip_jax.towers.vit import ImageFeatures, check_images

MOMENTUM = 0.9  # weight of the old running statistics; torch's momentum is 1 − this, 0.1


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, computed in float32; returns the input's dtype.

    In training it uses the statistics of the batch and updates the running statistics (collection `batch_stats`). Under
    `jit` over a mesh these are the statistics of the global batch. As in torch, the running variance is the unbiased
    one (divided by n − 1), while the batch is normalised by the biased one (divided by n).
    """

    eps: float
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*B C"], *, train: bool) -> Float[Array, "*B C"]:
        """Normalises by the running statistics; with `train` by those of the batch, and updates the running ones."""
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        h = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            mean = h.mean(axes)
            var = jnp.square(h - per_channel(mean, x)).mean(axes)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        mean, factor, bias = (per_channel(v, x) for v in (mean, scale / jnp.sqrt(var + self.eps), bias))
        y: Any = (h - mean) * factor + bias
        return y.astype(x.dtype)


def conv(width: int, kernel: int, fan_in: int, name: str, dtype: Any, stride: int = 1) -> nn.Conv:
    """A convolution without bias, with torch's `padding=kernel // 2` and torch's default initialisation."""
    return nn.Conv(
        width,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=fan_in_uniform(kernel * kernel * fan_in),
        dtype=dtype,
        name=name,
    )


def avg_pool(x: Float[Array, "B H W C"], stride: int) -> Float[Array, "B h w C"]:
    """Average pooling over squares of `stride` × `stride` pixels."""
    if stride == 1:
        return x
    sides = (stride, stride)
    return nn.pooling.pool(x, 0.0, jax.lax.add, sides, sides, "VALID") / (stride * stride)


class Bottleneck(nn.Module):
    """Bottleneck block: convolutions 1×1, 3×3 and 1×1 to 4 × `width` channels, plus the shortcut.

    `antialiased` is CLIP's variant: the stride is an average pooling, before the last convolution and in the shortcut,
    and the block starts as the identity (its last scale is zero). In torchvision's variant the 3×3 convolution and the
    shortcut's have the stride.
    """

    width: int
    stride: int
    antialiased: bool
    bn_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w C4"]:
        """Applies the block: h = H / stride, w = W / stride, C4 = 4 × width."""
        fan_in, out, (conv_stride, pool_stride) = (
            x.shape[-1],
            4 * self.width,
            (1, self.stride) if self.antialiased else (self.stride, 1),
        )

        def norm(name: str, x: Array, init: Any = nn.initializers.ones) -> Array:
            return BatchNorm(self.bn_eps, init, name=name)(x, train=train)

        h = nn.relu(norm("bn1", conv(self.width, 1, fan_in, "conv1", self.dtype)(x)))
        h = nn.relu(norm("bn2", conv(self.width, 3, self.width, "conv2", self.dtype, conv_stride)(h)))
        h = conv(out, 1, self.width, "conv3", self.dtype)(avg_pool(h, pool_stride))
        h = norm("bn3", h, nn.initializers.zeros if self.antialiased else nn.initializers.ones)
        if self.stride > 1 or fan_in != out:
            x = conv(out, 1, fan_in, "downsample_0", self.dtype, conv_stride)(avg_pool(x, pool_stride))
            x = norm("downsample_1", x)
        return nn.relu(h + x)


class Stage(nn.Module):
    """A stack of `blocks` bottlenecks, the first of which has the stride."""

    blocks: int
    width: int
    stride: int
    antialiased: bool
    bn_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w C4"]:
        """Applies the blocks: h = H / stride, w = W / stride, C4 = 4 × width."""
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            block = Bottleneck(self.width, stride, self.antialiased, self.bn_eps, self.dtype, name=str(i))
            x = block(x, train=train)
        return x


class AttentionPool(nn.Module):
    """Attention pooling (Radford et al. 2021 §2.4): the mean feature is the query, mean and positions are the keys."""

    heads: int
    embed_dim: int
    dtype: Any
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """Feature map [B, H, W, C] -> embedding [B, D]."""
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)  # [B, 1 + HW, C]
        normal = nn.initializers.normal(c**-0.5)
        x = x + self.param("positional_embedding", normal, (1 + h * w, c), jnp.float32).astype(self.dtype)[None]

        def dense(name: str, width: int, x: Array) -> Array:
            return nn.Dense(width, kernel_init=normal, bias_init=fan_in_uniform(c), dtype=self.dtype, name=name)(x)

        q, k, v = dense("q_proj", c, x[:, :1]), dense("k_proj", c, x), dense("v_proj", c, x)
        q, k, v = (split_heads(y, self.heads) for y in (q, k, v))
        pooled = join_heads(attend(q, k, v, implementation=self.implementation))[:, 0]
        return dense("c_proj", self.embed_dim, pooled)


def _no_patches(keep_patches: Any) -> None:
    if keep_patches is not None:
        raise UserError("keep_patches: a ResNet has no patches to drop; set patch_drop_prob to 0")


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: images -> `ImageFeatures`. The position embeddings of its attention pool fix the image size."""

    config: ResNetConfig
    embed_dim: int
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
            keep_patches: must be None, as there are no patches.
            train: batch norms use the statistics of the batch; `batch_stats` has to be mutable.
            hidden_states: whether to return the feature maps [B, H, W, C] after the stem and each stage.

        Raises:
            UserError: If the images do not fit the model, or `keep_patches` is given.
        """
        config, width = self.config, self.config.width
        check_images(images, config.image_size, config.channels)
        _no_patches(keep_patches)
        x: Any = images.astype(self.dtype)
        stem = ((width // 2, config.channels, 2), (width // 2, width // 2, 1), (width, width // 2, 1))
        for i, (out, fan_in, stride) in enumerate(stem, start=1):
            x = conv(out, 3, fan_in, f"conv{i}", self.dtype, stride)(x)
            x = nn.relu(BatchNorm(config.bn_eps, name=f"bn{i}")(x, train=train))
        states = [avg_pool(x, 2)]
        for i, blocks in enumerate(config.layers):
            stage = Stage(
                blocks, width * 2**i, 1 if i == 0 else 2, True, config.bn_eps, self.dtype, name=f"layer{i + 1}"
            )
            states.append(stage(states[-1], train=train))
        embed = AttentionPool(config.heads, self.embed_dim, self.dtype, self.implementation, name="attnpool")(
            states[-1]
        )
        return ImageFeatures(embed, tuple(states) if hidden_states else None)


class ResNet(nn.Module):
    """torchvision's ResNet: images -> `ImageFeatures`, by average pooling and the dense layer `proj`."""

    config: PlainResNetConfig
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
        """Encodes images; arguments and errors as of `ModifiedResNet`."""
        config, width = self.config, self.config.width
        check_images(images, config.image_size, config.channels)
        _no_patches(keep_patches)
        x = conv(width, 7, config.channels, "conv1", self.dtype, stride=2)(images.astype(self.dtype))
        x = nn.relu(BatchNorm(config.bn_eps, name="bn1")(x, train=train))
        states = [nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))]
        for i, blocks in enumerate(config.layers):
            stage = Stage(
                blocks, width * 2**i, 1 if i == 0 else 2, False, config.bn_eps, self.dtype, name=f"layer{i + 1}"
            )
            states.append(stage(states[-1], train=train))
        embed = states[-1].mean((1, 2))
        if self.embed_dim is not None:
            init = fan_in_uniform(embed.shape[-1])
            embed = nn.Dense(self.embed_dim, kernel_init=init, bias_init=init, dtype=self.dtype, name="proj")(embed)
        return ImageFeatures(embed, tuple(states) if hidden_states else None)
