"""Locks where the system has none of POSIX: as on Windows, and as where there are none at all."""

import sys
from types import SimpleNamespace

import pytest

from image_text import locks
from train_jax.errors import UserError
from train_jax.files import hold


class Locking:
    """`msvcrt` for one process: a byte is locked until the file is closed, here until `free`."""

    LK_NBLCK = 2

    def __init__(self):
        self.locked, self.tries = False, 0

    def locking(self, descriptor, mode, count):
        self.tries += 1
        if self.locked:
            raise OSError(13, "Permission denied")
        self.locked = True


@pytest.fixture
def windows(monkeypatch):
    msvcrt = Locking()
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", msvcrt)
    return msvcrt


def test_windows_locks(windows, tmp_path):
    with hold(tmp_path / "run"):
        with pytest.raises(UserError, match="another process is training here"), hold(tmp_path / "run"):
            pass
        windows.locked = False
        with hold(tmp_path / "run"):
            pass


def test_windows_waits(windows, tmp_path, monkeypatch):
    windows.locked = True

    def sleep(seconds):
        windows.locked = windows.tries < 3

    monkeypatch.setattr(locks, "time", SimpleNamespace(sleep=sleep))
    with locks.locked(tmp_path / "lock", wait=True):
        assert windows.tries == 4


def test_no_locks_are_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", None)
    with hold(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert "this system locks no files" in caplog.text


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / "run" / ".config.json.abc.tmp"
    left.parent.mkdir()
    left.write_text("{")
    with hold(tmp_path / "run"):
        assert not left.exists()


def test_an_error_inside_is_no_lock(tmp_path):
    with pytest.raises(BlockingIOError), hold(tmp_path / "run"):
        raise BlockingIOError


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
def test_posix_is_used_where_it_is():
    assert locks.fcntl is not None
