"""What stages and systems ask of the config of a network: the model contract.

A config satisfies it by shape and stands beside the module that it configures: `models/prior.py`, `models/unet.py`,
`models/ar_prior.py`. Nobody else asks of which class a config is.
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
"""(x_t [B, …], t int32 [B], x0_hat?) -> what the network outputs; the condition is bound, and read already."""


@runtime_checkable
class Network(Protocol):
    """The config of any network of a system.

    Attributes:
        role: what the network does in a system; a folder of a run directory holds one role.
        dtype: of the matrix products.
    """

    @property
    def role(self) -> Role:
        """What the network does in a system."""
        ...

    @property
    def dtype(self) -> str:
        """Of the matrix products."""
        ...

    def network(self) -> nn.Module:
        """The linen module."""
        ...

    def blank_cond(self, batch_size: int = 1) -> Cond:
        """A `Cond` of zeros with the fields and shapes that the network reads."""
        ...

    def fitted(self, clip: CLIPConfig) -> Self:
        """The same config with the widths of this CLIP; a network that sees no CLIP stays as it is."""
        ...


@runtime_checkable
class Model(Network, Protocol):
    """The config of a denoising network: what a `Stage` asks of it.

    Attributes:
        sample_shape: of one sample: [D] for a prior, [H, W, C] for pictures.
        reads_time: whether the network is told the time, as it has to be in a diffusion of more than one step.
        learned_variance: the output holds the variance beside the prediction, [..., 2C].
        self_condition: the network also reads its last estimate of x0.
        reads_level: the network is told how much noise was mixed into `Cond.low_res`.
    """

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def reads_time(self) -> bool:
        """Whether the network is told the time."""
        ...

    @property
    def learned_variance(self) -> bool:
        """Whether the output holds the variance too."""
        ...

    @property
    def self_condition(self) -> bool:
        """Whether the last estimate of x0 is read."""
        ...

    @property
    def reads_level(self) -> bool:
        """Whether the noise of `low_res` is told."""
        ...

    def read(self, module: Any, variables: Variables, cond: Cond) -> Reader:
        """Binds a condition. What depends on the condition alone is computed here, once for all steps of a sampler.

        Args:
            module: what `network` returned.
            variables: of the network.
            cond: the condition of B samples.

        Returns:
            The network as a function of x_t and t.
        """
        ...

    def restore(self, module: Any, variables: Variables, x0: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """From the space that the diffusion runs in to that of the data: CLIP's embeddings, or pictures as they are."""
        ...


def joint_width(clip: CLIPConfig) -> int:
    """Width D of a CLIP's embeddings. Raises UserError for a tower without a joint space."""
    if clip.embed_dim is None:
        raise UserError("the CLIP has no joint space (embed_dim is None): give one with both towers")
    return clip.embed_dim


def differences(config: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields of two configs that differ.

    Args:
        config: a dataclass; a field may be one too.
        other: of the same class.
        prefix: what comes before the names of the fields.

    Yields:
        (name of the field, its value in `config`, its value in `other`); "text.width" for a field of a field.
    """
    for field in dataclasses.fields(config):
        name, ours, theirs = f"{prefix}{field.name}", getattr(config, field.name), getattr(other, field.name)
        if ours == theirs:
            continue
        if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
            yield from differences(ours, theirs, f"{name}.")
        else:
            yield name, ours, theirs
