"""Logging of a run: metrics to a JSONL file and TensorBoard, progress to stderr."""

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

LATEST = ("lr", "skipped", "bad")  # metrics whose last value is logged, not their mean


def summary(window: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Averages the metrics of several steps.

    Args:
        window: metrics of one or more steps, name -> scalar, possibly still on the device.

    Returns:
        Name -> mean over the steps where the value is finite, NaN if it is finite nowhere. For `lr`, `skipped` and
        `bad` it is the value of the last step.
    """
    fetched = jax.device_get(list(window))
    values = {name: np.asarray([metrics[name] for metrics in fetched], np.float64) for name in fetched[-1]}
    finite = {name: value[np.isfinite(value)] for name, value in values.items()}
    means = {name: float(value.mean()) if value.size else math.nan for name, value in finite.items()}
    return means | {name: float(values[name][-1]) for name in LATEST if name in values}


class MetricsLog:
    """Writes scalars to `directory/metrics.jsonl`, and scalars and images to `directory/tensorboard`."""

    def __init__(self, directory: Path, *, start: int = 0):
        """Continue the log in `directory` after step `start`: entries of an interrupted run beyond it are removed."""
        self.directory, self.start = directory, start
        self._board: Any = None
        _truncate(directory / "metrics.jsonl", start)
        self._file = open(directory / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - see close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close the file and the TensorBoard writer."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log `values` at `step`: scalars, or uint8 images [H, W, 3], which go to TensorBoard only.

        A NaN or infinite scalar is null in the file and left out of TensorBoard.
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
                if math.isfinite(number):  # tensorboardX would warn and draw nothing
                    self._board.add_scalar(name, number, step)
        if scalars:
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()


class Progress:
    """Shows the progress of a run on stderr: a bar on a terminal, otherwise a line every `every` seconds."""

    def __init__(self, name: str, *, start: int, total: int, batch_size: int, every: float = 15.0):
        """Start at step `start` of `total`."""
        self.name, self.total, self.batch_size, self.every = name, total, batch_size, every
        self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None  # (step, time) of the first dispatched step, after compilation
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
        """Call this after dispatching `step`."""
        if self._first is None:
            self._first = step, time.monotonic()
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def rate(self, step: int) -> float:
        """Examples per second since the first step of this process, without compilation; NaN at that step."""
        if self._first is None or step == self._first[0]:
            return math.nan
        return (step - self._first[0]) * self.batch_size / (time.monotonic() - self._first[1])

    def show(self, step: int, loss: float) -> None:
        """Report the loss at `step`."""
        rate = self.rate(step)
        shown = f"loss {loss:.4g}" + (f", {rate:.4g} images/s" if math.isfinite(rate) else "")
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif step == self.total or time.monotonic() - self._last_line >= self.every:
            self._last_line = time.monotonic()
            left = (self.total - step) * self.batch_size / rate
            self._say(f"step {step}/{self.total}, {shown}" + (f", {_duration(left)} left" if left > 0 else ""))

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Seconds as "m:ss" or "h:mm:ss"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def _truncate(path: Path, step: int) -> None:
    """Removes the entries of a JSONL log after `step`, and damaged lines."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # an incomplete line of a killed run
            continue
    write_atomically(path, "".join(kept))
