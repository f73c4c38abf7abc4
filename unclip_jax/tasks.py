"""The trainable things of this package, in the shape `train_jax.Task` asks for.

Each task sees a batch `{"image": uint8 [B, H, W, 3], "tokens": int32 [B, L]}`, and where CLIP's pictures have another
size than those that are drawn, `"clip_image"` beside them. What CLIP says of them may be in the batch already
(`condition`).

What was measured is `model_state["statistics"]`, so a stage's variables are `{"params": params, **model_state}`. The
frozen CLIP that conditions a stage is a task's `frozen["clip"]`: whoever trains adds `frozen` to the `model_state` that
`loss` is given, and keeps it out of checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from clip_jax.config import CLIPConfig
from clip_jax.encode import encode_images, encode_texts
from clip_jax.errors import UserError
from clip_jax.losses import same_rows
from clip_jax.model import unit_norm
from clip_jax.towers.text import TextFeatures
from unclip_jax import priors
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond, drop, need
from unclip_jax.degrade import BSRConfig, DegradeConfig, add_level, box_reduce, degrade, random_crops
from unclip_jax.inputs import values
from unclip_jax.model import joint_width
from unclip_jax.models.unet import enlarge
from unclip_jax.priors import ARStage, OneStepStage
from unclip_jax.settings import standard_settings
from unclip_jax.stage import Stage
from unclip_jax.variables import PARAMS, STATISTICS, Variables

Params = dict[str, Any]
Batch = Mapping[str, Any]
LossOutput = tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Params]]

log = logging.getLogger(__name__)

FLOOR = 1e-3  # least deviation that embeddings are divided by


def to_signed(images: UInt8[Array, "*B"]) -> Float[Array, "*B"]:
    """uint8 pictures -> float32 in [−1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "*B"]) -> UInt8[Array, "*B"]:
    """Pictures in [−1, 1] -> uint8, rounded to the nearest level.

    Raises:
        UserError: numbers that are NaN or infinite, outside of `jit`: they would be black pictures.
    """
    seen = values(images)
    if seen is not None and not np.isfinite(seen).all():
        raise UserError("images have numbers that are NaN or infinite: they are no pictures")
    return jnp.round(jnp.clip((images + 1.0) * 127.5, 0.0, 255.0)).astype(jnp.uint8)


def encode(
    config: CLIPConfig, params: Mapping[str, Any], images: UInt8[Array, "B H W c"], tokens: Int[Array, "B L"]
) -> Cond:
    """Everything CLIP says of a batch of uint8 pictures of its own image size and their captions, without gradients."""
    return condition(config, params, {"image": images, "tokens": tokens})


TEXT_FIELDS = ("text_embed", "text_encodings", "text_mask")


def condition(config: CLIPConfig, params: Mapping[str, Any], batch: Batch) -> Cond:
    """What CLIP says of a batch, without gradients: as the batch says, and what it does not say computed here.

    This is the seam for a cache of features: a batch that has them is conditioned as one that CLIP has still to look
    at, and no tower that is not needed is run.

    Args:
        config: of the frozen CLIP.
        params: its weights as one tree, see `clip_jax.encode`.
        batch: `image_embed` [B, D], or `clip_image` or else `image`, uint8 of CLIP's own size; and `text_embed` [B, D],
            `text_encodings` [B, L, C] and `text_mask` [B, L], or `tokens` [B, L].

    Returns:
        The condition of B samples, float32.

    Raises:
        UserError: the batch has some of the three fields of text and not all of them.
    """
    given = [name for name in TEXT_FIELDS if name in batch]
    if given and len(given) < len(TEXT_FIELDS):
        absent = ", ".join(name for name in TEXT_FIELDS if name not in batch)
        raise UserError(f"the batch has {', '.join(given)} and not {absent}: give all three, or tokens alone")
    if given:
        embed, encodings, mask = (batch[name] for name in TEXT_FIELDS)
        text = TextFeatures(_float32(embed), _float32(encodings), mask)
    else:
        text = encode_texts(config, params, batch["tokens"])
    if "image_embed" in batch:
        image_embed = _float32(batch["image_embed"])
    else:
        image_embed = encode_images(config, params, batch["clip_image"] if "clip_image" in batch else batch["image"])
    return jax.lax.stop_gradient(Cond.of(text, image_embed))


