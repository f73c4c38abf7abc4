"""The one error a caller can provoke with bad input, and how foreign text is put into its line."""

MAX_LINE = 2000  # characters: names and values in an error come from files, where they may be megabytes long


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, the values, what to do. Command lines print it and exit with 2.

    The line is always printable, as it quotes files: line breaks become spaces, control characters (terminal escapes
    among them) are spelled out, and what is longer than `MAX_LINE` characters is cut in the middle.
    """

    def __init__(self, message: object = ""):
        super().__init__(printable(message))


def printable(text: object, limit: int = MAX_LINE) -> str:
    """A text as one line that is safe to print, with its middle left out where it is longer than `limit`."""
    line = text if isinstance(text, str) else str(text)
    if len(line) > limit:
        line = f"{line[: limit * 2 // 3]} … {line[-limit // 3 :]}"
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in line)


def one_line(error: object, limit: int = 300) -> str:
    """An error's text on one line, short enough to stand inside another error."""
    return " ".join(printable(error, limit).split()) or type(error).__name__
