"""`fit`: train a task from nothing, or from where it was, to its last step.

mesh → data → state or restore → step → log / evaluate / save → done
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax

from train_jax.checkpoint import Checkpoints
from train_jax.data import Batches, prefetch
from train_jax.errors import RunError, UserError
from train_jax.files import hold, keep_config
from train_jax.metrics import MetricsLog, Progress, summary
from train_jax.optim import OptimConfig, make_optimizer
from train_jax.sharding import Rules, batch_size, make_mesh, state_shardings
from train_jax.signals import Interrupts
from train_jax.state import TrainState, init_state
from train_jax.step import make_train_step
from train_jax.task import Task

__all__ = ["Run", "fit"]

IN_FLIGHT = 2  # steps dispatched ahead of the device: enough to keep it busy, few enough to stop soon
HOPELESS = 10  # steps skipped in a row after which going on cannot help


@dataclass(frozen=True)
class Run:
    """Everything `fit` needs to know."""

    name: str
    task: Task
    batches: Batches
    """Step → dict of host numpy arrays: a pure function, as `train_jax.data.batches` makes it."""
    optim: OptimConfig
    num_steps: int
    seed: int
    directory: Path | str
    """Where checkpoints/, config.json, metrics.jsonl and tensorboard/ go; a directory for each run."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What else identifies the run, as JSON: written to config.json; who continues the run must bring the same."""
    log_every: int = 50
    save_every: int = 1000
    keep: int = 3
    """Newest checkpoints kept, at least 3: a damaged one needs one before it."""
    rules: Rules = ()
    """Where leaves lie on the mesh; a copy per device where none matches."""
    devices: int | None = None
    """Local devices to use; None uses all."""
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None
    """Scalars and uint8 images [H, W, 3] to log. The next step consumes the state: keep no part of it."""
    evaluate_every: int = 0
    """Steps between evaluations; there is always one at the end, and with 0 no other."""
    on_log: Callable[[int, Mapping[str, float]], None] | None = None
    """Called with (step, metrics) whenever metrics are logged."""
    on_end: Callable[[TrainState], None] | None = None
    """Called with the final state, and again each time a finished run is started: it must not mind."""

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("log_every", 1), ("save_every", 1), ("evaluate_every", 0), ("keep", 3)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: {getattr(self, name)} is less than {least}")
        if not 0 <= self.seed < 2**32:  # larger seeds would wrap around in silence and repeat another run
            raise UserError(f"seed: {self.seed} is not between 0 and 2**32 - 1")

    def identity(self) -> dict[str, Any]:
        """What must stay the same from one part of a run to the next."""
        named = {name: getattr(self, name) for name in ("name", "seed", "num_steps")}
        return {**named, "optim": asdict(self.optim), "config": dict(self.config)}


def fit(run: Run) -> TrainState:
    """Train to `run.num_steps`, continuing what `run.directory` holds, and return the final state.

    Killed at any moment and called again, it ends with the same final state, bit for bit (on the same machine and
    number of devices). A finished run is read back, not trained.

    Raises:
        UserError: bad input; nothing was compiled.
        RunError: a save failed, no checkpoint can be read, or the loss is not finite for good.
        Preempted: SIGTERM or SIGINT came, and the state is saved.
    """
    mesh = make_mesh(run.devices)
    examples = batch_size(run.batches(0), mesh, run.optim.accum)
    tx = make_optimizer(run.optim, run.num_steps)
    directory = Path(run.directory).resolve()

    with hold(directory), Interrupts() as interrupts, Checkpoints(directory / "checkpoints", keep=run.keep) as saved:
        keep_config(directory / "config.json", run.identity(), begun=bool(saved.steps()))

        init = partial(init_state, run.task, tx)
        init_key, key = jax.random.split(jax.random.key(run.seed))
        abstract = jax.eval_shape(init, init_key)
        shardings = state_shardings(abstract, mesh, run.rules)
        saved.check_space(abstract)
        state = saved.restore(abstract, shardings)
        if state is None:
            state = jax.jit(init, out_shardings=shardings)(init_key)
        start, skipped = int(state.step), float(state.skipped)

        step_fn = make_train_step(run.task, tx, mesh, shardings, ema_decay=run.optim.ema_decay, accum=run.optim.accum)
        window: list[dict] = []  # metrics since the last log, still on the device
        in_flight: deque[jax.Array] = deque()
        hopeless = 0
        with (
            MetricsLog(directory, start=start) as log,
            Progress(run.name, start=start, total=run.num_steps, batch_size=examples) as progress,
            prefetch(run.batches, start, run.num_steps) as stream,
        ):
            for step, batch in enumerate(stream, start + 1):
                state, metrics = step_fn(state, batch, key)
                progress.advance(step)
                window.append(metrics)
                in_flight.append(metrics["loss"])
                if len(in_flight) > IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                last = step == run.num_steps

                if step % run.log_every == 0 or last:
                    means = summary(window)
                    hopeless = hopeless + len(window) if means["skipped"] - skipped == len(window) else 0
                    if hopeless >= HOPELESS:
                        raise RunError(f"{run.name}: no finite loss in {hopeless} steps; lower optim.lr?")
                    skipped = means["skipped"]
                    window.clear()
                    log.write(step, means | {"images_per_second": progress.rate(step)})
                    progress.show(step, means["loss"])
                    if run.on_log is not None:
                        run.on_log(step, means)

                if run.evaluate is not None and (last or (run.evaluate_every and step % run.evaluate_every == 0)):
                    log.write(step, run.evaluate(state))

                if step % run.save_every == 0 or last or interrupts.signum is not None:
                    saved.save(state)
                    if last or interrupts.signum is not None:
                        saved.wait()
                        interrupts.stop(step)

    if run.on_end is not None:
        run.on_end(state)
    return state
