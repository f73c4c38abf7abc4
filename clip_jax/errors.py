"""`UserError`, the one exception for bad input, and the helpers of `image_text.errors` that turn others into it."""

from image_text.errors import UserError, names_its_file, one_line, printable, reading

__all__ = ["UserError", "names_its_file", "one_line", "printable", "reading"]
