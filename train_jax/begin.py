"""How a run begins (resume, fine-tune, from scratch), and which changes of its config are allowed.

A run begins in the first of these ways that applies:

1. Resume: its directory holds checkpoints; it goes on from the newest. Its config must equal the one in config.json;
   with `extend` a changed config replaces it, and weights, optimiser state and step are kept.
2. Resume a copy: `begin_from` another run, with `extend`: the whole state of that run, in a directory of its own.
3. Fine-tune: `begin_from` another run: its weights and their EMA; step 0 and a fresh optimiser state.
4. From scratch.

config.json records ways 2 and 3 under `begun`, and the config changes of way 1 under `history`.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from train_jax.errors import UserError
from train_jax.files import write_atomically

__all__ = ["Begin", "Kept", "changes", "kept_config", "write_config"]

log = logging.getLogger(__name__)

ABSENT = "(absent)"
SHOWN = 5  # changes that an error message lists
RECORDS = ("begun", "history")  # keys of config.json that record what was done and do not identify the run


@dataclass(frozen=True, kw_only=True)
class Begin:
    """How a run begins: fields for the options of a command.

    The learning rate of an extended run follows the schedule of its new number of steps.
    """

    begin_from: Path | None = None
    """Run directory to fine-tune from: its weights; with --extend, its optimiser state and step, too."""
    extend: bool = False
    """Go on with a changed config (steps, rate, batch or data); weights, optimiser state and step are kept."""


class Kept(NamedTuple):
    """What `kept_config` finds in the config of a run that goes on."""

    changed: dict[str, list[Any]]  # flat key -> [old, new]: the allowed changes
    records: dict[str, Any]  # the file's RECORDS


def kept_config(
    path: Path, identity: Mapping[str, Any], *, step: int | None, extend: bool = False, fixed: Iterable[str] = ()
) -> Kept:
    """Compares the config at `path` with `identity`, the config of the same run now.

    Another number of steps needs no `extend` if the learning rate is constant: the steps already made stay the same.

    Args:
        path: config.json of the run.
        identity: what must stay equal while the run goes on, as JSON.
        step: step of the newest checkpoint; None: the run has not begun.
        extend: allow other changes, too.
        fixed: flat keys, such as "config.model", that may not change even with `extend`, nor the keys below them.

    Returns:
        The allowed changes and the records of the file; both empty if the run has not begun.

    Raises:
        UserError: the file is damaged, or a change is not allowed; the message lists the changed keys, old → new.
    """
    if step is None or not path.exists():
        return Kept({}, {})
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(written, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise UserError(f"{path}: it is not JSON; restore it or choose another directory") from None
    records = {name: written.pop(name) for name in RECORDS if name in written}
    changed = changes(written, json.loads(json.dumps(identity)))  # as it comes back: tuples become lists
    if not extend and changed and not _harmless(changed, identity, step):
        raise UserError(
            f"{path.parent}: its run has another config ({_listed(changed)}); --extend goes on with the new one, "
            "--begin-from begins another run with its weights"
        )
    stuck = {key: change for key, change in changed.items() if _under(key, fixed) and change[0] != ABSENT}
    if stuck:
        raise UserError(
            f"{path.parent}: its run has another config ({_listed(stuck)}), which --extend cannot change; "
            "begin another run with --begin-from, in a directory of its own"
        )
    return Kept(changed, records)


def write_config(path: Path, identity: Mapping[str, Any], records: Mapping[str, Any]) -> None:
    """Write `identity` and `records` to config.json, unless the file has this content already."""
    text = json.dumps({**identity, **records}, indent=2) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The differences of two nested configs: flat key ("optim.lr") -> [old, new]; a missing value is "(absent)"."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = sorted(before.keys() | after.keys())
    pairs = {key: [before.get(key, ABSENT), after.get(key, ABSENT)] for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _harmless(changed: Mapping[str, list[Any]], identity: Mapping[str, Any], step: int) -> bool:
    """Whether only the number of steps changed, the learning rate is constant, and `step` is not beyond the end."""
    constant = identity.get("optim", {}).get("schedule") == "constant"
    return constant and changed.keys() == {"num_steps"} and identity["num_steps"] >= step


def _under(key: str, prefixes: Iterable[str]) -> bool:
    """Whether a flat key is one of `prefixes` or below one."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _listed(changed: Mapping[str, list[Any]]) -> str:
    """The first changes as text for an error message."""
    lines = [_change(key, old, new) for key, (old, new) in changed.items()]
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"{', '.join(lines[:SHOWN])}{more}"


def _change(key: str, old: Any, new: Any) -> str:
    if all(isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value) for value in (old, new)):
        return f"{key} are others than before"  # the digests themselves would tell the user nothing
    return f"{key} {old!r} → {new!r}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(flat key, value) of every leaf of a nested mapping: ("optim.lr", 0.001)."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
