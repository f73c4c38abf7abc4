"""`fit`: train a task from nothing, from another run, or from where it was, to its last step.

mesh → data → how it begins → step → log / evaluate / save → done
"""

import logging
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train_jax.begin import Kept, kept_config, write_config
from train_jax.checkpoint import WEIGHTS, Checkpoints
from train_jax.data import BAD, Batches, prefetch
from train_jax.errors import RunError, UserError
from train_jax.files import hold
from train_jax.metrics import MetricsLog, Progress, summary
from train_jax.optim import OptimConfig, make_optimizer
from train_jax.sharding import Rules, batch_size, make_mesh, state_shardings
from train_jax.signals import Interrupts
from train_jax.state import TrainState, init_state
from train_jax.step import make_train_step
from train_jax.task import Task, check_splits, frozen_of

__all__ = ["Run", "fit"]

log = logging.getLogger(__name__)

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
    begin_from: Path | str | None = None
    """Directory of another run, whose weights this one begins with; with `extend`, all of its state. Once this run has
    checkpoints of its own they are what it goes on from."""
    extend: bool = False
    """Go on though the config has changed; see `train_jax.begin`."""
    fixed: tuple[str, ...] = ()
    """Keys of the config, such as "config.model", that may not change even so."""
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
        UserError: bad input; nothing was compiled, and nothing of the run was changed.
        RunError: a save failed, no checkpoint can be read, or the loss is not finite for good.
        Preempted: SIGTERM or SIGINT came, and the state is saved.
    """
    check_splits(run.task, run.optim.accum)
    mesh = make_mesh(run.devices)
    examples = batch_size(run.batches(0), mesh, run.optim.accum)
    tx = make_optimizer(run.optim, run.num_steps)
    directory = Path(run.directory).resolve()

    with hold(directory), Interrupts() as interrupts, Checkpoints(directory / "checkpoints", keep=run.keep) as saved:
        kept = kept_config(
            directory / "config.json",
            run.identity(),
            step=max(saved.steps(), default=None),
            extend=run.extend,
            fixed=run.fixed,
        )
        init = partial(init_state, run.task, tx)
        init_key, key = jax.random.split(jax.random.key(run.seed, impl="threefry2x32"))
        abstract = jax.eval_shape(init, init_key)
        shardings = state_shardings(abstract, mesh, run.rules)
        saved.check_space(abstract)
        drawn = jax.jit(lambda key: init(key)._replace(frozen={}), out_shardings=shardings._replace(frozen={}))
        state, records = _first_state(run, saved, kept, abstract, shardings, partial(drawn, init_key))
        state = state._replace(frozen=jax.device_put(frozen_of(run.task), shardings.frozen))
        write_config(directory / "config.json", run.identity(), records)
        start = int(state.step)

        step_fn = make_train_step(run.task, tx, mesh, shardings, ema_decay=run.optim.ema_decay, accum=run.optim.accum)
        watch = Watch(run.name, skipped=int(state.skipped))
        window: list[dict] = []  # metrics since the last log, still on the device
        none_bad = np.zeros(examples, np.int32)
        with (
            MetricsLog(directory, start=start) as metrics_log,
            Progress(run.name, start=start, total=run.num_steps, batch_size=examples) as progress,
            prefetch(run.batches, start, max(start, run.num_steps)) as stream,
        ):
            for step, batch in enumerate(stream, start + 1):
                try:
                    state, metrics = step_fn(state, {BAD: none_bad, **batch}, key)
                except FloatingPointError as error:  # JAX_DEBUG_NANS: whoever set it wants to stop at the first
                    what = " ".join(str(error).split())[:120]
                    raise RunError(f"{run.name}: step {step}: {what}; without JAX_DEBUG_NANS it is skipped") from error
                progress.advance(step)
                window.append(metrics)
                watch.dispatched(metrics["skipped"])
                last = step == run.num_steps

                if step % run.log_every == 0 or last:
                    means = summary(window)
                    if not means[BAD]:
                        del means[BAD]
                    window.clear()
                    metrics_log.write(step, means | {"images_per_second": progress.rate(step)})
                    progress.show(step, means["loss"])
                    if run.on_log is not None:
                        run.on_log(step, means)

                if run.evaluate is not None and (last or (run.evaluate_every and step % run.evaluate_every == 0)):
                    metrics_log.write(step, run.evaluate(state))

                if step % run.save_every == 0 or last or interrupts.signum is not None:
                    watch.settle()
                    saved.save(state)
                    if last or interrupts.signum is not None:
                        saved.wait()
                        interrupts.stop(step)

    if bad := int(state.bad):
        log.warning("%s: damaged examples passed over: %d; others stood in for them", run.name, bad)
    if run.on_end is not None:
        run.on_end(state)
    return state


def _first_state(
    run: Run,
    saved: Checkpoints,
    kept: Kept,
    abstract: TrainState,
    shardings: TrainState,
    fresh: Callable[[], TrainState],
) -> tuple[TrainState, dict[str, Any]]:
    """The state that the run goes on from, and what its config.json records of how; see `train_jax.begin`."""
    records = dict(kept.records)
    other = None if run.begin_from is None else Path(run.begin_from).resolve()
    if other is not None and saved.steps() and records.get("begun", {}).get("from") != str(other):
        here, began = saved.directory.parent, records.get("begun", {}).get("from", "nothing")
        raise UserError(f"{here}: its run has begun from {began}, not {other}; leave out --begin-from to go on with it")

    state = saved.restore(abstract, shardings)
    if state is not None:
        step = int(state.step)
        if kept.changed:  # later saves and exports replace what was there, so it is kept
            aside = saved.directory.parent / f"before-{step}"
            if not (aside / "checkpoints").exists():
                saved.keep_aside(step, aside / "checkpoints")
                shutil.copy2(saved.directory.parent / "config.json", aside)
            records["history"] = [*records.get("history", []), {"step": step, "changed": kept.changed}]
        if step > run.num_steps:
            log.warning("%s: num_steps is %d, and step %d is reached already", run.name, run.num_steps, step)
        return state, records
    if other is None:
        return fresh(), records
    state, how = _of_another_run(run, other, abstract, shardings), "all of its state" if run.extend else "its weights"
    begun = {"from": str(other), "step": int(state.step), "with": how}
    if not run.extend:
        state = fresh()._replace(**{name: getattr(state, name) for name in WEIGHTS})
    return state, {"begun": begun}


def _of_another_run(run: Run, other: Path, abstract: TrainState, shardings: TrainState) -> TrainState:
    """The newest state of the run in the directory `other`, of which nothing is touched; the weights at least."""
    if other == Path(run.directory).resolve():
        raise UserError(f"{other}: a run cannot begin from itself; without --begin-from it goes on")
    state = None
    if (other / "checkpoints").is_dir():
        with Checkpoints(other / "checkpoints", read_only=True) as checkpoints:
            items = {} if run.extend else {"items": WEIGHTS}
            state = checkpoints.restore(abstract, shardings, **items)
    if state is None:
        raise UserError(f"{other}: there are no checkpoints to begin from; name the directory of a trained run")
    return state


class Watch:
    """Keeps the host a few steps ahead of the device, and stops a run whose steps are all skipped.

    It looks at each step a little late, when the device is done with it, so nothing waits for it.
    """

    def __init__(self, name: str, *, skipped: int):
        self.name, self.skipped = name, skipped
        self.in_a_row = 0
        self._in_flight: deque[jax.Array] = deque()

    def dispatched(self, skipped: jax.Array) -> None:
        """A step is under way, after which `skipped` steps will have been skipped in all.

        Raises:
            RunError: too many steps in a row were skipped.
        """
        self._in_flight.append(skipped)
        if len(self._in_flight) > IN_FLIGHT:
            self._look(self._in_flight.popleft())
        if self.in_a_row >= HOPELESS:
            self.settle()

    def settle(self) -> None:
        """Wait for the steps under way.

        Raises:
            RunError: too many steps in a row were skipped.
        """
        while self._in_flight:
            self._look(self._in_flight.popleft())
        if self.in_a_row >= HOPELESS:
            raise RunError(f"{self.name}: no finite loss in {self.in_a_row} steps; lower optim.lr?")

    def _look(self, skipped: jax.Array) -> None:
        now = int(skipped)
        self.in_a_row = self.in_a_row + 1 if now > self.skipped else 0
        self.skipped = now
