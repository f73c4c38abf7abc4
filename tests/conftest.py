"""Settings of all tests: eight CPU devices for sharding, the repository on `sys.path`, a temporary compilation cache.

Programs for one device run on the first one. Subprocesses do not inherit the eight devices, since their number is set
in JAX's config and not in the environment.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare `pytest` does not add it
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # compiles faster; subprocesses of tests do optimise

# One temporary compilation cache for all tests and the commands that they start: a program compiles once, however many
# tests build it, and the user's cache is not touched.
_cache = tempfile.mkdtemp(prefix="unclip-jax-tests-")
os.environ["XDG_CACHE_HOME"] = _cache
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
jax.config.update("jax_compilation_cache_dir", str(Path(_cache) / "unclip-jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_unconfigure() -> None:
    """Removes the cache at the end of the session."""
    shutil.rmtree(_cache, ignore_errors=True)
