"""Imports stand at the top of a module; only those of optional packages stand inside functions."""

import ast
from pathlib import Path

import pytest

import clip_jax

OPTIONAL = {"huggingface_hub", "pyarrow", "sentencepiece", "fcntl"}  # the last is absent on Windows
OTHERS = {"cli.py", "uses/classes.py", "uses/results.py"}  # owned by the commands and the data floor
FOLDER = Path(clip_jax.__file__).parent


def late_imports(source):
    """Top-level packages that are imported inside a function."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in (inner for function in functions for inner in ast.walk(function)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_only_optional_packages_are_imported_late(path):
    if str(path.relative_to(FOLDER)) not in OTHERS:
        assert set(late_imports(path.read_text())) <= OPTIONAL


def test_a_late_import_is_seen():
    assert set(late_imports("def f():\n    from clip_jax.model import CLIP\n    import pyarrow.parquet\n")) == {
        "clip_jax",
        "pyarrow",
    }
