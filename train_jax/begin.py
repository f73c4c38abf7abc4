"""How a run begins, and what of it may change when it goes on.

1. Resume: its directory holds checkpoints, and it goes on from the newest. Its config is the one written there; with
   `extend` another one takes its place, and weights, the optimiser's state and the step are kept.
2. Resume elsewhere: `begin_from` another run, with `extend`: all of that run's state, in a directory of its own.
3. Initialise: `begin_from` another run: its weights and their average; step 0 and a fresh optimiser.
4. From scratch.

What was done is written into config.json, under `begun` and `history`.
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
SHOWN = 5  # changes that a refusal lists
RECORDS = ("begun", "history")  # of config.json: what was done, not what identifies the run


@dataclass(frozen=True, kw_only=True)
class Begin:
    """How a run begins: fields for the config of a command.

    A run that is extended takes its rate from the schedule of its new number of steps.
    """

    begin_from: Path | None = None
    """Run directory whose weights to begin with; with --extend, its optimiser and step too."""
    extend: bool = False
    """Go on with other steps, rate, batch or data; weights, optimiser and step are kept."""


class Kept(NamedTuple):
    """The config of a run that goes on."""

    changed: dict[str, list[Any]]  # flat key: [old, new]; what `extend` has let pass
    records: dict[str, Any]  # of what was done before, RECORDS


def kept_config(
    path: Path, identity: Mapping[str, Any], *, step: int | None, extend: bool = False, fixed: Iterable[str] = ()
) -> Kept:
    """What has changed between the config at `path` and `identity`; nothing if the run has not begun.

    More or fewer steps of a constant rate change nothing of the steps that were made, so they need no `extend`.

    Args:
        path: config.json of the run.
        identity: what must stay, as JSON.
        step: the newest step that is saved; None: the run has not begun.
        extend: let other changes pass too.
        fixed: the flat keys, or what they begin with up to a dot, that may not change even so.

    Raises:
        UserError: a change that may not be. The message lists the changed keys, old → new.
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
    """Write the config of a run and what was done, unless the file says so already."""
    text = json.dumps({**identity, **records}, indent=2) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Flat key -> [old, new] of what differs."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = sorted(before.keys() | after.keys())
    pairs = {key: [before.get(key, ABSENT), after.get(key, ABSENT)] for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _harmless(changed: Mapping[str, list[Any]], identity: Mapping[str, Any], step: int) -> bool:
    constant = identity.get("optim", {}).get("schedule") == "constant"
    return constant and changed.keys() == {"num_steps"} and identity["num_steps"] >= step


def _under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _listed(changed: Mapping[str, list[Any]]) -> str:
    lines = [_change(key, old, new) for key, (old, new) in changed.items()]
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"{', '.join(lines[:SHOWN])}{more}"


def _change(key: str, old: Any, new: Any) -> str:
    if all(isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value) for value in (old, new)):
        return f"{key} are others than before"  # digests would tell a reader nothing
    return f"{key} {old!r} → {new!r}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
