"""What holds for every test: eight CPU devices to shard over, the repository importable, one throw-away cache.

Single-device programs run on the first device and do not notice the others. Subprocesses do not inherit the eight: the
number is set in this process's config, not in the environment.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare `pytest` does not add it
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # tests wait for compilation; commands they start have it all

# Commands keep compiled programs in the user's cache. Here they and the tests share one, so that a program compiles
# once however many tests build it anew, and nothing is left behind.
_cache = tempfile.mkdtemp(prefix="unclip-jax-tests-")
os.environ["XDG_CACHE_HOME"] = _cache
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
jax.config.update("jax_compilation_cache_dir", str(Path(_cache) / "unclip-jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_unconfigure() -> None:
    shutil.rmtree(_cache, ignore_errors=True)
