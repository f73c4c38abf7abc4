"""The shapes dataset on disk: what is read back is what was rendered, and half-written data is never read."""

import io
import logging
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import shapes_world
from image_text import shapes
from train_jax.errors import UserError

SIZES = {"train": 24, "test": 8, "heldout": 6}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    shapes.prepare(directory, split_sizes=SIZES)
    return directory


def source(split, data_dir, **settings):
    return shapes.source(split, data_dir=data_dir, **{"split_sizes": SIZES, **settings})


@pytest.mark.parametrize("split", SIZES)
def test_record_i_is_example_i(data_dir, split):
    records = source(split, data_dir)
    assert len(records) == SIZES[split]
    for index in range(len(records)):
        image, caption, labels = shapes_world.example(split, index)
        record = records[index]
        np.testing.assert_array_equal(record["image"], image)
        assert record["image"].dtype == np.uint8
        assert record["caption"] == caption
        assert type(record["caption"]) is str
        assert shapes_world.Labels(*(record[name] for name in shapes_world.Labels._fields)) == labels
        assert all(type(record[name]) is int for name in shapes_world.Labels._fields)


def test_resolution_seed_and_sizes_live_side_by_side(data_dir):
    small = source("test", data_dir, resolution=32)
    other = source("test", data_dir, seed=1)
    fewer = source("test", data_dir, split_sizes={"test": 3})
    assert small[0]["image"].shape == (32, 32, 3)
    assert len(fewer) == 3
    assert [r["caption"] for r in other] != [r["caption"] for r in source("test", data_dir)]
    np.testing.assert_array_equal(source("test", data_dir)[0]["image"], shapes_world.example("test", 0).image)
    assert len({path.name for path in (data_dir / "shapes").glob("*px-*")}) == 4


def test_parts_of_a_split(data_dir):
    assert len(source("train[:25%]", data_dir)) == 6
    assert source("train[4:]", data_dir)[0]["caption"] == source("train", data_dir)[4]["caption"]


def test_an_index_out_of_range_ends_iteration(data_dir):
    records = source("heldout", data_dir)
    assert len(list(records)) == len(records)
    assert records[-1]["caption"] == records[len(records) - 1]["caption"]
    with pytest.raises(IndexError):
        records[len(records)]


def test_source_can_be_sent_to_another_process(data_dir):
    records = source("test", data_dir)
    assert pickle.loads(pickle.dumps(records))[2]["caption"] == records[2]["caption"]


def test_label_names_are_in_the_dataset(data_dir):
    features = shapes.prepare(data_dir, split_sizes=SIZES).info.features
    assert tuple(features["colour"].names) == shapes_world.COLOURS
    assert tuple(features["position"].names) == shapes_world.POSITIONS


def test_prepared_data_is_not_written_again(data_dir):
    builder = shapes.prepare(data_dir, split_sizes=SIZES)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.array_record*")}
    assert before
    shapes.prepare(data_dir, split_sizes=SIZES)
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.array_record*")} == before
    assert str(data_dir) in str(builder.data_dir)


def test_tfds_stays_quiet_and_our_line_is_shown(tmp_path, capfd, caplog):
    with caplog.at_level(logging.INFO):
        source("test", tmp_path)[0]
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "rendering shapes 64px-seed0-train24-test8-heldout6: 38 images\n"
    assert not caplog.records
    source("test", tmp_path)
    assert capfd.readouterr().err == ""


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    shapes.prepare(tmp_path, split_sizes={"train": 12, "test": 3})
    assert "15/15" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().count("\n") == 1  # one bar, not one per split and shard


