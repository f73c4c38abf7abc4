"""The one error a caller can provoke with bad input."""


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, the values, what to do. Command lines print it and exit with 2."""
