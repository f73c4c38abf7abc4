"""Progressive distillation: trains a student to do in one DDIM step what its teacher does in two.

Salimans & Ho 2022, algorithm 2, for a decoder or an upsampler. The teacher is guided and clipped as its stage says, and
the student learns the guided result without guidance (as Meng et al. 2023, for one guidance scale). It needs half the
steps and, if the teacher was guided, a quarter of the network evaluations. The student of one round is the teacher of
the next. Both use the "trailing" grid, on which half as many steps visit every other timestep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from clip_jax.errors import UserError
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.losses import Noised, TruncatedSNR, add_noise, diffusion_loss
from unclip_jax.diffusion.predict import Denoiser, per_sample, split_output
from unclip_jax.diffusion.samplers import DDIM
from unclip_jax.diffusion.schedule import NoiseSchedule, Trailing
from unclip_jax.settings import standard_settings
from unclip_jax.stage import X0_ERROR, Stage
from unclip_jax.tasks import (
    Batch,
    DecoderTask,
    LossOutput,
    Params,
    UpsamplerTask,
    variables_of,
    with_statistics,
)
from unclip_jax.variables import STATISTICS, Variables


def student_of(teacher: Stage, num_steps: int) -> Stage:
    """The stage of a student: the teacher's network without guidance, sampled by DDIM in `num_steps` steps.

    Args:
        teacher: stage of the teacher.
        num_steps: sampling steps of the student, 1 to T // 2.

    Raises:
        UserError: the network predicts eps, which at the noisiest timestep does not determine x0 (Salimans & Ho 2022,
            §4), or `num_steps` is out of range.
    """
    if teacher.prediction == "eps":
        raise UserError("a network that predicts eps cannot be distilled: train one that predicts v or x0")
    if not 1 <= num_steps <= teacher.num_timesteps // 2:
        raise UserError(f"num_steps is {num_steps}; for a student give 1 to {teacher.num_timesteps // 2}")
    sampling = dataclasses.replace(
        teacher.sampling, sampler=DDIM(grid=Trailing()), num_steps=num_steps, guidance_scale=None
    )
    # A measured x0_error is that of the teacher.
    return dataclasses.replace(teacher, sampling=sampling, weight=TruncatedSNR(), x0_error=False)


def student_variables(variables: Variables) -> Variables:
    """Initial variables of a student: those of the teacher, without its measured `x0_error`."""
    trees = {
        name: {key: leaf for key, leaf in tree.items() if (name, key) != (STATISTICS, X0_ERROR)}
        for name, tree in variables.items()
    }
    return {name: tree for name, tree in trees.items() if tree}


def ddim_step(
    denoise: Denoiser, schedule: NoiseSchedule, x_t: Float[Array, "B ..."], t: Int[Array, " B"], s: Int[Array, " B"]
) -> Float[Array, "B ..."]:
    """One deterministic DDIM step, with timesteps per sample (those of a sampler are the same for the whole batch).

    Args:
        denoise: function (x_t, t [B]) -> Denoised.
        schedule: the noise schedule.
        x_t: [B, ...].
        t: timesteps of x_t, [B].
        s: next timesteps, s < t, [B]; −1 is clean data.

    Returns:
        x_s [B, ...].
    """
    x0 = denoise(x_t, t).x0
    alpha_t, sigma_t, alpha_s, sigma_s = (
        per_sample(f(time), x_t) for time in (t, s) for f in (schedule.alpha, schedule.sigma)
    )
    return alpha_s * x0 + sigma_s / sigma_t * (x_t - alpha_t * x0)


def target(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x_t: Float[Array, "B ..."],
    t: Int[Array, " B"],
    middle: Int[Array, " B"],
    s: Int[Array, " B"],
) -> Float[Array, "B ..."]:
    """Distillation target: the x0 with which one DDIM step from t to s gives the result of two steps of the teacher.

    Salimans & Ho 2022, algorithm 2, where x at t, `middle` and s is z_t, z_t' and z_t''.

    Args:
        denoise: the teacher.
        schedule: the noise schedule.
        x_t: [B, ...].
        t: timesteps of x_t, [B].
        middle: timesteps between the teacher's two steps, [B].
        s: timesteps after them, [B]; −1 is clean data.

    Returns:
        [B, ...].
    """
    x_s = ddim_step(denoise, schedule, ddim_step(denoise, schedule, x_t, t, middle), middle, s)
    alpha_t, sigma_t, alpha_s, sigma_s = (
        per_sample(f(time), x_t) for time in (t, s) for f in (schedule.alpha, schedule.sigma)
    )
    ratio = sigma_s / sigma_t
    return (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t)


@standard_settings
def step_times(
    student: Stage, key: Key[Array, ""], batch_size: int
) -> tuple[Int[Array, " B"], Int[Array, " B"], Int[Array, " B"]]:
    """Draws one of the student's sampling steps for each sample, uniformly.

    The steps of a batch are evenly spread over the grid from one random offset, as the timesteps of `losses.noised`.

    Args:
        student: stage of the student.
        key: one PRNG key.
        batch_size: B.

    Returns:
        (t, middle, s), int32 [B] each; s of the last step is −1.
    """
    own = student.sampling
    fine = dataclasses.replace(student, sampling=dataclasses.replace(own, num_steps=2 * own.num_steps))
    visited = jnp.append(
        jnp.asarray(stages.timesteps(fine)), -1
    )  # timesteps of the teacher; the student visits every other
    fractions = (jax.random.uniform(key, (), jnp.float32) + jnp.arange(batch_size) / batch_size) % 1.0
    first = 2 * jnp.minimum((fractions * own.num_steps).astype(jnp.int32), own.num_steps - 1)
    return visited[first], visited[first + 1], visited[first + 2]


@dataclass(frozen=True)
class DistillTask:
    """Training task of one round of distillation.

    Attributes:
        of: the task that the teacher was trained with, which turns a batch into examples. Its condition dropout applies
            to teacher and student alike, so that the student also learns to draw without a caption.
        teacher: stage of the teacher, with its guidance and clipping; its sampler and grid are not used.
        teacher_variables: variables of the teacher, with which the student starts.
        num_steps: sampling steps of the student; the teacher takes twice as many.
    """

    of: DecoderTask | UpsamplerTask
    teacher: Stage
    teacher_variables: Variables
    num_steps: int

    @property
    def student(self) -> Stage:
        """The stage that is trained."""
        return student_of(self.teacher, self.num_steps)

    @property
    def frozen(self) -> Mapping[str, Any]:
        """Parameters that the loss reads and that are not trained: those of the teacher's task, and the teacher."""
        return {**self.of.frozen, "teacher": self.teacher_variables}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """`(params, model_state)` of the teacher; `key` is not used."""
        return with_statistics(student_variables(self.teacher_variables), {})

    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Loss of a batch: `(loss, (metrics, model_state))`; `model_state` has the trees of `frozen` too."""
        key_example, key_loss = jax.random.split(key)
        x0, cond = self.of.example(model_state, batch, key_example, train=train)
        loss = distillation_loss(
            self.student,
            variables_of(params, model_state),
            self.teacher,
            model_state["teacher"],
            x0,
            cond,
            key_loss,
            train=train,
        )
        return loss, ({}, model_state)


@standard_settings
def distillation_loss(
    student: Stage,
    variables: Variables,
    teacher: Stage,
    teacher_variables: Variables,
    x0: Float[Array, "B ..."],
    cond: Cond,
    key: Key[Array, ""],
    *,
    train: bool = True,
) -> Float[Array, ""]:
    """Weighted squared error between the student's prediction and the target of two teacher steps.

    Args:
        student: stage of the student.
        variables: variables of the student.
        teacher: stage of the teacher.
        teacher_variables: variables of the teacher; no gradient flows into them.
        x0: clean data, [B, ...].
        cond: the condition of the B samples.
        key: one PRNG key.
        train: whether dropout is on.

    Returns:
        The mean over the batch, a scalar.
    """
    key_times, key_eps, key_dropout = jax.random.split(key, 3)
    schedule = stages.noise_schedule(student)
    t, middle, s = step_times(student, key_times, len(x0))
    x_t = add_noise(schedule, x0, t, jax.random.normal(key_eps, x0.shape, jnp.float32))
    guided = stages.conditional_denoiser(teacher, jax.lax.stop_gradient(teacher_variables), cond)
    x0_wanted = jax.lax.stop_gradient(target(guided, schedule, x_t, t, middle, s))
    # The eps of x_t for the target as its x0, which the target of a network that predicts v depends on.
    alpha, sigma = (per_sample(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
    at = Noised(x_t, t, (x_t - alpha * x0_wanted) / sigma)
    output = stages.network(student).apply(variables, x_t, t, cond, train=train, rngs={"dropout": key_dropout})
    prediction, _ = split_output(output, student.model.learned_variance)
    error = diffusion_loss(prediction, x0_wanted, at, schedule, prediction=student.prediction, weight=student.weight)
    return error.mean()
