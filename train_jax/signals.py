"""SIGTERM and SIGINT as a flag that the loop looks at between steps."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from train_jax.errors import Preempted

__all__ = ["Interrupts"]


class Interrupts:
    """While entered, the first SIGTERM or SIGINT only sets `signum`; a second SIGINT stops at once (KeyboardInterrupt).

    Python allows handlers in the main thread only; elsewhere (a notebook's helper thread) nothing is caught.
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
            signal.raise_signal(self.signum)  # it came after the last look: whoever is outside must still hear of it

    def stop(self, step: int) -> None:
        """Raise `Preempted` if a signal came; call it once `step` is saved."""
        if self.signum is not None:
            raise Preempted(self.signum, step)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        if signum == signal.SIGINT:
            # print() may be what was interrupted, and it cannot be entered twice.
            os.write(2, b"\nfinishing the step and saving; press Ctrl-C again to stop at once\n")
