"""A training run that takes seconds, for tests that kill and resume it.

    python toy_run.py DIRECTORY [--steps 40] [--save-every 5] [--pause 0.01]

The model is a two-layer network with noise in its loss; its model state is a running mean and a constant table. The
command prints the fingerprints of the final state as JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from image_text.command_line import run_main  # noqa: E402
from train_jax import InMemory, OptimConfig, Run, batches, fit  # noqa: E402
from train_jax.cli import enable_compilation_cache  # noqa: E402
from train_jax.fingerprint import fingerprints  # noqa: E402


class ToyTask:
    """Regression of y [B, 2] on x [B, 4]: the loss depends on the key, and the model state changes at every step."""

    def init(self, key):
        a, b = jax.random.split(key)
        params = {
            "dense_0": {"kernel": jax.random.normal(a, (4, 16)) / 2, "bias": jnp.zeros(16)},
            "dense_1": {"kernel": jax.random.normal(b, (16, 2)) / 4, "bias": jnp.zeros(2)},
        }
        return params, {"mean": jnp.zeros(4), "table": jnp.arange(6, dtype=jnp.int32)}

    def loss(self, params, model_state, batch, key, *, train):
        x = batch["x"] + 0.1 * jax.random.normal(key, (4,))
        hidden = jnp.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
        error = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"] - batch["y"]
        model_state = model_state | {"mean": 0.9 * model_state["mean"] + 0.1 * batch["x"].mean(0)}
        return jnp.mean(error**2), ({"mae": jnp.abs(error).mean()}, model_state)


def source(count=60):
    """`count` examples in memory."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    return InMemory({"x": x, "y": np.sin(x[:, :2] * x[:, 2:])})


def make_run(directory, *, num_steps=12, optim=None, batch_size=16, pause=0.0, **changes):
    """A `Run` of the toy task; `pause` is the seconds that every batch waits, `changes` are further fields."""
    batch_of = batches(source(), batch_size=batch_size, seed=7)

    def slow(step):
        time.sleep(pause)
        return batch_of(step)

    fields = {
        "name": "toy",
        "task": ToyTask(),
        "batches": slow if pause else batch_of,
        "optim": optim or OptimConfig(lr=3e-2, warmup_steps=2, weight_decay=0.1, ema_decay=0.9),
        "num_steps": num_steps,
        "seed": 3,
        "directory": directory,
        "log_every": 4,
        "save_every": 5,
        "config": {"width": 16, "levels": (1, 2)},
    }
    return Run(**(fields | changes))


def prints(tree):
    """Path → fingerprint of every array of a state: states with equal fingerprints are equal to the last bit."""
    return {name: found.value for name, found in fingerprints(tree).items()}


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args(argv)
    enable_compilation_cache()
    run = make_run(
        args.directory, num_steps=args.steps, save_every=args.save_every, pause=args.pause, log_every=1, devices=1
    )
    print(json.dumps(prints(fit(run))))


if __name__ == "__main__":
    run_main(main, name="toy")
