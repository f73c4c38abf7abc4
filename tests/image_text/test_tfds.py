"""Splits of TFDS: nested captions, damaged files, and no code but TFDS's own."""

import json

import numpy as np
import pytest
from PIL import Image

from clip_jax import UserError
from image_text.source import open_source

tfds = pytest.importorskip("tensorflow_datasets")

NAME = "tfds:coco_like:train"


class CocoLike(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of TFDS's coco_captions."""

    name = "coco_like"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        captions = tfds.features.Sequence({"id": np.int64, "text": np.str_})
        features = {"image": tfds.features.Image(), "image/filename": tfds.features.Text(), "captions": captions}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({**features, "mask": tfds.features.Image()}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            texts = [{"id": j, "text": f"caption {i}.{j}"} for j in range(i + 1)]
            picture = Image.new("RGB", (8, 8), (i, 0, 0))
            yield i, {"image": picture, "image/filename": f"{i}.jpg", "captions": texts, "mask": picture}


@pytest.fixture
def data(tmp_path):
    CocoLike(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return tmp_path


def test_captions_in_a_sequence(data):
    source = open_source(NAME, data_dir=data)
    assert source.captions == [f"caption {i}.{j}" for i in range(3) for j in range(i + 1)]
    assert source.names == ["train/0"] + ["train/1"] * 2 + ["train/2"] * 3
    assert source.pictures[5].name == "train/2"


def test_code_outside_tfds_is_not_run(data, monkeypatch):
    (path,) = data.rglob("features.json")
    original = path.read_text()
    (data / "evil.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(data)
    for old in ("text_feature.Text", "features_dict.FeaturesDict", "sequence_feature.Sequence"):
        path.write_text(original.replace(f"tensorflow_datasets.core.features.{old}", "evil.Feature"))
        with pytest.raises(UserError, match=r"features\.json names code outside TFDS, 'evil\.Feature': it is not run"):
            open_source(NAME, data_dir=data)
    path.write_text(json.dumps({"type": "evil.Feature", "content": {}}))
    with pytest.raises(UserError, match="code outside TFDS"):
        open_source(NAME, data_dir=data)
    path.write_text("{")
    with pytest.raises(UserError, match=r"features\.json: the data's description is damaged, it is not JSON"):
        open_source(NAME, data_dir=data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:100], "is damaged or cut off"),
        (lambda data: b"", "is damaged or cut off"),
        (lambda data: bytes(100_000), "is damaged or cut off"),
        (lambda data: data[:200] + bytes([data[200] ^ 4]) + data[201:], "cannot read the record train/0"),
        (None, "is missing"),
    ],
)
def test_a_damaged_shard_is_named(data, damage, words):
    (shard,) = data.rglob("*array_record*")
    if damage is None:
        shard.unlink()
    else:
        shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError) as error:
        open_source(NAME, data_dir=data)
    assert str(error.value).startswith(str(shard))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_description_is_one_line(data):
    (path,) = data.rglob("dataset_info.json")
    path.write_text("{")
    with pytest.raises(UserError, match="coco_like") as error:
        open_source(NAME, data_dir=data)
    assert "\n" not in str(error.value)
