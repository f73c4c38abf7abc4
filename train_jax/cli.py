"""What a command of the roof needs: presets with overrides, errors in one line, exit codes, a compilation cache.

def main(argv):
    preset, config = choose(PRESETS, argv, prog="train.py")
    ...

if __name__ == "__main__":
    run_main(main, name="train")
"""

import contextlib
import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, TypeVar

from train_jax.errors import Preempted, RunError, UserError
from train_jax.flags import parse

__all__ = ["choose", "enable_compilation_cache", "quiet", "run_main", "tune_cpu"]

T = TypeVar("T")


def run_main(
    main: Callable[[list[str]], None],
    argv: Sequence[str] | None = None,
    *,
    name: str,
    user_errors: tuple[type[Exception], ...] = (),
) -> NoReturn:
    """Run `main(argv)` as a command and exit: 0, 2 for bad input, 1 for a fault, 128 + signal when stopped.

    Bad input is `UserError`, `OSError` and any of `user_errors`, and a `JAX_PLATFORMS` that names what this machine
    does not have; a fault is `RunError`. Both end in one line `name: culprit: what; what to do` on stderr. With
    `--debug` anywhere in `argv` they end in their traceback instead.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    if debug:
        argv.remove("--debug")
    else:
        quiet()
    expected: tuple[type[Exception], ...] = (UserError, OSError, RunError, *user_errors)
    status = 0
    try:
        main(argv)
    except Preempted as stop:
        _say(name, str(stop))
        status = stop.status
    except KeyboardInterrupt:
        _say(name, "stopped")
        status = 130
    except Exception as error:
        line = _describe(error) if isinstance(error, expected) else _missing_device()
        if debug or line is None:
            raise
        _say(name, line)
        status = 1 if isinstance(error, RunError) else 2
    sys.exit(status)


def choose(
    presets: Mapping[str, tuple[str, T]], argv: Sequence[str], *, prog: str, description: str = ""
) -> tuple[str, T]:
    """Read `PRESET [--field value ...]`: the name chosen and its config with the fields given replaced.

    `presets` maps a name to what it is (one line) and a dataclass instance. `--help` alone lists the presets; after a
    preset it lists that preset's fields with their values.

    Raises:
        UserError: there is no such preset, a flag came first, or one is unknown or has a value that cannot be.
        SystemExit: 0 after help, 2 if there were no arguments at all.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(presets, prog, description))
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name.startswith("-"):
        raise UserError(f"{name}: the preset comes first, as in `{prog} {next(iter(presets))} {name}`")
    if name not in presets:
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f"perhaps you meant {close[0]}" if close else f"there are {', '.join(presets)}"
        raise UserError(f"{name}: there is no such preset; {hint}")
    about, default = presets[name]
    config = parse(type(default), rest, prog=f"{prog} {name}", default=default, description=about, culprit=_field)
    return name, config


def enable_compilation_cache(directory: Path | str | None = None) -> Path | None:
    """Keep compiled programs from one process to the next; returns where, or None if that cannot be written.

    The directory is the one given, else what `JAX_COMPILATION_CACHE_DIR` says, else `unclip-jax` in the user's cache.
    A user without a home, or with one that is read-only, has none: everything runs, and compiles anew each time.
    """
    import jax

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
    """Set what makes small networks faster on CPU; call before JAX is used. Accelerators are not affected.

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
        if "--xla_force_host_platform_device_count" not in given:  # XLA's way to say it, which JAX's would override
            _cpu_devices(2 ** (min(cores, 8).bit_length() - 1))
        flags.append("--xla_cpu_multi_thread_eigen=false")
    wanted = [flag for flag in flags if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *wanted]).strip()


def _cpu_devices(count: int) -> None:
    """So many devices on CPU, unless the environment says another number or JAX has counted them already."""
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(count)
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def quiet() -> None:
    """Silence what the libraries below say of themselves. Our own warnings stay, one line each."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for library in ("absl", "orbax", "jax", "grain"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(orbax|grain|tensorboardX|tensorflow_datasets)\b")
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:  # an import may have configured them before us
        handler.setFormatter(logging.Formatter("%(message)s"))
    # When a damaged file fails a restore, orbax closes its event loop over the reads that had still to answer, and
    # asyncio reports what they answered. The restore has said what was wrong.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    told = sys.unraisablehook
    sys.unraisablehook = lambda what: None if str(what.exc_value) == "Event loop is closed" else told(what)


def _overview(presets: Mapping[str, tuple[str, object]], prog: str, description: str) -> str:
    width = max(map(len, presets))
    first = next(iter(presets))
    lines = [f"usage: {prog} PRESET [--field value ...]", ""]
    if description:
        lines += [description, ""]
    lines += ["presets:", *(f"  {name:<{width}}  {about}" for name, (about, _) in presets.items()), ""]
    lines += [f"`{prog} {first} --help` lists the fields of a preset and their values."]
    return "\n".join(lines)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _missing_device() -> str | None:
    """What is wrong with `JAX_PLATFORMS`, if anything is. JAX itself fails in many ways, by who asks first."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted or "jax" not in sys.modules:
        return None
    import jax

    try:
        jax.devices()
    except Exception:  # an AssertionError without a word, or a RuntimeError
        return f"JAX_PLATFORMS: no device of {wanted!r} can be used on this machine; unset it, or set it to cpu"
    return None


def _field(flag: str) -> str:
    """The field that a flag sets: `--optim.warmup-steps` is `optim.warmup_steps`."""
    return flag.lstrip("-").replace("-", "_")


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        culprit = f"{error.filename}: " if error.filename is not None else ""
        return f"{culprit}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", file=sys.stderr, flush=True)
