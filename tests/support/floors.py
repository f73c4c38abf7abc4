"""The floors of docs/architecture.md as a table, and every import read from the source with `ast`."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# room: the rooms that it may import. A room is a package or a part of one; a module is in the room whose name is the
# longest that begins its own.
GROUND = {"image_text", "shapes_world"}
FIRST = {"clip_jax", "train_jax"}
ROOMS: dict[str, set[str]] = {
    "shapes_world": set(),
    "image_text": {"shapes_world"},
    "clip_jax": {"image_text"},
    "train_jax": {"image_text"},
    "unclip_jax": {"clip_jax", "image_text"},
    "unclip_jax.evaluation": {*GROUND, *FIRST, "unclip_jax"},
    "unclip_jax.commands": {*GROUND, *FIRST, "unclip_jax", "unclip_jax.evaluation"},
    "unclip_jax.__main__": {"unclip_jax", "unclip_jax.commands"},
    "train_recipes": {*GROUND, *FIRST, "unclip_jax", "unclip_jax.evaluation", "unclip_jax.commands"},
}
PACKAGES = tuple(room for room in ROOMS if "." not in room)
ROOF = {"benchmarks", "docs", "sample", "tests", "train"}  # of which no package knows
NOWHERE = {"diffusers", "tensorflow", "torch", "transformers"}

# Imported inside a function only, wherever they are needed.
OPTIONAL = {
    "array_record",
    "gradio",
    "huggingface_hub",
    "pyarrow",
    "sentencepiece",
    "tensorflow_datasets",
    "wandb",
}
ONLY_IN_TRAIN_JAX = {"grain", "orbax", "tensorboardX", "tensorstore"}
# What the ground floor may import beside the standard library and optional packages, so that it costs nothing.
ON_THE_GROUND = {"shapes_world": {"numpy"}, "image_text": {"PIL", "numpy", "tqdm", "tyro"}}

COMPUTED = "(computed)"  # the name of an import whose module is known at run time only

MODEL_WORDS = {"clip", "diffusion", "unclip"}
OTHER_CLIPS = {"clip_by_global_norm", "clip_norm"}  # gradients are clipped too


class Import(NamedTuple):
    """An import of a module, or of a name in one, which may be a module itself."""

    line: int
    name: str  # in full: "unclip_jax.evaluation.shapes", "numpy"
    late: bool  # inside a function

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.name.partition(".")[0]


def modules(package: str) -> list[Path]:
    """The files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def roof() -> list[Path]:
    """The files beside the packages that are commands, and the benchmarks."""
    return sorted([*ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def module_name(path: Path) -> str:
    """The name under which the file of a package is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str | None:
    """The room that a module, or a name in one, is in; None if it is not of the house."""
    known = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    return max(known, key=len, default=None)


def imports(source: str, module: str) -> Iterator[Import]:
    """Every import of `source`, the text of the module `module`; relative ones are written out in full."""
    tree = ast.parse(source)
    # A package's own `__getattr__` (PEP 562) gives its public names when they are first used: that is no late import.
    lazy = {id(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"}
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and id(function) not in lazy
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        late = id(node) in inside
        match node:
            case ast.Import():
                yield from (Import(node.lineno, alias.name, late) for alias in node.names)
            case ast.ImportFrom():
                above = module.split(".")[: -node.level] if node.level else []
                origin = ".".join([*above, *([node.module] if node.module else [])])
                yield from (Import(node.lineno, f"{origin}.{alias.name}", late) for alias in node.names)
            case ast.Call(func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module")):
                constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
                yield Import(node.lineno, str(node.args[0].value) if constant else COMPUTED, late)


def wrong_arrows(module: str | None, source: str) -> list[str]:
    """What `source`, the text of a module (None: of one on the roof), imports against the table."""
    room = None if module is None else room_of(module)
    found = list(imports(source, module or ""))
    return [f"line {one.line} imports {one.name}" for one in found if not _may(room, one)]


def _may(room: str | None, one: Import) -> bool:
    if one.package in NOWHERE:
        return False
    if room is None:
        return True
    target = room_of(one.name)
    if target is not None:
        return target == room or target in ROOMS[room]
    if one.package in ROOF or (one.package in ONLY_IN_TRAIN_JAX and room != "train_jax"):
        return False
    if one.package in OPTIONAL:
        return one.late and room != "shapes_world"
    if room in ON_THE_GROUND:
        return one.package in ON_THE_GROUND[room] | sys.stdlib_module_names
    return True


def late_imports(module: str, source: str) -> list[str]:
    """Imports inside functions of what is not optional: all of them belong at the top of the module."""
    return [
        f"line {one.line} imports {one.name} late"
        for one in imports(source, module)
        if one.late and one.package not in OPTIONAL
    ]


def model_words(source: str) -> list[str]:
    """Identifiers of `source` that speak of CLIP or diffusion."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            names.update(str(getattr(node, field, None) or "").split("."))
    words = {name: {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)} for name in names}
    return sorted(name for name in names - OTHER_CLIPS if words[name] & MODEL_WORDS)
