"""Shapes and types in signatures, checked while tests run; CI does so:

    pip install beartype
    python -m pytest -p tests.annotations --jaxtyping-packages=clip_jax,unclip_jax,tests.annotations.checked

`-p` comes first: an array of numpy passes for one of jax, as functions take either, and that has to be said before they
are imported.
"""

import re

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

jaxtyping.Array = jax.Array | np.ndarray | np.generic

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int passes for a float


def checked(function):
    """Checks all but configs, which are refused in words of their own, as tests want to see."""
    return function if re.search(r"(Config|UnCLIP)\.__init__$", function.__qualname__) else _checked(function)
