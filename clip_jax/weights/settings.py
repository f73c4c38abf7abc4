"""Strict reading of another project's JSON config: no field is skipped without notice.

`Settings` records which fields were read. Every other field must be known to be harmless (`Settings.done`), else it is
refused by name, as it may change what the network computes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.fields import brief


class Settings:
    """One object of a config, which records the fields that were read. Every error names the file and the field.

    Args:
        data: the JSON object.
        where: how an error names the object: the file, and the place in it ("config.json: text_config").

    Raises:
        UserError: `data` is not an object.
    """

    def __init__(self, data: Any, where: str):
        if not isinstance(data, Mapping):
            raise UserError(f"{where} is {brief(data)}: it must be an object of fields")
        self.data, self.where = data, where
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, of any type; the field counts as read."""
        self._read.add(name)
        return self.data.get(name, default)

    def error(self, name: str, what: str) -> UserError:
        """A UserError, to be raised, about the value of a field; `what` says what is wrong and what to do."""
        return UserError(f"{self.where}.{name} is {brief(self.data.get(name))}: {what}")

    def integer(self, name: str, default: int | None = None) -> int:
        """The value of a field that must be an integer.

        Raises:
            UserError: the value is of another type, or the field is absent and has no default.
        """
        value = self._required(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "it must be an integer")
        return value

    def side(self, name: str, default: int | None = None) -> int:
        """The side of a square: 12 from 12, [12, 12] or [3, 12, 12].

        Raises:
            UserError: the value is of another type or not square, or the field is absent and has no default.
        """
        value = self._required(name, default)
        sides = list(value)[-2:] if isinstance(value, list | tuple) else [value]
        if not sides or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise self.error(name, "it must be an integer")
        if len(set(sides)) != 1:
            raise self.error(name, "it is not square: only square pictures are supported")
        return sides[0]

    def number(self, name: str, default: float | None = None) -> float:
        """The value of a field that must be a finite number.

        Raises:
            UserError: the value is of another type, or the field is absent and has no default.
        """
        value = self._required(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise self.error(name, "it must be a number")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """The value of a field that must be true or false.

        Raises:
            UserError: the value is of another type.
        """
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "it must be true or false")
        return value

    def inner(self, name: str, default: Any = None) -> "Settings":
        """The value of a field that must be an object, as `Settings`.

        Raises:
            UserError: the value is of another type, or the field is absent and has no default.
        """
        return Settings(self._required(name, default), f"{self.where}: {name}")

    def one_of(self, name: str, known: Iterable[Any], default: Any) -> Any:
        """The value of a field that must be one of `known`, type included.

        Raises:
            UserError: the value is none of them.
        """
        value, known = self.get(name, default), list(known)
        if not any(type(value) is type(choice) and value == choice for choice in known):
            raise self.error(name, f"supported are {', '.join(map(str, known))}")
        return value

    def fixed(self, defaults: Mapping[str, Any]) -> None:
        """Checks fields that are supported with one value only, {field: value}; null and {} count as absent.

        Raises:
            UserError: a field has another value.
        """
        for name, value in defaults.items():
            actual = self.get(name)
            if actual is not None and actual != value and actual != {}:
                raise self.error(name, f"supported is {value!r}: this model needs what we lack")

    def done(self, harmless: Iterable[str] = ()) -> None:
        """Checks that every field was read, is `harmless`, or is null, {} or [].

        Raises:
            UserError: there are other fields; it names the first four.
        """
        known = self._read | set(harmless)
        left = [name for name, value in self.data.items() if name not in known and value not in (None, {}, [])]
        if left:
            told = ", ".join(f"{name} is {brief(self.data[name], 40)}" for name in left[:4])
            more = f" and {len(left) - 4} more" if len(left) > 4 else ""
            it, changes = ("this setting is", "it") if len(left) == 1 else ("these settings are", "they")
            raise UserError(f"{self.where}: {told}{more}: {it} not known, and {changes} may change the network")

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is None and name not in self.data:
            raise UserError(f"{self.where}: {name} is missing")
        return value


def located(where: str, error: UserError) -> UserError:
    """The error with `where` before its text, unless the text contains `where`."""
    return error if where in str(error) else UserError(f"{where}: {error}")