def _float32(array: Array) -> Float[Array, "..."]:
    """A cache may hold features in half precision."""
    return jnp.asarray(array).astype(jnp.float32)


def embedding_statistics(
    config: CLIPConfig, params: Mapping[str, Any], images: UInt8[np.ndarray, "N H W c"], batch_size: int = 256
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Mean and deviation, each [D], of the CLIP embeddings of all N uint8 pictures; computed in float64.

    A dimension that hardly moves gets the deviation `FLOOR`, as it would be divided by zero; a line of the log says
    how many there are.
    """

    @jax.jit
    def embed(images: UInt8[Array, "B H W c"]) -> Float[Array, "B D"]:
        return encode_images(config, params, images)

    embeds = _in_batches(embed, (images,), batch_size).astype(np.float64)
    std = embeds.std(0)
    if floored := int((std < FLOOR).sum()):
        log.warning(
            "CLIP's embeddings hardly move in %d of %d dimensions over %d pictures: their deviation is set to %g; "
            "are the pictures all alike?",
            floored,
            len(std),
            len(embeds),
            FLOOR,
        )
    return embeds.mean(0).astype(np.float32), np.maximum(std, FLOOR).astype(np.float32)


def blank_statistics(config: CLIPConfig) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Mean 0 and deviation 1 in place of `embedding_statistics`, for what needs the shapes alone."""
    width = joint_width(config)
    return np.zeros(width, np.float32), np.ones(width, np.float32)


def blank_quantiser(stage: ARStage) -> dict[str, np.ndarray]:
    """Statistics in place of what `ar_prior.measure` gives, for what needs the shapes alone."""
    variables = jax.eval_shape(lambda key: priors.init(stage, key), jax.random.key(0))
    shapes = variables[STATISTICS]["quantiser"]
    return {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}


def embedding_pairs(
    config: CLIPConfig,
    params: Mapping[str, Any],
    images: UInt8[np.ndarray, "N H W c"],
    tokens: Int[np.ndarray, "N L"],
    batch_size: int = 256,
) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N D"]]:
    """CLIP embeddings, each [N, D], of N uint8 pictures and of their captions."""

    @jax.jit
    def embed(
        images: UInt8[Array, "B H W c"], tokens: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        cond = encode(config, params, images, tokens)
        return need(cond.image_embed, "image_embed"), need(cond.text_embed, "text_embed")

    return _in_batches(embed, (images, tokens), batch_size)


def _in_batches(program: Any, arrays: tuple[np.ndarray, ...], batch_size: int) -> Any:
    """`program(*arrays)` for arrays of N rows, by batches of one size: the last is filled up, and cut again."""
    total = len(arrays[0])
    batch_size = min(batch_size, total)
    parts = []
    for start in range(0, total, batch_size):
        take = np.minimum(np.arange(start, start + batch_size), total - 1)
        rows = program(*(array[take] for array in arrays))
        parts.append(jax.tree.map(lambda leaf, count=total - start: np.asarray(leaf)[:count], rows))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@dataclass(frozen=True)
class PriorTask:
    """Denoising CLIP image embeddings given the caption (Ramesh et al. 2022, eq. 2).

    Attributes:
        clip, clip_params: the frozen CLIP.
        embed_mean, embed_std: [D] statistics of its image embeddings over the training set.
        drop_text: probability of training a sample without its caption, for guidance. Only the condition is dropped,
            never x_t.
    """

    stage: Stage
    clip: CLIPConfig
    clip_params: Mapping[str, Any]
    embed_mean: Float[np.ndarray, " D"]
    embed_std: Float[np.ndarray, " D"]
    drop_text: float = 0.1

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Trees that the loss reads and nobody trains."""
        return {"clip": self.clip_params}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Fresh `(params, model_state)`; the model state is the statistics."""
        statistics = {"embed_mean": jnp.asarray(self.embed_mean), "embed_std": jnp.asarray(self.embed_std)}
        return with_statistics(stages.init(self.stage, key), statistics)

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """`(loss, (metrics, model_state))` of a batch; `model_state` holds the frozen trees too."""
        cond = condition(self.clip, model_state["clip"], batch)
        key_drop, key_loss = jax.random.split(key)
        variables = variables_of(params, model_state)
        x0 = standardise(self.stage, variables, need(cond.image_embed, "image_embed"))
        if train:
            cond = drop(cond, key_drop, text=self.drop_text, image=0.0)
        loss, metrics = stages.loss(self.stage, variables, x0, cond, key_loss, train=train)
        return loss, (metrics, model_state)


def standardise(
    stage: Stage | OneStepStage, variables: Variables, image_embed: Float[Array, "B D"]
) -> Float[Array, "B D"]:
    """CLIP image embeddings [B, D] -> the space a prior works in."""
    return stage.model.network().apply(variables, image_embed, method="standardise")


def with_statistics(variables: Variables, statistics: Mapping[str, Any]) -> tuple[Params, Params]:
    """Fresh variables as a task's `(params, model_state)`, with what was measured in its place."""
    measured = {**variables.get(STATISTICS, {}), **statistics}
    return variables[PARAMS], {STATISTICS: measured} if measured else {}


def variables_of(params: Params, model_state: Mapping[str, Any]) -> Variables:
    """The variables of a stage from what its task is given: its parameters and its statistics."""
    measured = {STATISTICS: model_state[STATISTICS]} if STATISTICS in model_state else {}
    return {PARAMS: params, **measured}


@dataclass(frozen=True)
class ARPriorTask:
    """Predicting the tokens of CLIP image embeddings given the caption (Ramesh et al. 2022, §2.2).

    Attributes:
        clip, clip_params: the frozen CLIP.
        statistics: what `ar_prior.measure` says of the embeddings of the training set.
        drop_text: probability of training a sample without its caption, for guidance. The similarity token stays.
    """

    stage: ARStage
    clip: CLIPConfig
    clip_params: Mapping[str, Any]
    statistics: dict[str, np.ndarray]
    drop_text: float = 0.1

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Trees that the loss reads and nobody trains."""
        return {"clip": self.clip_params}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Fresh `(params, model_state)`; the model state is the statistics."""
        statistics = {"quantiser": {name: jnp.asarray(array) for name, array in self.statistics.items()}}
        return with_statistics(priors.init(self.stage, key), statistics)

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """`(loss, (metrics, model_state))` of a batch; `model_state` holds the frozen trees too."""
        cond = condition(self.clip, model_state["clip"], batch)
        image_embed = need(cond.image_embed, "image_embed")
        if train:
            cond = drop(cond, key, text=self.drop_text, image=0.0)
        loss, metrics = priors.ar_loss(self.stage, variables_of(params, model_state), image_embed, cond)
        return loss, (metrics, model_state)


@dataclass(frozen=True)
class OneStepPriorTask:
    """Making CLIP image embeddings of noise in one step, given the caption (ECLIPSE, Patel et al. 2023).

    Equal captions count as right for each other's picture, as in the training of CLIP.

    Attributes:
        clip, clip_params: the frozen CLIP; its temperature is that of the contrastive loss.
        embed_mean, embed_std: as for `PriorTask`.
    """

    stage: OneStepStage
    clip: CLIPConfig
    clip_params: Mapping[str, Any]
    embed_mean: Float[np.ndarray, " D"]
    embed_std: Float[np.ndarray, " D"]
    splits: ClassVar[bool] = False  # microbatches would contrast fewer examples than the batch

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Trees that the loss reads and nobody trains."""
        return {"clip": self.clip_params}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Fresh `(params, model_state)`; the model state is the statistics."""
        statistics = {"embed_mean": jnp.asarray(self.embed_mean), "embed_std": jnp.asarray(self.embed_std)}
        return with_statistics(priors.init(self.stage, key), statistics)

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """`(loss, (metrics, model_state))` of a batch; `model_state` holds the frozen trees too."""
        frozen = model_state["clip"]
        cond = condition(self.clip, frozen, batch)
        # A temperature that is not learned is no parameter.
        logit_scale = jax.lax.stop_gradient(frozen.get("logit_scale", self.clip.logit_scale_init))
        variables = variables_of(params, model_state)
        x0, targets = (
            standardise(self.stage, variables, need(cond.image_embed, "image_embed")),
            same_rows(batch["tokens"]),
        )
        loss, metrics = priors.one_step_loss(
            self.stage, variables, x0, cond, key, logit_scale=logit_scale, targets=targets
        )
        return loss, (metrics, model_state)


@dataclass(frozen=True)
class DecoderTask:
    """Denoising pictures given the image embedding and the caption.

    Pictures larger than the decoder's own size are box-reduced to it.

    Attributes:
        clip, clip_params: the frozen CLIP.
        drop_image, drop_text: probabilities per sample, independent (Ramesh et al. 2022, §2.1).
    """

    stage: Stage
    clip: CLIPConfig
    clip_params: Mapping[str, Any]
    drop_image: float = 0.1
    drop_text: float = 0.5

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Trees that the loss reads and nobody trains."""
        return {"clip": self.clip_params}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Fresh `(params, model_state)`; the model state is what was measured, if anything was."""
        return with_statistics(stages.init(self.stage, key), {})

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """`(loss, (metrics, model_state))` of a batch; `model_state` holds the frozen trees too."""
        key_drop, key_loss = jax.random.split(key)
        x0, cond = self.example(model_state, batch, key_drop, train=train)
        variables = variables_of(params, model_state)
        loss, metrics = stages.loss(self.stage, variables, x0, cond, key_loss, train=train)
        return loss, (metrics, model_state)

    @standard_settings
    def example(
        self, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> tuple[Float[Array, "B h w C"], Cond]:
        """(clean pictures, what they are drawn from), some of it dropped when training."""
        cond = condition(self.clip, model_state["clip"], batch)
        if train:
            cond = drop(cond, key, text=self.drop_text, image=self.drop_image)
        return box_reduce(to_signed(batch["image"]), self.stage.sample_shape[0]), cond


@dataclass(frozen=True)
class UpsamplerTask:
    """Denoising pictures given a spoilt, smaller one, on random crops: no text, no attention, so any window will do.

    Attributes:
        low_res_size: side of the pictures it starts from.
        crop_size: side of the training window (the paper: a quarter of the area).
        degrade: how the low-resolution input is spoilt.

    A network with `low_res_level` also gets its input at a level of noise that it is told, uniform from 0 to 1 for
    each sample (Saharia et al. 2022, §2.4).
    """

    stage: Stage
    low_res_size: int
    crop_size: int
    degrade: DegradeConfig | BSRConfig = DegradeConfig()

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Trees that the loss reads and nobody trains: none, for an upsampler sees no CLIP."""
        return {}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Fresh `(params, model_state)`; the model state is what was measured, if anything was."""
        return with_statistics(stages.init(self.stage, key), {})

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """`(loss, (metrics, model_state))` of a batch; `model_state` holds the frozen trees too."""
        key_example, key_loss = jax.random.split(key)
        x0, cond = self.example(model_state, batch, key_example, train=train)
        variables = variables_of(params, model_state)
        loss, metrics = stages.loss(self.stage, variables, x0, cond, key_loss, train=train)
        return loss, (metrics, model_state)

    @standard_settings
    def example(
        self, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> tuple[Float[Array, "B h w C"], Cond]:
        """(windows of clean pictures, the same windows of their spoilt reductions)."""
        key_degrade, key_crop, key_level, key_noise = jax.random.split(key, 4)
        size = self.stage.sample_shape[0]
        x0 = box_reduce(to_signed(batch["image"]), size)
        low_res = degrade(box_reduce(x0, self.low_res_size), key_degrade, self.degrade)
        level = None
        if self.stage.model.reads_level:
            level = jax.random.uniform(key_level, low_res.shape[:1], jnp.float32)
            low_res = add_level(low_res, level, jax.random.normal(key_noise, low_res.shape, jnp.float32))
        # Enlarged before cropping, so that a window's border sees its neighbours as it does at sampling time.
        x0, low_res = random_crops((x0, enlarge(low_res, (size, size))), key_crop, self.crop_size)
        return x0, Cond(low_res=low_res, low_res_level=level)


def similarity(image_embed: Float[Array, "*B D"], text_embed: Float[Array, "*T D"]) -> Float[Array, "..."]:
    """Cosine of two embeddings, [..., D] and [..., D] -> [...]."""
    return jnp.sum(unit_norm(image_embed) * unit_norm(text_embed), axis=-1)
