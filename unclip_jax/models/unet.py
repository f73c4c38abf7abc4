"""The U-Net of decoders and upsamplers: the pixel-space U-Net of ADM and GLIDE with unCLIP's conditioning.

Dhariwal & Nichol 2021; Nichol et al. 2022; Ramesh et al. 2022, §2.1. The image embedding z_i enters twice: projected
and added to the timestep embedding, and as a few context tokens before the text tokens, to which the attention layers
attend. An upsampler is the same network with the low-resolution picture on extra input channels.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.towers.attention import attend, join_heads, split_heads
from clip_jax.towers.layers import LayerNorm
from unclip_jax.conditioning import EMPTY_CAPTION, Cond, need, with_empty_captions
from unclip_jax.model import Reader, Role, joint_width
from unclip_jax.models.embeddings import TimestepMLP
from unclip_jax.ranges import DEPTH, SIDE, WIDTH, check_dtype, check_ranges
from unclip_jax.variables import Variables, measured


@dataclass(frozen=True)
class Level:
    """One resolution of the U-Net.

    Attributes:
        width: channels.
        blocks: residual blocks on the way down; there is one more on the way up.
        attention: whether an attention layer follows every block.

    Raises:
        UserError: a size is out of range.
    """

    width: int
    blocks: int
    attention: bool = False

    def __post_init__(self):
        check_ranges(self, "level ", width=WIDTH, blocks=DEPTH)


@dataclass(frozen=True)
class ImageCond:
    """How a network reads the image embedding z_i: added to the timestep embedding, and as context tokens.

    Attributes:
        embed_dim: width of z_i.
        tokens: context tokens made from z_i.
        norm: both projections of z_i, to the timestep embedding and to the tokens, are normalised (Kandinsky 2.2).
        black_null: a dropped z_i is replaced by CLIP's embedding of a black picture, a statistic in the checkpoint
            (Kandinsky 2.2); otherwise by a learned one.

    Raises:
        UserError: a size is out of range.
    """

    embed_dim: int
    tokens: int = 4
    norm: bool = False
    black_null: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "image.", embed_dim=WIDTH, tokens=(0, 1024))


@dataclass(frozen=True)
class TextCond:
    """How a network reads a caption.

    Attributes:
        width: width of the text encodings, which become context tokens.
        embed_dim: width of the text embedding z_t, which is added to the timestep embedding as z_i is; None: z_t is not
            read.
        empty_caption: a dropped caption is replaced by the empty caption, whose features by CLIP are statistics in the
            checkpoint; otherwise by a learned token.

    Raises:
        UserError: a size is out of range, or `empty_caption` is set without `embed_dim`.
    """

    width: int
    embed_dim: int | None = None
    empty_caption: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "text.", width=WIDTH, embed_dim=WIDTH)
        if self.empty_caption and self.embed_dim is None:
            raise UserError("text.empty_caption is set, but text.embed_dim is not: there is no caption to read")


@dataclass(frozen=True)
class LowRes:
    """How a network reads a low-resolution picture: it is an upsampler.

    Attributes:
        size: side of the pictures that it was trained to start from, a divisor of image_size; None: not known.
        level: whether it reads the level of the noise in them (`Cond.low_res_level`), as an embedding that is added to
            the timestep embedding.
    """

    size: int | None = None
    level: bool = False


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of a decoder or an upsampler.

    Attributes:
        image_size: side of the square pictures that it draws, in pixels.
        levels: resolutions from the finest to the coarsest, each half of the one before.
        image: how it reads the image embedding z_i; None: it does not.
        text: how it reads a caption; None: it does not.
        low_res: how an upsampler reads a low-resolution picture; None: the network is a decoder.
        patch_size: space-to-depth factor of the stem; the first level runs at image_size / patch_size.
        channels: channels of the pictures, or of the latents.
        head_width: channels per attention head.
        groups: groups of every GroupNorm.
        dropout: dropout rate of the residual blocks in training.
        time_width: width of the timestep embedding.
        scale_shift: the timestep embedding modulates the second norm of a block (GLIDE); otherwise it is added before
            that norm (Karlo's upsamplers).
        context_width: width of the context tokens of the attention layers.
        coordinates: the stem reads the position of each patch (`coordinates`). Only for a network that always reads
            whole pictures: on a crop the positions would be wrong.
        learned_variance: whether the output holds the variance beside the prediction.
        remat: gradient checkpointing: the activations of the blocks are computed again in the backward pass, so that
            training keeps those of one block in memory and not of all.
        dtype: dtype of the matrix products; parameters, norms, softmax and the timestep embedding are always float32.

    Raises:
        UserError: a size is out of range, or sizes do not fit each other.
    """

    image_size: int
    levels: tuple[Level, ...]
    image: ImageCond | None = None
    text: TextCond | None = None
    low_res: LowRes | None = None
    patch_size: int = 1
    channels: int = 3
    head_width: int = 64
    groups: int = 32
    dropout: float = 0.0
    time_width: int = 256
    scale_shift: bool = True
    context_width: int = 256
    coordinates: bool = False
    learned_variance: bool = False
    remat: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        size = None if self.low_res is None else self.low_res.size
        if size is not None and (not 0 < size < self.image_size or self.image_size % size):
            raise UserError(
                f"low_res.size is {size}: give a size that image_size {self.image_size} is 2 times or more, in whole "
                "numbers"
            )
        if not self.levels:
            raise UserError("levels is empty: give at least one")
        check_ranges(
            self,
            **dict.fromkeys(("image_size", "patch_size"), SIDE),
            **dict.fromkeys(("channels", "head_width", "groups", "time_width", "context_width"), WIDTH),
            dropout=(0.0, 0.99),
        )
        check_dtype(self)
        coarsest = self.patch_size * 2 ** (len(self.levels) - 1)
        if self.image_size % coarsest:
            why = f"patch_size and {len(self.levels)} levels"
            raise UserError(f"image_size {self.image_size} is not divisible by {coarsest} ({why})")
        for level in self.levels:
            if level.width % self.groups:
                raise UserError(f"level width {level.width} is not divisible by groups {self.groups}")
            if level.attention and level.width % self.head_width:
                raise UserError(f"level width {level.width} is not divisible by head_width {self.head_width}")

    @property
    def role(self) -> Role:
        """Role "upsampler" for a network with a low-resolution input, else "decoder"."""
        return "decoder" if self.low_res is None else "upsampler"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: [H, W, C]."""
        return self.image_size, self.image_size, self.channels

    @property
    def reads_level(self) -> bool:
        """Whether the network reads the noise level of its low-resolution input."""
        return self.low_res is not None and self.low_res.level

    reads_time: ClassVar[bool] = True
    self_condition: ClassVar[bool] = False

    def network(self) -> UNet:
        """The linen module."""
        return UNet(self)

    def blank_cond(self, batch_size: int = 1) -> Cond:
        """A `Cond` of zeros with the fields and shapes that the network reads."""
        cond = Cond(keep_text=jnp.ones((batch_size,), bool))
        if self.image is not None:
            cond = cond.replace(image_embed=jnp.zeros((batch_size, self.image.embed_dim)))
        if self.text is not None:
            # The parameters do not depend on the number of text tokens.
            cond = cond.replace(
                text_encodings=jnp.zeros((batch_size, 1, self.text.width)), text_mask=jnp.ones((batch_size, 1), bool)
            )
            if self.text.embed_dim is not None:
                cond = cond.replace(text_embed=jnp.zeros((batch_size, self.text.embed_dim)))
        if self.low_res is not None:
            cond = cond.replace(low_res=jnp.zeros((batch_size, *self.sample_shape)))
            if self.low_res.level:
                cond = cond.replace(low_res_level=jnp.zeros((batch_size,)))
        return cond

    def fitted(self, clip: CLIPConfig) -> UNetConfig:
        """The same config with the widths of a CLIP for the features that it reads.

        Raises:
            UserError: the CLIP lacks a text tower or a joint space that the network needs.
        """
        image, text = self.image, self.text
        if image is not None:
            image = dataclasses.replace(image, embed_dim=joint_width(clip))
        if text is not None:
            if clip.text is None:
                raise UserError("the CLIP has no text tower, which this network reads its captions from")
            embed_dim = None if text.embed_dim is None else joint_width(clip)
            text = dataclasses.replace(text, width=clip.text.width, embed_dim=embed_dim)
        return dataclasses.replace(self, image=image, text=text)

    def read(self, module: Any, variables: Variables, cond: Cond) -> Reader:
        """Binds a condition; nothing is precomputed, as what depends on the condition alone is cheap."""
        return lambda x_t, t, *given: module.apply(variables, x_t, t, cond, *given)

    def restore(self, module: Any, variables: Variables, x0: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Returns the pictures unchanged."""
        return x0


