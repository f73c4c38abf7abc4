"""`train_recipes/presets.py` is a table: each name stands in it, and nothing is decided by a piece of a name."""

import ast
import re
from pathlib import Path

import pytest

from train_recipes.presets import PRESETS

RECIPES = sorted((Path(__file__).resolve().parents[1] / "train_recipes").glob("*.py"))
TAKEN_APART = {"partition", "rpartition", "split", "rsplit", "startswith", "endswith", "removeprefix", "removesuffix"}


def test_every_name_is_spelled_out_once():
    table = next(path for path in RECIPES if path.name == "presets.py").read_text()
    for name in PRESETS:
        assert len(re.findall(rf'^    "{re.escape(name)}":', table, re.MULTILINE)) == 1, name
    assert 'f"' not in table


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_no_string_is_taken_apart(path):
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & TAKEN_APART


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_is_whole(name):
    """Every part has its numbers among the flags, and what is needed first is a preset that trains a CLIP."""
    preset = PRESETS[name]
    for part in preset.names:
        assert preset.options.training(part).num_steps > 0
    if preset.after:
        assert PRESETS[preset.after].clip is not None
        assert PRESETS[preset.after].options.run == preset.options.run
