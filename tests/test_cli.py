"""Both commands, on the tiny presets, which draw noise.

Most of it happens in this process, where `runpy` runs the scripts themselves. Training, marked slow, has its processes.
"""

import gzip
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from image_text import fashion_mnist
from image_text.shapes import prepare
from tests.support.captions import write_captions
from tests.support.idx import idx, write_idx
from tests.support.tiny import tiny_run
from train_recipes.presets import PRESETS
from unclip_jax import pipeline

ROOT = Path(__file__).resolve().parents[1]
untrained_run = tiny_run  # a fixture: a run directory with random weights
PROMPTS = "a small red circle in the top left", "a large blue star in the bottom right"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def arguments(script, *argv):
    """What starts a script from the root of the repository, as a reader of the README does."""
    return [sys.executable, script, *map(str, argv)]


def run(script, *argv):
    done = subprocess.run(arguments(script, *argv), cwd=ROOT, capture_output=True, text=True)
    return Ended(done.returncode, done.stdout, done.stderr)


def listing(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def weights(run_directory):
    files = sorted(run_directory.glob("*/weights.safetensors"))
    return {path.parent.name: path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The training data of the tiny presets, rendered."""
    directory = tmp_path_factory.mktemp("data")
    tiny = PRESETS["tiny"].options.data
    prepare(directory, resolution=tiny.resolution, split_sizes={"train": tiny.train_examples})
    return directory


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, data):
    """A run directory of `train.py tiny`."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    done = run("train.py", "tiny", "--run", directory, "--data.directory", data)
    assert done.code == 0, done.err
    return directory


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Run a script in this process, in an empty directory: `command("sample.py", "a red star", "--num", 2)`."""
    jax.devices()  # now, so that the XLA flags that the scripts set for themselves come too late for this process
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    monkeypatch.chdir(tmp_path)

    def run(script, *argv):
        monkeypatch.setattr(sys, "argv", [script, *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return Ended(end.value.code, *capsys.readouterr())

    return run


def assert_refused(ended, script, words):
    """One line on stderr that says `words`, exit code 2."""
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert ended.err.startswith(script.removesuffix(".py") + ": ")
    assert words in ended.err


# What the commands say of themselves


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train.py", "--help"], ["usage: train.py PRESET", "shapes-decoder", "tiny", "goes on where it was"]),
        (["train.py", "--help"], ["mini-fashion", "resnet50-bert", "Fashion-MNIST", "captions of your own"]),
        (
            ["train.py", "mini-fashion", "--help"],
            ["--data.files", "--data.directory", "5625", "--optim.lr", "idx files"],
        ),
        (["train.py", "resnet50-bert", "--help"], ["--data.source", "--vocab", "--text-weights", "--image-weights"]),
        (["train.py", "tiny", "--help"], ["--clip.optim.lr", "--run", "--data.directory", "tiny-decoder"]),
        (["train.py", "--help"], ["--debug", "shapes-ar-prior", "shapes-one-step-prior", "beside its own"]),
    ],
)
def test_help(command, argv, words):
    ended = command(*argv)
    assert (ended.code, ended.err) == (0, "")
    assert all(word in ended.out for word in words)
    assert ended.out.count("\n") < (300 if "tiny" in argv else 90)  # a preset lists the fields of all its stages


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["train.py", "tiny", "--clip.optim.rl", "1"], "--clip.optim.lr"),
        (["train.py", "shapes-decoder", "--num-stesp", "1"], "--num-steps"),
    ],
)
def test_a_mistyped_flag_is_told_what_was_meant(command, argv, meant):
    ended = command(*argv)
    assert ended.code == 2
    assert meant in ended.err
    assert "Traceback" not in ended.err


# Bad input: one line, exit 2, nothing written


BERT = ["train.py", "tiny-resnet-bert", "--data.source", "pictures/captions.csv", "--vocab", "pictures/vocab.txt"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train.py", "tinny"], "tinny: there is no such preset; perhaps you meant tiny"),
        (["train.py", "imagenet"], "there are shapes, "),
        (["train.py", "--clip.num-steps", 3], "the preset comes first"),
        (["train.py", "tiny", "--clip.num-steps", 0], "clip.num_steps: 0 is less than 1"),
        (["train.py", "tiny-clip", "--batch-size", -8], "batch_size: -8 is less than 1"),
        (["train.py", "tiny", "--data.resolution", 64], "data.resolution: 64 is not 32, the size of this CLIP's"),
        (["train.py", "tiny-clip", "--data.resolution", 16], "data.resolution: 16 is not 32"),
        (["train.py", "tiny", "--run", "empty.txt"], "empty.txt is a file; name a directory"),
        (["train.py", "tiny", "--data.directory", "empty.txt"], "empty.txt is a file; name a directory"),
        (["train.py", "small-64"], "data.source: none was given; name a table, a folder or tfds:NAME:SPLIT"),
        (["train.py", "small-64", "--data.source", "flat"], "clip: none was given, and there is none in"),
        (
            ["train.py", "dalle2-upsampler_1", "--data.source", "flat", "--clip", "x", "--factor", 1],
            "factor: 1 is less",
        ),
        (["train.py", "tiny-distill", "--teacher", "unfinished"], "unfinished has no decoder or upsampler of the name"),
        (["train.py", "shapes-distill", "--model", "prior"], "no decoder or upsampler of the name 'prior'"),
        (["train.py", "shapes-distill", "--rounds", 8, 3], "rounds: 3 is not half of 8"),
        (["train.py", "shapes-distill", "--drop-text", 2], "drop_text: 2.0 is not between 0 and 1"),
        (["train.py", "tiny-prior", "--run", "nowhere"], "first run train.py tiny-clip --run nowhere"),
        (
            ["train.py", "mini-fashion", "--data.files", "nowhere"],
            "nowhere is not a directory; name the one with the four",
        ),
        (
            ["train.py", "mini-fashion", "--data.files", "unfinished"],
            "train-images-idx3-ubyte.gz: there is no such file",
        ),
        (["train.py", "tiny-ar-prior", "--run", "nowhere"], "first run train.py tiny-clip --run nowhere"),
        (["train.py", "mini-fashion", "--data.files", "cut"], "train-images-idx3-ubyte.gz is truncated"),
        (["train.py", "mini-fashion"], "fashion_mnist is not in data and cannot be downloaded"),
        (["train.py", "mini-fashion", "--data.directory", "empty.txt"], "empty.txt is a file; name a directory"),
        (["train.py", "mini-fashion", "--model", "tiny"], "model: tiny does not take grey pictures of 28 × 28"),
        (["train.py", "mini-fashion", "--model", "huge"], "there is no model 'huge'"),
        (["train.py", "mini-fashion", "--log-every", 0], "log_every: 0 is less than 1"),
        (["train.py", "resnet50-bert"], "data.source: none was given; name a table, a folder or tfds:NAME:SPLIT"),
        ([*BERT[:4]], "vocab: none was given; name BERT's vocab.txt"),
        ([*BERT, "--optim.ema-decay", 0.9], "averaged weights do not fit the running statistics of batch norms"),
        ([*BERT, "--data.source", "nowhere.csv"], "nowhere.csv: there is no such file or folder"),
        ([*BERT, "--data.source", "gone.csv"], "gone.csv: line 2 names gone.png, which is not there"),
        ([*BERT, "--data.source", "flat"], "flat has neither captions nor classes"),
        ([*BERT, "--data.source", "tfds:nothing:train", "--data.directory", "cut"], "nothing is not prepared in cut"),
        ([*BERT, "--vocab", "nowhere.txt"], "nowhere.txt is not BERT's vocab.txt"),
        ([*BERT, "--vocab", "few.txt"], "few.txt: this WordPiece vocabulary has no [CLS], [SEP], [PAD], [UNK]"),
        ([*BERT, "--model", "tiny"], "model: tiny is no CLIP with a BERT; use resnet50_bert_base"),
        ([*BERT, "--context-length", 1], "context_length: 1 is not between 2 and 32"),
        ([*BERT, "--batch-size", 16], "batch_size: 16 is more than the 9 examples there are"),
        ([*BERT, "--text-weights", "nowhere.bin"], "cannot read weights from nowhere.bin"),
    ],
)
def test_bad_input(command, tmp_path, monkeypatch, argv, words):
    monkeypatch.setattr(fashion_mnist, "URL", "http://nowhere.invalid/")
    write_captions(tmp_path / "pictures")
    write_idx(tmp_path / "cut")
    with gzip.open(tmp_path / "cut" / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(idx(np.zeros((24, 28, 28), np.uint8))[:-1])
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "a.png")
    (tmp_path / "gone.csv").write_text("image,caption\ngone.png,what was here\n")
    (tmp_path / "few.txt").write_text("some\nwords\n")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "latin1.txt").write_bytes("a red star\nein grüner Kreis\n".encode("latin-1"))
    before = listing(tmp_path)
    assert_refused(command(*argv), argv[0], words)
    assert listing(tmp_path) == before


# The README


def test_the_readme_is_true(monkeypatch, untrained_run, tmp_path):
    """Its Python runs as it stands, with the untrained weights in place of the shipped ones."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setattr(pipeline, "SHIPPED", untrained_run)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(untrained_run / "clip", "path/to/clip-vit-base-patch32")
    for name in ("cat.jpg", "dog.png"):
        Image.effect_noise((40, 30), 50).save(name)
    found = [{} for _ in blocks]
    for block, names in zip(blocks, found, strict=True):
        exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) == 2
    with Image.open("stars.png") as picture:
        assert picture.width == 4 * picture.height
    np.testing.assert_allclose(found[1]["probabilities"].sum(-1), [1, 1], rtol=1e-5)


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, untrained_run):
    """Its code, cell after cell, with the untrained weights in place of the shipped ones."""
    cells = json.loads((ROOT / "notebooks" / "shapes.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = []
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    monkeypatch.setattr(pipeline, "SHIPPED", untrained_run)
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            assert not cell["outputs"]  # they are large, and soon not what the code gives
    assert len(shown) == 5
    assert all(isinstance(picture, Image.Image) for picture in shown)


# Training


@pytest.mark.slow
def test_a_run_directory_explains_itself(trained_run):
    for stage in ("clip", "prior", "decoder", "upsampler_0"):
        assert {"config.json", "weights.safetensors"} <= {path.name for path in (trained_run / stage).iterdir()}
    for stage in ("clip", "prior", "decoder", "upsampler"):
        files = {path.name for path in (trained_run / "train" / stage).iterdir()}
        assert {"checkpoints", "config.json", "metrics.jsonl", "tensorboard"} <= files
    assert Image.open(trained_run / "samples.png").width > 100


@pytest.mark.slow
def test_one_stage_is_trained_and_then_finished(command, data, tmp_path):
    """In this process and with few steps: the fast tests' share of the slow ones around it."""
    argv = ["tiny-clip", "--run", tmp_path / "run", "--data.directory", data, "--num-steps", 2]
    ended = command("train.py", *argv)
    assert ended.code == 0, ended.err
    before = weights(tmp_path / "run")
    assert set(before) == {"clip"}
    again = command("train.py", *argv)
    assert again.code == 0, again.err
    assert "finished at step 2 already" in again.err
    assert weights(tmp_path / "run") == before


@pytest.mark.slow
def test_a_run_directory_can_be_sampled(trained_run, tmp_path):
    ended = run("sample.py", PROMPTS[0], "--run", trained_run, "--out", tmp_path / "pictures")
    assert ended.code == 0, ended.err
    assert len(listing(tmp_path / "pictures")) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ar-prior", "one-step-prior"])
def test_another_prior_beside_the_first(trained_run, data, tmp_path, name):
    """It is trained on the run's CLIP, changes nothing that is there, and draws and is measured when it is named."""
    directory, folder = tmp_path / "run", name.replace("-", "_")
    shutil.copytree(trained_run, directory, ignore=shutil.ignore_patterns("train"))
    before = weights(directory)
    ended = run("train.py", f"tiny-{name}", "--run", directory, "--data.directory", data)
    assert ended.code == 0, ended.err
    after = weights(directory)
    assert after.pop(folder)
    assert after == before
    drawn = []
    for prior in ("prior", folder):
        out = tmp_path / f"pictures-{prior}"
        ended = run("sample.py", PROMPTS[0], "--run", directory, "--prior", prior, "--num", 1, "--out", out)
        assert ended.code == 0, ended.err
        drawn.append(next(out.glob("000-*.png")).read_bytes())
    assert drawn[0] != drawn[1]
    argv = ["--run", directory, "--prior", folder, "--num", 2, "--controls", "cosines"]
    ended = run("-m", "unclip_jax.evaluation.shapes", *argv)
    assert ended.code == 0, ended.err
    assert json.loads((directory / "evaluation.json").read_text())["settings"]["prior"] == folder


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(trained_run, data):
    before = weights(trained_run)
    ended = run("train.py", "tiny", "--run", trained_run, "--data.directory", data)
    assert ended.code == 0, ended.err
    assert ended.err.count("finished at step 8 already") == 4
    assert weights(trained_run) == before


@pytest.mark.slow
def test_a_run_is_not_continued_with_another_config(command, trained_run, data):
    before = weights(trained_run)
    argv = ["tiny-upsampler", "--run", trained_run, "--data.directory", data, "--optim.lr", 1]
    assert_refused(command("train.py", *argv), "train.py", "its run has another config (optim.lr 0.001 → 1.0)")
    assert weights(trained_run) == before


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_weights(trained_run, data, tmp_path):
    """SIGKILL at a random moment after each of the four stages has begun, then the same command once more."""
    directory = tmp_path / "run"
    command = arguments("train.py", "tiny", "--run", directory, "--data.directory", data)
    delays = np.random.default_rng().uniform(0, 3, 4).round(2)
    print("killed after", delays, "s")
    for stage, delay in zip(("clip", "prior", "decoder", "upsampler"), delays, strict=True):
        log = directory / "train" / stage / "metrics.jsonl"
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (log.exists() and log.stat().st_size):
                time.sleep(0.01)
            time.sleep(delay)
            process.kill()
        assert process.returncode == -signal.SIGKILL or stage == "upsampler", f"it ended before the end of {stage}"
    ended = run(*command[1:])
    assert ended.code == 0, ended.err
    assert weights(directory) == weights(trained_run)


@pytest.mark.slow
def test_a_system_is_distilled_to_few_steps(trained_run, data, tmp_path):
    """Two rounds of the decoder, continued where they were; the new directory is a whole system that draws in two."""
    argv = ["tiny-distill", "--teacher", trained_run, "--run", tmp_path / "run", "--data.directory", data]
    argv += ["--rounds", 4, 2]
    for _ in range(2):
        ended = run("train.py", *argv)
        assert ended.code == 0, ended.err
    assert ended.err.count("finished at step 4 already") == 2
    teacher, student = pipeline.load(trained_run), pipeline.load(tmp_path / "run")
    sampling = student.unclip.decoder.sampling
    assert (sampling.sampler.name, sampling.num_steps, sampling.guidance_scale) == ("ddim", 2, None)
    same = jax.tree.map(np.array_equal, teacher.params, student.params)
    assert all(jax.tree.leaves([same[name] for name in ("clip", "prior", "upsampler_0")]))
    assert not all(jax.tree.leaves(same["decoder"]))
    argv_sample = ["sample.py", PROMPTS[0], "--run", tmp_path / "run", "--out", tmp_path / "pictures"]
    ended = run(*argv_sample)
    assert ended.code == 0, ended.err
    assert_refused(run(*argv_sample, "--guidance-scale", 3), "sample.py", "this decoder is drawn without guidance")
    ended = run("train.py", *argv[:5], "--data.directory", data, "--model", "upsampler_0", "--rounds", 1)
    assert ended.code == 0, ended.err
    assert pipeline.load(tmp_path / "run").unclip.upsamplers[0].sampling.num_steps == 1


@pytest.mark.slow
def test_a_cascade_of_two_upsamplers(tmp_path):
    """32 → 64 → 128 on the shipped weights: the second upsampler is trained (a little) and drawn through."""
    shutil.copytree(pipeline.SHIPPED, tmp_path / "run")
    argv = ["shapes-upsampler_1", "--run", tmp_path / "run", "--data.directory", tmp_path / "data"]
    argv += ["--data.train-examples", 32, "--num-steps", 4, "--batch-size", 4, "--optim.warmup-steps", 2]
    ended = run("train.py", *argv)
    assert ended.code == 0, ended.err
    sizes = [stage.model.image_size for stage in pipeline.load(tmp_path / "run").unclip.upsamplers]
    assert sizes == [64, 128]
    ended = run("sample.py", PROMPTS[0], "--run", tmp_path / "run", "--num", 1, "--out", tmp_path / "pictures")
    assert ended.code == 0, ended.err
    with Image.open(next((tmp_path / "pictures").glob("000-*.png"))) as picture:
        assert picture.size == (128, 128)


@pytest.mark.slow
def test_unclip_on_captions_of_ones_own(untrained_run, tmp_path):
    """All three stages from a table of pictures, then pictures from the system they make."""
    table, _, captions = write_captions(tmp_path / "pictures")
    argv = ["tiny-captions", "--data.source", table, "--clip", untrained_run / "clip", "--run", tmp_path / "run"]
    for _ in range(2):
        ended = run("train.py", *argv)
        assert ended.code == 0, ended.err
    assert ended.err.count("finished at step 4 already") == 3
    assert (tmp_path / "run" / "samples.png").is_file()
    ended = run("sample.py", captions[0], "--run", tmp_path / "run", "--num", 1, "--out", tmp_path / "drawn")
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_the_seed_programs(tmp_path):
    """Both are trained, go on where they were, measure the same again, and leave a CLIP that can be loaded."""
    import clip_jax

    write_idx(tmp_path / "files")
    write_captions(tmp_path / "pictures")
    fashion = ["mini-fashion", "--data.files", tmp_path / "files", "--data.directory", tmp_path / "data"]
    fashion += ["--num-steps", 4, "--save-every", 2, "--batch-size", 8]
    bert = [tmp_path / word if "/" in word else word for word in BERT[1:]]
    for argv in (fashion, bert):
        ended = run("train.py", *argv, "--run", tmp_path / argv[0])
        assert ended.code == 0, ended.err
        assert "step" in ended.err
        again = run("train.py", *argv, "--run", tmp_path / argv[0])
        assert (again.code, again.out) == (0, ended.out), again.err
        assert "already" in again.err
        clip = clip_jax.load(tmp_path / argv[0] / "clip")
        assert clip.tokenize(["a red square"]).shape == (1, 32)
        changed = run("train.py", *argv, "--run", tmp_path / argv[0], "--optim.lr", 1)
        assert_refused(changed, "train.py", "its run has another config (optim.lr 0.001 → 1.0)")
