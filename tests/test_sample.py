"""The commands of `sample.py`, in this process, on the tiny presets with random weights, which draw noise."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

import shapes_world
from image_text.errors import UserError
from tests.support.tiny import tiny_run
from unclip_jax.commands import main, metadata, originals
from unclip_jax.commands.draw import Draw
from unclip_jax.commands.vary import Vary
from unclip_jax.pictures import holds_other, read_text, save_png

ROOT = Path(__file__).resolve().parents[1]
untrained_run = tiny_run  # a fixture: a run directory with random weights
PROMPTS = "a small red circle in the top left", "a large blue star in the bottom right"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Run a command in this process, in an empty directory: `command("a red star", "--num", 2)`."""
    jax.devices()  # now, so that the XLA flags that the command sets come too late for this process
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample.py"])

    def run(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main.main([*map(str, argv)])
        return Ended(end.value.code, *capsys.readouterr())

    return run


def in_a_process(*argv):
    argv = [sys.executable, "sample.py", *map(str, argv)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_refused(ended, words):
    """One line on stderr that says `words`, exit code 2."""
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("sample: ")
    assert words in ended.err


def listing(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Two pictures, one larger than the system's and not square, and a mask whose right half is white."""
    directory = tmp_path_factory.mktemp("photos")
    Image.effect_noise((32, 32), 60).convert("RGB").save(directory / "a.png")
    Image.effect_noise((90, 70), 60).convert("RGB").save(directory / "b.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    mask.save(directory / "mask.png")
    Image.new("L", (32, 32)).save(directory / "black.png")
    return directory


# What the commands say of themselves


def test_the_list_of_commands(command):
    ended = command("--help")
    assert (ended.code, ended.err) == (0, "")
    assert all(f"\n  {name} " in ended.out for name in main.COMMANDS)
    assert all(word in ended.out for word in ("sample.py edit picture.png --from", "--debug", "is short for"))


@pytest.mark.parametrize(
    ("name", "flags", "others"),
    [
        ("draw", ["--prompts FILE", "--prior NAME", "one_step_prior", "--sampler"], ["--eta", "--strength", "--mask"]),
        ("vary", ["IMAGE", "--eta"], ["--prior", "--sampler", "--strength", "--mask"]),
        ("interpolate", ["FIRST", "SECOND"], ["--prior", "--sampler", "--eta"]),
        ("edit", ["IMAGE", "--from TEXT", "--to TEXT", "--strength"], ["--prior", "--sampler", "--eta"]),
        ("inpaint", ["IMAGE", "PROMPT", "--mask IMAGE", "--prior"], ["--sampler", "--strength", "--eta"]),
        ("redraw", ["IMAGE", "PROMPT", "--strength", "--sampler", "--prior"], ["--mask", "--eta"]),
    ],
)
def test_a_command_has_the_options_that_it_uses(command, name, flags, others):
    ended = command(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    common = ("--run", "--weights", "--num", "--seed", "--steps", "--guidance-scale", "--out", "--chunk")
    assert all(flag in ended.out for flag in (*flags, *common))
    assert not [flag for flag in others if flag in ended.out]


def test_every_way_in_is_the_same(capsys, monkeypatch):
    for way in ("sample.py", "unclip_jax/__main__.py"):
        monkeypatch.setattr(sys, "argv", [way, "--help"])
        monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / way), run_name="__main__")
        assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count("usage: sample.py COMMAND") == shown.count("usage: python -m unclip_jax COMMAND") == 1


# Bad input: one line, exit 2, nothing written


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a star", "--eta", 0.5], "--eta: it belongs to vary, not to draw; `sample.py vary --help` tells more"),
        (["draw", "a star", "--strength", 0.5], "--strength: it belongs to edit and redraw, not to draw"),
        (["a star", "--mask", "a.png"], "--mask: it belongs to inpaint, not to draw"),
        (["vary", "a.png", "--sampler", "ddpm"], "--sampler: it belongs to draw and redraw, not to vary"),
        (["interpolate", "a.png", "b.png", "--eta", 1], "--eta: it belongs to vary, not to interpolate"),
        (["edit", "a.png", "--from", "a", "--to", "b", "--prior", "x"], "--prior: it belongs to draw and inpaint and"),
        (["inpaint", "a.png", "a star", "--strength", 1], "--strength: it belongs to edit and redraw, not to inpaint"),
        (["redraw", "a.png", "a star", "--mask", "a.png"], "--mask: it belongs to inpaint, not to redraw"),
        (["remake", "a.png", "--seed", 1], "--seed: it belongs to draw and vary"),
    ],
)
def test_an_option_of_another_command_is_refused(command, tmp_path, argv, words):
    assert_refused(command(*argv), words)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--vary", "a.png"], "--vary: it is a command now: sample.py vary IMAGE"),
        (["a star", "--redraw=a.png"], "--redraw: it is a command now: sample.py redraw IMAGE PROMPT"),
        (["--edit", "a.png", "--from", "a"], "--edit: it is a command now: sample.py edit IMAGE --from TEXT --to TEXT"),
        (["--num", 2, "vary", "a.png"], "vary: a command comes first; to draw this word, write sample.py draw vary"),
        (["a star", "--sed", 1], "--sed: there is no such flag; perhaps you meant --seed"),
        (["a star", "--guidance-scal", 2], "perhaps you meant --guidance-scale"),
        ([], "prompt: none was given"),
        (["a star", "--num", -1], "--num: -1 is less than 1"),
        (["a star", "--num", 0], "--num: 0 is less than 1"),
        (["a star", "--chunk", 0], "--chunk: 0 is less than 1"),
        (["a star", "--steps", 0], "--steps: 0 is less than 1"),
        (["a star", "--seed", -1], "--seed: -1 is not between 0 and 4294967295"),
        (["a star", "--seed", 2**32], "--seed: 4294967296 is not between"),
        (["a star", "--seed", 2**64], "is not between"),
        (["a star", "--guidance-scale", "nan"], "--guidance-scale: nan is not between"),
        (["a star", "--run", "nowhere"], "nowhere is not a directory"),
        (["a star", "--run", "unfinished"], "unfinished"),
        (
            ["a star", "--run", "unfinished", "--weights", "x"],
            "--weights: pictures are drawn from published weights or",
        ),
        (["--prompts", "missing.txt"], "missing.txt: No such file"),
        (["--prompts", "empty.txt"], "empty.txt is empty"),
        (["--prompts", "latin1.txt"], "latin1.txt: line 2 is not UTF-8"),
        (["redraw", "a.png"], "PROMPT: missing"),
        (["inpaint", "a.png", "a star"], "--mask: missing"),
        (["edit", "a.png", "--from", "a star"], "--to: missing"),
        (["vary"], "IMAGE: missing"),
        (["vary", "a.png", "b.png"], "b.png: it follows no flag that takes it"),
        (["redraw", "a.png", "a star", "--strength", 2], "--strength: 2.0 is not more than 0 and at most 1"),
        (["edit", "a.png", "--from", "a", "--to", "b", "--strength", 0], "--strength: 0.0 is not more than 0"),
        (["vary", "a.png", "--eta", 2], "--eta: 2.0 is not between 0 and 1"),
        (["vary", "a.png", "--steps", 0], "--steps: 0 is less than 1"),
        (["remake", "empty.txt", "--out", "."], "--out: . holds empty.txt itself; name another directory"),
        (["remake", "empty.txt"], "cannot read the metadata from empty.txt"),
    ],
)
def test_bad_input(command, tmp_path, argv, words):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "latin1.txt").write_bytes("a red star\nein grüner Kreis\n".encode("latin-1"))
    before = listing(tmp_path)
    assert_refused(command(*argv), words)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a star", "--sampler", "plms"], "sampling.sampler is 'plms'; choose one of"),
        (["a star", "--steps", 9999], "sampling.num_steps is 9999; give 1 to 1000"),
        (["a star", "--out", "file"], "file: File exists"),
        (["a star", "--prior", "other"], "other holds no trained stage"),
        (["vary", "missing.png"], "missing.png"),
        (["inpaint", "a.png", "a star", "--mask", "black.png"], "has no white pixel"),
    ],
)
def test_bad_input_found_later(command, tmp_path, untrained_run, photos, argv, words):
    (tmp_path / "file").write_text("")
    before = listing(tmp_path)
    argv = [photos / arg if str(arg).endswith(".png") else arg for arg in argv]
    assert_refused(command(*argv, "--run", untrained_run), words)
    assert listing(tmp_path) == before


