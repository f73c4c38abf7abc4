"""What a command that trains needs beside `image_text.command_line`: presets with overrides, and JAX's settings.

def main(argv):
    name, config = choose(PRESETS, argv, prog="train.py")
    enable_compilation_cache()
    ...

tune_cpu(training=True)
run_main(main, name="train", explain=missing_device)        # of image_text.command_line
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
    """Reads `PRESET [--field value ...]`: the name chosen and its config with the fields given replaced.

    `--help` alone lists the presets; after a preset it lists that preset's fields with their values.

    Args:
        presets: name -> (what it is in one line, a dataclass instance).
        argv: the arguments after the program.
        prog: what the help calls the program.
        description: what the help says of the program.

    Raises:
        UserError: there is no such preset, a flag came first, or one is unknown or has a value that cannot be.
        SystemExit: 0 after help, 2 if there were no arguments at all.
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
    """Keeps compiled programs from one process to the next; returns where, or None if that cannot be written.

    The directory is the one given, else what `JAX_COMPILATION_CACHE_DIR` says, else `unclip-jax` in the user's cache.
    A user without a home, or with one that is read-only, has none: everything runs, and compiles anew each time.
    """
    try:
        path = Path(directory or os.environ.get("JAX_COMPILATION_CACHE_DIR") or _user_cache() / "unclip-jax")
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a uid without an entry in passwd, and no HOME
        return None
    if not os.access(path, os.W_OK):  # JAX would warn of every program that it cannot write
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    return path


def tune_cpu(*, training: bool) -> None:
    """Sets what makes small networks faster on CPU; call before JAX uses a device. Accelerators are not affected.

    XLA's default fusion makes the gradient of a convolution 1.3 to 2 times slower. And small operations gain little
    from being spread over cores: for `training`, every core is a device of its own with a share of the batch (1.5 times
    faster on two cores), as many as the largest power of two that is there.

    XLA ends the process at a flag it does not know, so flags are set only for the versions they were tried with;
    elsewhere everything is right, but slower. What the user has set in the environment stays.
    """
    given = os.environ.get("XLA_FLAGS", "")
    major, minor = (int(part) for part in version("jaxlib").split(".")[:2])
    if not (0, 10) <= (major, minor) <= (0, 12):
        return
    flags = ["--xla_cpu_experimental_ynn_fusion_type=individual_dot,reduce"]
    if training:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # XLA has a flag of its own for this, which JAX's setting would override.
        if "--xla_force_host_platform_device_count" not in given and "JAX_NUM_CPU_DEVICES" not in os.environ:
            with contextlib.suppress(RuntimeError):  # a device is in use already
                jax.config.update("jax_num_cpu_devices", 2 ** (min(cores, 8).bit_length() - 1))
        flags.append("--xla_cpu_multi_thread_eigen=false")
    wanted = [flag for flag in flags if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *wanted]).strip()


def missing_device(error: Exception) -> str | None:
    """What is wrong with `JAX_PLATFORMS`, if anything is: the `explain` of a command that uses JAX.

    JAX itself fails in many ways at a platform that this machine does not have, by who asks first.
    """
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted:
        return None
    try:
        jax.devices()
    except Exception:  # an AssertionError without a word, or a RuntimeError
        return f"JAX_PLATFORMS: no device of {wanted!r} can be used on this machine; unset it, or set it to cpu"
    return None


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _field(flag: str) -> str:
    """The field that a flag sets: `--optim.warmup-steps` is `optim.warmup_steps`."""
    return flag.lstrip("-").replace("-", "_")
