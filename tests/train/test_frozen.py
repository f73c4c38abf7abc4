"""Networks that the loss reads and nobody trains: beside the state, never in a checkpoint. And what cannot be split."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.toy_run import ToyTask, prints, source
from train_jax.errors import Preempted, UserError
from train_jax.loop import fit
from train_jax.optim import OptimConfig, make_optimizer
from train_jax.sharding import make_mesh, state_shardings
from train_jax.state import init_state
from train_jax.step import make_train_step

NETWORK = {"kernel": np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)}
BATCH = source().take(np.arange(16))


class Student(ToyTask):
    """The toy with a penalty on what a frozen network says of its noisy input."""

    frozen = {"teacher": NETWORK}  # noqa: RUF012 - nobody changes it

    def loss(self, params, model_state, batch, key, *, train):
        loss, (metrics, changed) = super().loss(params, model_state, batch, key, train=train)
        said = batch["x"] @ model_state["teacher"]["kernel"]
        return loss + jnp.square(said - params["dense_1"]["bias"]).mean(), (metrics, changed)


class InState(Student):
    """The same with the network among what is saved."""

    frozen = {}  # noqa: RUF012

    def init(self, key):
        params, model_state = super().init(key)
        return params, model_state | {"teacher": jax.tree.map(jnp.asarray, NETWORK)}


def leaves(directory):
    """Names of all arrays in the checkpoints of a run."""
    metas = [json.loads(next(path.rglob("metadata")).read_text()) for path in directory.glob("checkpoints/*/meta")]
    return {name for meta in metas for name in meta["leaves"]}


def stop_at_8(step, _):
    if step == 8:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "accum"), [(1, 1), (4, 2)])
def test_a_step_reads_it_and_hands_it_on(devices, accum):
    task, tx, mesh = Student(), make_optimizer(OptimConfig(lr=3e-2, warmup_steps=0), 100), make_mesh(devices)
    shardings = state_shardings(jax.eval_shape(lambda: init_state(task, tx, jax.random.key(0))), mesh)
    state = jax.jit(lambda key: init_state(task, tx, key), out_shardings=shardings)(jax.random.key(0))
    step, network = make_train_step(task, tx, mesh, shardings, accum=accum), state.frozen["teacher"]["kernel"]
    for _ in range(2):
        state, _ = step(state, BATCH, jax.random.key(1))
    assert state.frozen["teacher"]["kernel"] is network
    assert set(state.model_state) == {"mean", "table"}
    np.testing.assert_array_equal(network, NETWORK["kernel"])


@pytest.mark.slow
def test_it_is_in_no_checkpoint_and_a_run_goes_on_without(toy, tmp_path):
    whole = fit(toy(task=Student(), directory=tmp_path / "whole"))
    with pytest.raises(Preempted):
        fit(toy(task=Student(), on_log=stop_at_8))
    again = fit(toy(task=Student()))
    assert prints(again) == prints(whole)
    found = leaves(tmp_path / "run")
    assert "model_state/mean" in found
    assert not [name for name in found if "teacher" in name or "frozen" in name]


@pytest.mark.slow
def test_it_is_trained_against_as_if_it_were_part_of_the_state(toy, tmp_path):
    beside, inside = (fit(toy(task=task, directory=tmp_path / type(task).__name__)) for task in (Student(), InState()))
    assert prints(beside.params) == prints(inside.params)
    assert prints(beside.params) != prints(fit(toy(directory=tmp_path / "without")).params)


def test_a_checkpoint_that_holds_it_is_refused_in_a_line(toy):
    """As older versions wrote them."""
    fit(toy(task=InState()))
    with pytest.raises(UserError, match="it holds the frozen teacher, as checkpoints of older versions do") as told:
        fit(toy(task=Student()))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("extend", [False, True])
def test_a_run_that_finds_another_is_refused_in_a_line(toy, extend):
    """The config of a run says by a digest which one it was trained against, and that it may not change."""
    first, other = ({"data": {"clip": letter * 64}} for letter in "ab")
    fit(toy(task=Student(), config=first, fixed=("config.data.clip",)))
    with pytest.raises(UserError, match=r"config\.data\.clip are others than before") as told:
        fit(toy(task=Student(), config=other, fixed=("config.data.clip",), extend=extend))
    assert "\n" not in str(told.value)


class Contrastive(ToyTask):
    splits = False


def test_what_cannot_be_split_is_not_accumulated(toy, tmp_path):
    accumulated = OptimConfig(lr=3e-2, warmup_steps=2, accum=2)
    with pytest.raises(UserError, match=r"optim\.accum: 2 microbatches would contrast fewer examples") as told:
        fit(toy(task=Contrastive(), optim=accumulated))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"optim\.accum"):
        make_train_step(Contrastive(), make_optimizer(accumulated, 12), make_mesh(1), None, accum=2)
    fit(toy(task=Contrastive(), num_steps=2))
