"""The text encoders of Stable Diffusion 1, 2, XL and FLUX behind the interface of transformers 4.

transformers 5 has no Flax any more, and with it went `FlaxCLIPTextModel`, which pipelines such as maxdiffusion's call.
Replace their import by

    from clip_jax.compat import FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection

    text_encoder = FlaxCLIPTextModel.from_pretrained(directory, subfolder="text_encoder", dtype=jnp.bfloat16)
    text_encoder(input_ids, params=text_encoder.params).last_hidden_state      # SD 1 and 2: [B, L, C]
    text_encoder(input_ids, output_hidden_states=True).hidden_states[-2]       # SDXL: [B, L, C], before the last norm
    text_encoder(input_ids).pooler_output                                      # FLUX: [B, C]

The names of this module are transformers', not this project's.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.arrays import AnyArray
from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.model import CLIP
from clip_jax.pretrained import load


class _Output:
    """What a model returns: its fields by name, by key, or by place among those that are there."""

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        values = (getattr(self, f.name) for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if value is not None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextModelOutput(_Output):
    last_hidden_state: Float[Array, "B L C"]  # after the last norm
    pooler_output: Float[Array, "B C"]  # the same at the end of the text
    hidden_states: tuple[Float[Array, "B L C"], ...] | None = None  # layers + 1, before the last norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextModelWithProjectionOutput(_Output):
    text_embeds: Float[Array, "B D"]
    last_hidden_state: Float[Array, "B L C"]
    hidden_states: tuple[Float[Array, "B L C"], ...] | None = None


class FlaxCLIPTextModel:
    """A text tower as a function of its parameters.

    Args:
        config: of a CLIP, whose image tower is ignored, or of its text tower alone.
        params: its parameters; of them `text` is kept.
        dtype: of the matrix products and of what is returned.
    """

    def __init__(self, config: CLIPConfig, params: dict[str, Any] | None = None, dtype: Any = jnp.float32):
        if config.text is None:
            raise UserError("this model has no text tower: it encodes images only")
        self._model = CLIP(dataclasses.replace(config, vision=None, logit_bias_init=None), dtype)
        self.config = config.text
        self.dtype = dtype
        self.params = None if params is None else {"text": params["text"]}

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike, *, subfolder: str = "", dtype: Any = jnp.float32, **ignored: Any
    ) -> Any:
        """From anything that `clip_jax.load` takes. `ignored` is what only transformers needs (`from_pt`, …)."""
        loaded = load(Path(source) / subfolder if subfolder else source)
        return cls(loaded.model.config, loaded.variables["params"], dtype)

    def __call__(
        self,
        input_ids: Int[AnyArray, "B L"],
        attention_mask: Any = None,
        position_ids: Any = None,
        params: dict[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """-> `TextModelOutput`, or its tuple with `return_dict=False`. Without dropout there is nothing to `train`.

        Raises: UserError for a mask or positions, which no diffusion pipeline gives, and for attentions.
        """
        for name, value in (("attention_mask", attention_mask), ("position_ids", position_ids)):
            if value is not None:
                raise UserError(f"{name} is not supported: these encoders were trained without; leave it out")
        if output_attentions:
            raise UserError("output_attentions is not supported: attention is computed without keeping its weights")
        params = self.params if params is None else params
        if params is None:
            raise UserError("this text model has no parameters of its own: give params")
        found = self._model.apply(
            {"params": {"text": params["text"]}},
            jnp.asarray(input_ids, jnp.int32),
            hidden_states=bool(output_hidden_states),
            method="encode_text",
        )
        out = jax.tree.map(lambda x: x.astype(self.dtype), self._output(found))
        return out.to_tuple() if return_dict is False else out

    def _output(self, found: Any) -> _Output:
        end = found.mask.sum(-1) - 1
        pooled = jnp.take_along_axis(found.encodings, end[:, None, None], axis=1)[:, 0]
        return TextModelOutput(found.encodings, pooled, found.hidden_states)


class FlaxCLIPTextModelWithProjection(FlaxCLIPTextModel):
    """The same, which returns `TextModelWithProjectionOutput`: the second encoder of SDXL."""

    def _output(self, found: Any) -> _Output:
        if self._model.config.embed_dim is None:
            raise UserError("this text model has no projection: use FlaxCLIPTextModel")
        return TextModelWithProjectionOutput(found.embed, found.encodings, found.hidden_states)
