"""Shapes and types in signatures, checked while tests run; CI does so:

    pip install beartype
    python -m pytest -p tests.annotations --jaxtyping-packages=clip_jax,unclip_jax,tests.annotations.checked

`-p` comes first: an array of numpy passes for one of jax, as functions take either, and that has to be said before they
are imported.
"""

import re
from typing import Self

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

jaxtyping.Array = jax.Array | np.ndarray | np.generic

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int passes for a float


def checked(function):
    """Returns the function with its signature checked at every call.

    Left alone are the constructors of configs and samplers, whose own error messages are tested, and methods that
    return `Self`, which beartype understands on decorated classes only.
    """
    config = re.search(r"(Config|UnCLIP|DDPM)\.__init__$", function.__qualname__)
    return function if config or getattr(function, "__annotations__", {}).get("return") is Self else _checked(function)
