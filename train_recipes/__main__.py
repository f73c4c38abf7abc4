"""`unclip-train` and `python -m train_recipes`: `train_recipes.main`, or one line if the extra `train` is missing."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from image_text.command_line import say

__all__ = ["main"]

# Packages that `train_jax` imports and that are not installed with `pip install unclip-jax` alone.
EXTRA = ("grain", "orbax", "orbax.checkpoint", "tensorboardX")

try:
    from train_recipes.main import main
except ImportError as error:
    if error.name not in EXTRA:
        raise
    missing = error

    def main(argv: Sequence[str] | None = None) -> NoReturn:
        """Exit with code 2 and a line that says what to install.

        Args:
            argv: Is not looked at.
        """
        say("train", f"training needs packages that are not installed ({missing}): pip install 'unclip-jax[train]'")
        sys.exit(2)


if __name__ == "__main__":
    main()