# Pictures from prompts


def test_pictures_from_prompts(untrained_run, tmp_path):
    ended = in_a_process(*PROMPTS, "--run", untrained_run, "--num", 2, "--out", tmp_path / "pictures")
    assert ended.code == 0, ended.err
    assert str(tmp_path / "pictures" / "sheet.png") in ended.out
    assert listing(tmp_path / "pictures") == [
        "000-a-small-red-circle-in-the-top-left-00.png",
        "000-a-small-red-circle-in-the-top-left-01.png",
        "001-a-large-blue-star-in-the-bottom-right-00.png",
        "001-a-large-blue-star-in-the-bottom-right-01.png",
        "sheet.png",
    ]
    picture = Image.open(tmp_path / "pictures" / "000-a-small-red-circle-in-the-top-left-01.png")
    assert (picture.mode, picture.size) == ("RGB", (32, 32))


@pytest.mark.slow
def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(command, untrained_run, tmp_path):
    """The same bytes alone, in another order, from a file, and at another place in a longer batch."""
    red, blue = PROMPTS
    (tmp_path / "prompts.txt").write_text(f"{blue}\n\n  {red}\n", encoding="utf-8")
    ways = {
        "alone": [red, "--num", 2],
        "between": ["draw", "edit", red, blue, "--num", 3],  # "edit" is a prompt here
        "file": ["--prompts", "prompts.txt", "--num", 2],
    }
    found = {}
    for way, argv in ways.items():
        ended = command(*argv, "--run", untrained_run, "--seed", 7, "--out", way)
        assert ended.code == 0, ended.err
        found[way] = [sorted(Path(way).glob(f"*small-red*-{i:02d}.png"))[0].read_bytes() for i in range(2)]
    assert found["alone"] == found["between"] == found["file"]
    assert found["alone"][0] != found["alone"][1]

    assert command(red, "--num", 2, "--run", untrained_run, "--seed", 8, "--out", "reseeded").code == 0
    assert sorted(Path("reseeded").glob("*-00.png"))[0].read_bytes() != found["alone"][0]


