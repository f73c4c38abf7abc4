"""Progressive distillation: a student that does in one step of DDIM what its teacher does in two.

Salimans & Ho 2022, algorithm 2, on a decoder or an upsampler. The teacher is sampled as its stage says, guided and
clipped, and the student learns the result without guidance (as in Meng et al. 2023, for one scale): it needs half the
steps and, where the teacher was guided, a quarter of the network's evaluations. The student of one round is the teacher
of the next. Both run on the "trailing" grid, of which half as many steps visit every other time.
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
    """The stage of a student of `num_steps` steps: the teacher's network, without guidance, sampled by DDIM.

    Raises:
        UserError: the network predicts eps, which at the noisiest time says nothing of x0 (Salimans & Ho 2022, §4), or
            twice as many steps are more than the schedule has.
    """
    if teacher.prediction == "eps":
        raise UserError("a network that predicts eps cannot be distilled: train one that predicts v or x0")
    if not 1 <= num_steps <= teacher.num_timesteps // 2:
        raise UserError(f"num_steps is {num_steps}; for a student give 1 to {teacher.num_timesteps // 2}")
    sampling = dataclasses.replace(
        teacher.sampling, sampler=DDIM(grid=Trailing()), num_steps=num_steps, guidance_scale=None
    )
    # The measured error, where there was one, is the teacher's.
    return dataclasses.replace(teacher, sampling=sampling, weight=TruncatedSNR(), x0_error=False)


def student_variables(variables: Variables) -> Variables:
    """What a student starts from: the teacher's variables, without the error that was measured of the teacher."""
    trees = {
        name: {key: leaf for key, leaf in tree.items() if (name, key) != (STATISTICS, X0_ERROR)}
        for name, tree in variables.items()
    }
    return {name: tree for name, tree in trees.items() if tree}


def ddim_step(
    denoise: Denoiser, schedule: NoiseSchedule, x_t: Float[Array, "B ..."], t: Int[Array, " B"], s: Int[Array, " B"]
) -> Float[Array, "B ..."]:
    """One deterministic step of DDIM from times t to times s < t, each [B]: unlike a sampler's, its own per sample."""
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
    """The x0 with which one step from t to s ends where the teacher's two, by way of `middle`, end: [B, ...].

    Salimans & Ho 2022, algorithm 2, with its z_t, z_t' and z_t''.
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
    """One of the student's steps for each sample, as (t, middle, s), int32 [B] each; s of the last step is −1.

    The steps of a batch are spread evenly over the grid, as the times of `losses.noised` are.
    """
    own = student.sampling
    fine = dataclasses.replace(student, sampling=dataclasses.replace(own, num_steps=2 * own.num_steps))
    visited = jnp.append(jnp.asarray(stages.timesteps(fine)), -1)  # the teacher's; every other one is the student's
    fractions = (jax.random.uniform(key, (), jnp.float32) + jnp.arange(batch_size) / batch_size) % 1.0
    first = 2 * jnp.minimum((fractions * own.num_steps).astype(jnp.int32), own.num_steps - 1)
    return visited[first], visited[first + 1], visited[first + 2]


@dataclass(frozen=True)
class DistillTask:
    """One round of distillation.

    Attributes:
        of: the task the teacher was trained with; it says what a batch holds for it. What it drops is dropped here from
            teacher and student alike, so that the student still draws without a caption what the teacher would.
        teacher: the stage as it is guided and clipped; its sampler and grid do not matter.
        teacher_variables: its variables, with which the student starts.
        num_steps: of the student; the teacher takes twice as many.
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
        """Trees that the loss reads and nobody trains: those of the teacher's own task, and the teacher."""
        return {**self.of.frozen, "teacher": self.teacher_variables}

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """The teacher's `(params, model_state)`; `key` is not needed."""
        return with_statistics(student_variables(self.teacher_variables), {})

    def loss(
        self, params: Params, model_state: Params, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """`(loss, (metrics, model_state))` of a batch; `model_state` holds the frozen trees too."""
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
    """Weighted error of the student against two steps of the teacher, over a batch x0 [B, ...]: a scalar."""
    key_times, key_eps, key_dropout = jax.random.split(key, 3)
    schedule = stages.noise_schedule(student)
    t, middle, s = step_times(student, key_times, len(x0))
    x_t = add_noise(schedule, x0, t, jax.random.normal(key_eps, x0.shape, jnp.float32))
    guided = stages.conditional_denoiser(teacher, jax.lax.stop_gradient(teacher_variables), cond)
    x0_wanted = jax.lax.stop_gradient(target(guided, schedule, x_t, t, middle, s))
    # The noise that x_t would hold if that were its clean data: what a network that predicts v has to match.
    alpha, sigma = (per_sample(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
    at = Noised(x_t, t, (x_t - alpha * x0_wanted) / sigma)
    output = stages.network(student).apply(variables, x_t, t, cond, train=train, rngs={"dropout": key_dropout})
    prediction, _ = split_output(output, student.model.learned_variance)
    error = diffusion_loss(prediction, x0_wanted, at, schedule, prediction=student.prediction, weight=student.weight)
    return error.mean()
