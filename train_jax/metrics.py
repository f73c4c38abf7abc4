"""Where the numbers of a run go: a JSONL file, TensorBoard, and one line or bar for the person watching."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from train_jax.files import write_atomically

__all__ = ["MetricsLog", "Progress", "summary"]

LATEST = ("lr", "skipped", "bad")  # a mean over steps would say little of these


def summary(window: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """One number per metric for the steps of `window`: the mean over the steps where it is finite.

    NaN where it never is. `lr`, `skipped` and `bad` are those of the last step.
    """
    fetched = jax.device_get(list(window))
    values = {name: np.asarray([metrics[name] for metrics in fetched], np.float64) for name in fetched[-1]}
    finite = {name: value[np.isfinite(value)] for name, value in values.items()}
    means = {name: float(value.mean()) if value.size else math.nan for name, value in finite.items()}
    return means | {name: float(values[name][-1]) for name in LATEST if name in values}


class MetricsLog:
    """Scalars by step in `directory/metrics.jsonl`; scalars and images in `directory/tensorboard`."""

    def __init__(self, directory: Path, *, start: int = 0):
        """Continue the log of `directory` from step `start`: what an interrupted run wrote beyond it is removed."""
        self.directory, self.start = directory, start
        self._board: Any = None
        _truncate(directory / "metrics.jsonl", start)
        self._file = open(directory / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - see close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record `values` at `step`: numbers, or uint8 images [H, W, 3] (TensorBoard only).

        What is not finite becomes null in the file and is left out of TensorBoard.
        """
        if self._board is None:
            self._board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=self.start + 1)
        scalars: dict[str, float | None] = {}
        for name, value in values.items():
            array = np.asarray(value)
            if array.ndim:
                self._board.add_image(name, array, step, dataformats="HWC")
            else:
                number = float(array)
                scalars[name] = number if math.isfinite(number) else None
                if math.isfinite(number):  # tensorboardX warns of the others and draws nothing
                    self._board.add_scalar(name, number, step)
        if scalars:
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()


class Progress:
    """How far a run is: a bar on a terminal, a line every `every` seconds elsewhere; both on stderr."""

    def __init__(self, name: str, *, start: int, total: int, batch_size: int, every: float = 15.0):
        self.name, self.total, self.batch_size, self.every = name, total, batch_size, every
        self._said = time.monotonic()
        self._first: tuple[int, float] | None = None  # when the first step was under way: compilation is over
        self._bar: Any = None
        if start:
            self._say(f"continues from step {start}" if start < total else f"finished at step {start} already")
        if sys.stderr.isatty() and start < total:
            layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(desc=name, initial=start, total=total, bar_format=layout, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, step: int) -> None:
        """`step` is under way."""
        if self._first is None:
            self._first = step, time.monotonic()
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def rate(self, step: int) -> float:
        """Examples a second since the first step of this session, compilation not counted; NaN at that step."""
        if self._first is None or step == self._first[0]:
            return math.nan
        return (step - self._first[0]) * self.batch_size / (time.monotonic() - self._first[1])

    def show(self, step: int, loss: float) -> None:
        """Report the loss at `step`."""
        rate = self.rate(step)
        shown = f"loss {loss:.4g}" + (f", {rate:.4g} images/s" if math.isfinite(rate) else "")
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif step == self.total or time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            left = (self.total - step) * self.batch_size / rate
            self._say(f"step {step}/{self.total}, {shown}" + (f", {_duration(left)} left" if left > 0 else ""))

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # the line that a killed run was writing
            continue
    write_atomically(path, "".join(kept))
