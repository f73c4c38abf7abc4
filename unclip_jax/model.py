"""The model contract: protocols `Network` and `Model`, which stages and systems use in place of config classes.

A config satisfies a protocol by its attributes and methods (structural typing), and is defined in the module of its
network: `models/prior.py`, `models/unet.py`, `models/ar_prior.py`. Code outside does not test the class of a config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, Self, runtime_checkable

import flax.linen as nn
from jaxtyping import Array, Float

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from unclip_jax.conditioning import Cond
from unclip_jax.variables import Variables

Role = Literal["prior", "decoder", "upsampler"]
"""What a network does in a system."""

Reader = Callable[..., Float[Array, "B ..."]]
"""Function (x_t [B, …], t int32 [B], x0_hat if self-conditioned) -> output; the condition is bound and read already."""


@runtime_checkable
class Network(Protocol):
    """The config of any network of a system.

    Attributes:
        role: what the network does in a system; each folder of a run directory holds a network of one role.
        dtype: dtype of the matrix products.
    """

    @property
    def role(self) -> Role:
        """What the network does in a system."""
        ...

    @property
    def dtype(self) -> str:
        """Dtype of the matrix products."""
        ...

    def network(self) -> nn.Module:
        """The linen module."""
        ...

    def blank_cond(self, batch_size: int = 1) -> Cond:
        """A `Cond` of zeros with the fields and shapes that the network reads."""
        ...

    def fitted(self, clip: CLIPConfig) -> Self:
        """The same config with the widths of a CLIP; unchanged for a network that reads no features of CLIP.

        Args:
            clip: config of the CLIP that conditions the network.

        Raises:
            UserError: the CLIP lacks a tower, or the joint space, that the network needs.
        """
        ...


@runtime_checkable
class Model(Network, Protocol):
    """The config of a denoising network: what a `Stage` asks of it.

    Attributes:
        sample_shape: shape of one sample: [D] for a prior, [H, W, C] for pictures.
        reads_time: whether the network reads the timestep; without it only a one-step prior is possible.
        learned_variance: whether the output holds the variance beside the prediction, [..., 2C].
        self_condition: whether the network reads its previous estimate of x0 (self-conditioning).
        reads_level: whether the network reads the noise level of `Cond.low_res`.
    """

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def reads_time(self) -> bool:
        """Whether the network reads the timestep."""
        ...

    @property
    def learned_variance(self) -> bool:
        """Whether the output holds the variance beside the prediction."""
        ...

    @property
    def self_condition(self) -> bool:
        """Whether the network reads its previous estimate of x0."""
        ...

    @property
    def reads_level(self) -> bool:
        """Whether the network reads the noise level of `Cond.low_res`."""
        ...

    def read(self, module: Any, variables: Variables, cond: Cond) -> Reader:
        """Binds a condition. What depends on the condition alone is computed here, once for all steps of a sampler.

        Args:
            module: the linen module that `network` returned.
            variables: variables of the network.
            cond: the condition of B samples.

        Returns:
            The network as a function of x_t and t.
        """
        ...

    def restore(self, module: Any, variables: Variables, x0: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """Maps samples from the space of the diffusion to that of the data.

        Args:
            module: the linen module that `network` returned.
            variables: variables of the network.
            x0: [B, ...], standardised embeddings or pictures.

        Returns:
            CLIP image embeddings [B, D], or the pictures unchanged.
        """
        ...


def joint_width(clip: CLIPConfig) -> int:
    """Width D of the joint embeddings of a CLIP.

    Raises:
        UserError: the CLIP is a tower without a joint space.
    """
    if clip.embed_dim is None:
        raise UserError("the CLIP has no joint space (embed_dim is None): give one with both towers")
    return clip.embed_dim


def differences(config: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Compares two configs field by field; fields that are dataclasses are compared recursively.

    Args:
        config: a dataclass.
        other: a dataclass of the same class.
        prefix: prefix of the names of the fields.

    Yields:
        (name, value in `config`, value in `other`) of every field that differs; nested names are like "text.width".
    """
    for field in dataclasses.fields(config):
        name, ours, theirs = f"{prefix}{field.name}", getattr(config, field.name), getattr(other, field.name)
        if ours == theirs:
            continue
        if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
            yield from differences(ours, theirs, f"{name}.")
        else:
            yield name, ours, theirs
