"""What sample.py makes of files and options, without drawing: the commands themselves run in test_cli.py."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sample
from train_jax.errors import UserError
from unclip_jax.commands import edits
from unclip_jax.pictures import holds_other, save_png
from unclip_jax.pipeline import UnCLIP
from unclip_jax.presets import preset

SYSTEM = SimpleNamespace(
    unclip=UnCLIP(None, None, preset("tiny-decoder"), (preset("tiny-upsampler"),))
)  # draws 32 × 32


def saved(path, picture):
    picture.save(path)
    return path


@pytest.fixture
def picture(tmp_path):
    """128 × 64, red at columns 80 to 88."""
    image = Image.new("RGB", (128, 64), "white")
    image.paste((255, 0, 0), (80, 0, 88, 64))
    return saved(tmp_path / "picture.png", image)


def stripe(size, mode="L", white=255, black=0):
    """A mask of the red part of `picture`, for the whole of it at any size."""
    mask = Image.new(mode, size, black)
    mask.paste(white, (80 * size[0] // 128, 0, 88 * size[0] // 128, size[1]))
    return mask


MASKS = {
    "its size": lambda: stripe((128, 64)),
    "twice its size": lambda: stripe((256, 128)),
    "half its size": lambda: stripe((64, 32)),
    "nearly its shape": lambda: stripe((512, 257)),
    "one bit": lambda: stripe((128, 64)).convert("1"),
    "a palette": lambda: stripe((128, 64)).convert("P"),
    "grey levels": lambda: stripe((128, 64), white=130, black=120),
    "colours": lambda: stripe((128, 64), "RGB", (255, 255, 255), (0, 0, 0)),
    "16 bits": lambda: Image.fromarray(np.asarray(stripe((128, 64))).astype(np.uint16) * 257),
    "a brush on an empty layer": lambda: stripe((128, 64), "RGBA", (255, 255, 255, 255), (0, 0, 0, 0)),
    "a brush on an empty white layer": lambda: stripe((128, 64), "RGBA", (255, 255, 255, 255), (255, 255, 255, 0)),
    "the same in grey": lambda: stripe((128, 64), "LA", (255, 255), (255, 0)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_fitted_as_its_picture_is(picture, tmp_path, kind):
    mask = edits.mask_of(saved(tmp_path / "mask.png", MASKS[kind]()), picture, SYSTEM)
    red = edits.picture(picture, SYSTEM)[..., 1] < 128
    assert mask.shape == (32, 32)
    assert red.any(0).sum() == 4
    np.testing.assert_array_equal(mask, red)


def test_a_turned_picture_turns_its_mask(tmp_path):
    image = stripe((128, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "mask.png", exif=exif)
    upright = saved(tmp_path / "picture.png", Image.new("RGB", (64, 128)))
    assert edits.mask_of(tmp_path / "mask.png", upright, SYSTEM).any(1).sum() == 4


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda: stripe((64, 64)), r"--mask: .*mask.png is 64×64 pixels and .*picture.png is 128×64: give a mask"),
        (lambda: stripe((64, 128)), "is 64×128 pixels"),
        (lambda: Image.new("L", (128, 64)), "has no white pixel in the square in the middle of .*picture.png"),
        (lambda: Image.new("RGBA", (128, 64), (255, 255, 255, 0)), "has no white pixel"),
    ],
)
def test_a_mask_that_would_be_shifted_or_draws_nothing_is_refused(picture, tmp_path, mask, message):
    with pytest.raises(UserError, match=message) as caught:
        edits.mask_of(saved(tmp_path / "mask.png", mask()), picture, SYSTEM)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vary", "interpolate", "edit"])
def test_an_edit_without_a_prior_refuses_to_be_given_one(name):
    given = {"vary": {"vary": Path("a")}, "interpolate": {"interpolate": (Path("a"), Path("b"))}}
    given["edit"] = {"edit": Path("a"), "from_": "a", "to": "b"}
    with pytest.raises(UserError, match=f"--prior: --{name} starts from pictures"):
        edits.chosen(sample.Options(prior="ar_prior", **given[name]))
    assert edits.chosen(sample.Options(**given[name])) == name


CONTENTS = {
    "UTF-8": "a red star\n\nzwölf\r\n".encode(),
    "a mark": b"\xef\xbb\xbf" + "a red star\r\nzwölf".encode(),
    "UTF-16": "a red star\r\nzwölf\r\n".encode("utf-16"),
    "UTF-16, the other way": b"\xfe\xff" + "a red star\nzwölf".encode("utf-16-be"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_prompts_are_the_lines_of_a_file_in_any_unicode(tmp_path, kind):
    (tmp_path / "prompts.txt").write_bytes(CONTENTS[kind])
    assert sample.read_prompts(sample.Options(prompts=tmp_path / "prompts.txt")) == ["a red star", "zwölf"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf\r\n", "is empty"),
        (b"a\n\xff\xff\n", "line 2 is not UTF-8"),
        (b"\xff\xfea", "like UTF-16"),
        ("\ufeffa red star".encode("utf-32-le"), "like UTF-16 and is not"),
        ("a red star".encode("utf-16-le"), "holds NUL characters"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        sample.read_prompts(sample.Options(prompts=tmp_path / "prompts.txt"))


def test_a_file_is_another_picture_by_what_it_says_or_shows(tmp_path):
    path, text, image = tmp_path / "a.png", {"prompt": "x" * 10**6, "seed": "0"}, np.zeros((4, 4, 3), np.uint8)
    assert not holds_other(path, text)
    save_png(path, image, text)
    assert len(path.read_bytes()) < 20_000
    assert not holds_other(path, text)
    assert not holds_other(path, text, image)
    assert holds_other(path, text, image + 1)
    assert holds_other(path, text | {"seed": "1"})
    path.write_text("not a picture")
    assert holds_other(path, text)
