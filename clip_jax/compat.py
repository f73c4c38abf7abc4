"""Drop-in replacements for transformers 4's Flax models: FlaxCLIPTextModel, FlaxCLIPVisionModel, FlaxCLIPModel.

Pipelines such as maxdiffusion's call these classes, which transformers 5 has not. Replace their import by

    from clip_jax.compat import FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection

    text_encoder = FlaxCLIPTextModel.from_pretrained(directory, subfolder="text_encoder", dtype=jnp.bfloat16)
    text_encoder(input_ids, params=text_encoder.params).last_hidden_state      # SD 1 and 2: [B, L, C]
    text_encoder(input_ids, output_hidden_states=True).hidden_states[-2]       # SDXL: [B, L, C], before the last norm
    text_encoder(input_ids).pooler_output                                      # FLUX: [B, C]

`params` has transformers' layout (`params["text_model"]["embeddings"]…`); parameters in this project's layout are
accepted as well. Class, method and argument names are transformers'.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.arrays import AnyArray
from clip_jax.compat_params import from_transformers, has_layout, is_theirs, to_transformers
from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.model import CLIP, init, unit_norm
from clip_jax.pretrained import export, load
from clip_jax.weights import huggingface

# Arguments of transformers' `from_pretrained` that are accepted and ignored: how and from where to fetch a file.
HOW_TO_FETCH = {
    "cache_dir", "force_download", "from_flax", "from_pt", "input_shape", "local_files_only", "mirror", "proxies",
    "resume_download", "revision", "seed", "token", "trust_remote_code", "use_auth_token", "use_safetensors", "variant",
}  # fmt: skip


PROJECTIONS = ("text_projection", "text_projection_bias", "proj")


class _Output:
    """Output of a model: fields by attribute, by key, or by index among the fields that are not None."""

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if value is not None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextModelOutput(_Output):
    """Output of `FlaxCLIPTextModel`."""

    last_hidden_state: Float[Array, "B L C"]  # after the last norm
    pooler_output: Float[Array, "B C"]  # last_hidden_state at the end-of-text token
    hidden_states: tuple[Float[Array, "B L C"], ...] | None = None  # layers + 1, before the last norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextModelWithProjectionOutput(_Output):
    """Output of `FlaxCLIPTextModelWithProjection`."""

    text_embeds: Float[Array, "B D"]
    last_hidden_state: Float[Array, "B L C"]
    hidden_states: tuple[Float[Array, "B L C"], ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionModelOutput(_Output):
    """Output of `FlaxCLIPVisionModel`."""

    last_hidden_state: Float[Array, "B P C"]  # before the last norm
    pooler_output: Float[Array, "B C"]  # the class token after the last norm
    hidden_states: tuple[Float[Array, "B P C"], ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionModelWithProjectionOutput(_Output):
    """Output of `FlaxCLIPVisionModelWithProjection`."""

    image_embeds: Float[Array, "B D"]
    last_hidden_state: Float[Array, "B P C"]
    hidden_states: tuple[Float[Array, "B P C"], ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CLIPModelOutput(_Output):
    """Output of `FlaxCLIPModel`."""

    logits_per_image: Float[Array, "B T"] | Any
    logits_per_text: Float[Array, "T B"] | Any
    text_embeds: Float[Array, "T D"] | Any  # unit norm
    image_embeds: Float[Array, "B D"] | Any  # unit norm


class Config:
    """A config of transformers: its fields as attributes, `hidden_size`, `max_position_embeddings` and so on."""

    def __init__(self, data: Mapping[str, Any]):
        for name, value in data.items():
            setattr(self, name, Config(value) if isinstance(value, Mapping) else value)

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` of transformers."""
        return {name: value.to_dict() if isinstance(value, Config) else value for name, value in vars(self).items()}


