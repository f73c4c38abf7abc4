"""A student that is what it should be draws in half the steps, to the last digit, what its teacher draws."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from unclip_jax import distill
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.predict import Denoised, per_sample
from unclip_jax.diffusion.samplers import DDIM, DPMpp2M, ddim, fold_in_each, normal, sample, sample_keys
from unclip_jax.diffusion.schedule import Trailing, cosine, trailing_timesteps
from unclip_jax.distill import DistillTask, distillation_loss, step_times, student_of, student_variables, target
from unclip_jax.models.unet import ImageCond, Level, UNetConfig
from unclip_jax.presets import preset
from unclip_jax.stage import Sampling, Stage
from unclip_jax.tasks import DecoderTask

B, T = 6, 1000
COSINE = cosine(T)
KEYS = sample_keys(jax.random.key(0), jnp.arange(B))
MEAN, STD = jnp.array([0.0, 0.5, -0.8]), jnp.array([1.0, 0.3, 0.1])
TEACHER = Stage(
    model=UNetConfig(image_size=8, levels=(Level(8, 1),), groups=4, time_width=8, image=ImageCond(5)),
    prediction="x0",
    sampling=Sampling(DPMpp2M(), num_steps=16, guidance_scale=3.0),
)
COND = Cond(image_embed=np.random.default_rng(1).normal(size=(B, 5)).astype(np.float32))
X0 = np.random.default_rng(2).uniform(-1, 1, (B, 8, 8, 3)).astype(np.float32)


def exact(x_t, t):
    """The best denoiser of x0 ~ N(MEAN, STD²)."""
    alpha, sigma = (per_sample(f(t), x_t) for f in (COSINE.alpha, COSINE.sigma))
    return Denoised(MEAN + STD**2 * alpha / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * MEAN))


def perfect_student(teacher, num_steps):
    """Returns what distillation teaches, at the times of its own grid."""
    visited = jnp.append(jnp.asarray(trailing_timesteps(T, 2 * num_steps)), -1)

    def denoise(x_t, t):
        first = jnp.argmax(visited == t[:, None], axis=1)
        return Denoised(target(teacher, COSINE, x_t, t, visited[first + 1], visited[first + 2]))

    return denoise


@pytest.mark.slow
def test_a_perfect_student_draws_in_half_the_steps_what_its_teacher_draws():
    """Over Gaussian data and two rounds, 16 → 8 → 4: the grids meet, and the target undoes the longer step exactly."""
    x_T = normal(fold_in_each(KEYS, T), (3,))

    @partial(jax.jit, static_argnums=(0, 1))
    def draw(teacher, num_steps):
        return sample(teacher, COSINE, trailing_timesteps(T, num_steps), ddim(), x_T, KEYS)

    teacher, want = exact, draw(exact, 16)
    assert np.abs(np.asarray(draw(exact, 4)) - want).max() > 0.02  # the exact denoiser itself needs more steps
    for num_steps in (8, 4):
        teacher = perfect_student(teacher, num_steps)
        np.testing.assert_allclose(draw(teacher, num_steps), want, atol=2e-5)


def test_steps_are_those_of_the_sampler_and_the_middle_is_the_teachers():
    """What is trained is what is sampled: every (t, s) is one step of the student's own grid, all as often."""
    num_steps = 4
    student = student_of(TEACHER, num_steps)
    grid = [*stages.timesteps(student).tolist(), -1]
    fine = [*trailing_timesteps(T, 2 * num_steps).tolist(), -1]
    t, middle, s = (np.asarray(x) for x in step_times(student, jax.random.key(3), 5 * num_steps))
    found = [grid.index(x) for x in t]
    assert [grid[i + 1] for i in found] == s.tolist()
    assert [fine[2 * i + 1] for i in found] == middle.tolist()
    assert np.bincount(found, minlength=num_steps).tolist() == [5] * num_steps


def constant(variables, value=0.3):
    """Variables of a network that says the same of everything."""
    out = variables["params"]["conv_out"]
    same = {"kernel": 0 * out["kernel"], "bias": 0 * out["bias"] + value}
    return {"params": variables["params"] | {"conv_out": same}}


