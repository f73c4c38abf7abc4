import json
import os
import subprocess
import sys

import pytest

from train_jax.errors import UserError
from train_jax.files import hold, keep_config, write_atomically

CONFIG = {"seed": 1, "optim": {"lr": 1e-3, "betas": (0.9, 0.99)}, "model": {"width": 16}}


def test_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_second_writer_is_refused_and_the_lock_comes_back(tmp_path):
    refused = pytest.raises(UserError, match="another process is training here")
    with hold(tmp_path / "run"), refused, hold(tmp_path / "run"):
        pass
    with hold(tmp_path / "run"):
        pass


def test_kill_frees_the_lock(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from train_jax.files import hold
with hold(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another process"), hold(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with hold(tmp_path):
        pass


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "run").write_text("")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(UserError, match="is a file"), hold(path):
            pass


def test_the_same_config_is_kept(tmp_path):
    path = tmp_path / "config.json"
    keep_config(path, CONFIG, begun=False)
    before = path.read_bytes()
    keep_config(path, CONFIG, begun=True)
    assert path.read_bytes() == before
    assert json.loads(before)["optim"]["betas"] == [0.9, 0.99]


def test_changes_are_listed(tmp_path):
    path = tmp_path / "config.json"
    keep_config(path, CONFIG, begun=False)
    changed = {"seed": 1, "optim": {"lr": 0.01, "betas": (0.9, 0.99)}, "model": {"width": 16, "heads": 2}}
    with pytest.raises(UserError) as refusal:
        keep_config(path, changed, begun=True)
    assert "model.heads '(absent)' → 2" in str(refusal.value)
    assert "optim.lr 0.001 → 0.01" in str(refusal.value)
    assert "seed" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_before_the_first_checkpoint_a_change_is_welcome(tmp_path):
    path = tmp_path / "config.json"
    keep_config(path, CONFIG, begun=False)
    keep_config(path, CONFIG | {"seed": 2}, begun=False)
    assert json.loads(path.read_text())["seed"] == 2


def test_a_damaged_config_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"seed": ')
    with pytest.raises(UserError, match=r"config\.json: it is not JSON"):
        keep_config(path, CONFIG, begun=True)
