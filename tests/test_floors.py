"""The floors of docs/architecture.md as a table: who may import whom.

Every import is read from the source, those inside functions and under TYPE_CHECKING too. That every module can also be
the first of its package to be imported, and what is loaded with it, is seen in one process per package.
"""

import json
import subprocess
import sys

import pytest

from tests.support.floors import (
    ARROWS,
    NOWHERE,
    ONLY_IN_TRAIN_JAX,
    ONLY_WHEN_ASKED,
    ROOT,
    model_words,
    modules,
    roof,
    wrong_arrows,
)


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
        ("clip_jax", "import train_recipes"),
        ("unclip_jax", "from train_recipes.shapes import SHAPES"),
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
        (
            "clip_jax",
            "from .errors import UserError\nimport jax, flax.linen\nfrom clip_jax.towers.text import TextFeatures",
        ),
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
