"""How a run begins and what of it may change: resume, resume elsewhere, initialise, from scratch."""

import json
import shutil

import numpy as np
import pytest

from tests.support.toy_run import prints
from train_jax.begin import kept_config, write_config
from train_jax.errors import UserError
from train_jax.loop import fit
from train_jax.optim import OptimConfig

CONFIG = {"seed": 1, "num_steps": 4, "optim": {"lr": 1e-3, "betas": (0.9, 0.99)}, "model": {"width": 16}}
OPTIM = OptimConfig(lr=3e-2, warmup_steps=2, weight_decay=0.1, ema_decay=0.9)
CONSTANT = OptimConfig(lr=3e-2, warmup_steps=2, schedule="constant", ema_decay=0.9)


# The config


def keep(path, config, *, begun, **options):
    kept = kept_config(path, config, step=4 if begun else None, **options)
    write_config(path, config, kept.records)
    return kept


def test_the_same_config_is_kept(tmp_path):
    path = tmp_path / "config.json"
    keep(path, CONFIG, begun=False)
    before = path.read_bytes()
    assert keep(path, CONFIG, begun=True).changed == {}
    assert path.read_bytes() == before
    assert json.loads(before)["optim"]["betas"] == [0.9, 0.99]


def test_changes_are_listed_and_the_ways_on_named(tmp_path):
    path = tmp_path / "config.json"
    keep(path, CONFIG, begun=False)
    changed = CONFIG | {"optim": {"lr": 0.01, "betas": (0.9, 0.99)}, "model": {"width": 16, "heads": 2}}
    with pytest.raises(UserError) as refusal:
        keep(path, changed, begun=True)
    assert "model.heads '(absent)' → 2" in str(refusal.value)
    assert "optim.lr 0.001 → 0.01" in str(refusal.value)
    assert "seed" not in str(refusal.value)
    assert "--extend" in str(refusal.value)
    assert "--begin-from" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_digests_are_told_in_words(tmp_path):
    path = tmp_path / "config.json"
    keep(path, CONFIG | {"data": {"names and captions": "a1" * 32}}, begun=False)
    with pytest.raises(UserError, match=r"data\.names and captions are others than before") as refusal:
        keep(path, CONFIG | {"data": {"names and captions": "b2" * 32}}, begun=True)
    assert "a1a1" not in str(refusal.value)


def test_before_the_first_checkpoint_a_change_is_welcome(tmp_path):
    path = tmp_path / "config.json"
    keep(path, CONFIG, begun=False)
    keep(path, CONFIG | {"seed": 2}, begun=False)
    assert json.loads(path.read_text())["seed"] == 2


@pytest.mark.parametrize("text", ['{"seed": ', "[1, 2]", "3", "[" * 100_000])
def test_a_damaged_config_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json: it is not JSON"):
        keep(path, CONFIG, begun=True)


def test_what_is_fixed_stays(tmp_path):
    path = tmp_path / "config.json"
    keep(path, CONFIG, begun=False)
    wider = CONFIG | {"model": {"width": 32}}
    with pytest.raises(UserError, match=r"model\.width 16 → 32\), which --extend cannot change"):
        keep(path, wider, begun=True, extend=True, fixed=("model",))
    assert keep(path, wider, begun=True, extend=True).changed == {"model.width": [16, 32]}


def test_more_steps_of_a_constant_rate_need_no_flag(tmp_path):
    path = tmp_path / "config.json"
    constant, cosine = (CONFIG | {"optim": {"schedule": schedule}} for schedule in ("constant", "cosine"))
    keep(path, constant, begun=False)
    assert keep(path, constant | {"num_steps": 9}, begun=True).changed == {"num_steps": [4, 9]}
    with pytest.raises(UserError, match="num_steps 9 → 3"):  # step 4 is saved already
        keep(path, constant | {"num_steps": 3}, begun=True)
    keep(path, cosine, begun=False)
    with pytest.raises(UserError, match="num_steps 4 → 9"):
        keep(path, cosine | {"num_steps": 9}, begun=True)


# The run


def written(directory):
    return json.loads((directory / "config.json").read_text())


