"""Catches SIGTERM and SIGINT as a flag that the training loop checks between steps."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from train_jax.errors import Preempted

__all__ = ["Interrupts"]


class Interrupts:
    """Context manager: the first SIGTERM or SIGINT sets `signum`; a SIGINT after that raises KeyboardInterrupt.

    Python allows signal handlers in the main thread only; in another thread (as in some notebooks) nothing is caught.

    Attributes:
        signum: number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.signum is not None and kind is None:
            signal.raise_signal(self.signum)  # it came after the loop's last check: pass it to the outer handler

    def stop(self, step: int) -> None:
        """Call this once `step` is saved.

        Raises:
            Preempted: a signal came.
        """
        if self.signum is not None:
            raise Preempted(self.signum, step)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        if signum == signal.SIGINT:
            # Not print(): the signal may have interrupted a print(), which is not reentrant.
            os.write(2, b"\nfinishing the step and saving; press Ctrl-C again to stop at once\n")
