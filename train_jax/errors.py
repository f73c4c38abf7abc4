"""Exceptions that end a run before its last step: bad input, a fault during training, or a signal.

Their text is one line, `culprit: what is wrong; what to do`. A command (`image_text.command_line.run_main`) prints it
without a traceback. It exits with 2 after a UserError, else with the exception's `exit_status`.
"""

import signal

from image_text.errors import UserError

__all__ = ["Preempted", "RunError", "UserError"]


class RunError(RuntimeError):
    """A fault during training: a full disk, damaged checkpoints, a loss that stays NaN. Exit status 1.

    Intact checkpoints on disk are not changed.
    """

    exit_status = 1


class Preempted(SystemExit):
    """SIGTERM or SIGINT stopped the run (preemption); the checkpoint of `step` is saved.

    It is a `SystemExit`, so that no `except Exception` swallows it, and a caller that does not catch it exits as the
    shell expects: with 143 after SIGTERM, 130 after SIGINT.
    """

    def __init__(self, signum: int, step: int):
        """Number of the signal, and the step that is saved."""
        super().__init__(128 + signum)
        self.signum, self.step, self.exit_status = signum, step, 128 + signum

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"stopped by {name}; step {self.step} is saved and the same command continues from there"
