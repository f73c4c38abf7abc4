"""Training tasks of the priors, the decoder and the upsamplers: implementations of `train_jax.Task`.

A batch is `{"image": uint8 [B, H, W, 3], "tokens": int32 [B, L]}`, and has `"clip_image"` too if CLIP reads pictures of
another size than those that are drawn. It may hold precomputed features of CLIP (`condition`).

Measured statistics are `model_state["statistics"]`, so that the variables of a stage are
`{"params": params, "statistics": model_state["statistics"]}`. The frozen CLIP that conditions a stage is the task's
`frozen["clip"]`: the training loop adds `frozen` to the `model_state` that `loss` is given, and keeps it out of
checkpoints.
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

FLOOR = 1e-3  # smallest standard deviation that embeddings are divided by


def to_signed(images: UInt8[Array, "*B"]) -> Float[Array, "*B"]:
    """Converts pictures from uint8 to float32 in [−1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "*B"]) -> UInt8[Array, "*B"]:
    """Converts pictures from float in [−1, 1] to uint8, rounded to the nearest level.

    Raises:
        UserError: a value is NaN or infinite, which would become black. Not checked under `jit`.
    """
    seen = values(images)
    if seen is not None and not np.isfinite(seen).all():
        raise UserError("images have numbers that are NaN or infinite: they are no pictures")
    return jnp.round(jnp.clip((images + 1.0) * 127.5, 0.0, 255.0)).astype(jnp.uint8)


def encode(
    config: CLIPConfig, params: Mapping[str, Any], images: UInt8[Array, "B H W c"], tokens: Int[Array, "B L"]
) -> Cond:
    """CLIP's features of pictures and captions, without gradients.

    Args:
        config: config of the CLIP.
        params: its weights as one tree, see `clip_jax.encode`.
        images: uint8 [B, H, W, c], of the CLIP's image size.
        tokens: int32 [B, L].
    """
    return condition(config, params, {"image": images, "tokens": tokens})


TEXT_FIELDS = ("text_embed", "text_encodings", "text_mask")


def condition(config: CLIPConfig, params: Mapping[str, Any], batch: Batch) -> Cond:
    """CLIP's features of a batch, without gradients: taken from the batch if it holds them, else computed.

    So a cache of precomputed features can replace the CLIP; a tower whose features are in the batch is not run.

    Args:
        config: config of the frozen CLIP.
        params: its weights as one tree, see `clip_jax.encode`.
        batch: `image_embed` [B, D], or else `clip_image`, or else `image`, uint8 of CLIP's image size; and either
            `text_embed` [B, D], `text_encodings` [B, L, C] and `text_mask` [B, L], or `tokens` [B, L].

    Returns:
        The condition of B samples, float32.

    Raises:
        UserError: the batch has some of the three text features but not all of them.
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
    """Converts features to float32, as a cache may hold them in half precision."""
    return jnp.asarray(array).astype(jnp.float32)


def embedding_statistics(
    config: CLIPConfig, params: Mapping[str, Any], images: UInt8[np.ndarray, "N H W c"], batch_size: int = 256
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Mean and standard deviation of the CLIP image embeddings of pictures, computed in float64.

    A standard deviation below `FLOOR` is raised to it, because embeddings are divided by it; the number of such
    dimensions is logged as a warning.

    Args:
        config: config of the CLIP.
        params: its weights as one tree.
        images: uint8 [N, H, W, c], of the CLIP's image size.
        batch_size: pictures that are encoded together.

    Returns:
        (mean, standard deviation), each float32 [D].
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
    """Mean 0 and standard deviation 1, each float32 [D]: a placeholder for `embedding_statistics` of the same shapes.

    Raises:
        UserError: the CLIP has no joint space.
    """
    width = joint_width(config)
    return np.zeros(width, np.float32), np.ones(width, np.float32)


def blank_quantiser(stage: ARStage) -> dict[str, np.ndarray]:
    """Zeros as a placeholder for the result of `ar_prior.measure`, of the same shapes and dtypes."""
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
    """CLIP embeddings of pictures and of their captions.

    Args:
        config: config of the CLIP.
        params: its weights as one tree.
        images: uint8 [N, H, W, c], of the CLIP's image size.
        tokens: int32 [N, L].
        batch_size: pairs that are encoded together.

    Returns:
        (image embeddings, text embeddings), each float32 [N, D], not normalised.
    """

    @jax.jit
    def embed(
        images: UInt8[Array, "B H W c"], tokens: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        cond = encode(config, params, images, tokens)
        return need(cond.image_embed, "image_embed"), need(cond.text_embed, "text_embed")

    return _in_batches(embed, (images, tokens), batch_size)


def _in_batches(program: Any, arrays: tuple[np.ndarray, ...], batch_size: int) -> Any:
    """Calls `program(*arrays)` on arrays of N rows in batches of one size; the last is padded, and the result cut."""
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
    """Trains a diffusion prior: denoising of CLIP image embeddings given the caption (Ramesh et al. 2022, eq. 2).

    Attributes:
        stage: the diffusion prior.
        clip, clip_params: config and weights of the frozen CLIP.
        embed_mean, embed_std: [D], mean and standard deviation of its image embeddings over the training set.
        drop_text: probability of dropping the caption of a sample, for classifier-free guidance; x_t is never dropped.
    """

    stage: Stage
    clip: CLIPConfig
    clip_params: Mapping[str, Any]
    embed_mean: Float[np.ndarray, " D"]
    embed_std: Float[np.ndarray, " D"]
    drop_text: float = 0.1

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Parameters that the loss reads and that are not trained: the CLIP."""
        return {"clip": self.clip_params}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Initialises `(params, model_state)`; the model state holds the statistics."""
        statistics = {"embed_mean": jnp.asarray(self.embed_mean), "embed_std": jnp.asarray(self.embed_std)}
        return with_statistics(stages.init(self.stage, key), statistics)

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Loss of a batch: `(loss, (metrics, model_state))`; `model_state` has the trees of `frozen` too."""
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
    """Maps CLIP image embeddings to the space of a prior: zero mean and the standard deviation of its config.

    Args:
        stage: the prior.
        variables: its variables, with the measured mean and standard deviation.
        image_embed: [B, D].

    Returns:
        [B, D].
    """
    return stage.model.network().apply(variables, image_embed, method="standardise")