def test_a_run_is_extended(toy, tmp_path):
    """The longer run goes on from the state of the shorter one, which stays."""
    short = fit(toy(num_steps=6, optim=OPTIM))
    with pytest.raises(UserError, match=r"num_steps 6 → 12.*--extend"):
        fit(toy(num_steps=12, optim=OPTIM))
    changed = OptimConfig(lr=1e-2, warmup_steps=2, weight_decay=0.1, ema_decay=0.9)
    state = fit(toy(num_steps=12, optim=changed, batch_size=12, extend=True))
    assert (int(state.step), int(state.opt_state[-1].num_updates)) == (12, 12)
    assert prints(state) != prints(short)
    config = written(tmp_path / "run")
    assert (config["num_steps"], config["optim"]["lr"]) == (12, 1e-2)
    assert config["history"] == [{"step": 6, "changed": {"num_steps": [6, 12], "optim.lr": [3e-2, 1e-2]}}]
    # Again, with the flag or without: it is finished.
    for extend in (True, False):
        again = fit(toy(num_steps=12, optim=changed, batch_size=12, extend=extend))
        assert prints(again) == prints(state)
    assert written(tmp_path / "run") == config
    # What the shorter run had is a run directory of its own.
    kept = tmp_path / "run" / "before-6"
    assert prints(fit(toy(num_steps=6, optim=OPTIM, directory=kept))) == prints(short)


@pytest.mark.slow
def test_a_longer_constant_rate_is_as_if_it_had_been_asked_for_at_once(toy, tmp_path):
    fit(toy(num_steps=6, optim=CONSTANT))
    longer = fit(toy(num_steps=12, optim=CONSTANT))
    at_once = fit(toy(num_steps=12, optim=CONSTANT, directory=tmp_path / "at once"))
    assert prints(longer) == prints(at_once)


def test_fewer_steps_than_were_made_train_nothing_and_lose_nothing(toy, caplog):
    state = fit(toy(num_steps=6))
    again = fit(toy(num_steps=4, extend=True))
    assert prints(again) == prints(state)
    assert "num_steps is 4, and step 6 is reached already" in caplog.text


def test_a_run_begins_from_another(toy, tmp_path):
    """Its weights and their average; a fresh optimiser and step 0. Of the other run nothing is touched."""
    first = fit(toy(num_steps=6))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    second = {"directory": tmp_path / "second", "begin_from": tmp_path / "run", "seed": 5}
    poisoned = lambda step: {name: a * np.nan for name, a in toy().batches(step).items()}  # noqa: E731
    state = fit(toy(num_steps=2, batches=poisoned, **second))  # both steps are skipped: this is how it began
    for name in ("params", "ema_params", "model_state"):
        assert prints(getattr(state, name)) == prints(getattr(first, name))
    assert int(state.step) == 2
    assert int(state.opt_state[-1].num_updates) == 0
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    begun = {"from": str(tmp_path / "run"), "step": 6, "with": "its weights"}
    assert written(tmp_path / "second")["begun"] == begun
    # It goes on from its own checkpoints, with the flag or without, but from no third run.
    for begin_from in (tmp_path / "run", None):
        assert prints(fit(toy(num_steps=2, **second | {"begin_from": begin_from}))) == prints(state)
    with pytest.raises(UserError, match=f"has begun from {tmp_path / 'run'}, not {tmp_path / 'third'}"):
        fit(toy(num_steps=2, **second | {"begin_from": tmp_path / "third"}))


@pytest.mark.slow
def test_a_run_goes_on_elsewhere(toy, tmp_path):
    """With `extend` it takes the optimiser and the step along: the end is that of a run that never moved."""
    fit(toy(num_steps=6, optim=CONSTANT))
    moved = fit(
        toy(num_steps=12, optim=CONSTANT, directory=tmp_path / "there", begin_from=tmp_path / "run", extend=True)
    )
    assert prints(moved) == prints(fit(toy(num_steps=12, optim=CONSTANT)))
    assert written(tmp_path / "there")["begun"]["with"] == "all of its state"


def test_what_cannot_be_begun_from_is_named(toy, tmp_path):
    fit(toy(num_steps=2))
    with pytest.raises(UserError, match="nowhere: there are no checkpoints to begin from"):
        fit(toy(directory=tmp_path / "new", begin_from=tmp_path / "nowhere"))
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(UserError, match="a run cannot begin from itself"):
        fit(toy(directory=tmp_path / "new", begin_from=tmp_path / "new"))