@partial(jax.jit, static_argnums=(0, 3))
def loss_of(student, variables, teacher_variables, teacher=TEACHER):
    return distillation_loss(student, variables, teacher, teacher_variables, X0, COND, jax.random.key(0))


@pytest.mark.slow
def test_a_student_that_is_right_costs_nothing_and_another_does(fill):
    """Of data that is a single picture the exact denoiser is that picture at every time: two steps are one."""
    student, variables = student_of(TEACHER, 4), fill(TEACHER)
    same = constant(variables)
    assert float(loss_of(student, same, same)) < 1e-8
    error = float(loss_of(student, constant(variables, 0.4), same))
    snr = np.exp(np.asarray(COSINE.log_snr(stages.timesteps(student))))
    # Six samples on four steps: the weights of some step count twice, of none less than once.
    weights = np.maximum(snr, 1.0)
    assert 0.01 * (weights.sum() + 2 * weights.min()) / B <= error * 1.001
    assert error <= 1.001 * 0.01 * (weights.sum() + 2 * weights.max()) / B


@pytest.mark.slow
def test_the_target_is_what_the_guided_and_clipped_teacher_draws(fill):
    """The guidance of the teacher's preset is in the target; its parameters get no gradient."""
    variables, student = fill(TEACHER), student_of(TEACHER, 4)
    own = float(loss_of(student, variables, variables))
    unguided = dataclasses.replace(TEACHER, sampling=dataclasses.replace(TEACHER.sampling, guidance_scale=1.0))
    assert own > 1e-3
    assert abs(own - float(loss_of(student, variables, variables, unguided))) > 1e-4
    gradient = jax.jit(
        jax.grad(lambda p: distillation_loss(student, variables, TEACHER, p, X0, COND, jax.random.key(0)))
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient(variables)))


def test_a_student_is_its_teacher_sampled_otherwise():
    student = student_of(dataclasses.replace(TEACHER, x0_error=True), 4)
    assert student.model == TEACHER.model
    assert student.sampling == Sampling(DDIM(grid=Trailing()), 4, guidance_scale=None, clip=1.0)
    assert not student.x0_error
    assert student_variables({"params": {"conv_in": 2}, "statistics": {"x0_error": 1}}) == {"params": {"conv_in": 2}}


@pytest.mark.parametrize(
    ("changes", "num_steps", "message"),
    [({"prediction": "eps"}, 4, "predicts eps"), ({}, 501, "give 1 to 500"), ({}, 0, "give 1 to 500")],
)
def test_what_cannot_be_distilled_is_refused(changes, num_steps, message):
    with pytest.raises(UserError, match=message):
        student_of(dataclasses.replace(TEACHER, **changes), num_steps)


@pytest.mark.slow
def test_the_task_starts_at_the_teacher_and_keeps_it(tiny_system, monkeypatch):
    """It hands its teacher on as it came, and drops nothing when it is not training."""
    stage, variables = preset("tiny-decoder"), tiny_system.params["decoder"]
    of = DecoderTask(stage, tiny_system.unclip.clip, tiny_system.params["clip"])
    task = DistillTask(of, stage, variables, 2)
    start, model_state = task.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, start, variables["params"])
    assert model_state == {}
    assert task.frozen.keys() == {"clip", "teacher"}
    model_state = {**model_state, **task.frozen}
    seen = {}

    def spy(student, variables, teacher, teacher_variables, x0, cond, key, *, train):
        seen.update(student=student, teacher=teacher, teacher_variables=teacher_variables, x0=x0, cond=cond)
        return jnp.zeros(())

    monkeypatch.setattr(distill, "distillation_loss", spy)
    batch = {"image": np.zeros((3, 32, 32, 3), np.uint8), "tokens": tiny_system.tokenize(["a red star"] * 3)}
    _, (_, returned) = task.loss(start, model_state, batch, jax.random.key(0), train=False)
    assert returned is model_state
    assert seen["student"].sampling.num_steps == 2
    assert seen["teacher_variables"] is model_state["teacher"]
    assert seen["x0"].shape == (3, 16, 16, 3)
    assert seen["cond"].keep_text is None