@pytest.mark.slow
def test_odd_prompts_stay_in_the_directory(command, untrained_run, tmp_path):
    prompts = ["../../x", "/etc/passwd", "a\nb", "", " ", ".", "日本語 🙂", "x" * 5000]
    ended = command(*prompts, "--num", 1, "--run", untrained_run, "--out", "pictures")
    assert ended.code == 0, ended.err
    assert len(listing(tmp_path / "pictures")) == len(prompts) + 1
    assert listing(tmp_path) == ["pictures", *(f"pictures/{name}" for name in listing(tmp_path / "pictures"))]


@pytest.mark.slow
@pytest.mark.parametrize(("split", "every", "least"), [("train", 8, 0.9), ("heldout", 2, 0.65)])
def test_the_shipped_weights_draw_what_is_asked_for(tmp_path, split, every, least):
    """Notices weights gone bad; `unclip_jax.evaluation.shapes` measures, see benchmarks/results."""
    asked = shapes_world.combinations(split)[::every]
    ended = in_a_process(*map(shapes_world.caption, asked), "--num", 1, "--out", tmp_path)
    assert ended.code == 0, ended.err
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("0*.png"))])
    assert shapes_world.exact_match(shapes_world.check(pictures), list(asked)).sum() >= least * len(asked)


@pytest.mark.slow
def test_the_shipped_weights_find_a_picture_again(tmp_path):
    """Inverted to its noise and drawn from it: peak signal to noise of at least 35 dB on pictures of the test split."""
    pictures = [shapes_world.example("test", i).image for i in range(4)]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        ended = in_a_process("vary", tmp_path / f"{i}.png", "--eta", 0, "--num", 1, "--out", tmp_path / f"out{i}")
        assert ended.code == 0, ended.err
    again = np.stack([np.asarray(Image.open(next((tmp_path / f"out{i}").glob("000-*.png")))) for i in range(4)])
    error = np.square(again.astype(np.float64) - np.stack(pictures)).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(255**2 / error)
    print(psnr)
    assert np.median(psnr) >= 35


