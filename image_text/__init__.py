"""Pictures with captions, wherever they lie: tables, folders, TFDS, two built-in sets.

numpy and Pillow; no model, no JAX.
"""

from image_text.base import Source
from image_text.decode import open_image
from image_text.errors import UserError
from image_text.source import open_source
from shapes_world.version import __version__

__all__ = ["Source", "UserError", "__version__", "open_image", "open_source"]
