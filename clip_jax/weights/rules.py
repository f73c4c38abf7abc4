"""Conversion of published checkpoints to our parameters and back, by tables of rules.

Each published format has a table. A `Rule` names the published arrays that make one of our parameters, and the `Op`
that rearranges them. `convert` looks up a rule for every parameter of the model and collects all faults (arrays that
are missing, unused or of another shape) in one error. `export` applies the same table backwards. An `Op` only
rearranges values, so a round trip is exact.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.model import init
from clip_jax.weights.native import flatten, is_float, unflatten

Shape = tuple[int, ...]
# The path of a parameter in block 0 of a tower.
BLOCK = re.compile(r"(?P<before>(?P<tower>visual|text)/(\w+/)?(resblocks|blocks|layer)_)0(?P<after>/.*)")
BATCH_STATS = "batch_stats/"  # the prefix of the paths of running statistics, in tables and in files


class Entry(NamedTuple):
    """An array of a checkpoint that is read lazily: its shape, and a function that reads it."""

    shape: Shape
    read: Callable[[], np.ndarray]


Checkpoint = Mapping[str, Entry]


class Op(NamedTuple):
    """A conversion of arrays.

    Attributes:
        read: published arrays -> our array.
        write: our array -> a tuple of published arrays; the inverse of `read`.
    """

    read: Callable[..., np.ndarray]
    write: Callable[[np.ndarray], tuple[np.ndarray, ...]]


class Rule(NamedTuple):
    """Which published arrays make one of our parameters. `{i}`, `{j}`, `{k}` in a name stand for words such as numbers.

    Attributes:
        ours: the path of the parameter.
        theirs: the names of the published arrays.
        op: how to convert them.
    """

    ours: str
    theirs: str | tuple[str, ...]
    op: Op


same = Op(lambda x: x, lambda x: (x,))
transpose = Op(lambda x: x.T, lambda x: (x.T,))  # torch's Linear is [out, in]
conv = Op(lambda x: x.transpose(2, 3, 1, 0), lambda x: (x.transpose(3, 2, 0, 1),))  # OIHW -> HWIO
join = Op(lambda *parts: np.concatenate(parts), lambda x: tuple(np.split(x, 3)))  # biases of q, k, v
join_linear = Op(
    lambda *parts: np.concatenate(parts).T, lambda x: tuple(np.split(x.T, 3))
)  # [3C, C] of q, k, v -> [C, 3C]


scalar = Op(lambda x: x.reshape(()), lambda x: (x.reshape(1),))  # a scalar stored as [1]


def drop_axes(n: int) -> Op:
    """An `Op` that removes `n` leading axes of length 1."""
    return Op(lambda x: x.reshape(x.shape[n:]), lambda x: (x.reshape((1,) * n + x.shape),))


class Format(NamedTuple):
    """A published format of checkpoints.

    Attributes:
        name: of the format.
        rules: config -> the table of rules.
        sizes: checkpoint -> the config fields that its shapes determine, {"vision.width": 768, …}.
        infer: checkpoint -> its config, from the shapes and the fixed settings of the format; raises a UserError that
            names what is not known where they do not determine it.
        ignore: a regular expression for names that are not weights (see `convert`).
        known: checkpoint -> fixed settings of the format, which every config of such a checkpoint must have.
    """

    name: str
    rules: Callable[[CLIPConfig], tuple[Rule, ...]]
    sizes: Callable[[Checkpoint], dict[str, Any]]
    infer: Callable[[Checkpoint], CLIPConfig]
    ignore: str = ""
    known: Callable[[Checkpoint], dict[str, Any]] = lambda checkpoint: {}


def linear(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """The rules of a torch Linear with bias."""
    return Rule(f"{ours}/kernel", f"{theirs}.weight", transpose), Rule(f"{ours}/bias", f"{theirs}.bias", same)


def norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """The rules of a torch LayerNorm."""
    return Rule(f"{ours}/scale", f"{theirs}.weight", same), Rule(f"{ours}/bias", f"{theirs}.bias", same)


def batch_norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The rules of a torch BatchNorm with its running statistics."""
    return (
        *norm(ours, theirs),
        Rule(f"{BATCH_STATS}{ours}/mean", f"{theirs}.running_mean", same),
        Rule(f"{BATCH_STATS}{ours}/var", f"{theirs}.running_var", same),
    )


def renamed(rules: Iterable[Rule], *, ours: str = "", theirs: str = "") -> tuple[Rule, ...]:
    """The same rules with a prefix before our paths and one before the published names."""

    def under(path: str) -> str:
        if path.startswith(BATCH_STATS):
            return BATCH_STATS + ours + path.removeprefix(BATCH_STATS)
        return ours + path

    return tuple(Rule(under(rule.ours), tuple(theirs + name for name in names(rule)), rule.op) for rule in rules)


