"""Pictures with captions, wherever they lie: tables, folders, TFDS, two built-in sets.

numpy and Pillow; no model, no JAX.
"""

from image_text.base import Source
from image_text.decode import open_image
from image_text.errors import UserError
from image_text.source import open_source

__all__ = ["Source", "UserError", "open_image", "open_source"]
