"""The training task of CLIP: `init` and `loss`, which match the `Task` protocol of `train_jax` without importing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from clip_jax.arrays import AnyArray
from clip_jax.config import CLIPConfig, PlainResNetConfig, ResNetConfig, TextConfig
from clip_jax.encode import network_input
from clip_jax.errors import UserError
from clip_jax.losses import Direction, clip_loss, same_rows, sigmoid_loss
from clip_jax.model import CLIP, init
from clip_jax.towers.text import eot_index
from clip_jax.weights.rules import flat_variables, nested_variables


def drop_tokens(
    tokens: Int[AnyArray, "B L"], key: Array, prob: float, *, eos_id: int | None, pad_id: int
) -> Int[Array, "B L"]:
    """Token dropout: removes each ordinary token with probability `prob`, closes the gaps and pads the row at its end.

    The start and end tokens always stay. A shortened caption still describes its image, but it may describe other
    images of the batch as well, which count as negatives: that slows learning.

    Args:
        tokens: integers [B, L].
        key: PRNG key.
        prob: in [0, 1].
        eos_id: id of the end-of-text token; None: the highest id of each row.
        pad_id: id of the padding.
    """
    length = tokens.shape[1]
    place, end = jnp.arange(length, dtype=jnp.int32)[None], eot_index(tokens, eos_id)[:, None]
    ordinary = (place > 0) & (place < end)
    keep = (place <= end) & ~(ordinary & jax.random.bernoulli(key, prob, tokens.shape))
    order = jnp.argsort(~keep, axis=-1, stable=True)  # kept tokens first, in their order
    closed = jnp.take_along_axis(tokens, order, axis=-1)
    return jnp.where(place < keep.sum(-1, keepdims=True, dtype=jnp.int32), closed, pad_id)


@dataclass(frozen=True)
class CLIPTask:
    """Contrastive training on batches {"image": uint8 [B, H, W, c], "tokens": int32 [B, L]}.

    A model with a bias (SigLIP) is trained with the sigmoid loss, the others with the softmax loss.

    Args:
        config: of a CLIP with both towers.
        token_drop_prob: probability of token dropout, see `drop_tokens`. Captions are compared after the dropout.
        patch_drop_prob: fraction of the patches that is dropped from each training image (FLIP, Li et al. 2022).
        dtype: of the matrix products; parameters, loss and optimiser stay float32.
        direction: of the softmax loss, see `clip_loss`.
        equal_captions: whether equal captions are positives for each other's image; if not, they are negatives.

    Raises:
        UserError: If the config has one tower only, or its towers do not support the dropout.
    """

    config: CLIPConfig
    token_drop_prob: float = 0.0
    patch_drop_prob: float = 0.0
    dtype: Any = jnp.float32
    direction: Direction | str = "both"
    equal_captions: bool = True
    splits: ClassVar[bool] = False  # microbatches would contrast fewer examples than the batch

    def __post_init__(self) -> None:
        config = self.config
        if not config.two_towers:
            raise UserError("CLIPTask: contrastive training needs two towers, this config has one")
        if self.patch_drop_prob and isinstance(config.vision, ResNetConfig | PlainResNetConfig):
            raise UserError(f"patch_drop_prob is {self.patch_drop_prob}: a ResNet has no patches; set it to 0")
        if self.token_drop_prob and not (isinstance(config.text, TextConfig) and config.text.pool == "eos"):
            raise UserError(
                f"token_drop_prob is {self.token_drop_prob}: this text tower knows no end of the text; set it to 0"
            )

    def init(self, key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """Random (params, model_state); model_state holds `batch_stats` where there are batch norms, else nothing."""
        variables = init(self.config, key)
        return variables.pop("params"), variables

    def loss(
        self,
        params: dict[str, Any],
        model_state: dict[str, Any],
        batch: Mapping[str, AnyArray],
        key: Array,
        *,
        train: bool,
    ) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
        """Contrastive loss of a batch.

        Args:
            params: of the CLIP.
            model_state: `batch_stats`, or empty.
            batch: "image", uint8 [B, H, W, c] (or float in [−1, 1]), and "tokens", int32 [B, L].
            key: PRNG key of the dropout.
            train: whether to apply the dropout and update `batch_stats`.

        Returns:
            (loss, (metrics, model_state)), with the metrics of `clip_loss` or `sigmoid_loss`.
        """
        config, tokens, keep_patches = self.config, batch["tokens"], None
        if train:
            token_key, patch_key = jax.random.split(key)
            if self.token_drop_prob:
                text = config.text
                tokens = drop_tokens(tokens, token_key, self.token_drop_prob, eos_id=text.eos_id, pad_id=text.pad_id)
            if self.patch_drop_prob:
                patches = config.vision.grid**2
                kept = max(1, round(patches * (1 - self.patch_drop_prob)))
                order = jax.random.uniform(patch_key, (tokens.shape[0], patches)).argsort(-1)
                keep_patches = order[:, :kept]
        images = network_input(config, batch["image"])
        out, changed = CLIP(config, self.dtype).apply(
            {"params": params, **model_state}, images, tokens, keep_patches, train=train, mutable=[*model_state]
        )
        targets = same_rows(tokens) if self.equal_captions else None
        features = out.image_features, out.text_features, out.logit_scale
        if out.logit_bias is None:
            loss, metrics = clip_loss(*features, targets, direction=self.direction)
        else:
            loss, metrics = sigmoid_loss(*features, out.logit_bias, targets)
        return loss, (metrics, {**model_state, **changed})


@dataclass(frozen=True, eq=False)
class StartedTask:
    """Fine-tuning: another task whose parameters start from given weights; the rest is initialised at random.

    Args:
        task: the task that is trained.
        weights: flat variables by their path, as `clip_jax.weights.towers.load_tower` reads them.
    """

    task: Any  # with `init`, `loss` and `splits` as `CLIPTask` has them
    weights: Mapping[str, np.ndarray]

    @property
    def splits(self) -> bool:
        """Whether a batch may be split into microbatches, as the task says."""
        return self.task.splits

    def init(self, key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """(params, model_state) of the task, with the given weights in place."""
        params, model_state = self.task.init(key)
        given = dict(self.weights)
        shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in given.items()}
        # A callback fetches them when the program runs. As constants they would be compiled in, which takes minutes.
        fetched = jax.pure_callback(lambda: given, shapes)
        variables = nested_variables(flat_variables({"params": params, **model_state}) | fetched)
        return variables.pop("params"), variables

    def loss(
        self,
        params: dict[str, Any],
        model_state: dict[str, Any],
        batch: Mapping[str, AnyArray],
        key: Array,
        *,
        train: bool,
    ) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
        """The loss of the task."""
        return self.task.loss(params, model_state, batch, key, train=train)
