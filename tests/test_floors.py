"""The floors of docs/architecture.md as a table: who may import whom, and where.

Every import is read from the source, those inside functions and under TYPE_CHECKING too. That every module can also be
the first of its package to be imported, and what is loaded with it, is seen in one process.
"""

import json
import subprocess
import sys

import pytest

from tests.support.floors import (
    NOWHERE,
    ONLY_IN_TRAIN_JAX,
    OPTIONAL,
    PACKAGES,
    ROOMS,
    ROOT,
    late_imports,
    model_words,
    module_name,
    modules,
    roof,
    room_of,
    wrong_arrows,
)


def faults(package, find):
    """Path of each module of the package -> what `find` sees in it, where it sees something."""
    paths = modules(package)
    assert len(paths) > 1
    return {
        str(path.relative_to(ROOT)): found for path in paths if (found := find(module_name(path), path.read_text()))
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_goes_up(package):
    assert not faults(package, wrong_arrows)


@pytest.mark.parametrize("package", PACKAGES)
def test_only_optional_packages_are_imported_late(package):
    assert not faults(package, late_imports)


def test_the_roof_needs_no_other_framework():
    paths = roof()
    assert {"train.py", "sample.py"} <= {path.name for path in paths}
    assert not {path.name: found for path in paths if (found := wrong_arrows(None, path.read_text()))}


def test_train_jax_knows_no_model():
    assert not faults("train_jax", lambda _, source: model_words(source))


# The rooms in an order in which each may load only what is below it; training and evaluation come last.
ORDER = [
    "shapes_world",
    "image_text",
    "clip_jax",
    "unclip_jax",
    "unclip_jax.commands",
    "unclip_jax.__main__",
    "train_jax",
    "unclip_jax.evaluation",
    "train_recipes",
]

# Whatever module of a package is imported first, its `__init__` runs before it: so the package is imported once, and
# each of its modules with nothing loaded but that. Other packages stay, as no import goes up to them again.
IMPORT_EACH = """
import importlib, json, sys

loaded = {}
for room, names in json.loads(sys.argv[1]):
    package = room.partition(".")[0]
    importlib.import_module(package)
    at_first = set(sys.modules)
    for name in names:
        for other in set(sys.modules) - at_first:
            if other.startswith(f"{package}."):
                del sys.modules[other]
        importlib.import_module(name)
    loaded[room] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded():
    """Room -> top-level packages that are loaded when each of its modules, and of the rooms before it, was imported."""
    names = [module_name(path) for package in PACKAGES for path in modules(package)]
    what = [(room, [name for name in names if room_of(name) == room]) for room in ORDER]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, json.dumps(what)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {room: set(packages) for room, packages in json.loads(done.stdout).items()}


def test_each_module_can_be_imported_first(loaded):
    assert set(loaded) == set(ORDER) <= set(ROOMS) | {"unclip_jax.__main__"}
    assert set(PACKAGES) <= loaded["train_recipes"]
    assert (
        not loaded["unclip_jax.__main__"] & NOWHERE
    )  # below train_jax: tensorboardX loads torch where it is installed


@pytest.mark.parametrize("room", ["shapes_world", "image_text"])
def test_the_ground_floor_loads_no_jax(loaded, room):
    assert not loaded[room] & {"jax", "flax", "optax"}


@pytest.mark.parametrize("room", ["image_text", "clip_jax", "unclip_jax", "unclip_jax.commands"])
def test_what_is_installed_without_extras_loads_no_more(loaded, room):
    """No TFDS, Grain, Orbax, pyarrow or hub client is loaded by `import clip_jax`, `import unclip_jax` or a command."""
    assert not loaded[room] & {*ONLY_IN_TRAIN_JAX, *OPTIONAL}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clip_jax.model", "import train_jax"),
        ("clip_jax.model", "import numpy, unclip_jax.stage as stages"),
        ("clip_jax.model", "def f():\n    from train_jax.optim import OptimConfig"),
        ("clip_jax.model", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import shapes_world"),
        ("clip_jax.model", "import huggingface_hub"),
        ("train_jax.loop", "from clip_jax import CLIPTask"),
        ("train_jax.loop", "try:\n    import tensorflow as tf\nexcept ImportError:\n    tf = None"),
        ("train_jax.data", "import tensorflow_datasets as tfds"),
        ("unclip_jax.stage", "from train_jax.cli import run_main"),
        ("unclip_jax.stage", "import orbax.checkpoint"),
        ("unclip_jax.stage", "import importlib\nimportlib.import_module('grain.python')"),
        ("unclip_jax.stage", "from transformers import CLIPModel"),
        ("unclip_jax.stage", "from unclip_jax import evaluation"),
        ("unclip_jax.stage", "from . import commands"),
        ("unclip_jax.stage", "from unclip_jax.evaluation.shapes import SPLITS"),
        ("unclip_jax.evaluation.shapes", "from unclip_jax.commands.draw import Draw"),
        ("shapes_world.world", "import jax"),
        ("shapes_world.world", "from scipy import ndimage"),
        ("image_text.source", "import jax"),
        ("image_text.source", "from clip_jax.images import open_image"),
        ("clip_jax.model", "import train_recipes"),
        ("unclip_jax.stage", "from train_recipes.shapes import SHAPES"),
        ("train_jax.loop", "from tests.conftest import ROOT"),
        ("train_recipes.engine", "import grain"),
        (None, "import torch"),
    ],
)
def test_a_wrong_arrow_is_found(module, source):
    assert len(wrong_arrows(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("shapes_world.world", "import math\nimport numpy as np\nfrom . import render"),
        ("image_text.tfds", "def f():\n    import tensorflow_datasets as tfds\n    from PIL import Image"),
        ("clip_jax.model", "from .errors import UserError\nimport jax, flax.linen\nfrom clip_jax.towers.text import T"),
        ("train_jax.loop", "import orbax.checkpoint as ocp, grain\nimport image_text"),
        ("unclip_jax.stage", "import clip_jax\nfrom unclip_jax.diffusion import schedule"),
        ("unclip_jax.evaluation.shapes", "import train_jax\nfrom unclip_jax import stage\nimport shapes_world"),
        ("unclip_jax.__main__", "from unclip_jax.commands import main"),
        ("train_recipes.unclip", "import train_jax, unclip_jax.evaluation.shapes"),
        (None, "import clip_jax, unclip_jax, train_jax, shapes_world"),
    ],
)
def test_a_right_arrow_is_not(module, source):
    assert not wrong_arrows(module, source)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f():\n    import numpy", 1),
        ("class A:\n    def f(self):\n        from clip_jax.model import CLIP, CLIPConfig", 2),
        ("def f(name):\n    return import_module(HOMES[name])", 1),
        ("def __getattr__(name):\n    return import_module(HOMES[name])", 0),
        ("def f():\n    import pyarrow.parquet\n    from tensorflow_datasets import core", 0),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", 0),
    ],
)
def test_a_late_import_is_found(source, count):
    assert len(late_imports("clip_jax.model", source)) == count


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