def names(rule: Rule) -> tuple[str, ...]:
    """The published names of a rule as a tuple, also where `theirs` is a single text."""
    return (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs


def flat_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{"params": …, "batch_stats": …} -> {path: leaf}; paths of running statistics begin with `batch_stats/`."""
    others = {collection: tree for collection, tree in variables.items() if collection != "params"}
    return flatten({**variables["params"], **others})


def nested_variables(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat_variables`."""
    params = unflatten(flat)
    stats = params.pop(BATCH_STATS.rstrip("/"), None)
    return {"params": params} if stats is None else {"params": params, "batch_stats": stats}


def convert(
    checkpoint: Checkpoint, rules: Iterable[Rule], expect: Mapping[str, Any], *, ignore: str = "", where: str
) -> dict[str, np.ndarray]:
    """Converts a checkpoint to our parameters: {path: float32 array}.

    Args:
        checkpoint: the published arrays.
        rules: the table of their format.
        expect: {path: anything with a `shape`} of our parameters.
        ignore: a regular expression for names of arrays that are not weights (buffers, counters) and may be unused.
        where: how an error names the checkpoint.

    Raises:
        UserError: arrays are missing, unused, of another shape, not floating point, or not finite; it names them.
    """
    links = list(_links(rules, {name: tuple(leaf.shape) for name, leaf in expect.items()}))
    needed: dict[str, Shape] = {}
    for _, theirs, op, shape in links:
        ghost = np.broadcast_to(np.float32(0), shape)  # takes no memory; `write` gives the published shapes
        needed.update(zip(theirs, (part.shape for part in op.write(ghost)), strict=True))
    ignored = re.compile(ignore) if ignore else None
    unused = [n for n in checkpoint if n not in needed and not (ignored and ignored.fullmatch(n))]
    report(
        where,
        missing=sorted(needed.keys() - checkpoint.keys()),
        unused=sorted(unused),
        wrong_shape=[
            f"{name} is {list(checkpoint[name].shape)}, not {list(shape)}"
            for name, shape in needed.items()
            if name in checkpoint and not _fits(checkpoint[name].shape, shape)
        ],
    )
    flat, not_finite = {}, []
    for ours, theirs, op, _ in links:
        parts = []
        for name in theirs:
            part = checkpoint[name].read()
            part = part.astype(np.float32) if is_float(part.dtype) else part
            if part.dtype != np.float32:
                raise UserError(f"{where}: {name} is {part.dtype}, weights are floating-point numbers")
            if not np.isfinite(part).all():
                not_finite.append(name)
            parts.append(part.reshape(needed[name]))
        flat[ours] = np.asarray(op.read(*parts), order="C")
    report(where, not_finite=not_finite)
    return flat


def _fits(shape: Shape, needed: Shape) -> bool:
    """Whether an array has the needed shape; a scalar may be stored as [] or [1]."""
    return shape == needed or {shape, needed} == {(), (1,)}


def export(flat: Mapping[str, Any], rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """Converts our flat parameters to arrays with the names and shapes of a table: the inverse of `convert`.

    Raises:
        UserError: a parameter has no rule.
    """
    links = _links(rules, {name: tuple(np.shape(leaf)) for name, leaf in flat.items()})
    state: dict[str, np.ndarray] = {}
    for ours, theirs, op, _ in links:
        parts = op.write(np.asarray(flat[ours]))
        state.update({name: np.asarray(part, order="C") for name, part in zip(theirs, parts, strict=True)})
    return state


def expected(config: CLIPConfig) -> dict[str, Any]:
    """The shapes of our flat parameters for a config, {path: `jax.ShapeDtypeStruct`}, without allocating them.

    Only one block of each tower is traced, as all have the same shapes: tracing all takes seconds, and minutes for a
    (damaged) config with a thousand layers.
    """
    repeated = {"visual": config.vision, "text": config.text}
    repeated = {name: tower for name, tower in repeated.items() if isinstance(getattr(tower, "layers", None), int)}
    repeated = {name: tower for name, tower in repeated.items() if not getattr(tower, "scan_layers", False)}
    one = {"vision" if n == "visual" else n: dataclasses.replace(t, layers=1) for n, t in repeated.items()}
    short = dataclasses.replace(config, **one)
    flat: dict[str, Any] = {}
    for path, leaf in flat_variables(jax.eval_shape(lambda key: init(short, key), jax.random.key(0))).items():
        match = BLOCK.fullmatch(path)
        tower = repeated.get(match["tower"]) if match else None
        if match is None or tower is None:
            flat[path] = leaf
        else:
            flat.update({f"{match['before']}{i}{match['after']}": leaf for i in range(tower.layers)})
    return dict(sorted(flat.items()))


def count(checkpoint: Checkpoint, pattern: str) -> int:
    """The number of layers: of different values of the group in `pattern`, matched at the start of the names."""
    return len({match[1] for name in checkpoint if (match := re.match(pattern, name))})


def report(where: str, **faults: list[str]) -> None:
    """Raises one UserError for all faults, {kind: names}, if there are any.

    Raises:
        UserError: there is a fault.
    """
    told = [f"{kind.replace('_', ' ')}: {some(found)}" for kind, found in faults.items() if found]
    if told:
        raise UserError(f"{where} does not fit: {'; '.join(told)}")


def some(found: list[str], limit: int = 8) -> str:
    """A list of names for an error: the first `limit`, and how many more there are."""
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")


def _links(rules: Iterable[Rule], shapes: Mapping[str, Shape]) -> Iterable[tuple[str, tuple[str, ...], Op, Shape]]:
    """(path, published names, op, shape) of each of our parameters, by the first rule whose `ours` matches its path."""
    patterns = [(_pattern(rule.ours), names(rule), rule.op) for rule in rules]
    for path, shape in shapes.items():
        for pattern, theirs, op in patterns:
            if match := pattern.fullmatch(path):
                yield path, tuple(name.format(**match.groupdict()) for name in theirs), op, shape
                break
        else:
            raise UserError(f"this format has no place for the parameter {path}: the model is of another family")


def _pattern(ours: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(ours)))
