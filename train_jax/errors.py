"""How a run ends before its last step: bad input, a fault on the way, or a signal.

Their text is one line, `culprit: what is wrong; what to do`. A command (`image_text.command_line.run_main`) prints it
without a traceback and exits with 2, or with the `exit_status` of the exception: 1, or 128 + the signal's number.
"""

import signal

from image_text.errors import UserError

__all__ = ["Preempted", "RunError", "UserError"]


class RunError(RuntimeError):
    """A fault while running (a full disk, a damaged checkpoint, a loss that is NaN for good).

    The good checkpoints on disk are untouched.
    """

    exit_status = 1


class Preempted(SystemExit):
    """A signal asked the run to stop; the state of `step` is saved.

    It is a `SystemExit`, so that an `except Exception` on the way up cannot swallow it and an unaware caller still
    exits as the shell expects: 143 after SIGTERM, 130 after SIGINT.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(128 + signum)
        self.signum, self.step, self.exit_status = signum, step, 128 + signum

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"stopped by {name}; step {self.step} is saved and the same command continues from there"
