"""Imports of optional packages, with an error of one line that tells how to install a missing one."""

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
        package: the name of the distribution, for pip.
        needed_by: the option or function that needs the package; the error begins with it.
        extra: the extra of this project that installs the package.

    Raises:
        UserError: an import in the block failed.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{needed_by} needs the package {package} ({error}): pip install {package}, or 'unclip-jax[{extra}]'"
        ) from None