def space_to_depth(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B h w c"]:
    """[B, H, W, C] -> [B, H/f, W/f, f·f·C]: each f×f patch becomes channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B h w c"]:
    """Inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * factor, w * factor, c // factor**2)


def coordinates(height: int, width: int) -> Float[Array, "{height} {width} 10"]:
    """Coordinate channels of a grid, after CoordConv (Liu et al. 2018).

    They are y and x from −1 to 1, and sine and cosine of π and 2π times them. Without them a convolution can infer its
    position from the borders only; with them a modulation by z can place an object in one layer:
    cos(x)·cos(a) + sin(x)·sin(a) = cos(x − a).

    Args:
        height: H of the grid.
        width: W of the grid.

    Returns:
        float32 [H, W, 10].
    """
    y, x = jnp.meshgrid(jnp.linspace(-1.0, 1.0, height), jnp.linspace(-1.0, 1.0, width), indexing="ij")
    yx = jnp.stack([y, x], axis=-1)
    return jnp.concatenate([yx] + [f(jnp.pi * k * yx) for k in (1, 2) for f in (jnp.sin, jnp.cos)], axis=-1)


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
    """2×2 mean: [B, H, W, C] -> [B, H/2, W/2, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def nearest_double(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Each pixel repeated 2×2: [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class GroupNorm(nn.Module):
    """GroupNorm with eps 1e-5 and float32 statistics, by the two-pass variance (the one-pass form loses accuracy)."""

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the module; see the class."""
        return nn.GroupNorm(self.groups, epsilon=1e-5, use_fast_variance=False, name="norm")(x).astype(x.dtype)


RESAMPLE = {"none": lambda x: x, "down": average_pool, "up": nearest_double}


class ResBlock(nn.Module):
    """Residual block: GroupNorm, SiLU, [resample], conv, timestep, GroupNorm, SiLU, dropout, conv, plus a skip.

    As in ADM, up- and downsampling happen before the first convolution, on both the branch and the skip. The last
    convolution is zero at initialisation.

    Attributes:
        config: config of the U-Net.
        width: output channels.
        resample: "none", "down" or "up".
    """

    config: UNetConfig
    width: int
    resample: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], time: Float[Array, "B E"], train: bool) -> Float[Array, "B h w c"]:
        """Applies the module; see the class."""
        resample, dtype = RESAMPLE[self.resample], self.config.dtype
        h = resample(nn.silu(GroupNorm(self.config.groups, name="norm1")(x)))
        x = resample(x)
        h = nn.Conv(self.width, (3, 3), dtype=dtype, name="conv1")(h)
        norm2 = GroupNorm(self.config.groups, name="norm2")
        if self.config.scale_shift:
            modulation = nn.Dense(2 * self.width, dtype=dtype, name="time_emb_proj")(nn.silu(time))[:, None, None, :]
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = norm2(h) * (1.0 + scale) + shift
        else:
            h = norm2(h + nn.Dense(self.width, dtype=dtype, name="time_emb_proj")(nn.silu(time))[:, None, None, :])
        h = nn.Dropout(self.config.dropout, deterministic=not train)(nn.silu(h))
        h = nn.Conv(self.width, (3, 3), kernel_init=nn.initializers.zeros, dtype=dtype, name="conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=dtype, name="conv_shortcut")(x)
        return x + h


class ContextAttention(nn.Module):
    """Pixels attend to [context tokens ‖ pixels] (GLIDE's form): one softmax over both, no norm on the context."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B S E"] | None, context_mask: Bool[Array, "B S"] | None
    ) -> Float[Array, "B H W C"]:
        """Applies the module; see the class."""
        b, height, width, c = x.shape
        head_width = self.config.head_width
        dense = functools.partial(nn.Dense, c, dtype=self.config.dtype)

        def heads(y):
            return split_heads(y, c // head_width)

        h = GroupNorm(self.config.groups, name="group_norm")(x).reshape(b, height * width, c)
        query, key, value = (heads(dense(name=name)(h)) for name in ("to_q", "to_k", "to_v"))
        visible = None
        if context is not None:
            added_key, added_value = (heads(dense(name=name)(context)) for name in ("add_k_proj", "add_v_proj"))
            key = jnp.concatenate([added_key, key], axis=1)
            value = jnp.concatenate([added_value, value], axis=1)
            pixels = jnp.ones((b, height * width), bool)
            visible = jnp.concatenate([need(context_mask, "text_mask"), pixels], axis=1)[:, None, None, :]
        attended = join_heads(attend(query, key, value, visible))
        out = dense(kernel_init=nn.initializers.zeros, name="to_out")(attended)
        return x + out.reshape(x.shape)


class Context(nn.Module):
    """Embeds a `Cond`: (addition to the timestep embedding, context tokens [B, S, c], their mask bool [B, S]).

    A dropped condition is replaced by its null embedding: a learned one (a dropped caption is one learned token), or a
    statistic, see `ImageCond.black_null` and `TextCond.empty_caption`. Tokens and mask are None without image and text.
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self, cond: Cond
    ) -> tuple[Float[Array, "B E"] | float, Float[Array, "B S c"] | None, Bool[Array, "B S"] | None]:
        """Applies the module; see the class."""
        config, image, text = self.config, self.config.image, self.config.text
        small, dense = nn.initializers.normal(0.02), functools.partial(nn.Dense, dtype=config.dtype)
        added: Array | float = 0.0
        tokens, masks = [], []
        if image is not None:
            declare = measured if image.black_null else nn.Module.param
            null = declare(self, "null_image_embed", small, (image.embed_dim,))
            image_embed = jnp.where(
                need(cond.keep_image, "keep_image")[:, None], need(cond.image_embed, "image_embed"), null
            )
            added = dense(config.time_width, name="image_to_time")(image_embed)
            image_tokens = dense(image.tokens * config.context_width, name="image_to_tokens")(image_embed)
            image_tokens = image_tokens.reshape(-1, image.tokens, config.context_width)
            if image.norm:
                added = LayerNorm(name="image_time_norm")(added)
                image_tokens = LayerNorm(name="image_tokens_norm")(image_tokens)
            tokens.append(image_tokens)
            masks.append(jnp.ones(image_tokens.shape[:2], bool))
        if text is not None:
            if text.embed_dim is not None:
                declare = measured if text.empty_caption else nn.Module.param
                null_text_embed = declare(self, "null_text_embed", small, (text.embed_dim,))
                text_embed = jnp.where(
                    need(cond.keep_text, "keep_text")[:, None], need(cond.text_embed, "text_embed"), null_text_embed
                )
                added = added + dense(config.time_width, name="text_to_time")(text_embed)
            if text.empty_caption:
                null = measured(self, "null_text_encodings", small, (EMPTY_CAPTION, text.width))
                cond = with_empty_captions(cond, null, null_text_embed)
            text_tokens = dense(config.context_width, name="text_to_tokens")(
                need(cond.text_encodings, "text_encodings")
            )
            text_tokens = LayerNorm(name="text_norm")(text_tokens)
            text_mask = need(cond.text_mask, "text_mask")
            masks.append(text_mask)
            if not text.empty_caption:
                null = self.param("null_text_token", small, (config.context_width,))
                keep = need(cond.keep_text, "keep_text")[:, None]
                text_tokens = jnp.where(keep[..., None], text_tokens, null.astype(text_tokens.dtype))
                masks[-1] = jnp.where(keep, text_mask, jnp.arange(text_tokens.shape[1]) == 0)
            tokens.append(text_tokens)
        if not tokens:
            return added, None, None
        return added, jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)