class FlaxCLIPPreTrainedModel:
    """Base class of the models: config, parameters, loading and saving.

    Args:
        config: a CLIPConfig, of which the towers of the class are kept, or a config of transformers.
        params: the parameters, in transformers' layout or this project's. None: a config of transformers gets random
            ones, as in transformers; with a CLIPConfig the model has none, and every call needs `params`.
        dtype: of the matrix products and outputs, as a dtype or its name ("bfloat16").
        seed: of the random parameters.
        input_shape: ignored; the config has the sizes.

    Attributes:
        towers: the towers that the class has.
        architecture: its name in `config.json`.
        projected: whether the class has the projection to the joint space.

    Raises:
        UserError: If the config lacks a tower of the class.
    """

    towers: ClassVar[tuple[str, ...]] = ("text", "vision")
    architecture: ClassVar[str] = "CLIPModel"
    projected: ClassVar[bool] = True

    def __init__(
        self,
        config: Any,
        params: Mapping[str, Any] | None = None,
        dtype: Any = jnp.float32,
        *,
        seed: int = 0,
        input_shape: Any = None,
        _do_init: bool = True,
    ):
        ours = config if isinstance(config, CLIPConfig) else self._read(config)
        for tower, does in (("text", "it encodes images only"), ("vision", "it encodes texts only")):
            if tower in self.towers and getattr(ours, tower) is None:
                raise UserError(f"this model has no {tower.replace('vision', 'image')} tower: {does}")
        if len(self.towers) == 1:
            other = {tower: None for tower in ("text", "vision") if tower not in self.towers}
            ours = dataclasses.replace(ours, **other, logit_bias_init=None)  # type: ignore[arg-type]
        if not self.projected:
            ours = dataclasses.replace(ours, embed_dim=None)
        self.dtype = jnp.dtype(dtype)
        self._model = CLIP(ours, self.dtype)
        self._own_layout = not has_layout(ours)
        self.params: Any = None
        if params is not None:
            self.params = self._theirs(self._ours(params))
        elif not isinstance(config, CLIPConfig) and _do_init:
            self.params = self.init_weights(jax.random.key(seed))

    @property
    def config(self) -> Any:
        """The config in transformers' format; the CLIPConfig if transformers has no such architecture."""
        if self._own_layout:
            return self._model.config
        return Config(huggingface.config_to_json(self._model.config))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        subfolder: str = "",
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        **how: Any,
    ) -> Any:
        """Loads a model.

        Args:
            source: anything that `clip_jax.load` takes.
            subfolder: of the directory `source`.
            dtype: of the matrix products and outputs.
            how: arguments of transformers about fetching files (`from_pt`, `revision`, …) are ignored.

        Returns:
            The model; with `_do_init=False` (model, params).

        Raises:
            UserError: If an argument is unknown, or the model cannot be loaded.
        """
        if unknown := sorted(set(how) - HOW_TO_FETCH):
            raise UserError(f"from_pretrained: {unknown[0]} is not supported: leave it out")
        loaded = load(Path(source) / subfolder if subfolder else source)
        model = cls(loaded.model.config, loaded.variables["params"], dtype)
        if _do_init:
            return model
        params, model.params = model.params, None
        return model, params

    def save_pretrained(self, directory: str | os.PathLike, params: Mapping[str, Any] | None = None) -> None:
        """Writes `config.json` and `model.safetensors` in transformers' layout.

        Args:
            directory: where.
            params: None: the model's own.

        Raises:
            UserError: If the model has no parameters and none are given.
        """
        export(directory, self._model, {"params": self._given(params)})

    def init_weights(self, rng: Array, input_shape: Any = None, params: Any = None) -> Any:
        """Random parameters in transformers' layout.

        Args:
            rng: PRNG key.
            input_shape: ignored; the config has the sizes.
            params: parameters that are kept in place of random ones; may be incomplete.
        """
        fresh = self._theirs(jax.jit(lambda key: init(self._model.config, key)["params"])(rng))
        return fresh if params is None else _filled(fresh, params)

    def to_bf16(self, params: Any, mask: Any = None) -> Any:
        """Casts the floats of `params` to bfloat16, where `mask` is True (None: everywhere)."""
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Any, mask: Any = None) -> Any:
        """Casts the floats of `params` to float16, as `to_bf16`."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Any, mask: Any = None) -> Any:
        """Casts the floats of `params` to float32, as `to_bf16`."""
        return _cast(params, jnp.float32, mask)

    def _read(self, config: Any) -> CLIPConfig:
        data = config.to_dict() if hasattr(config, "to_dict") else vars(config)
        data = {name: value for name, value in data.items() if value is not None} | {
            "architectures": [self.architecture]
        }
        return huggingface.config_from_json(data, "config")

    def _theirs(self, params: Mapping[str, Any]) -> Any:
        return params if self._own_layout else to_transformers(params, self._model.config)

    def _ours(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of either layout in this project's, without those of towers that the class does not have."""
        ours = from_transformers(params, self._model.config) if is_theirs(params) else dict(params)
        names = {"text": "text", "vision": "visual"}
        kept = [names[tower] for tower in self.towers] + (["logit_scale", "logit_bias"] if len(self.towers) > 1 else [])
        ours = {name: ours[name] for name in kept if name in ours}
        if self.projected:
            return ours
        return {name: {k: v for k, v in tower.items() if k not in PROJECTIONS} for name, tower in ours.items()}

    def _given(self, params: Mapping[str, Any] | None) -> dict[str, Any]:
        params = self.params if params is None else params
        if params is None:
            raise UserError("this model has no parameters of its own: give params")
        return self._ours(params)

    def _finish(self, out: Any, return_dict: bool | None) -> Any:
        out = jax.tree.map(lambda x: x.astype(self.dtype), out)
        return out.to_tuple() if return_dict is False else out


