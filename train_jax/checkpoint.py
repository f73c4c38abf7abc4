"""Orbax checkpoints that are verified when read, with fallback to an older one if the newest is damaged.

Orbax commits a step atomically, but it does not notice changed bits, casts dtypes silently, and may skip a save
silently. So every checkpoint has a JSON item `meta` with the shape, dtype and fingerprint of every leaf. Reading
compares them; a checkpoint that fails is renamed to `damaged-STEP`, and the one before it is the fallback.

    directory/<step>/{params, ema_params, opt_state, model_state, meta}

Frozen networks are not saved: the caller provides the same ones again (the config of a run has their digests).
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from train_jax.errors import RunError, UserError
from train_jax.fingerprint import fingerprints
from train_jax.sharding import leaf_path
from train_jax.state import TrainState
from train_jax.task import PyTree

__all__ = ["WEIGHTS", "Checkpoints"]

log = logging.getLogger(__name__)

ITEMS = ("params", "ema_params", "opt_state", "model_state")
COUNTERS = ("step", "skipped", "bad")  # a counter that an older checkpoint lacks is read as 0
WEIGHTS = ("params", "ema_params", "model_state")


class Checkpoints:
    """The checkpoints of one run. It owns threads: `close()` it, or use it in a `with`."""

    def __init__(self, directory: Path | str, *, keep: int = 3, read_only: bool = False):
        """Open `directory`, creating it if need be and removing the partial files of a killed save.

        Args:
            directory: directory of the run's checkpoints.
            keep: number of newest checkpoints to keep.
            read_only: change no file, for checkpoints of another run, which may be in progress. The directory must
                exist.
        """
        self.directory = Path(directory).resolve()  # orbax refuses a relative path, and only in the background save
        self.read_only = read_only
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, create=False, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the save in progress and stop the threads."""
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def check_space(self, abstract: TrainState) -> None:
        """Check that the disk has room for two checkpoints of this state: the fallback and the one being written.

        Args:
            abstract: the state as `jax.eval_shape` gives it; its frozen trees are not counted.

        Raises:
            UserError: the disk has too little space.
        """
        saved = jax.tree.leaves(abstract._replace(frozen={}))
        need = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in saved)
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise UserError(f"{self.directory}: {free >> 20} MiB are free and two checkpoints need {need >> 20} MiB")

    def save(self, state: TrainState) -> None:
        """Start saving `state` under its step, in the background; its arrays may be donated once this returns.

        Raises:
            RunError: the previous save failed in the background, the state is not finite, its step is not newer than
                the newest checkpoint, or Orbax refuses the save.
        """
        self.wait()
        step = int(state.step)
        newest = max(self.steps(), default=-1)
        if step <= newest:
            raise RunError(f"{self.directory}: step {step} is not saved, for step {newest} is there already")
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        items["meta"] = ocp.args.JsonSave(_meta(state))
        try:
            saved = self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise RunError(f"{self.directory}: step {step} could not be saved ({_one_line(error)})") from error
        if not saved:
            raise RunError(f"{self.directory}: step {step} was not saved, and orbax does not say why")

    def wait(self) -> None:
        """Wait until the save in progress is on disk.

        Raises:
            RunError: it failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise RunError(f"{self.directory}: the last save failed ({_one_line(error)})") from error

    def keep_aside(self, step: int, directory: Path) -> None:
        """Copy the checkpoint of `step` to `directory`, where no later save removes it; with hard links if possible."""

        def link(source: str, copy: str) -> None:
            try:
                os.link(source, copy)
            except OSError:
                shutil.copy2(source, copy)

        partial = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.directory / str(step), partial / str(step), copy_function=link)
        partial.rename(directory)

    def restore(
        self, abstract: TrainState, shardings: TrainState, *, items: Sequence[str] = ITEMS
    ) -> TrainState | None:
        """Restore the newest intact checkpoint.

        Damaged newer ones are renamed to `damaged-STEP`, with a warning each.

        Args:
            abstract: the state as `jax.eval_shape` gives it.
            shardings: the sharding of every leaf.
            items: the trees to read; `WEIGHTS` leaves out the optimiser state. The other trees of the result, and the
                frozen ones, are left as `jax.ShapeDtypeStruct`.

        Returns:
            The state with its arrays on the devices, or None if there are no checkpoints.

        Raises:
            UserError: an intact checkpoint has other leaves, shapes or dtypes than `abstract`.
            RunError: all checkpoints are damaged; no file was changed.
        """
        placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        damaged: dict[int, Exception] = {}
        for step in reversed(self.steps()):
            try:
                state = self._read(step, placed, items)
            except UserError:
                raise
            except Exception as error:  # orbax and tensorstore raise anything from KeyError to a bare Exception
                damaged[step] = error
                continue
            for bad, fault in damaged.items():
                self._set_aside(bad, fault)
            return state
        if damaged:
            newest = max(damaged)
            what = f"all {len(damaged)} checkpoints are damaged (step {newest}: {_one_line(damaged[newest])})"
            raise RunError(f"{self.directory}: {what}; move the directory away to start again")
        return None

    def _read(self, step: int, placed: TrainState, names: Sequence[str]) -> TrainState:
        """Restores the trees `names` of one checkpoint and verifies them; any exception but UserError means damage."""
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta["digest"] != _digest(meta) or meta["step"] != step:
            raise ValueError("its metadata has changed")
        expected = {name: tree for name, tree in _items(placed).items() if name in names}
        saved = {path: leaf for path, leaf in meta["leaves"].items() if path.partition("/")[0] in names}
        if older := [name for name in placed.frozen if any(path.startswith(f"model_state/{name}/") for path in saved)]:
            raise UserError(
                f"{self.directory / str(step)}: it holds the frozen {' and '.join(older)}, as checkpoints of older "
                "versions do, and cannot go on; train in another directory"
            )
        differences = _differences(saved, expected)
        if differences:
            raise UserError(f"{self.directory / str(step)}: it does not fit: {'; '.join(differences[:3])}")
        args = {name: ocp.args.StandardRestore(tree) for name, tree in expected.items()}
        items = dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        for name, fingerprint in fingerprints(items).items():
            if fingerprint.value != meta["leaves"][name]["fingerprint"]:
                raise ValueError(f"{name} has changed")
        counters = {
            name: jax.device_put(np.int32(meta.get(name, 0)), getattr(placed, name).sharding) for name in COUNTERS
        }
        return placed._replace(**items, **counters)

    def _set_aside(self, step: int, error: Exception) -> None:
        """Renames a damaged checkpoint to `damaged-STEP` (not if read-only) and logs a warning."""
        if self.read_only:
            log.warning("%s: this checkpoint is damaged (%s)", self.directory / str(step), _one_line(error))
            return
        aside, again = self.directory / f"damaged-{step}", 1
        while aside.exists():
            again += 1
            aside = self.directory / f"damaged-{step}-{again}"
        (self.directory / str(step)).rename(aside)
        self._manager.reload()
        log.warning("%s: this checkpoint is damaged (%s) and was set aside", aside, _one_line(error))


def _items(state: TrainState) -> dict[str, PyTree]:
    # Orbax refuses a tree without leaves. Such a tree need not be saved: `abstract` has its structure.
    return {name: tree for name in ITEMS if jax.tree.leaves(tree := getattr(state, name))}


def _described(items: dict[str, PyTree]) -> dict[str, dict[str, Any]]:
    """Path of every leaf -> its shape and dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(items)
    return {leaf_path(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves}


def _meta(state: TrainState) -> dict[str, Any]:
    """The item `meta` of a checkpoint: counters, shape, dtype and fingerprint of every leaf, and its own digest."""
    items = _items(state)
    leaves = _described(items)
    for name, fingerprint in fingerprints(items).items():
        if not fingerprint.finite:
            raise RunError(f"step {int(state.step)}: {name} is not finite, so the state is not saved")
        leaves[name]["fingerprint"] = fingerprint.value
    meta = {**{name: int(getattr(state, name)) for name in COUNTERS}, "leaves": leaves}
    return {**meta, "digest": _digest(meta)}


def _digest(meta: dict[str, Any]) -> str:
    """SHA-256 of `meta` without its field `digest`."""
    content = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _differences(saved: dict[str, Any], items: dict[str, PyTree]) -> list[str]:
    """Lines for an error message: the leaves whose shape or dtype differs between checkpoint and model."""

    def line(leaf: dict[str, Any] | None) -> str:
        return f"{leaf['dtype']}{leaf['shape']}" if leaf else "nothing"

    expected = _described(items)
    lines = {name: (line(saved.get(name)), line(expected.get(name))) for name in sorted(saved.keys() | expected.keys())}
    return [f"{name}: checkpoint has {old}, model wants {new}" for name, (old, new) in lines.items() if old != new]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
