import json
import math
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import clip_jax
import shapes_world
from clip_jax.towers.text import TextFeatures
from unclip_jax import pipeline
from unclip_jax.evaluation import shapes as module
from unclip_jax.evaluation.judging import clip_scores
from unclip_jax.evaluation.report import table
from unclip_jax.evaluation.shapes import CONTROLS, DIFFERENCES, SECTIONS, Options, evaluate, main, retrieval
from unclip_jax.evaluation.system import System, fitted
from unclip_jax.presets import preset

SPLITS = ("test", "heldout")


def status(argv):
    """Runs the command in this process; its exit status."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    return end.value.code


def read_caption(caption):
    """The labels a caption names, as if they were its tokens."""
    tables = (shapes_world.SIZES, shapes_world.COLOURS, shapes_world.SHAPES, shapes_world.POSITIONS)
    return [next(i for i, word in enumerate(words) if word in caption) for words in tables]


class PerfectSystem(System):
    """Knows the world: an embedding is a real picture, a prior renders what the caption names, a decoder shows it."""

    def __init__(self):
        clip, stages = clip_jax.preset("tiny"), [preset(f"tiny-{name}") for name in ("prior", "decoder", "upsampler")]
        self.unclip = pipeline.UnCLIP(clip, *stages[:2], tuple(stages[2:]))
        self.params = {}
        self.size = clip.vision.image_size
        self.rng = np.random.default_rng(0)

    def tokenize(self, captions):
        return [read_caption(caption) for caption in captions]

    def encode_images(self, images):
        return images.reshape(len(images), -1).astype(np.float32)

    def features(self, images):
        return images.reshape(len(images), -1)[:, ::97].astype(np.float32)

    def encode_text(self, tokens):
        zeros = np.zeros((len(tokens), 3 * self.size**2), np.float32)
        return TextFeatures(zeros, tokens[:, :, None], np.ones(tokens.shape, bool))

    def predict(self, text, keys):
        labels = [shapes_world.Labels(*row) for row in text.encodings[:, :, 0].tolist()]
        return self.encode_images(np.stack([shapes_world.render(row, self.rng, self.size) for row in labels]))

    def draw(self, text, image_embed, keep_text, keys, title):
        return image_embed.reshape(-1, self.size, self.size, 3).astype(np.uint8)


@pytest.fixture(scope="module")
def perfect():
    sections = ",".join(name for name in SECTIONS if name != "clip")
    options = Options(num=60, controls=sections, diversity_captions=4, diversity_samples=20, train_images=50)
    return evaluate(PerfectSystem(), options)


@pytest.mark.parametrize("split", SPLITS)
def test_real_pictures_score_full_marks(perfect, split):
    for control in ("checker", "full", "oracle", "oracle_no_text", "prior_no_text"):
        scores = perfect["results"][control][split]
        assert scores["exact_match"]["value"] == 1
        assert {cell["value"] for cell in scores["attributes"].values()} == {1}
        assert scores["median_iou"] > 0.9
    assert perfect["diversity"]["splits"][split]["ratio"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("split", SPLITS)
def test_controls_take_the_embedding_they_name(perfect, split):
    """Text embeddings are black pictures here, so what is drawn from them shows nothing."""
    scores = perfect["results"]["text_embed_no_text"][split]
    assert scores["exact_match"]["value"] == 0
    assert scores["median_iou"] == 0
    assert perfect["differences"]["prior_minus_text_embed"][split]["value"] == 1
    assert perfect["differences"]["oracle_minus_prior"][split]["value"] == 0
    assert perfect["differences"]["oracle_minus_full"][split]["value"] == 0


@pytest.mark.parametrize("split", SPLITS)
def test_rolled_captions_are_near_chance(perfect, split):
    assert perfect["results"]["full"][split]["rolled"] == pytest.approx(perfect["chance"][split], abs=0.03)
    assert perfect["chance"] == {"test": 1 / 160, "heldout": 1 / 32}


@pytest.mark.parametrize("split", SPLITS)
def test_cosines_of_what_belongs_together_are_higher(perfect, split):
    cosine = perfect["cosines"][split]["cosine"]
    assert cosine["image_unrelated"] < cosine["predicted_image"]
    assert cosine["predicted_unrelated"] < cosine["image_twin"]
    assert cosine["predicted_text"] == cosine["image_text"] == 0


@pytest.mark.parametrize("split", SPLITS)
def test_distances_of_real_pictures_are_at_the_floor(perfect, split):
    """The prior of the perfect system draws real pictures, and the text embedding black ones."""
    distances = perfect["fid"]["splits"][split]
    assert abs(distances["oracle"]) < 1e-4 * distances["floor"]  # they are the reference itself
    assert distances["full"] == pytest.approx(distances["floor"], rel=0.3)
    assert distances["text_embed_no_text"] > 10 * distances["floor"]


def test_clip_score_is_the_cosine_of_picture_and_caption():
    text = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    scores = clip_scores({"real": 3 * text, "full": -text}, text)
    assert scores == {split: pytest.approx({"real": 1.0, "full": -1.0}) for split in SPLITS}


def test_pictures_are_fitted_to_clip():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(fitted(images, 32), images)
    grey = np.full((1, 64, 64, 3), 77, np.uint8)
    np.testing.assert_array_equal(fitted(grey, 16), np.full((1, 16, 16, 3), 77, np.uint8))


def test_a_report_of_some_controls_can_be_read(capsys):
    report = evaluate(PerfectSystem(), Options(num=2, controls="checker"))
    assert list(report["results"]) == ["checker"]
    assert not {"diversity", "cosines", "clip_score", "fid"} & report.keys()
    assert report["differences"] == {}
    assert "checker on real pictures" in table(report)


def test_sections_keep_their_order():
    assert Options(controls="all").sections == SECTIONS
    assert Options(controls="oracle,full").sections == ("full", "oracle")


def finite(value):
    """Whether no number of a JSON value is NaN or infinite."""
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """The command on untrained weights: its report, its file and what it printed."""
    file = tmp_path_factory.mktemp("evaluated") / "new" / "report.json"
    small = {"--num": 3, "--chunk": 4, "--diversity-captions": 1, "--diversity-samples": 2, "--train-images": 4}
    options = [str(word) for pair in ({"--run": tiny_run, "--out": file} | small).items() for word in pair]
    printed, said = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "builtins.print",
            lambda *values, file=None, **_: (said if file else printed).append(" ".join(map(str, values))),
        )
        assert status(options) == 0
    return SimpleNamespace(report=json.loads(file.read_text()), file=file, printed="\n".join(printed), said=said)


@pytest.mark.slow
def test_report_has_everything(evaluated):
    report = evaluated.report
    assert finite(report)
    assert set(report["results"]) == {"checker", "clip", "clip_prior", *CONTROLS}
    assert set(report["differences"]) == set(DIFFERENCES)
    for row in (*report["results"].values(), *report["differences"].values(), report["cosines"]):
        assert tuple(row) == SPLITS
    for split in SPLITS:
        assert report["results"]["checker"][split]["exact_match"] == pytest.approx(
            {"value": 1, "low": 0.438, "high": 1, "n": 3}, abs=1e-3
        )
        assert set(report["results"]["clip"][split]["attributes"]) == {"size", "colour", "shape", "position"}
        assert report["diversity"]["splits"][split].keys() >= {"ratio", "position", "size", "background", "right"}
        assert set(report["clip_score"][split]) == {"real", *CONTROLS}
        assert set(report["fid"]["splits"][split]) == {"floor", *CONTROLS}
        assert report["diversity"]["splits"][split]["nearest_training_image"].keys() == {"generated", "real"}
    assert report["settings"]["candidates"] == 2
    assert report["settings"]["samples_per_caption"] == 1
    assert report["settings"]["sampling"].keys() == {"prior", "decoder", "upsampler_0"}
    assert report["parameters"].keys() == {"clip", "prior", "decoder", "upsampler_0"}
    assert min(report["parameters"].values()) > 1000
    assert report["versions"]["jax"] == jax.__version__
    assert report["seconds"]["total"] > 0


@pytest.mark.slow
def test_report_names_no_directory(evaluated, tiny_run):
    assert evaluated.report["run"] == tiny_run.name
    assert str(tiny_run.parent) not in evaluated.file.read_text()


@pytest.mark.slow
def test_command_says_how_far_it_is(evaluated):
    """On stderr, a line per part where there is no terminal for a progress bar."""
    assert [line.partition(":")[0] for line in evaluated.said][:4] == ["captions", "images", "prior", "full pipeline"]
    assert all(line.split(": ")[1].startswith("6 rows in ") for line in evaluated.said[:4])


@pytest.mark.slow
def test_command_prints_the_report(evaluated):
    assert evaluated.printed.startswith(table(evaluated.report))
    assert evaluated.printed.endswith(f"written to {evaluated.file}")
    for title in evaluated.report["titles"].values():
        assert title in evaluated.printed
    assert [path.name for path in evaluated.file.parent.iterdir()] == ["report.json"]


@pytest.mark.slow
def test_retrieval_of_an_untrained_clip(tiny_system):
    config, params = tiny_system.unclip.clip, tiny_system.params["clip"]
    assert 0 <= retrieval(config, params, tiny_system.tokenize, "heldout", 4) <= 0.5


def test_reading_embeds_finds_each_caption():
    embeds = np.random.default_rng(0).normal(size=(192, 32)).astype(np.float32)
    found = module.read_embeds(embeds * 7, embeds)
    np.testing.assert_array_equal(found, np.array(shapes_world.ALL_COMBINATIONS))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "no-such-run"], "no-such-run is not a directory"),
        (["--num", "1"], "--num: 1 is less than 2"),
        (["--chunk", "0"], "--chunk: 0 is less than 1"),
        (["--seed", "-1"], "--seed: -1 is not between"),
        (["--guidance-scale", "nan"], "--guidance-scale: nan is not between"),
        (["--chunc", "3"], "--chunc: there is no such flag; perhaps you meant --chunk"),
        (["--controls", "full,orcale"], "there is no 'orcale'; choose from all, checker"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, words, capsys):
    assert status(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("evaluate: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(("out", "words"), [(".", "is a directory"), ("file/report.json", "")])
def test_what_cannot_be_written_is_told_before_the_work(out, words, tiny_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "evaluate", lambda *_: pytest.fail("the work was done first"))
    assert status(["--run", str(tiny_run), "--out", str(tmp_path / out)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_sampling_can_be_changed(tiny_run):
    unclip = module.load(Options(run=str(tiny_run), steps=3, guidance_scale=1.5, candidates=1)).unclip
    assert (unclip.decoder.sampling.num_steps, unclip.decoder.sampling.guidance_scale) == (3, 1.5)
    assert unclip.candidates == 1
    assert unclip.prior == pipeline.load(tiny_run).unclip.prior


@pytest.mark.parametrize("name", ["ar_prior", "one_step_prior"])
def test_another_prior_can_be_measured(tiny_run, name):
    """Its report can be written down; what it measures is the same for all priors."""
    options = Options(run=str(tiny_run), prior=name)
    system = System(module.load(options), 4)
    assert system.unclip.prior == pipeline.load_stage(tiny_run / name)[0]
    settings = module.describe(system, options)["settings"]
    assert settings["prior"] == name
    assert ("prior" in settings["sampling"]) == (name == "ar_prior")
    json.dumps(settings)


def test_importing_is_light():
    heavy = "train_jax", "tensorflow_datasets", "grain", "orbax"
    code = f"import unclip_jax.evaluation.shapes, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