class FlaxCLIPTextPreTrainedModel(FlaxCLIPPreTrainedModel):
    """Base class of the text models; of a whole CLIP's config and parameters only the text tower is kept."""

    towers: ClassVar[tuple[str, ...]] = ("text",)
    architecture: ClassVar[str] = "CLIPTextModel"

    def __call__(
        self,
        input_ids: Int[AnyArray, "B L"],
        attention_mask: Any = None,
        position_ids: Any = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes texts.

        Args:
            input_ids: tokens [B, L].
            attention_mask: [B, L], 0 at tokens that are not attended to; None: all are.
            position_ids: [B, L] or [1, L]; None: in order.
            params: None: the model's own.
            dropout_rng: ignored, as there is no dropout.
            train: ignored, as `dropout_rng`.
            output_attentions: not supported.
            output_hidden_states: whether to return the hidden states of all layers.
            return_dict: False returns a tuple.

        Returns:
            The output of the class, or its tuple.

        Raises:
            UserError: If attentions are requested, or there are no parameters.
        """
        _no_attentions(output_attentions)
        features = _encode_text(
            self._model, self._given(params), input_ids, attention_mask, position_ids, bool(output_hidden_states)
        )
        return self._finish(self._output(features), return_dict)

    def _output(self, features: Any) -> _Output:
        raise NotImplementedError


class FlaxCLIPTextModel(FlaxCLIPTextPreTrainedModel):
    """The text encoder of Stable Diffusion 1 and 2 and of FLUX: returns `TextModelOutput`."""

    projected: ClassVar[bool] = False

    def _output(self, features: Any) -> _Output:
        end = features.mask.sum(-1) - 1
        pooled = jnp.take_along_axis(features.encodings, end[:, None, None], axis=1)[:, 0]
        return TextModelOutput(features.encodings, pooled, features.hidden_states)


class FlaxCLIPTextModelWithProjection(FlaxCLIPTextPreTrainedModel):
    """The second text encoder of SDXL: returns `TextModelWithProjectionOutput`."""

    architecture: ClassVar[str] = "CLIPTextModelWithProjection"

    def _output(self, features: Any) -> _Output:
        if self._model.config.embed_dim is None:
            raise UserError("this text model has no projection: use FlaxCLIPTextModel")
        return TextModelWithProjectionOutput(features.embed, features.encodings, features.hidden_states)


class FlaxCLIPVisionModelWithProjection(FlaxCLIPPreTrainedModel):
    """The image tower with its projection: returns `VisionModelWithProjectionOutput`."""

    towers: ClassVar[tuple[str, ...]] = ("vision",)
    architecture: ClassVar[str] = "CLIPVisionModelWithProjection"

    def __call__(
        self,
        pixel_values: Float[AnyArray, "B c H W"],
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes images.

        Args:
            pixel_values: CLIP-normalised, channels first [B, c, H, W], as transformers' processor gives them.
            params: None: the model's own.
            dropout_rng: ignored, as there is no dropout.
            train: ignored, as `dropout_rng`.
            output_attentions: not supported.
            output_hidden_states: whether to return the hidden states of all layers.
            return_dict: False returns a tuple.

        Returns:
            The output of the class, or its tuple.

        Raises:
            UserError: If attentions are requested, or there are no parameters.
        """
        _no_attentions(output_attentions)
        features = _image_states(self._model, self._given(params), pixel_values)
        states = features.hidden_states if output_hidden_states else None
        return self._finish(self._output(features.embed, features.hidden_states[-1], states), return_dict)

    def _output(self, embed: Array, last: Array, states: Any) -> _Output:
        if self._model.config.embed_dim is None:
            raise UserError("this image model has no projection: use FlaxCLIPVisionModel")
        return VisionModelWithProjectionOutput(embed, last, states)


class FlaxCLIPVisionModel(FlaxCLIPVisionModelWithProjection):
    """The image tower before its projection: returns `VisionModelOutput`."""

    architecture: ClassVar[str] = "CLIPVisionModel"
    projected: ClassVar[bool] = False

    def _output(self, embed: Array, last: Array, states: Any) -> _Output:
        return VisionModelOutput(last, embed, states)


class FlaxCLIPModel(FlaxCLIPPreTrainedModel):
    """Both towers: returns `CLIPModelOutput`."""

    def get_text_features(
        self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, params: Any = None, **_: Any
    ) -> Float[Array, "B D"]:
        """Text embeddings [B, D], not normalised.

        Args:
            input_ids: tokens [B, L].
            attention_mask: [B, L], 0 at tokens that are not attended to; None: all are.
            position_ids: [B, L] or [1, L]; None: in order.
            params: None: the model's own.

        Raises:
            UserError: If there are no parameters, or the tokens do not fit the model.
        """
        features = _encode_text(self._model, self._given(params), input_ids, attention_mask, position_ids, False)
        return features.embed.astype(self.dtype)

    def get_image_features(self, pixel_values: Any, params: Any = None, **_: Any) -> Float[Array, "B D"]:
        """Image embeddings [B, D], not normalised.

        Args:
            pixel_values: CLIP-normalised, channels first [B, c, H, W].
            params: None: the model's own.

        Raises:
            UserError: If there are no parameters, or the images do not fit the model.
        """
        return _image_states(self._model, self._given(params), pixel_values).embed.astype(self.dtype)

    def __call__(
        self,
        input_ids: Int[AnyArray, "T L"],
        pixel_values: Float[AnyArray, "B c H W"],
        attention_mask: Any = None,
        position_ids: Any = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes images and texts, and scales their similarities; arguments as of the models of one tower.

        Returns:
            `CLIPModelOutput`, or its tuple with `return_dict=False`.

        Raises:
            UserError: If attentions or hidden states are requested; the models of one tower return hidden states.
        """
        _no_attentions(output_attentions)
        if output_hidden_states:
            raise UserError("output_hidden_states is not supported of both towers at once: use those of one tower")
        ours = self._given(params)
        text = unit_norm(_encode_text(self._model, ours, input_ids, attention_mask, position_ids, False).embed)
        image = unit_norm(_image_states(self._model, ours, pixel_values).embed)
        scale = jnp.exp(ours.get("logit_scale", jnp.float32(self._model.config.logit_scale_init)))
        logits = scale * image @ text.T
        return self._finish(CLIPModelOutput(logits, logits.T, text, image), return_dict)


def _encode_text(model: CLIP, params: Any, input_ids: Any, mask: Any, positions: Any, hidden_states: bool) -> Any:
    given = {"attention_mask": mask, "position_ids": positions}
    return model.apply(
        {"params": params},
        jnp.asarray(input_ids, jnp.int32),
        hidden_states=hidden_states,
        method="encode_text",
        **{name: jnp.asarray(value) for name, value in given.items() if value is not None},
    )


def _image_states(model: CLIP, params: Any, pixel_values: Any) -> Any:
    images = jnp.asarray(pixel_values)
    if images.ndim != 4:
        raise UserError(f"pixel_values have the shape {list(images.shape)}, not [B, c, H, W]")
    images = images.transpose(0, 2, 3, 1)
    return model.apply({"params": params}, images, method="image_states")


def _no_attentions(output_attentions: bool | None) -> None:
    if output_attentions:
        raise UserError("output_attentions is not supported: attention is computed without keeping its weights")


def _cast(params: Any, dtype: Any, mask: Any) -> Any:
    def cast(x: Any, selected: bool = True) -> Any:
        return x.astype(dtype) if selected and jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, params) if mask is None else jax.tree.map(cast, params, mask)


def _filled(fresh: Any, params: Any) -> Any:
    if not isinstance(fresh, Mapping):
        return params
    return {name: _filled(value, params[name]) if name in params else value for name, value in fresh.items()}
