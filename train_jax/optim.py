"""The optimiser: AdamW or Muon with warm-up, learning-rate schedule, weight decay and gradient clipping."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train_jax.errors import UserError
from train_jax.task import PyTree

__all__ = ["OptimConfig", "decays", "learning_rate", "make_optimizer", "usual_promotion"]


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule, gradient clipping, EMA and gradient accumulation."""

    kind: Literal["adamw", "muon"] = "adamw"
    """Muon orthogonalises the momentum of every kernel; AdamW updates the other parameters."""
    lr: float = 1e-3
    """Peak learning rate, after the warm-up. Muon's updates have AdamW's size, so one rate suits both."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine down to `final_lr_fraction * lr`, or constant."""
    final_lr_fraction: float = 0.0
    """Final learning rate of the cosine, as a fraction of `lr`."""
    b1: float = 0.9
    """AdamW's decay of the first moment (Muon's momentum is 0.95)."""
    b2: float = 0.99
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW), times the learning rate; not of biases and scales."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    ema_decay: float = 0.999
    """Decay of the EMA of the parameters; 0: no averaging."""
    accum: int = 1
    """Gradient accumulation: microbatches per step."""

    def __post_init__(self) -> None:
        def need(ok: bool, field: str, wanted: str) -> None:
            if not ok:
                raise UserError(f"optim.{field}: {getattr(self, field)!r} is not {wanted}")

        def finite(field: str) -> bool:
            return math.isfinite(getattr(self, field))

        need(self.kind in KINDS, "kind", " or ".join(repr(kind) for kind in KINDS))
        need(finite("lr") and self.lr > 0, "lr", "a positive number")
        need(self.warmup_steps >= 0, "warmup_steps", "zero or more")
        need(self.schedule in ("cosine", "constant"), "schedule", "'cosine' or 'constant'")
        need(0 <= self.final_lr_fraction <= 1, "final_lr_fraction", "between 0 and 1")
        need(0 <= self.b1 < 1, "b1", "in [0, 1)")
        need(0 <= self.b2 < 1, "b2", "in [0, 1)")
        need(finite("eps") and self.eps > 0, "eps", "a positive number")
        need(finite("weight_decay") and self.weight_decay >= 0, "weight_decay", "zero or more")
        need(finite("clip_norm") and self.clip_norm >= 0, "clip_norm", "zero or more")
        need(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)")
        need(self.accum >= 1, "accum", "one or more")


def learning_rate(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """The learning-rate schedule: number of updates already made -> learning rate of the next one.

    Args:
        config: peak rate, warm-up and shape of the schedule.
        num_steps: number of steps of the run, at which a cosine ends.

    Raises:
        UserError: the warm-up is longer than the run.
    """
    if config.warmup_steps > num_steps:
        raise UserError(f"optim.warmup_steps: {config.warmup_steps} is more than the run's {num_steps} steps")
    rest = max(num_steps - config.warmup_steps, 1)
    after = (
        optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr_fraction)
        if config.schedule == "cosine"
        else optax.constant_schedule(config.lr)
    )
    if config.warmup_steps == 0:
        return after
    # The first update uses lr/warmup_steps: with a rate of 0 the step would be wasted.
    start = config.lr / config.warmup_steps
    warmup = optax.linear_schedule(start, config.lr, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def decays(params: PyTree) -> PyTree:
    """The mask of weight decay: True for leaves of two axes or more (kernels, embeddings), except scales and biases.

    A norm's scale decayed to zero would silence its layer, and a bias multiplies nothing.

    Returns:
        A tree of bool with the structure of `params`.
    """
    excluded = ("bias", "scale")

    def decayed(path, leaf) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        return leaf.ndim >= 2 and not name.endswith(excluded)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """The optax optimiser: clip by global norm → Adam or Muon → decoupled weight decay → scheduled learning rate.

    Its state has a field `learning_rate`, the rate last used, which the train step logs.

    Args:
        config: the optimiser's options.
        num_steps: number of steps of the run.

    Raises:
        UserError: the warm-up is longer than the run.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        KINDS[config.kind](config),
        optax.add_decayed_weights(config.weight_decay, mask=decays) if config.weight_decay else optax.identity(),
        _scheduled(learning_rate(config, num_steps)),
    )
    return _promoting(chain)


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """Context manager for calls of optax: JAX's standard dtype and rank promotion.

    Under strict promotion, optax cannot compute its bias correction (float decay to the power of an integer count).
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _promoting(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` with `usual_promotion`, whatever promotion the user has set."""

    def init(params: PyTree) -> optax.OptState:
        with usual_promotion():
            return tx.init(params)

    def update(updates: PyTree, state: optax.OptState, params: PyTree = None) -> tuple[PyTree, optax.OptState]:
        with usual_promotion():
            return tx.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _adam(config: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _muon(config: OptimConfig) -> optax.GradientTransformation:
    """Muon (Jordan 2024), with updates scaled to AdamW's usual root mean square, 0.2 (Liu et al. 2025, §2.2).

    The learning rate −1 cancels optax's minus sign, since `_scheduled` applies its own.
    """
    return optax.contrib.muon(
        learning_rate=-1.0,
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_matrices,
    )


KINDS = {"adamw": _adam, "muon": _muon}


def _matrices(params: PyTree) -> PyTree:
    """How Muon reads each kernel as a matrix: all axes but the last are inputs. Leaves with None are left to AdamW."""

    def matrix(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        inputs = tuple(range(leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, (leaf.ndim - 1,)) if inputs and name == "kernel" else None

    return jax.tree_util.tree_map_with_path(matrix, params)


class ScheduledState(NamedTuple):
    """State of `_scheduled`: the number of updates made, and the learning rate of the last one."""

    num_updates: jax.Array  # int32 scalar
    learning_rate: jax.Array  # float32 scalar


def _scheduled(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Scale by minus the scheduled learning rate and keep that rate in the state, which optax's own does not."""

    def init(params: PyTree) -> ScheduledState:
        return ScheduledState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: PyTree, state: ScheduledState, params: PyTree = None) -> tuple[PyTree, ScheduledState]:
        rate = jnp.asarray(schedule(state.num_updates), jnp.float32)
        updates = jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates)
        return updates, ScheduledState(state.num_updates + 1, rate)

    return optax.GradientTransformation(init, update)
