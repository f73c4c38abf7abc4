"""The floors of docs/architecture.md as a table: who may import whom.

Every import is read from the source, those inside functions and under TYPE_CHECKING too. That every module can also be
the first of its package to be imported, and what is loaded with it, is seen in one process per package.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# package: the packages of the house that it may import
ARROWS = {
    "shapes_world": set(),
    "clip_jax": set(),
    "train_jax": {"shapes_world"},
    "unclip_jax": {"clip_jax", "shapes_world"},
}
ONLY_IN_TRAIN_JAX = {"array_record", "grain", "orbax", "tensorboardX", "tensorflow_datasets", "tensorstore"}
# Inside a function, for who names a split of TFDS.
ONLY_WHEN_ASKED = {("clip_jax/listing/tfds.py", package) for package in ("array_record", "tensorflow_datasets")}
ROOF = {"benchmarks", "docs", "recipes", "sample", "tests", "train"}  # of which no package knows
NOWHERE = {"diffusers", "tensorflow", "torch", "transformers"}
NEEDED_BY_SHAPES_WORLD = {"numpy"}  # so that the ground floor costs nothing to import

MODEL_WORDS = {"clip", "diffusion", "unclip"}
OTHER_CLIPS = {"clip_by_global_norm", "clip_norm"}  # gradients are clipped too


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def roof() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *modules("recipes"), *(ROOT / "benchmarks").rglob("*.py")])


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


@pytest.mark.parametrize("package", ARROWS)
def test_no_import_goes_up(package):
    paths = modules(package)
    wrong = {
        (str(path.relative_to(ROOT)), found.split()[-1])
        for path in paths
        for found in wrong_arrows(package, path.read_text())
    }
    assert len(paths) > 1
    assert not wrong - ONLY_WHEN_ASKED


def test_the_roof_needs_no_other_framework():
    paths = roof()
    wrong = {path.name: found for path in paths if (found := wrong_arrows(None, path.read_text()))}
    assert {"train.py", "sample.py"} <= {path.name for path in paths}
    assert not wrong


def test_train_jax_knows_no_model():
    wrong = {path.name: found for path in modules("train_jax") if (found := model_words(path.read_text()))}
    assert not wrong


IMPORT_EACH = """
import importlib, json, sys

package, house, names = json.loads(sys.argv[1])
importlib.import_module(package)
loaded = {name.split(".")[0] for name in sys.modules}
for name in names:
    for other in [m for m in sys.modules if m.split(".")[0] in house]:
        del sys.modules[other]
    importlib.import_module(name)
everything = {name.split(".")[0] for name in sys.modules}
print(json.dumps([sorted(loaded), sorted(everything)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", ARROWS)
def test_each_module_can_be_imported_first(package):
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules(package)]
    names = [name.removesuffix(".__init__") for name in names]
    what = json.dumps([package, list(ARROWS), names])
    command = [sys.executable, "-c", IMPORT_EACH, what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    at_first, in_all = (set(loaded) for loaded in json.loads(done.stdout))

    assert not in_all & NOWHERE
    if package != "train_jax":
        assert not in_all & {*ONLY_IN_TRAIN_JAX, "train_jax"}
    if package == "shapes_world":
        assert "jax" not in in_all
    if package == "train_jax":  # parsing arguments and printing help must not wait for these
        assert not at_first & {"jax", "orbax", "grain", "tensorflow_datasets"}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("clip_jax", "import train_jax"),
        ("clip_jax", "import numpy, unclip_jax.stage as stages"),
        ("clip_jax", "def f():\n    from train_jax.optim import OptimConfig"),
        ("clip_jax", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import shapes_world"),
        ("train_jax", "from clip_jax import CLIPTask"),
        ("train_jax", "try:\n    import tensorflow as tf\nexcept ImportError:\n    tf = None"),
        ("unclip_jax", "from train_jax.cli import run_main"),
        ("unclip_jax", "import orbax.checkpoint"),
        ("unclip_jax", "import importlib\nimportlib.import_module('grain.python')"),
        ("unclip_jax", "from transformers import CLIPModel"),
        ("shapes_world", "import jax"),
        ("shapes_world", "from scipy import ndimage"),
        ("clip_jax", "import recipes"),
        ("unclip_jax", "from recipes.shapes import SHAPES"),
        ("train_jax", "from tests.conftest import ROOT"),
        (None, "import torch"),
    ],
)
def test_a_wrong_arrow_is_found(package, source):
    assert len(wrong_arrows(package, source)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("shapes_world", "import math\nimport numpy as np\nfrom . import world"),
        ("clip_jax", "from .errors import UserError\nimport jax, flax.linen\nfrom clip_jax.text import TextFeatures"),
        ("train_jax", "import orbax.checkpoint as ocp, grain\nimport shapes_world"),
        ("unclip_jax", "import clip_jax\nfrom shapes_world import check"),
        (None, "import clip_jax, unclip_jax, train_jax, shapes_world"),
    ],
)
def test_a_right_arrow_is_not(package, source):
    assert not wrong_arrows(package, source)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def clip_loss(): ...", ["clip_loss"]),
        ("class CLIPTask: ...", ["CLIPTask"]),
        ("DiffusionPrior(unclip=1)", ["DiffusionPrior", "unclip"]),
        ("optax.clip_by_global_norm(config.clip_norm)  # clips", []),
    ],
)
def test_a_word_about_models_is_found(source, found):
    assert model_words(source) == found