# Every command, and its pictures made again


COMMANDS = {
    "draw": [PROMPTS[1], "--sampler", "ddim", "--guidance-scale", 2.5],
    "vary": ["a.png", "--eta", 0.3],
    "interpolate": ["a.png", "b.png"],
    "edit": ["b.png", "--from", "a red star", "--to", "a blue star"],
    "inpaint": ["a.png", "a red star", "--mask", "mask.png"],
    "redraw": ["b.png", "a red star", "--strength", 0.5],
}


@pytest.mark.slow  # each compiles programs for ten seconds or more
@pytest.mark.parametrize("name", COMMANDS)
def test_a_picture_is_made_again_from_its_metadata(command, untrained_run, photos, name):
    """Every command writes its pictures; the second of them, byte for byte, is what `remake` makes of its PNG."""
    argv = [photos / a if str(a).endswith(".png") else a for a in COMMANDS[name]]
    argv = [name, *argv, "--run", untrained_run, "--num", 2, "--steps", 3, "--seed", 5]
    ended = command(*argv, "--out", "out")
    assert ended.code == 0, ended.err
    files = sorted(Path("out").glob("000-*.png"))
    assert len(files) == 2
    assert all(file.name.startswith("000-" if name == "draw" else f"000-{name}-") for file in files)
    first, second = (np.asarray(Image.open(file)) for file in files)
    assert first.shape == (32, 32, 3)
    assert not np.array_equal(first, second)
    if name == "inpaint":
        np.testing.assert_array_equal(first[:, :16], np.asarray(Image.open(photos / "a.png"))[:, :16])
    originals_shown = {"draw": 0, "interpolate": 2, "inpaint": 2}.get(name, 1)
    assert Image.open("out/sheet.png").width >= (2 + originals_shown) * 2 * 32

    ended = command("remake", files[1], "--run", untrained_run, "--originals", photos, "--out", "again")
    assert (ended.code, ended.err) == (0, "")
    assert "byte for byte" in ended.out
    (again,) = Path("again").glob("0*.png")
    assert again.read_bytes() == files[1].read_bytes()


ASKED = {
    "draw": {"prompt": ("a red star",), "prior": "ar_prior", "sampler": "ddim", "steps": 7, "guidance_scale": 2.5},
    "vary": {"image": "a.png", "eta": 0.3},
    "interpolate": {"first": "a.png", "second": "b.png"},
    "edit": {"image": "a.png", "from_": "-x", "to": "", "strength": 0.1},
    "inpaint": {"image": "b.png", "mask": "mask.png", "prompt": "zwölf\nSterne"},
    "redraw": {"image": "b.png", "prompt": "a", "strength": 1 / 3, "steps": 3, "sampler": "heun"},
}


@pytest.mark.parametrize("name", ASKED)
def test_options_are_read_back_from_metadata(name, photos):
    kind = main.DRAWING[name].options
    fields = {key: photos / value if str(value).endswith(".png") else value for key, value in ASKED[name].items()}
    options = kind(**fields, seed=2**32 - 1, chunk=2, num=9, run=Path("somewhere"), out=Path("there"))
    values = {"num": 9} | ({"prompt": "a red star"} if name == "draw" else {})
    text = metadata.describe(name, options, "0" * 64, values) | {"index": "4"}
    assert all(isinstance(value, str) for value in text.values())
    assert not [value for value in text.values() if "/" in value]  # no path of this machine
    again = metadata.read_options(kind, text, photos, run=Path("somewhere"), out=Path("there"))
    assert again == options
    without = {key: value for key, value in text.items() if key != "num"}
    assert metadata.read_options(kind, without, photos).num == 5