class UNet(nn.Module):
    """The network: (x_t [B, H, W, C], t int [B], cond) -> [B, H, W, C], or [B, H, W, 2C] with a learned variance.

    The network is convolutional, so an upsampler also runs on crops: H and W only need to be divisible by the coarsest
    stride.
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self, x_t: Float[Array, "B H W C"], t: Int[Array, " B"], cond: Cond, *, train: bool = False
    ) -> Float[Array, "B H W c"]:
        """Applies the module; see the class."""
        config = self.config
        cond = cond.with_keep(x_t.shape[0])
        added, context, context_mask = Context(config, name="context")(cond)
        time = TimestepMLP(config.levels[0].width, config.time_width, name="time_embedding")(t) + added
        if config.reads_level:
            embed = TimestepMLP(config.levels[0].width, config.time_width, name="level_embedding")
            time = time + embed(1000.0 * need(cond.low_res_level, "low_res_level"))  # scaled to the range of timesteps

        # `train` (argument 3) is a Python bool and must stay static under remat.
        block = nn.remat(ResBlock, static_argnums=(3,)) if config.remat else ResBlock
        attention_block = nn.remat(ContextAttention) if config.remat else ContextAttention

        def attention(name):
            return attention_block(config, name=name)

        h = (
            x_t
            if config.low_res is None
            else jnp.concatenate([x_t, enlarge(need(cond.low_res, "low_res"), x_t.shape[1:3])], axis=-1)
        )
        h = space_to_depth(h, config.patch_size)
        if config.coordinates:
            where = coordinates(*h.shape[1:3]).astype(h.dtype)
            h = jnp.concatenate([h, jnp.broadcast_to(where, (*h.shape[:3], where.shape[-1]))], axis=-1)
        h = nn.Conv(config.levels[0].width, (3, 3), dtype=config.dtype, name="conv_in")(h)
        skips = [h]
        last = len(config.levels) - 1
        for i, level in enumerate(config.levels):
            for j in range(level.blocks):
                h = block(config, level.width, name=f"down_{i}_block_{j}")(h, time, train)
                if level.attention:
                    h = attention(f"down_{i}_attention_{j}")(h, context, context_mask)
                skips.append(h)
            if i < last:
                h = block(config, level.width, "down", name=f"down_{i}_downsample")(h, time, train)
                skips.append(h)

        h = block(config, h.shape[-1], name="middle_block_0")(h, time, train)
        if config.levels[-1].attention:
            h = attention("middle_attention")(h, context, context_mask)
        h = block(config, h.shape[-1], name="middle_block_1")(h, time, train)

        for i, level in reversed(list(enumerate(config.levels))):
            for j in range(level.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(config, level.width, name=f"up_{i}_block_{j}")(h, time, train)
                if level.attention:
                    h = attention(f"up_{i}_attention_{j}")(h, context, context_mask)
            if i > 0:
                h = block(config, level.width, "up", name=f"up_{i}_upsample")(h, time, train)

        h = nn.silu(GroupNorm(config.groups, name="norm_out")(h))
        out_channels = config.channels * (2 if config.learned_variance else 1) * config.patch_size**2
        h = nn.Conv(out_channels, (3, 3), kernel_init=nn.initializers.zeros, dtype=config.dtype, name="conv_out")(h)
        return depth_to_space(h, config.patch_size).astype(x_t.dtype)


def enlarge(low_res: Float[Array, "B h w C"], size: tuple[int, ...]) -> Float[Array, "B H W C"]:
    """Enlarges pictures (bicubic).

    Args:
        low_res: [B, h, w, C].
        size: (H, W); pictures that have this size already, such as training crops, are returned unchanged.

    Returns:
        [B, H, W, C].
    """
    if low_res.shape[1:3] == tuple(size):
        return low_res
    return jax.image.resize(low_res, (low_res.shape[0], *size, low_res.shape[-1]), "cubic")
