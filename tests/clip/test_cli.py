"""`python -m clip_jax`, in this process, with a CLIP of random weights."""

import importlib.util
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax import cli
from clip_jax.uses.embed import image_features, text_features
from tests.support.pictures import save

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def directory(tiny, tiny_variables, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    clip_jax.save(directory, tiny, tiny_variables, tokenizer)
    return directory


@pytest.fixture
def command(directory, tmp_path, monkeypatch, capsys):
    """`command("embed", "photos")` in a directory with some photos -> (exit code, stdout, stderr)."""
    names = ["red/a.png", "red/b.png", "blue/c.png"]
    for seed, name in enumerate(names):
        save(tmp_path / "photos" / name, seed)
    rows = [f"photos/{name},a {name[:3]} circle" for name in (*names, names[0])]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    (tmp_path / "broken.csv").write_text("image\nphotos/red/a.png\nbroken.png\n")
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "latin1.txt").write_bytes("grün".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n")
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        argv = [*map(str, argv)]
        if argv and argv[0] in cli.COMMANDS and "--model" not in argv and "--help" not in argv:
            argv += ["--model", str(directory)]
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        return end.value.code, *capsys.readouterr()

    return run


def test_help(command):
    code, out, _ = command("--help")
    assert code == 0
    assert all(name in out for name in cli.COMMANDS)
    code, out, _ = command("classify", "--help")
    assert code == 0
    assert all(flag in out for flag in ("--model", "--classes", "--templates", "--out", "--batch-size"))
    assert command()[0] == 2


def test_embed(command, directory, tmp_path):
    code, out, err = command("embed", "captions.csv", "--out", "e.npz", "--batch-size", 3)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    found = np.load(tmp_path / "e.npz")
    clip = clip_jax.load(directory)
    paths = [tmp_path / name for name in found["name"]]
    np.testing.assert_allclose(found["image_features"], image_features(clip, paths), atol=1e-5)
    np.testing.assert_allclose(found["text_features"], text_features(clip, found["caption"].tolist()), atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pip install pyarrow (the extra parquet)")
def test_parquet_holds_the_same(command, tmp_path):
    import pyarrow.parquet

    assert command("embed", "photos", "--out", "e.npz")[0] == command("embed", "photos", "--out", "e.parquet")[0] == 0
    table, arrays = pyarrow.parquet.read_table(tmp_path / "e.parquet").to_pydict(), np.load(tmp_path / "e.npz")
    assert table.keys() == set(arrays)
    for name in arrays:
        np.testing.assert_array_equal(np.array(table[name], arrays[name].dtype), arrays[name])


def test_embed_captions_alone(command, directory, tmp_path):
    (tmp_path / "texts.csv").write_text("caption\na red circle\na star\n")
    code, out, err = command("embed", "texts.csv", "--out", "e.npz")
    assert (code, err) == (0, "")
    assert out.startswith("2 captions, ")
    assert {*np.load(tmp_path / "e.npz")} == {"caption", "text_features"}


def damaged(tmp_path, names):
    for name in names:
        (tmp_path / "photos" / name).write_bytes((tmp_path / "photos" / name).read_bytes()[:60])


@pytest.mark.parametrize("name", ["embed", "classify", "retrieve"])
def test_damaged_pictures_are_left_out_and_named(command, tmp_path, name):
    damaged(tmp_path, ["red/b.png"])
    more = {"embed": ["--out", "e.npz"], "classify": [], "retrieve": ["--query", "a star"]}[name]
    code, out, err = command(name, "photos", *more)
    assert code == 0
    assert "2 pictures" in out
    assert err.startswith("clip_jax: 1 of 3 pictures cannot be read and are left out: photos/red/b.png: cannot read")
    assert err.count("\n") == 1
    if name == "embed":
        assert np.load(tmp_path / "e.npz")["label"].tolist() == ["blue", "red"]
        assert not (tmp_path / "e.npz.part").exists()
    code, out, err = command(name, "photos", *more, "--max-bad-fraction", 0)
    assert (code, out) == (1, "")
    assert "1 of 3 pictures cannot be read, 0 are let pass" in err


def test_damaged_pictures_and_recall(command, tmp_path):
    damaged(tmp_path, ["red/b.png"])
    code, out, err = command("retrieve", "captions.csv")
    assert (code, err.count("\n")) == (0, 1)
    assert "text to image: R@1" in out
    code, out, err = command("verify", "photos", "--published", 50, "--tolerance", 100, "--templates", "plain")
    assert (code, err.count("\n")) == (0, 1)


def test_a_picture_with_too_many_pixels_is_one_line(command, tmp_path):
    path = tmp_path / "photos" / "red" / "b.png"
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 10_000, 10_000)  # more than Pillow warns of, fewer than it refuses
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    code, _, err = command("embed", "photos", "--out", "e.npz")
    assert (code, err.count("\n")) == (0, 1)
    assert "photos/red/b.png: too many pixels (10000 × 10000)" in err


def test_embed_goes_on_after_it_was_stopped(command, tmp_path, monkeypatch):
    assert command("embed", "captions.csv", "--out", "whole.npz", "--batch-size", 1)[0] == 0

    def stop(path, columns):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "write", stop)
        assert command("embed", "captions.csv", "--out", "e.npz", "--batch-size", 1)[0] == 130
    assert (tmp_path / "e.npz.part").exists()
    with monkeypatch.context() as patch:
        patch.setattr("clip_jax.uses.bulk.features_of_prepared", lambda *_: pytest.fail("encoded again"))
        assert command("embed", "captions.csv", "--out", "e.npz", "--batch-size", 1)[0] == 0
    whole, found = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "e.npz")
    for name in whole:
        np.testing.assert_array_equal(found[name], whole[name])
    assert not (tmp_path / "e.npz.part").exists()