def test_a_picture_that_cannot_be_made_again_says_why(command, untrained_run, photos, tmp_path):
    vary = Vary(image=photos / "a.png", run=untrained_run)
    digest = metadata.weights_digest([untrained_run], None)
    text = metadata.describe("vary", vary, digest, {}) | {"index": "0"}
    picture = np.zeros((8, 8, 3), np.uint8)
    for changed, words in (
        ({"command": "paint"}, "a.png: it does not say which command drew it"),
        ({"image_digest": "0" * 64}, "it is not the image of that picture"),
        ({"weights_digest": "0" * 64}, "it was drawn with other weights than these"),
        ({"eta": "half"}, "its metadata has 'half' as eta"),
        ({"index": "-1"}, "its metadata has '-1' as index"),
        ({"image": "../gone.png"}, "gone.png"),
    ):
        save_png(tmp_path / "a.png", picture, text | changed)
        ended = command("remake", tmp_path / "a.png", "--run", untrained_run, "--originals", photos, "--out", "again")
        assert_refused(ended, words)
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_picture_names_what_it_depends_on(command, untrained_run):
    assert command(PROMPTS[0], "--num", 1, "--run", untrained_run, "--out", "out").code == 0
    text = read_text(next(Path("out").glob("0*.png")))
    assert text.keys() == {
        *("command", "prompt", "prior", "seed", "index", "steps", "sampler", "guidance_scale", "chunk"),
        *("weights_digest", "version"),
    }
    assert (text["command"], text["prompt"], text["index"], text["chunk"]) == ("draw", PROMPTS[0], "0", "1")


def test_the_digest_is_of_the_weights(untrained_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(untrained_run, run)
    before = metadata.weights_digest([run], "prior")
    assert before == metadata.weights_digest([untrained_run], "prior")
    assert len({before, metadata.weights_digest([run], "ar_prior"), metadata.weights_digest([run], None)}) == 3
    with monkeypatch.context() as patch:  # those that config.json holds are taken
        patch.setattr("clip_jax.weights.digest.file_digest", lambda path: pytest.fail(f"{path} is read"))
        assert metadata.weights_digest([run], "prior") == before
    for file in run.glob("*/config.json"):  # as older versions wrote it
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if "digest" not in k}))
    assert metadata.weights_digest([run], "prior") == before
    weights = run / "upsampler_0" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert metadata.weights_digest([run], "prior") != before


@pytest.mark.slow
def test_another_picture_is_not_overwritten(command, untrained_run):
    argv = [PROMPTS[0], "--num", 1, "--run", untrained_run, "--out", "out"]
    assert command(*argv).code == 0
    (file,) = Path("out").glob("0*.png")
    before = file.read_bytes()
    assert command(*argv).code == 0
    assert_refused(command(*argv, "--steps", 3), "there is another picture already, which is not overwritten")
    assert file.read_bytes() == before
    # A newer version that draws the same may write it again.
    save_png(file, np.asarray(Image.open(file)), read_text(file) | {"version": "0.0.1"})
    assert command(*argv).code == 0
    assert file.read_bytes() == before


# Masks and prompts


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
    mask = originals.mask_of(saved(tmp_path / "mask.png", MASKS[kind]()), picture, 32)
    red = originals.picture(picture, 32)[..., 1] < 128
    assert mask.shape == (32, 32)
    assert red.any(0).sum() == 4
    np.testing.assert_array_equal(mask, red)


def test_a_turned_picture_turns_its_mask(tmp_path):
    image = stripe((128, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "mask.png", exif=exif)
    upright = saved(tmp_path / "picture.png", Image.new("RGB", (64, 128)))
    assert originals.mask_of(tmp_path / "mask.png", upright, 32).any(1).sum() == 4


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
        originals.mask_of(saved(tmp_path / "mask.png", mask()), picture, 32)
    assert "\n" not in str(caught.value)


CONTENTS = {
    "UTF-8": "a red star\n\nzwölf\r\n".encode(),
    "a mark": b"\xef\xbb\xbf" + "a red star\r\nzwölf".encode(),
    "UTF-16": "a red star\r\nzwölf\r\n".encode("utf-16"),
    "UTF-16, the other way": b"\xfe\xff" + "a red star\nzwölf".encode("utf-16-be"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_prompts_are_the_lines_of_a_file_in_any_unicode(tmp_path, kind):
    (tmp_path / "prompts.txt").write_bytes(CONTENTS[kind])
    assert Draw(prompts=tmp_path / "prompts.txt").all_prompts == ["a red star", "zwölf"]


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
        Draw(prompts=tmp_path / "prompts.txt").check()


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
