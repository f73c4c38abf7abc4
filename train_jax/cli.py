"""Command-line helpers for training: presets with flags that override fields, compilation cache, CPU settings.

    def main(argv):
        name, config = choose(PRESETS, argv, prog="train.py")
        enable_compilation_cache()
        ...

    tune_cpu(training=True)
    run_main(main, name="train", explain=missing_device)

`run_main` is that of `image_text.command_line`.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import jax

from image_text.command_line import overview, parse
from train_jax.errors import UserError

__all__ = ["choose", "enable_compilation_cache", "missing_device", "tune_cpu"]

T = TypeVar("T")


def choose(
    presets: Mapping[str, tuple[str, T]], argv: Sequence[str], *, prog: str, description: str = ""
) -> tuple[str, T]:
    """Parses `PRESET [--field value ...]`.

    `--help` alone lists the presets; after a preset it lists that preset's fields with their defaults.

    Args:
        presets: name -> (one-line description, dataclass instance with the defaults).
        argv: the arguments without the program's name.
        prog: name of the program in the help.
        description: description of the program in the help.

    Returns:
        The name of the preset, and its dataclass instance with the given fields replaced.

    Raises:
        UserError: there is no such preset, a flag precedes it, or a flag is unknown or has an invalid value.
        SystemExit: 0 after the help, 2 without arguments.
    """
    first = next(iter(presets))
    if not argv or argv[0] in ("-h", "--help"):
        rows = {name: about for name, (about, _) in presets.items()}
        hint = f"`{prog} {first} --help` lists the fields of a preset and their values."
        print(overview(f"usage: {prog} PRESET [--field value ...]", description, "presets", rows, hint))
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name.startswith("-"):
        raise UserError(f"{name}: the preset comes first, as in `{prog} {first} {name}`")
    if name not in presets:
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f"perhaps you meant {close[0]}" if close else f"there are {', '.join(presets)}"
        raise UserError(f"{name}: there is no such preset; {hint}")
    about, default = presets[name]
    config = parse(type(default), rest, prog=f"{prog} {name}", default=default, description=about, culprit=_field)
    return name, config


def enable_compilation_cache(directory: Path | str | None = None) -> Path | None:
    """Enables JAX's persistent compilation cache.

    Without a writable directory (no home, or a read-only one) there is no cache, and every process compiles anew.

    Args:
        directory: where to keep compiled programs; None: `JAX_COMPILATION_CACHE_DIR`, or else `unclip-jax` in the
            user's cache directory.

    Returns:
        The directory, or None if it cannot be written.
    """
    try:
        path = Path(directory or os.environ.get("JAX_COMPILATION_CACHE_DIR") or _user_cache() / "unclip-jax")
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a uid without an entry in passwd, and no HOME
        return None
    if not os.access(path, os.W_OK):  # JAX would warn about every program that it cannot write
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    return path


def tune_cpu(*, training: bool) -> None:
    """Sets XLA flags that make small networks faster on CPU; call it before JAX uses a device.

    Accelerators are not affected. XLA's default fusion makes the gradient of a convolution 1.3 to 2 times slower. Small
    operations gain little from multi-threading; for training it is 1.5 times faster on two cores to make every core a
    device with a share of the batch. Devices wait for each other at a sum, here for twelve minutes at most: by default
    XLA aborts the process after one, and on a busy machine the thread of one device may not run for that long.

    XLA aborts at an unknown flag, so flags are set only for jaxlib 0.10 to 0.12, with which they were tested; other
    versions are merely slower. Flags that the user has set in the environment stay.

    Args:
        training: make every core a device: as many as the largest power of two that the cores allow, at most 8.
    """
    given = os.environ.get("XLA_FLAGS", "")
    major, minor = (int(part) for part in version("jaxlib").split(".")[:2])
    if not (0, 10) <= (major, minor) <= (0, 12):
        return
    flags = ["--xla_cpu_experimental_ynn_fusion_type=individual_dot,reduce"]
    if training:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # JAX's setting would override XLA's own flag for the number of devices.
        if "--xla_force_host_platform_device_count" not in given and "JAX_NUM_CPU_DEVICES" not in os.environ:
            with contextlib.suppress(RuntimeError):  # a device is in use already
                jax.config.update("jax_num_cpu_devices", 2 ** (min(cores, 8).bit_length() - 1))
        flags += [
            "--xla_cpu_multi_thread_eigen=false",
            "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
            "--xla_cpu_collective_call_terminate_timeout_seconds=600",  # counted from the warning
        ]
    missing = [flag for flag in flags if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()


def missing_device(error: Exception) -> str | None:
    """Explains an error that is due to `JAX_PLATFORMS`: the `explain` argument of `run_main`.

    If this machine lacks the platform, JAX raises various unhelpful errors, depending on which call comes first.

    Args:
        error: the error that ended the command; it is not looked at.

    Returns:
        A one-line message, or None if the platform works or the variable is not set.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if not platforms:
        return None
    try:
        jax.devices()
    except Exception:  # an AssertionError without a message, or a RuntimeError
        return f"JAX_PLATFORMS: no device of {platforms!r} can be used on this machine; unset it, or set it to cpu"
    return None


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _field(flag: str) -> str:
    """The field that a flag sets: `--optim.warmup-steps` is `optim.warmup_steps`."""
    return flag.lstrip("-").replace("-", "_")
