"""Imports stand at the top of a module; inside a function only those of packages that may be absent."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = {"array_record", "gradio", "huggingface_hub", "pyarrow", "sentencepiece", "tensorflow_datasets", "wandb"}
# What a command line needs before it is known whether anything is computed: help and errors do not wait for it.
SLOW = {("train_jax/cli.py", "jax"), ("train_jax/flags.py", "tyro")}


def late_imports(source):
    """Top-level packages that are imported inside a function, or only for the type checker."""
    found = set()
    for outer in ast.walk(ast.parse(source)):
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(outer):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("package", ["train_jax", "train_recipes"])
def test_only_what_is_optional_is_imported_late(package):
    paths = sorted((ROOT / package).rglob("*.py"))
    names = {(str(path.relative_to(ROOT)), name) for path in paths for name in late_imports(path.read_text())}
    assert len(paths) > 5
    assert not {(path, name) for path, name in names if name not in OPTIONAL} - SLOW


def test_a_late_import_is_found():
    assert late_imports("import a\ndef f():\n    import b.c\n    from d import e\n") == {"b", "d"}
