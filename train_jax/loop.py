"""The training loop: `fit` trains a task to its last step, from scratch, from another run or from a checkpoint.

mesh → data → initial or restored state → steps with logging, evaluation and checkpoints → final state
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
HOPELESS = 10  # skipped steps (loss or gradient not finite) in a row that end the run


@dataclass(frozen=True)
class Run:
    """The argument of `fit`: a task, its data, its optimiser, and where and how to train it.

    Raises:
        UserError: a number is out of range.
    """

    name: str
    """Name of the run, in messages and in config.json."""
    task: Task
    batches: Batches
    """Step → dict of host numpy arrays: a pure function, such as that of `train_jax.data.batches`."""
    optim: OptimConfig
    num_steps: int
    """Total number of steps."""
    seed: int
    """Seed of the initial parameters and of the loss, 0 to 2**32 - 1."""
    directory: Path | str
    """Run directory: checkpoints/, config.json, metrics.jsonl and tensorboard/; every run needs its own."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What else identifies the run, as JSON: written to config.json, and must be equal when the run goes on."""
    begin_from: Path | str | None = None
    """Directory of another run, with whose weights this one begins; with `extend`, with its whole state. Once this run
    has checkpoints of its own, it resumes from them."""
    extend: bool = False
    """Go on with a changed config; see `train_jax.begin`."""
    fixed: tuple[str, ...] = ()
    """Keys of the config, such as "config.model", that may not change even with `extend`."""
    log_every: int = 50
    """Steps between log entries."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """Number of newest checkpoints kept, at least 3, so that a damaged one has a fallback."""
    rules: Rules = ()
    """Sharding rules, see `train_jax.sharding`; a leaf that no rule matches is replicated."""
    devices: int | None = None
    """Number of local devices to use; None: all."""
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None
    """State → scalars and uint8 images [H, W, 3] to log. It must not keep the state, which the next step donates."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: only one, after the last step, where there is always one."""
    on_log: Callable[[int, Mapping[str, float]], None] | None = None
    """Called with (step, metrics) whenever metrics are logged."""
    on_end: Callable[[TrainState], None] | None = None
    """Called with the final state, again whenever a finished run is started again: it must be idempotent."""

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("log_every", 1), ("save_every", 1), ("evaluate_every", 0), ("keep", 3)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: {getattr(self, name)} is less than {least}")
        if not 0 <= self.seed < 2**32:  # a larger seed would silently wrap around and repeat another run
            raise UserError(f"seed: {self.seed} is not between 0 and 2**32 - 1")

    def identity(self) -> dict[str, Any]:
        """The config that must stay equal when the run is resumed, as written to config.json."""
        named = {name: getattr(self, name) for name in ("name", "seed", "num_steps")}
        return {**named, "optim": asdict(self.optim), "config": dict(self.config)}


def fit(run: Run) -> TrainState:
    """Train to `run.num_steps`, resuming from the newest checkpoint in `run.directory`.

    A run that is killed at any moment and started again ends with the same final state, bit for bit, on the same
    machine and number of devices. A finished run is restored, not trained.

    Returns:
        The final state.

    Raises:
        UserError: bad input; nothing was compiled, and no file of the run was changed.
        RunError: a save failed, all checkpoints are damaged, or the loss stays NaN or infinite.
        Preempted: SIGTERM or SIGINT came; the state is saved.
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
        none_bad = np.zeros(examples, np.int32)  # every batch has the field, so that the step compiles once
        with (
            MetricsLog(directory, start=start) as metrics_log,
            Progress(run.name, start=start, total=run.num_steps, batch_size=examples) as progress,
            prefetch(run.batches, start, max(start, run.num_steps)) as stream,
        ):
            for step, batch in enumerate(stream, start + 1):
                try:
                    state, metrics = step_fn(state, {BAD: none_bad, **batch}, key)
                except FloatingPointError as error:  # only under JAX_DEBUG_NANS, which asks to stop at the first NaN
                    text = " ".join(str(error).split())[:120]
                    raise RunError(f"{run.name}: step {step}: {text}; without JAX_DEBUG_NANS it is skipped") from error
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
    """The state that the run begins or goes on with, and the records for config.json; see `train_jax.begin`."""
    records = dict(kept.records)
    other = None if run.begin_from is None else Path(run.begin_from).resolve()
    if other is not None and saved.steps() and records.get("begun", {}).get("from") != str(other):
        here, began = saved.directory.parent, records.get("begun", {}).get("from", "nothing")
        raise UserError(f"{here}: its run has begun from {began}, not {other}; leave out --begin-from to go on with it")

    state = saved.restore(abstract, shardings)
    if state is not None:
        step = int(state.step)
        if kept.changed:  # later saves will remove this checkpoint, so a copy of it and of its config is kept
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
    """The newest state of the run in `other` (only its weights without `run.extend`); no file there is changed."""
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
    """Keeps the host at most `IN_FLIGHT` steps ahead of the device, and ends a run whose steps are all skipped.

    Whether a step was skipped is read a few steps later, when the device has finished it, so the device never waits.
    """

    def __init__(self, name: str, *, skipped: int):
        """Name of the run, and its number of skipped steps so far."""
        self.name, self.skipped = name, skipped
        self.in_a_row = 0
        self._in_flight: deque[jax.Array] = deque()

    def dispatched(self, skipped: jax.Array) -> None:
        """Call this after dispatching a step.

        Args:
            skipped: total number of skipped steps after it, int32 scalar, still being computed.

        Raises:
            RunError: too many steps in a row were skipped.
        """
        self._in_flight.append(skipped)
        if len(self._in_flight) > IN_FLIGHT:
            self._look(self._in_flight.popleft())
        if self.in_a_row >= HOPELESS:
            self.settle()

    def settle(self) -> None:
        """Wait for all dispatched steps.

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
