"""Optional packages: imported where they are used, and one line for who lacks them."""

import contextlib
from collections.abc import Iterator

from image_text.errors import UserError

__all__ = ["optional"]


@contextlib.contextmanager
def optional(package: str, *, needed_by: str, extra: str) -> Iterator[None]:
    """Turns the `ImportError` of a block that imports an optional package into one line that says how to get it.

        with optional("pyarrow", needed_by="--out: .parquet", extra="parquet"):
            import pyarrow.parquet

    Args:
        package: the name of the distribution, as pip knows it.
        needed_by: what the user asked for that needs it; the line begins with it.
        extra: the extra of this project that brings it.

    Raises:
        UserError: the block could not import something.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{needed_by} needs the package {package} ({error}): pip install {package}, or 'unclip-jax[{extra}]'"
        ) from None