@pytest.mark.slow
def test_names_that_a_terminal_cannot_show(directory, tmp_path):
    """In a process of its own: the terminal's encoding is made when Python starts."""
    save(tmp_path / "photos" / "ü猫.png")
    save(tmp_path / "photos" / "a.png")
    os.rename(tmp_path / "photos" / "a.png", os.fsencode(tmp_path) + b"/photos/caf\xe9.png")
    argv = [sys.executable, "-m", "clip_jax", "retrieve", "photos", "--model", str(directory), "--query", "a star"]
    env = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xfc\\u732b.png" in done.stdout
    assert "caf\\xe9.png" in done.stdout


def test_classify(command, tmp_path):
    code, out, err = command("classify", "photos", "--out", "c.npz", "--k", 2)
    assert (code, err) == (0, "")
    assert "3 pictures, 2 classes: top-1" in out
    found = np.load(tmp_path / "c.npz")
    assert found["class"].shape == (3, 2)
    assert {*found["class"].ravel()} == {"red", "blue"}
    np.testing.assert_allclose(found["probability"].sum(1), 1, atol=1e-5)
    (tmp_path / "names.txt").write_text("circle\nstar\nsquare\n")
    code, out, _ = command("classify", "captions.csv", "--classes", "names.txt", "--templates", "imagenet7")
    assert (code, out) == (0, "4 pictures, 3 classes\n")


def test_retrieve(command):
    code, out, err = command("retrieve", "photos", "--query", "a circle", "a star", "--k", 2)
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()[:-1]]
    assert [row[0] for row in rows] == ["a circle"] * 2 + ["a star"] * 2
    assert out.endswith("3 pictures searched for 2 texts\n")
    code, out, _ = command("retrieve", "captions.csv")
    assert code == 0
    assert "text to image: R@1" in out
    assert "image to text: R@1" in out


def test_verify(command):
    code, out, err = command("verify", "photos", "--published", 50, "--tolerance", 100, "--templates", "plain")
    assert (code, err) == (0, "")
    assert "top-1" in out
    assert "published 50.00 %" in out
    code, out, err = command("verify", "photos", "--published", -1, "--templates", "plain")
    assert (code, out) == (1, "")
    assert "published -1.00 %" in err
    code, out, _ = command("verify", "captions.csv", "--dataset", "coco", "--name", "RN50", "--tolerance", 100)
    assert code == 0
    assert "text to image" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["embod"], "embod: there is no such command; choose one of embed"),
        (["embed", "nowhere"], "nowhere: there is no such file or folder"),
        (["embed", "photos", "--model", "nowhere"], "nowhere"),
        (["embed", "photos", "--out", "e.txt"], "--out: e.txt is neither .npz nor .parquet"),
        (["embed", "photos", "--out", "none/e.npz"], "--out: none is not a directory"),
        (["embed", "photos", "--batch-size", "0"], "--batch-size: 0 is less than 1"),
        (["embed", "broken.csv"], "broken.png: cannot read the picture"),
        (["embed", "photos", "--max-bad-fraction", "2"], "--max-bad-fraction: 2.0 is not between 0 and 1"),
        (["embed", "photos", "--bach-size", "3"], "--bach-size: there is no such flag; perhaps you meant --batch-size"),
        (["embed", "photos", "--batch-size", "x"], "--batch-size: 'x' is not an integer"),
        (
            ["classify", "photos", "--classes", "red", "green"],
            "--classes: the pictures' blue are none of the 2 classes",
        ),
        (["classify", "captions.csv"], "no classes of their own"),
        (["classify", "photos", "--k", "0"], "--k: 0 is less than 1"),
        (["classify", "photos", "--templates", "imagnet"], "neither a file nor one of plain, imagenet"),
        (["classify", "photos", "--templates", "captions.csv"], "has no {} for the name"),
        (["classify", "photos", "--classes", "latin1.txt"], "latin1.txt is not UTF-8"),
        (["classify", "photos", "--classes", "empty.txt"], "empty.txt is empty"),
        (["classify", "photos", "--classes", "", "red"], "--classes: one of them is empty"),
        (["classify", "photos", "--classes", "nowhere.txt"], "--classes: there is no file nowhere.txt"),
        (["classify", "photos", "--classes", "lists/classes"], "--classes: there is no file lists/classes"),
        (["embed", ""], "the source is empty"),
        (["embed", "https://example.com/cat.jpg"], "is an address, not a file"),
        (["retrieve", "photos", "--query", " "], "--query: one of them is empty"),
        (["verify", "photos", "--published", "nan"], "--published: nan is not a finite number"),
        (["verify", "photos", "--published", "50", "--tolerance", "nan"], "--tolerance: nan is not a finite number"),
        (["retrieve", "photos"], "has no captions: say what to look for"),
        (["verify", "photos"], "--name: nothing is published here for ''"),
        (["verify", "photos", "--dataset", "flickr"], "--dataset: 'flickr' is none of imagenet, flickr30k, coco"),
        (["verify", "photos", "--dataset", "coco", "--name", "RN50"], "no captions to verify recall with"),
        (["verify", "captions.csv", "--published", "1", "--classes", "a"], "no labels to verify an accuracy with"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, argv, words):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("clip_jax: ")
    assert words in err
    assert sorted(tmp_path.rglob("*")) == before
