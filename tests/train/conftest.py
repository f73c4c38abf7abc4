"""`toy_run` is both a module for these tests and a command for those that kill it."""

import pytest

from tests.support import toy_run


@pytest.fixture
def toy(tmp_path):
    """Make a toy run in a directory of its own, one device unless told: `toy(num_steps=5)`."""

    def make(**changes):
        return toy_run.make_run(**{"directory": tmp_path / "run", "devices": 1, **changes})

    return make
