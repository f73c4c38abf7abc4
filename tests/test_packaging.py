"""requirements.txt and pyproject.toml say what the code needs, no less and no more, and what is installed."""

import functools
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement

from shapes_world.version import __version__
from tests.support.floors import (
    COMPUTED,
    ONLY_IN_TRAIN_JAX,
    OPTIONAL,
    PACKAGES,
    ROOT,
    imports,
    module_name,
    modules,
    roof,
)

UNSEEN = {"importlib-resources"}  # imported by tensorflow-datasets, which does not ask for it


def requirements(name: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return by_name(line for line in lines if line and not line.startswith("-r "))


def by_name(lines) -> dict[str, Requirement]:
    return {normal(requirement.name): requirement for requirement in map(Requirement, lines)}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def asked(project):
    """Extra -> what it asks for, with the extras that it names written out; "" is what is installed without any."""
    extras = {"": project["dependencies"], **project["optional-dependencies"]}

    def written_out(lines):
        for name, one in by_name(lines).items():
            if name == "unclip-jax":
                for extra in one.extras:
                    yield from written_out(extras[extra])
            else:
                yield str(one)

    return {extra: by_name(written_out(lines)) for extra, lines in extras.items()}


def imported(paths):
    """Top-level packages outside the house that are imported in the files."""
    found = {one.package for path in paths for one in imports(path.read_text(), module_name(path))}
    return found - {*PACKAGES, *sys.stdlib_module_names, COMPUTED}


all_distributions = functools.cache(packages_distributions)  # reads the records of every installed file


def distributions(packages):
    """The distributions that packages come from; what is not installed is taken to be called like its package."""
    homes = all_distributions()
    return {normal(home) for name in packages for home in homes.get(name, [name])}


def test_every_import_is_required_and_every_requirement_imported(asked):
    used = imported([*roof(), *(path for package in PACKAGES for path in modules(package))])
    known = {name for extra, needed in asked.items() if extra != "dev" for name in needed}
    assert distributions(used) <= known
    assert asked["train"].keys() | asked[""].keys() <= distributions(used) | UNSEEN


def test_requirements_txt_is_the_base_with_training(asked):
    """The README's two commands, `pip install -r requirements.txt` and `pip install .[train]`, install the same."""
    everything = {name: str(one) for name, one in (asked[""] | asked["train"]).items()}
    assert {name: str(one) for name, one in requirements("requirements.txt").items()} == everything


def test_the_base_is_what_models_and_their_commands_import(asked):
    """What `import clip_jax`, `import unclip_jax` and their commands import at the top of a module is in the base."""
    rooms = ("shapes_world", "image_text", "clip_jax", "unclip_jax")
    files = [path for room in rooms for path in modules(room) if "evaluation" not in path.parts]
    used = imported(files) - OPTIONAL
    assert not used & ONLY_IN_TRAIN_JAX
    assert distributions(used) == asked[""].keys()
    assert not asked[""].keys() & distributions({*OPTIONAL, *ONLY_IN_TRAIN_JAX})


def test_all_is_every_extra_for_a_user(asked):
    machines, own = {"cuda12", "cuda13", "tpu"}, {"", "dev", "all"}
    assert asked["all"].keys() == {name for extra in asked.keys() - machines - own for name in asked[extra]}


def test_orbax_has_an_upper_bound(asked):
    """Its minor versions change its interface."""
    assert "<" in str(asked["train"]["orbax-checkpoint"].specifier)


def test_the_dev_extra_is_requirements_dev(project):
    dev = {str(Requirement(line)) for line in project["optional-dependencies"]["dev"]}
    assert dev == {str(requirement) for requirement in requirements("requirements-dev.txt").values()}


def test_no_reference_implementation_is_required(asked):
    parity = requirements("requirements-parity.txt").keys()
    assert "torch" in parity
    assert not parity & {*asked["train"], *asked["dev"], *asked[""]}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_has_its_types_and_its_version(package):
    assert (ROOT / package / "py.typed").is_file()
    assert importlib.import_module(package).__version__ == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


@pytest.mark.parametrize("script", ["clip-jax", "unclip", "unclip-train"])
def test_each_console_script_is_a_function(project, script):
    module, _, function = project["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_only_packages_with_names_of_their_own_are_installed():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert {name.rstrip("*") for name in tool["setuptools"]["packages"]["find"]["include"]} == set(PACKAGES)


@pytest.mark.slow
def test_training_without_its_extra_is_one_line():
    """As on `pip install unclip-jax` alone: Grain cannot be imported."""
    program = "import sys; sys.modules['grain'] = None; from train_recipes.__main__ import main; main(['tiny'])"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert re.fullmatch(r"train: .*grain.*: pip install 'unclip-jax\[train\]'\n", ended.stderr)
