"""No ten lines of code stand twice in the packages, the commands and the benchmarks."""

from tests.support.clones import clones
from tests.support.floors import PACKAGES, modules, roof

LEAST = 10


def test_no_code_stands_twice():
    paths = [*roof(), *(path for package in PACKAGES for path in modules(package))]
    assert len(paths) > 100
    assert not clones(paths, LEAST)


def test_a_clone_is_found(tmp_path):
    body = [f"    x{i} = f(x{i - 1})" for i in range(1, 12)]
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("\n".join(["import os", "def g(x0):", *body, "    return x11"]))
    second.write_text("\n".join(["def h(x0):", '    """Another."""', "    # why", *body[:10], "", "    return x9"]))
    (clone,) = clones([first, second], LEAST)
    assert clone == ("a.py:3", "b.py:4", 10)
    assert not clones([first, second], 11)
    second.write_text("\n".join(["def h(x0):", *body, "def k(x0):", *body]))
    assert len(clones([second], LEAST)) == 1
