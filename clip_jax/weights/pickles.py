"""A safe pickle reader: a small interpreter that runs no code of the file.

A pickle is a program for a stack machine. Python's own interpreter allocates what the program claims (a memo of 2^26
entries is a gigabyte), sets attributes and items of any object on the stack, and calls any importable function. This
interpreter has only the opcodes that data need. It makes plain Python values and the classes below, calls only the
functions that `Names` provides, and its time and memory are bounded by the length of the program.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clip_jax.errors import printable

MAX_STEPS = 500_000  # opcodes; a tensor takes about 25, so this allows 20,000 tensors, and takes about a second
MAX_PROGRAM = 1 << 26  # bytes; checkpoints may also hold the texts of their training settings
MAX_KEY = 1 << 60  # larger integers can be chosen so that their hashes collide, which makes a dict slow


class PickleError(ValueError):
    """The pickle is damaged, or has an operation that no pickle of weights needs."""


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function that the pickle may call by its name. Its arguments come from the pickle and are untrusted."""

    call: Callable[..., Any]


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """The dtype that a name in the pickle stands for; it cannot be called."""

    value: Any


class Object:
    """An instance of an unknown class.

    Attributes:
        keeps: whether attributes are kept, because they may be weights (modules of TorchScript).
        attributes: the attributes, by name; empty unless `keeps`.
    """

    __slots__ = ("attributes", "keeps")

    def __init__(self, keeps: bool):
        self.keeps = keeps
        self.attributes: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """Resolves the global names and persistent ids of a pickle. Both functions raise for those that are unknown."""

    find: Callable[[str, str], Any]  # (module, name)
    refer: Callable[[Any], Any]  # (persistent id)


class Bounded:
    """A file reader that returns at most `limit` bytes in all."""

    def __init__(self, file: io.BufferedIOBase, limit: int = MAX_PROGRAM):
        self._file, self._left = file, limit

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count`."""
        return self._taken(self._file.read(max(0, min(count, self._left))))

    def readline(self) -> bytes:
        """The next line, cut off at the limit."""
        return self._taken(self._file.readline(self._left))

    def _taken(self, content: bytes) -> bytes:
        self._left -= len(content)
        return content


def read_pickle(file: io.BufferedIOBase | Bounded, names: Names) -> Any:
    """Reads one pickle from the current position of a file, and leaves the position at its end.

    Args:
        file: the file; a plain one is read up to `MAX_PROGRAM` bytes.
        names: resolves the global names and persistent ids.

    Returns:
        None, numbers, texts, bytes, tuples, lists, dicts, `Object`, and what the functions of `names` return. Lists and
        dicts may contain themselves, and values may be shared. Dict entries whose keys are not texts or integers below
        2^60 are dropped: their hashes can be made to collide, and names of weights are texts.

    Raises:
        PickleError: the pickle is damaged or does what no pickle of weights needs.
        ValueError: the argument of an opcode is damaged.
    """
    return _Machine(names).run(file if isinstance(file, Bounded) else Bounded(file))


def brief(value: Any) -> str:
    """A value for an error: texts and integers as they are (shortened), others by their type."""
    if type(value) is str:
        return repr(printable(value, 80))
    if type(value) is int and abs(value) < MAX_KEY:
        return str(value)
    return f"a {type(value).__name__}"


class _Machine:
    def __init__(self, names: Names):
        self._names = names
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stack below each mark
        self._memo: dict[int, Any] = {}  # a dict and not a list: the pickle chooses the indices
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
        """Removes the last mark and returns the items above it."""
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
        elif type(target) is not dict:  # attributes of an OrderedDict are not weights: dropped
            raise PickleError(f"its program sets attributes of {brief(target)}")

    def _call(self, arguments: Any) -> None:
        function = self._pop()
        if type(function) is not Function or type(arguments) is not tuple:
            raise PickleError(f"its program calls {brief(function)}")
        # A function may visit all items of its arguments, and one opcode can repeat a long argument: count the items.
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
