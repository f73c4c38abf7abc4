"""Image datasets with captions or labels: from folders, tables, TFDS and two built-in sets.

Needs numpy and Pillow only; no model and no JAX.
"""

from image_text.base import Source
from image_text.decode import open_image
from image_text.errors import UserError
from image_text.source import open_source
from shapes_world.version import __version__

__all__ = ["Source", "UserError", "__version__", "open_image", "open_source"]
