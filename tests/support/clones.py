"""A clone detector: finds runs of equal lines of code in two places."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.floors import ROOT


class Clone(NamedTuple):
    """Two runs of equal lines of code."""

    first: str  # "path:line"
    second: str
    lines: int


class Line(NamedTuple):
    """A line of code without its indentation, and its place."""

    text: str
    path: Path
    number: int


def code_lines(path: Path) -> list[Line]:
    """The lines of a file that are code: no blank lines, comments, docstrings, imports, `__all__` or signatures.

    Signatures are left out because functions of the same protocol must have equal ones.
    """
    source = path.read_text()
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        docstring = constant and isinstance(node.value.value, str)
        exports = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        if docstring or exports or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left_out.update(range(node.lineno, node.body[0].lineno))
    lines = (Line(line.strip(), path, number) for number, line in enumerate(source.splitlines(), 1))
    return [line for line in lines if line.text and line.text[0] != "#" and line.number not in left_out]


def clones(paths: Iterable[Path], least: int) -> list[Clone]:
    """The runs of at least `least` equal lines in two files, or at two places of one; each of maximal length."""
    files = [code_lines(path) for path in paths]
    places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)  # a run -> (file, index of its first line)
    for f, lines in enumerate(files):
        for i in range(len(lines) - least + 1):
            places[tuple(line.text for line in lines[i : i + least])].append((f, i))

    found, seen = [], set()
    for starts in places.values():
        for n, (f, i) in enumerate(starts):
            for g, j in starts[n + 1 :]:
                if (f, i, g, j) in seen or (f == g and j < i + least):
                    continue
                length = 0
                while (
                    i + length < len(files[f])
                    and j + length < len(files[g])
                    and files[f][i + length].text == files[g][j + length].text
                ):
                    seen.add((f, i + length, g, j + length))
                    length += 1
                found.append(Clone(_where(files[f][i]), _where(files[g][j]), length))
    return found


def _where(line: Line) -> str:
    path = line.path.relative_to(ROOT) if line.path.is_relative_to(ROOT) else line.path.name
    return f"{path}:{line.number}"
