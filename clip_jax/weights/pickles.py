"""Pickles read as data, by a small interpreter that runs nothing.

A pickle is a program for a stack machine. Python's own interpreter of it allocates what the program claims (a memo of
2^26 entries is a gigabyte), sets attributes and items of whatever is on the stack, and calls what it is told to. This
one has the opcodes that data need: it makes plain Python values and the frozen classes below, calls nothing but the
functions its caller hands out, and its work and its memory are bounded by the length of the program.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clip_jax.errors import printable

MAX_STEPS = 500_000  # a tensor takes some 25 opcodes: twenty thousand of them, in a second
MAX_PROGRAM = 1 << 26  # bytes; beside names and numbers, a checkpoint may hold the texts of its settings
MAX_KEY = 1 << 60  # larger integers are made to collide in a table too easily


class PickleError(ValueError):
    """The program is damaged, or does what no program that saves weights does."""


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function of the caller's, which a program may call by its name. Its arguments come from the program."""

    call: Callable[..., Any]


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A name that stands for itself: a type of numbers."""

    value: Any


class Object:
    """An object of a class that is not known here: its attributes if they are weights (`keeps`), else nothing."""

    __slots__ = ("attributes", "keeps")

    def __init__(self, keeps: bool):
        self.keeps = keeps
        self.attributes: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """What the names and references of a program mean. Each raises what it likes for those it does not know."""

    find: Callable[[str, str], Any]  # (module, name)
    refer: Callable[[Any], Any]  # (persistent id)


class Bounded:
    """A file of which no more than `limit` bytes can be read, whatever a program claims."""

    def __init__(self, file: io.BufferedIOBase, limit: int = MAX_PROGRAM):
        self._file, self._left = file, limit

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        return self._taken(self._file.read(max(0, min(count, self._left))))

    def readline(self) -> bytes:
        """A line, or what is left."""
        return self._taken(self._file.readline(self._left))

    def _taken(self, content: bytes) -> bytes:
        self._left -= len(content)
        return content


def read_pickle(file: io.BufferedIOBase | Bounded, names: Names) -> Any:
    """The value of one pickle, which begins where the file stands; the file is left behind its end.

    Returns:
        None, numbers, texts, tuples, lists, dicts, `Object`, and whatever the functions of `names` return. Lists and
        dicts may hold themselves, and the same value may stand in many places. Only texts and integers below 2^60 are
        kept as keys: the names of weights are texts, and the rest can be made to collide.

    Raises:
        PickleError: or what `names` raises; ValueError from the arguments of opcodes.
    """
    return _Machine(names).run(file if isinstance(file, Bounded) else Bounded(file))


def brief(value: Any) -> str:
    """A value for an error line: short texts as they are, of others what they are."""
    if type(value) is str:
        return repr(printable(value, 80))
    if type(value) is int and abs(value) < MAX_KEY:
        return str(value)
    return f"a {type(value).__name__}"


class _Machine:
    def __init__(self, names: Names):
        self._names = names
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies under each mark
        self._memo: dict[int, Any] = {}  # a table, as an index may be anything
        self._left = MAX_STEPS

    def run(self, file: Bounded) -> Any:
        for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            self._spend(1)
            if opcode.name == "STOP":
                return self._pop()
            do = _OPCODES.get(opcode.name)
            if do is None:
                raise PickleError(f"it uses the opcode {opcode.name}, which no program that saves weights does")
            do(self, argument)
        raise PickleError("its program has no end")

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise PickleError(f"its program takes more than {MAX_STEPS} steps: it is not one that saves weights")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _top(self) -> Any:
        if not self._stack:
            raise PickleError("its program takes from an empty stack")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _many(self) -> list[Any]:
        """What lies above the last mark."""
        if not self._below:
            raise PickleError("its program takes up to a mark that is not there")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _remember(self, index: int) -> None:
        self._memo[index] = self._top()

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise PickleError("its program asks for what it has not remembered")
        self._push(self._memo[index])

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _drop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._many()

    def _tuple(self, count: int) -> None:
        self._stack.append(tuple([self._pop() for _ in range(count)][::-1]))

    def _pop_mark(self, _: Any) -> None:
        self._many()

    def _dict(self, _: Any) -> None:
        items = self._many()
        self._stack.append({})
        self._set(items)

    def _frozenset(self, _: Any) -> None:
        self._many()
        self._stack.append(Object(keeps=False))

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Object:
            raise PickleError(f"its program appends to {brief(target)}")

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2:
            raise PickleError("its program sets a key without a value")
        if type(target) is dict:
            target.update(
                (key, value)
                for key, value in zip(items[::2], items[1::2], strict=True)
                if type(key) is str or (type(key) is int and abs(key) < MAX_KEY)
            )
        elif type(target) is not Object:
            raise PickleError(f"its program sets an item of {brief(target)}")

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if type(target) is Object:
            if target.keeps and type(state) is dict:
                target.attributes = state
        elif type(target) is not dict:  # an OrderedDict may have attributes, which are no weights
            raise PickleError(f"its program sets attributes of {brief(target)}")

    def _call(self, arguments: Any) -> None:
        function = self._pop()
        if type(function) is not Function or type(arguments) is not tuple:
            raise PickleError(f"its program calls {brief(function)}")
        # A function may look at all items of its arguments, which a program can repeat at the price of one step.
        self._spend(sum(len(value) for value in arguments if type(value) in (list, tuple, dict)))
        self._stack.append(function.call(*arguments))

    def _named(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise PickleError("its program asks for a name that is no text")
        self._stack.append(self._names.find(module, name))

    def _global(self, pair: str) -> None:
        module, _, name = pair.partition(" ")
        self._named(module, name)

    def _stack_global(self, _: Any) -> None:
        name = self._pop()
        self._named(self._pop(), name)


def _made(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine._push(make())


_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys((*_NUMBERS, *_TEXTS, *_BYTES), _Machine._push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine._remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._recall),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    "NONE": _made(lambda: None),
    "NEWTRUE": _made(lambda: True),
    "NEWFALSE": _made(lambda: False),
    "EMPTY_TUPLE": _made(tuple),
    "EMPTY_LIST": _made(list),
    "EMPTY_DICT": _made(dict),
    "EMPTY_SET": _made(lambda: Object(keeps=False)),
    "MEMOIZE": lambda m, _: m._remember(len(m._memo)),
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": _Machine._pop_mark,
    "DUP": lambda m, _: m._push(m._top()),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "TUPLE": lambda m, _: m._push(tuple(m._many())),
    "LIST": lambda m, _: m._push(m._many()),
    "DICT": _Machine._dict,
    "FROZENSET": _Machine._frozenset,
    "APPEND": lambda m, _: m._append([m._pop()]),
    "APPENDS": lambda m, _: m._append(m._many()),
    "ADDITEMS": lambda m, _: m._append(m._many()),
    "SETITEM": lambda m, _: m._set([m._pop(), m._pop()][::-1]),
    "SETITEMS": lambda m, _: m._set(m._many()),
    "BUILD": _Machine._build,
    "REDUCE": lambda m, _: m._call(m._pop()),
    "NEWOBJ": lambda m, _: m._call(m._pop()),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "BINPERSID": lambda m, _: m._push(m._names.refer(m._pop())),
}
