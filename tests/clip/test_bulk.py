"""Very many pictures: damaged ones are left out and counted, and a run that was stopped continues."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax import UserError
from clip_jax.images import Preprocess
from clip_jax.pretrained import LoadedCLIP
from clip_jax.uses.bulk import BadPictures, Parts, TooManyBadPictures, encode_pictures, encode_texts, key_of
from clip_jax.uses.embed import image_features, text_features
from image_text.source import open_source


@pytest.fixture(scope="module")
def clip(tiny, tiny_variables, tokenizer):
    size = tiny.vision.image_size
    return LoadedCLIP(clip_jax.CLIP(tiny), tiny_variables, tokenizer, Preprocess(clip_jax.PreprocessConfig(), size))


@pytest.fixture
def folder(tmp_path):
    """Eleven pictures, of which 3 and 8 are damaged."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(11):
        path = folder / f"{i:02}.png"
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(path)
        if i in (3, 8):
            path.write_bytes(path.read_bytes()[:-60])
    return folder


def encode(clip, folder, **options):
    pictures = open_source(str(folder)).pictures
    bad = BadPictures(len(pictures), options.pop("fraction", 0.2))
    return encode_pictures(clip, pictures, bad=bad, batch_size=4, **options), bad


def test_damaged_pictures_are_left_out(clip, folder):
    features, bad = encode(clip, folder)
    good = [path for i, path in enumerate(sorted(folder.iterdir())) if i not in (3, 8)]
    np.testing.assert_allclose(features, image_features(clip, good), atol=1e-6)
    assert sorted(bad.errors) == [3, 8]
    assert str(bad).startswith("2 of 11 pictures cannot be read and are left out: ")
    assert "03.png: cannot read" in str(bad)
    assert "08.png: cannot read" in str(bad)
    with pytest.raises(TooManyBadPictures, match=r"03\.png: .*1 of 11 pictures cannot be read, 0 are let pass"):
        encode(clip, folder, fraction=0)


@pytest.mark.parametrize(
    ("total", "fraction", "allowed"),
    [
        (1, 0.01, 0), (2, 0.01, 0), (3, 0.01, 1), (7, 0.01, 2), (299, 0.01, 2), (300, 0.01, 3), (10**6, 0.01, 10**4),
        (1000, 0.0, 0), (10, 1.0, 10), (10, 0.5, 5),
    ],
)  # fmt: skip
def test_how_many_are_let_pass(total, fraction, allowed):
    bad = BadPictures(total, fraction)
    for i in range(allowed):
        bad.add(i, "x")
    with pytest.raises(TooManyBadPictures, match="the last"):
        bad.add(allowed, "the last")
    assert bad.allowed == allowed


def test_half_of_all_is_bad_input_and_fewer_a_fault():
    for total, status in ((2, 2), (7, 1)):
        bad = BadPictures(total, 0)
        with pytest.raises(TooManyBadPictures) as error:
            bad.add(0, "x")
        assert error.value.exit_status == status
    with pytest.raises(UserError, match="not between 0 and 1"):
        BadPictures(3, float("nan"))


def test_a_stopped_run_continues(clip, folder, tmp_path):
    """Killed after two batches of three: they are not read again, and the rest gives the same bits."""
    whole, bad = encode(clip, folder)
    path, count = tmp_path / "e.npz.part", []
    parts = Parts(path, "key")
    with pytest.raises(KeyboardInterrupt):
        encode(clip, folder, parts=parts, progress=lambda n: count.append(n) or (len(count) == 2 and stop()))
    parts.close(remove=False)
    with open(path, "ab") as file:
        file.write(b'{"what": "pictures", "start": 8, "shape": [9')  # what a killed process had half-written
    for name in ("00.png", "07.png"):
        (folder / name).write_bytes(b"not read again")
    parts = Parts(path, "key")
    again, bad_again = encode(clip, folder, parts=parts)
    parts.close(remove=True)
    np.testing.assert_array_equal(again, whole)
    assert sorted(bad_again.errors) == sorted(bad.errors)
    assert not path.exists()


def stop():
    raise KeyboardInterrupt


def test_what_is_damaged_or_of_another_run_is_not_taken(tmp_path):
    path = tmp_path / "part"

    def opened(key="key"):
        parts = Parts(path, key)
        rows = [parts.take("pictures", start) for start in (0, 4)]
        parts.close(remove=False)
        return [None if row is None else row[0].tolist() for row in rows]

    parts = Parts(path, "key")
    parts.add("pictures", 0, np.ones((2, 3), np.float32), {1: "x: damaged"})
    parts.add("pictures", 4, np.zeros((1, 3), np.float32), {})
    with pytest.raises(UserError, match="another process is writing it"):
        Parts(path, "key")
    parts.close(remove=False)
    assert opened() == [[[1.0] * 3] * 2, [[0.0] * 3]]
    whole = path.read_bytes()
    for at in range(len(whole)):  # any byte may be wrong, and then nothing else is read than what was written
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if at >= whole.index(b"\n") + 1:
            first, second = opened()
            assert first in (None, [[1.0] * 3] * 2)
            assert second in (None, [[0.0] * 3])
    path.write_bytes(whole)
    with pytest.warns(UserWarning, match="begun with another model or other pictures"):
        assert opened("other") == [None, None]


def test_the_key_is_of_all_that_features_depend_on(clip, folder):
    source = open_source(str(folder))
    keys = [key_of(clip, source, 4), key_of(clip, source, 8)]
    keys.append(key_of(clip, replace(source, captions=["a"] * 11), 4))
    keys.append(key_of(clip._replace(preprocess=Preprocess(clip.preprocess.config, 9)), source, 4))
    (folder / "00.png").write_bytes(b"other")
    keys.append(key_of(clip, source, 4))
    assert len(set(keys)) == len(keys)
    assert key_of(clip, open_source(str(folder)), 4) == keys[-1]


def test_one_picture_is_not_several(clip, folder):
    expected = image_features(clip, [folder / "00.png"])
    for one in (
        folder / "00.png",
        str(folder / "00.png"),
        (folder / "00.png").read_bytes(),
        Image.open(folder / "00.png"),
    ):
        np.testing.assert_array_equal(image_features(clip, one), expected)
    with pytest.raises(UserError, match="batch_size: 0 is less than 1"):
        image_features(clip, [folder / "00.png"], batch_size=0)


def test_texts_continue_too(clip, captions, tmp_path):
    parts = Parts(tmp_path / "part", "key")
    features = encode_texts(clip, captions, parts=parts)
    np.testing.assert_array_equal(features, text_features(clip, captions))
    parts.close(remove=False)
    parts = Parts(tmp_path / "part", "key")
    np.testing.assert_array_equal(encode_texts(clip._replace(tokenize=None), captions, parts=parts), features)
    parts.close(remove=True)
