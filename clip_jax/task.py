"""CLIP as something to train: satisfies `train_jax`'s Task protocol by shape, without knowing it."""

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
    """Removes each ordinary token with probability `prob`; the rest closes up, the row is padded at its end.

    Start and end always stay. A shortened caption still describes its image, but as it describes others of the batch
    too, which then count as wrong, it slows learning. On the shapes world it did not help unseen pairs of words.
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
        token_drop_prob: see `drop_tokens`. Captions count as equal, and thus as right for each other's image, after it.
        patch_drop_prob: fraction of the patches left out of each training image.
        dtype: of the matrix products; parameters, loss and optimiser stay float32.
        direction: of the softmax loss, see `clip_loss`.
        equal_captions: whether equal captions are right for each other's image; if not, they count as wrong.

    Raises:
        UserError: for a dropout that the towers cannot have.
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
        """-> (params, model_state): running statistics as `batch_stats` where there are batch norms, else nothing."""
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
        """-> (loss, (metrics, model_state)); the metrics are those of the loss."""
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
    """Another task that starts from given weights, where there are some, and from drawn ones elsewhere.

    Args:
        weights: flat variables by their path, as `clip_jax.weights.towers.load_tower` reads them.
    """

    task: Any  # with `init`, `loss` and `splits` as `CLIPTask` has them
    weights: Mapping[str, np.ndarray]

    @property
    def splits(self) -> bool:
        """The task's own."""
        return self.task.splits

    def init(self, key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """-> (params, model_state), as the task's own."""
        params, model_state = self.task.init(key)
        given = dict(self.weights)
        shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in given.items()}
        # Fetched when the program runs. As constants of the program they would be compiled, which takes minutes.
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
        """The task's own."""
        return self.task.loss(params, model_state, batch, key, train=train)
