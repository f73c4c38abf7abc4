import os

import numpy as np
import pytest

from clip_jax import UserError
from clip_jax.uses.results import check_output, check_space, read_texts, text_arrays, write
from clip_jax.weights.native import atomic_path


def test_texts_are_an_array_of_str_where_that_is_no_waste(tmp_path):
    texts = ["a cat", "", "ü 猫 🎈"]
    write(tmp_path / "a.npz", {"caption": texts})
    assert np.load(tmp_path / "a.npz")["caption"].tolist() == texts == read_texts(tmp_path / "a.npz", "caption")
    with pytest.raises(UserError, match="has no column name; it has caption"):
        read_texts(tmp_path / "a.npz", "name")


def test_one_long_text_does_not_widen_all(tmp_path):
    texts = ["ü cat"] * 2000 + ["x y " * 100_000, ""]
    arrays = text_arrays("caption", texts)
    assert sum(array.nbytes for array in arrays.values()) < 2 * sum(map(len, texts))
    write(tmp_path / "a.npz", {"caption": texts})
    assert set(np.load(tmp_path / "a.npz")) == {"caption_utf8", "caption_ends"}
    assert read_texts(tmp_path / "a.npz", "caption") == texts
    assert text_arrays("caption", [])["caption"].shape == (0,)


def test_what_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    check_output(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"--out: .* takes some"):
        check_space(tmp_path / "a.npz", 10**18)

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"--out: nothing can be written in .*: Permission denied"):
        check_output(tmp_path / "a.npz")


def test_files_are_on_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert done == ["sync", "rename", "sync"]
