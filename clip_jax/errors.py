"""The one error a caller can provoke with bad input, and the boundary at which it is made of others (`image_text`)."""

from image_text.errors import UserError, names_its_file, one_line, printable, reading

__all__ = ["UserError", "names_its_file", "one_line", "printable", "reading"]