def with_statistics(variables: Variables, statistics: Mapping[str, Any]) -> tuple[Params, Params]:
    """Splits variables into a task's `(params, model_state)`, with measured statistics in place of blank ones.

    Args:
        variables: `{"params": …, "statistics": …}`, as a stage is initialised.
        statistics: measured values, which replace those of the same names.
    """
    measured = {**variables.get(STATISTICS, {}), **statistics}
    return variables[PARAMS], {STATISTICS: measured} if measured else {}


def variables_of(params: Params, model_state: Mapping[str, Any]) -> Variables:
    """The variables of a stage from the parameters and the model state that a task's loss is given."""
    measured = {STATISTICS: model_state[STATISTICS]} if STATISTICS in model_state else {}
    return {PARAMS: params, **measured}


@dataclass(frozen=True)
class ARPriorTask:
    """Trains an autoregressive prior: prediction of the tokens of CLIP image embeddings (Ramesh et al. 2022, §2.2).

    Attributes:
        stage: the autoregressive prior.
        clip, clip_params: config and weights of the frozen CLIP.
        statistics: result of `ar_prior.measure` on the embeddings of the training set.
        drop_text: probability of dropping the caption of a sample, for classifier-free guidance; the similarity token
            is never dropped.
    """

    stage: ARStage
    clip: CLIPConfig
    clip_params: Mapping[str, Any]
    statistics: dict[str, np.ndarray]
    drop_text: float = 0.1

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Parameters that the loss reads and that are not trained: the CLIP."""
        return {"clip": self.clip_params}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Initialises `(params, model_state)`; the model state holds the statistics."""
        statistics = {"quantiser": {name: jnp.asarray(array) for name, array in self.statistics.items()}}
        return with_statistics(priors.init(self.stage, key), statistics)

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Loss of a batch: `(loss, (metrics, model_state))`; `model_state` has the trees of `frozen` too."""
        cond = condition(self.clip, model_state["clip"], batch)
        image_embed = need(cond.image_embed, "image_embed")
        if train:
            cond = drop(cond, key, text=self.drop_text, image=0.0)
        loss, metrics = priors.ar_loss(self.stage, variables_of(params, model_state), image_embed, cond)
        return loss, (metrics, model_state)


@dataclass(frozen=True)
class OneStepPriorTask:
    """Trains a one-step prior: noise and caption to CLIP image embedding (ECLIPSE, Patel et al. 2023).

    In the contrastive loss, pictures with equal captions are positives of each other.

    Attributes:
        stage: the one-step prior.
        clip, clip_params: config and weights of the frozen CLIP, whose temperature the contrastive loss uses.
        embed_mean, embed_std: [D], mean and standard deviation of its image embeddings over the training set.
        splits: False: no gradient accumulation, as microbatches would contrast fewer examples than the batch.
    """

    stage: OneStepStage
    clip: CLIPConfig
    clip_params: Mapping[str, Any]
    embed_mean: Float[np.ndarray, " D"]
    embed_std: Float[np.ndarray, " D"]
    splits: ClassVar[bool] = False

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Parameters that the loss reads and that are not trained: the CLIP."""
        return {"clip": self.clip_params}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Initialises `(params, model_state)`; the model state holds the statistics."""
        statistics = {"embed_mean": jnp.asarray(self.embed_mean), "embed_std": jnp.asarray(self.embed_std)}
        return with_statistics(priors.init(self.stage, key), statistics)

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Loss of a batch: `(loss, (metrics, model_state))`; `model_state` has the trees of `frozen` too."""
        frozen = model_state["clip"]
        cond = condition(self.clip, frozen, batch)
        # A CLIP whose temperature is not learned has no such parameter.
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
    """Trains a decoder: denoising of pictures given the image embedding and the caption.

    Pictures larger than the decoder draws are reduced to its size by averaging boxes.

    Attributes:
        stage: the decoder.
        clip, clip_params: config and weights of the frozen CLIP.
        drop_image, drop_text: independent probabilities of dropping the image embedding and the caption of a sample
            (Ramesh et al. 2022, §2.1).
    """

    stage: Stage
    clip: CLIPConfig
    clip_params: Mapping[str, Any]
    drop_image: float = 0.1
    drop_text: float = 0.5

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Parameters that the loss reads and that are not trained: the CLIP."""
        return {"clip": self.clip_params}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Initialises `(params, model_state)`; the model state holds the statistics, if the stage has any."""
        return with_statistics(stages.init(self.stage, key), {})

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Loss of a batch: `(loss, (metrics, model_state))`; `model_state` has the trees of `frozen` too."""
        key_drop, key_loss = jax.random.split(key)
        x0, cond = self.example(model_state, batch, key_drop, train=train)
        variables = variables_of(params, model_state)
        loss, metrics = stages.loss(self.stage, variables, x0, cond, key_loss, train=train)
        return loss, (metrics, model_state)

    @standard_settings
    def example(
        self, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> tuple[Float[Array, "B h w C"], Cond]:
        """Clean pictures in [−1, 1], [B, h, w, C], and their condition; in training with condition dropout.

        Args:
            model_state: with the frozen CLIP.
            batch: the batch.
            key: one PRNG key.
            train: whether conditions are dropped.
        """
        cond = condition(self.clip, model_state["clip"], batch)
        if train:
            cond = drop(cond, key, text=self.drop_text, image=self.drop_image)
        return box_reduce(to_signed(batch["image"]), self.stage.sample_shape[0]), cond


@dataclass(frozen=True)
class UpsamplerTask:
    """Trains an upsampler: denoising of random crops of pictures given degraded smaller ones.

    An upsampler has no text and no attention, so it can be trained on crops. To the input of a network that reads its
    noise level, noise of a level uniform in [0, 1] is added per sample (Saharia et al. 2022, §2.4).

    Attributes:
        stage: the upsampler.
        low_res_size: side in pixels of the pictures that it starts from.
        crop_size: side in pixels of the crops (in the paper a quarter of the area).
        degrade: degradation of the low-resolution input.
    """

    stage: Stage
    low_res_size: int
    crop_size: int
    degrade: DegradeConfig | BSRConfig = DegradeConfig()

    @property
    def frozen(self) -> Mapping[str, Mapping[str, Any]]:
        """Empty: an upsampler is not conditioned on CLIP."""
        return {}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Initialises `(params, model_state)`; the model state holds the statistics, if the stage has any."""
        return with_statistics(stages.init(self.stage, key), {})

    @standard_settings
    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Loss of a batch: `(loss, (metrics, model_state))`; `model_state` has the trees of `frozen` too."""
        key_example, key_loss = jax.random.split(key)
        x0, cond = self.example(model_state, batch, key_example, train=train)
        variables = variables_of(params, model_state)
        loss, metrics = stages.loss(self.stage, variables, x0, cond, key_loss, train=train)
        return loss, (metrics, model_state)

    @standard_settings
    def example(
        self, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> tuple[Float[Array, "B h w C"], Cond]:
        """Crops of clean pictures in [−1, 1], and the same crops of their degraded reductions, enlarged again.

        Args:
            model_state: not read.
            batch: the batch.
            key: one PRNG key, for degradation, noise and crops.
            train: not read.
        """
        key_degrade, key_crop, key_level, key_noise = jax.random.split(key, 4)
        size = self.stage.sample_shape[0]
        x0 = box_reduce(to_signed(batch["image"]), size)
        low_res = degrade(box_reduce(x0, self.low_res_size), key_degrade, self.degrade)
        level = None
        if self.stage.model.reads_level:
            level = jax.random.uniform(key_level, low_res.shape[:1], jnp.float32)
            low_res = add_level(low_res, level, jax.random.normal(key_noise, low_res.shape, jnp.float32))
        # Enlarged before cropping, so that the border of a crop is interpolated from its surroundings, as in sampling.
        x0, low_res = random_crops((x0, enlarge(low_res, (size, size))), key_crop, self.crop_size)
        return x0, Cond(low_res=low_res, low_res_level=level)


def similarity(image_embed: Float[Array, "*B D"], text_embed: Float[Array, "*T D"]) -> Float[Array, "..."]:
    """Cosine similarity of embeddings [..., D] and [..., D], which broadcast -> [...]."""
    return jnp.sum(unit_norm(image_embed) * unit_norm(text_embed), axis=-1)
