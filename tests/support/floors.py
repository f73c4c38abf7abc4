"""The import rules of docs/architecture.md ("floors") as a table, and a checker that reads imports with `ast`."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# Room -> the rooms that it may import. A room is a package or a part of one; a module belongs to the room with the
# longest name that is a prefix of the module's.
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
ROOF = {"benchmarks", "docs", "sample", "tests", "train"}  # no package may import these
NOWHERE = {"diffusers", "tensorflow", "torch", "transformers"}  # imported by tests only

# Optional packages: may be imported inside functions only.
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
# What the ground floor may import beside the standard library and optional packages, so that it is cheap to import.
ON_THE_GROUND = {"shapes_world": {"numpy"}, "image_text": {"PIL", "numpy", "tqdm", "tyro"}}

COMPUTED = "(computed)"  # the name of an import whose module is known only at run time

MODEL_WORDS = {"clip", "diffusion", "unclip"}  # words that no identifier of `train_jax` may contain
OTHER_CLIPS = {"clip_by_global_norm", "clip_norm"}  # allowed: gradient clipping


class Import(NamedTuple):
    """An import of a module, or of a name from a module (which may be a submodule)."""

    line: int
    name: str  # absolute: "unclip_jax.evaluation.shapes", "numpy"
    late: bool  # whether it is inside a function

    @property
    def package(self) -> str:
        """The top-level package, "unclip_jax"."""
        return self.name.partition(".")[0]


def modules(package: str) -> list[Path]:
    """All Python files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def roof() -> list[Path]:
    """The scripts beside the packages, and the benchmarks."""
    return sorted([*ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def module_name(path: Path) -> str:
    """The name under which the file of a package is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str | None:
    """The room of a module or of a name in it; None for modules of other projects."""
    known = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    return max(known, key=len, default=None)


def imports(source: str, module: str) -> Iterator[Import]:
    """Every import in `source`, the text of module `module`, with absolute names."""
    tree = ast.parse(source)
    # A package's `__getattr__` (PEP 562) imports its public names on first use; that does not count as a late import.
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
    """The imports in `source`, the text of module `module` (None: a script), that the table forbids."""
    room = None if module is None else room_of(module)
    return [f"line {one.line} imports {one.name}" for one in imports(source, module or "") if not _may(room, one)]


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
    """The imports inside functions of packages that are not optional; these belong at the top of the module."""
    return [
        f"line {one.line} imports {one.name} late"
        for one in imports(source, module)
        if one.late and one.package not in OPTIONAL
    ]


def model_words(source: str) -> list[str]:
    """The identifiers in `source` that contain one of `MODEL_WORDS`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            names.update(str(getattr(node, field, None) or "").split("."))
    words = {name: {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)} for name in names}
    return sorted(name for name in names - OTHER_CLIPS if words[name] & MODEL_WORDS)
