"""The floors of docs/architecture.md as a table, and every import read from the source with `ast`."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# package: the packages of the house that it may import
ARROWS = {
    "shapes_world": set(),
    "image_text": {"shapes_world"},
    "clip_jax": {"image_text"},
    "train_jax": {"image_text"},
    "unclip_jax": {"clip_jax", "image_text", "shapes_world"},
    "train_recipes": {"clip_jax", "image_text", "shapes_world", "train_jax", "unclip_jax"},
}
ONLY_IN_TRAIN_JAX = {"array_record", "grain", "orbax", "tensorboardX", "tensorflow_datasets", "tensorstore"}
# Inside a function, for who names a split of TFDS.
ONLY_WHEN_ASKED = {("image_text/tfds.py", package) for package in ("array_record", "tensorflow_datasets")}
ROOF = {"benchmarks", "docs", "sample", "tests", "train"}  # of which no package knows
NOWHERE = {"diffusers", "tensorflow", "torch", "transformers"}
NEEDED_BY_SHAPES_WORLD = {"numpy"}  # so that the ground floor costs nothing to import

MODEL_WORDS = {"clip", "diffusion", "unclip"}
OTHER_CLIPS = {"clip_by_global_norm", "clip_norm"}  # gradients are clipped too


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def roof() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import; a relative one is of the package itself."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
            case ast.ImportFrom():
                yield node.lineno, package if node.level else str(node.module).split(".")[0]
            case ast.Call(
                func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ):
                yield node.lineno, name.split(".")[0]


def wrong_arrows(package: str | None, source: str) -> list[str]:
    """What `source`, a module of `package` (None: of the roof), imports against the table."""
    forbidden = set(NOWHERE)
    if package is not None:
        forbidden |= ROOF | ARROWS.keys() - ARROWS[package] - {package}
    if package in ("shapes_world", "clip_jax", "unclip_jax"):
        forbidden |= ONLY_IN_TRAIN_JAX
    found = list(imports(source, package or ""))
    if package == "shapes_world":
        forbidden |= {name for _, name in found} - {package} - NEEDED_BY_SHAPES_WORLD - sys.stdlib_module_names
    return [f"line {line} imports {name}" for line, name in found if name in forbidden]


def model_words(source: str) -> list[str]:
    """Identifiers of `source` that speak of CLIP or diffusion."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            names.update(str(getattr(node, field, None) or "").split("."))
    words = {name: {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)} for name in names}
    return sorted(name for name in names - OTHER_CLIPS if words[name] & MODEL_WORDS)
