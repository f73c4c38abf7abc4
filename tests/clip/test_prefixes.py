"""A model inside wrappers is found by what remains of its names."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import clip_jax
from clip_jax import UserError
from clip_jax.weights.formats import recognise
from clip_jax.weights.prefixes import prefixes
from clip_jax.weights.rules import Entry
from tests.support.checkpoints import same_weights, state_of

STATE = state_of("openai")
HUGGING = state_of("huggingface")


def named(change, state=None):
    return {change(name): array for name, array in (STATE if state is None else state).items()}


def entries(state):
    return {name: Entry(array.shape, lambda array=array: array) for name, array in state.items()}


def load(tmp_path, state, **options):
    save_file(state, tmp_path / "w.safetensors")
    return clip_jax.load(tmp_path / "w.safetensors", **options)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "model.", "clip.", "clip_model.", "clipmodel.", "_fsdp_wrapped_module.", "net.clip.",
        "model._orig_mod.module.clip.", "_fsdp_wrapped_module.module._orig_mod.", "student.backbone.", "params.",
    ],
)  # fmt: skip
def test_any_words_in_any_order(prefix):
    for table, state in (("openai", STATE), ("huggingface", HUGGING)):
        found = recognise(entries(named(lambda name: prefix + name, state)), None, "w")
        assert found[0].name == table
        assert found[1].keys() == state.keys()


def test_the_whole_way(tmp_path):
    same_weights(load(tmp_path, named(lambda name: f"model.module.clip.{name}")))


def test_wrappers_inside_the_names(tmp_path):
    def wrapped(name):
        name = name.replace("resblocks.1.", "resblocks.1._checkpoint_wrapped_module.")
        return "model." + name.replace("visual.", "visual._fsdp_wrapped_module._orig_mod.")

    same_weights(load(tmp_path, named(wrapped)))
    twice = {**STATE, "visual._orig_mod.conv1.weight": STATE["visual.conv1.weight"]}
    with pytest.raises(UserError, match=r"visual\.conv1\.weight twice"):
        load(tmp_path, twice)


def test_what_lies_outside_the_model_is_not_its(tmp_path):
    beside = {"loss": np.float32([1]), "classifier.weight": np.zeros((2, 2), np.float32)}
    same_weights(load(tmp_path, named(lambda name: f"clip.{name}") | beside))
    with pytest.raises(UserError, match=r"unused: adapter\.weight"):  # inside: it may change what is computed
        load(tmp_path, named(lambda name: f"clip.{name}") | {"clip.adapter.weight": np.zeros(2, np.float32)})


def test_of_two_models_one_has_to_be_chosen(tmp_path):
    ema = state_of("openai", seed=1)
    state = {**named(lambda name: f"model.{name}"), **named(lambda name: f"ema.module.{name}", ema)}
    with pytest.raises(UserError, match=r'2 models, part is None: choose part="ema" or part="model"'):
        load(tmp_path, state)
    same_weights(load(tmp_path, state, part="model"))
    same_weights(load(tmp_path, state, part="ema"), seed=1)
    with pytest.raises(UserError, match="part is 'teacher'"):
        load(tmp_path, state, part="teacher")
    inside = {**STATE, **named(lambda name: f"ema.{name}", ema)}
    same_weights(load(tmp_path, inside, part=""))
    same_weights(load(tmp_path, inside, part="ema"), seed=1)


def test_moments_of_the_optimizer_are_no_model():
    names = ["params/img/embedding/kernel", "opt/0/mu/img/embedding/kernel", "opt/0/nu/txt/Embed_0/embedding"]
    assert prefixes(names) == ["params/"]


def test_numbers_kept_as_one_element(tmp_path):
    state = {**STATE, "logit_scale": STATE["logit_scale"].reshape(1)}
    same_weights(load(tmp_path, state))
    with pytest.raises(UserError, match=r"logit_scale is \[2\], not \[\]"):
        load(tmp_path, {**STATE, "logit_scale": np.zeros(2, np.float32)})
