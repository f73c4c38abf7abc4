import os
import subprocess
import sys

import pytest

from image_text.building import expanded
from train_jax.errors import UserError
from train_jax.files import hold, write_atomically


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


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it is without HOME and an entry in passwd
    with pytest.raises(UserError, match="~/data: this user has no home directory; set HOME"):
        expanded("~/data")
    assert str(expanded("data")) == "data"


def test_temporary_files_have_names_of_their_own(tmp_path, monkeypatch):
    """Two writers of one file do not write into one another's; what appears can be read by whom the umask lets."""
    names = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (names.append(str(old)), replace(old, new)))
    for text in ("one", "two"):
        write_atomically(tmp_path / "a.json", text)
    assert len(set(names)) == 2
    (tmp_path / "usual").touch()
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "usual").stat().st_mode
