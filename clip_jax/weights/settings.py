"""A foreign JSON config, read field by field: nothing in it is skipped without having been looked at.

What is read is followed; what is left over must be known to change nothing (`Settings.done`), else it is refused by
name, as it may change what the network computes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.fields import brief


class Settings:
    """One object of a config and what of it was read. Every error names the file and the field.

    Args:
        data: the JSON object.
        where: the file, and the place in it: "config.json: text_config".
    """

    def __init__(self, data: Any, where: str):
        if not isinstance(data, Mapping):
            raise UserError(f"{where} is {brief(data)}: it must be an object of fields")
        self.data, self.where = data, where
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, whatever it is."""
        self._read.add(name)
        return self.data.get(name, default)

    def error(self, name: str, what: str) -> UserError:
        """What is wrong with the value of a field, as an error to raise."""
        return UserError(f"{self.where}.{name} is {brief(self.data.get(name))}: {what}")

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer. Raises UserError when it is something else, or absent and without default."""
        value = self._required(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "it must be an integer")
        return value

    def side(self, name: str, default: int | None = None) -> int:
        """An integer, also as both sides of a square: 12 of 12, [12, 12] or [3, 12, 12]."""
        value = self._required(name, default)
        sides = list(value)[-2:] if isinstance(value, list | tuple) else [value]
        if not sides or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise self.error(name, "it must be an integer")
        if len(set(sides)) != 1:
            raise self.error(name, "it is not square: only square pictures are supported")
        return sides[0]

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number. Raises UserError when it is something else, or absent and without default."""
        value = self._required(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise self.error(name, "it must be a number")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false. Raises UserError when it is something else."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "it must be true or false")
        return value

    def inner(self, name: str, default: Any = None) -> "Settings":
        """An object inside this one. Raises UserError when it is something else, or absent and without default."""
        return Settings(self._required(name, default), f"{self.where}: {name}")

    def one_of(self, name: str, known: Iterable[Any], default: Any) -> Any:
        """One of the values that are supported."""
        value, known = self.get(name, default), list(known)
        if not any(type(value) is type(choice) and value == choice for choice in known):
            raise self.error(name, f"supported are {', '.join(map(str, known))}")
        return value

    def fixed(self, defaults: Mapping[str, Any]) -> None:
        """Fields that may only have the value at which they change nothing (null and {} count as not set)."""
        for name, value in defaults.items():
            found = self.get(name)
            if found is not None and found != value and found != {}:
                raise self.error(name, f"supported is {value!r}: this model needs what we lack")

    def done(self, harmless: Iterable[str] = ()) -> None:
        """Raises UserError naming each field that was not read, is not `harmless`, and says something.

        null, {} and [] say nothing.
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
    """The same error with its place before it, unless it names it already."""
    return error if where in str(error) else UserError(f"{where}: {error}")