def test_interrupted_rendering_leaves_no_data_and_the_next_call_makes_it(tmp_path, monkeypatch):
    drawn = shapes_world.example

    def interrupted(split, index, **settings):
        if split == "heldout" and index == 2:
            raise KeyboardInterrupt
        return drawn(split, index, **settings)

    monkeypatch.setattr(shapes_world, "example", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source("train", tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.array_record*"))
    assert len(source("heldout", tmp_path)) == SIZES["heldout"]


@pytest.mark.parametrize("missing", ["dataset_info.json", "shapes-test.array_record-00000-of-00001", "features.json"])
def test_half_a_copy_is_not_taken_for_data(data_dir, tmp_path, missing):
    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy)
    (copy / "shapes" / shapes.ShapesConfig(split_sizes=SIZES).name / shapes.VERSION / missing).unlink()
    assert source("test", copy)[0]["caption"] == shapes_world.example("test", 0).caption


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    config = tmp_path / "shapes" / shapes.ShapesConfig(split_sizes=SIZES).name
    left = config / f"incomplete.ABC123_{shapes.VERSION}"
    left.mkdir(parents=True)
    (left / "shapes-train.array_record").write_bytes(b"half")
    assert len(source("train", tmp_path)) == SIZES["train"]
    assert [path.name for path in config.iterdir()] == [shapes.VERSION]


@pytest.mark.slow
def test_killed_while_rendering(tmp_path):
    code = "import sys; from image_text.shapes import prepare; prepare(sys.argv[1], split_sizes={'train': 3000})"
    run = subprocess.Popen([sys.executable, "-c", code, tmp_path], env={"PYTHONPATH": ":".join(filter(None, sys.path))})
    while not list(tmp_path.rglob("incomplete.*")) and run.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert list(tmp_path.rglob("incomplete.*"))
    assert len(shapes.source("train", data_dir=tmp_path, split_sizes={"train": 3000})) == 3000
    assert not list(tmp_path.rglob("incomplete.*"))


def test_two_at_once_render_once(tmp_path, capfd):
    sources = [None, None]

    def open_source(which):
        sources[which] = source("train", tmp_path)

    threads = [threading.Thread(target=open_source, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sources[0][3]["caption"] == sources[1][3]["caption"]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("rendering") == 1
    assert not logging.getLogger("absl").filters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 8}, "resolution: "),
        ({"seed": -1}, "seed: "),
        ({"split_sizes": {}}, "split_sizes: "),
        ({"split_sizes": {"train": 0}}, "split_sizes: .*'train': 0"),
        ({"split_sizes": {"train": 5, "valid": 5}}, "split_sizes: .*'valid': 5"),
        ({"split_sizes": {"train": 5, "test": -5}}, "split_sizes: .*train, test, heldout"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        shapes.prepare(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_unknown_split_and_unusable_directory(tmp_path):
    with pytest.raises(UserError, match=r"split: .*'valid'.*train, test, heldout"):
        source("valid", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another directory"):
        source("train", tmp_path / "file")


def test_no_tensorflow_and_no_jax():
    code = (
        "import sys; import image_text.shapes;"
        "print([name for name in ('tensorflow', 'jax', 'orbax') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert run.stdout.strip() == "[]"


# Damage


def damaged(data_dir, tmp_path, name, change):
    """A copy of the data of `SIZES` in which `change` has been done to the bytes of a file."""
    config = Path("shapes", shapes.ShapesConfig(split_sizes=SIZES).name)  # other tests make others beside it
    shutil.copytree(data_dir / config, tmp_path / "copy" / config)
    (path,) = (tmp_path / "copy").rglob(name)
    path.write_bytes(change(path.read_bytes()))
    return path


CHANGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "cut": lambda content: content[:-1],
    "zero": lambda content: bytes(len(content)),
    "garbage": lambda content: np.random.default_rng(0).bytes(len(content)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_shard_is_named(data_dir, tmp_path, change):
    path = damaged(data_dir, tmp_path, "shapes-train.array_record*", CHANGES[change])
    with pytest.raises(UserError) as refusal:
        source("train", tmp_path / "copy")
    assert str(refusal.value).startswith(f"{path} is damaged or cut off")
    assert "\n" not in str(refusal.value)
    assert len(source("test", tmp_path / "copy")) == SIZES["test"]  # its files are whole


@pytest.mark.parametrize("change", ["empty", "half", "garbage"])
def test_a_damaged_description_is_named(data_dir, tmp_path, change):
    path = damaged(data_dir, tmp_path, "dataset_info.json", CHANGES[change])
    with pytest.raises(UserError) as refusal:
        source("train", tmp_path / "copy")
    assert str(refusal.value).startswith(f"{path}: the data's description is damaged")
    assert "\n" not in str(refusal.value)


def test_flipped_bits_are_found_and_the_record_named(data_dir, tmp_path):
    """Wherever they are: each record is what it was, or refused."""
    rng = np.random.default_rng(0)
    whole = source("train", data_dir)
    (path,) = damaged(data_dir, tmp_path, "shapes-train.array_record*", lambda content: content).parent.glob(
        "*-train.*"
    )
    content, told = path.read_bytes(), []
    for _ in range(20):
        flipped = bytearray(content)
        for at in rng.integers(len(content), size=200):
            flipped[at] ^= 1
        path.write_bytes(flipped)
        try:
            records = source("train", tmp_path / "copy")
        except UserError as error:
            told.append((str(error), str(path)))
            continue
        for index in range(len(records)):
            try:
                np.testing.assert_array_equal(records[index]["image"], whole[index]["image"])
            except UserError as error:
                told.append((str(error), f"record {index} is damaged"))
    assert told
    assert all(words in line for line, words in told)
