"""requirements.txt and pyproject.toml say what the code needs, no less and no more."""

import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement

from tests.support.floors import PACKAGES, ROOT, imports, module_name, modules, roof

UNSEEN = {"array-record", "importlib-resources"}  # imported by tensorflow-datasets, which does not ask for them


def requirements(name: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    parsed = [Requirement(line) for line in lines if line and not line.startswith("-r ")]
    return {normal(requirement.name): requirement for requirement in parsed}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_import_is_required_and_every_requirement_imported(project):
    paths = [*roof(), *(path for package in PACKAGES for path in modules(package))]
    imported = {name for path in paths for _, name in imports(path.read_text(), "")} - {""}
    outside = imported - ARROWS.keys() - sys.stdlib_module_names
    homes = packages_distributions()
    required = requirements("requirements.txt").keys()
    # What an extra asks for is imported where it is used, and need not be there.
    extra = {normal(Requirement(line).name) for lines in project["optional-dependencies"].values() for line in lines}
    undeclared = [n for n in outside if not {normal(home) for home in homes.get(n, [n])} & (required | extra)]
    unused = required - UNSEEN - {normal(home) for name in outside for home in homes.get(name, [])}
    assert not undeclared
    assert not unused


def test_the_dev_extra_is_requirements_dev(project):
    dev = {str(Requirement(line)) for line in project["optional-dependencies"]["dev"]}
    assert dev == {str(requirement) for requirement in requirements("requirements-dev.txt").values()}


def test_no_reference_implementation_is_required(project):
    parity = requirements("requirements-parity.txt").keys()
    assert "torch" in parity
    assert not parity & {*requirements("requirements.txt"), *requirements("requirements-dev.txt")}
    assert "dependencies" in project["dynamic"]  # they are those of requirements.txt
