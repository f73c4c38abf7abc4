"""Configs of stages that others wrote: each is read or is a UserError."""

import json
from pathlib import Path

import jax
import pytest

import unclip_jax
from tests.support import fuzz as mutants
from tests.support.fuzz import COUNTS, fuzz
from unclip_jax import pipeline, priors

SHIPPED = Path(unclip_jax.__file__).parent / "shipped"


class Read(BaseException):
    """The config was read, and what it says would now be built, which takes longer."""


@pytest.mark.parametrize("count", COUNTS)
def test_configs_of_stages(tmp_path, count, monkeypatch):
    def stop(*_):
        raise Read

    monkeypatch.setattr(priors, "init", stop)
    jax.random.key(0)  # what JAX allocates at its first use is not the config's
    path = tmp_path / "config.json"
    configs = [json.loads((SHIPPED / name / "config.json").read_text()) for name in ("prior", "decoder", "upsampler_0")]

    def read():
        try:
            pipeline.load_stage(tmp_path)
        except Read:
            return

    fuzz(count, lambda rng: path.write_bytes(mutants.of_json(rng, rng.choice(configs))), read)
