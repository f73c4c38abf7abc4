"""The words of the world, and what may be in which split."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from shapes_world import (
    ALL_COMBINATIONS,
    COLOUR_RGB,
    COLOURS,
    HELD_OUT_PAIRS,
    POSITIONS,
    SHAPES,
    SIZES,
    SPLIT_SIZES,
    TEMPLATES,
    Labels,
    caption,
    combinations,
    example,
    is_held_out,
    scene,
)
from shapes_world.world import BACKGROUND_RANGE


def pair(labels: Labels) -> tuple[str, str]:
    return SHAPES[labels.shape], COLOURS[labels.colour]


def test_192_combinations_fall_into_seen_and_held_out():
    assert len(ALL_COMBINATIONS) == len(set(ALL_COMBINATIONS)) == 192
    assert len(combinations("train")) == 160
    assert combinations("train") == combinations("test")
    assert len(combinations("heldout")) == 32
    assert set(combinations("train")) | set(combinations("heldout")) == set(ALL_COMBINATIONS)


def test_one_pair_is_held_out_per_shape_and_no_colour_twice():
    shapes, colours = zip(*HELD_OUT_PAIRS, strict=True)
    assert sorted(shapes) == sorted(SHAPES)
    assert len(set(colours)) == len(colours)
    assert all(is_held_out(labels) for labels in combinations("heldout"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_held_out_pairs_never_occur_in_training_splits(split):
    drawn = {example(split, index, resolution=16).labels for index in range(500)}
    assert not {pair(labels) for labels in drawn} & HELD_OUT_PAIRS
    assert drawn <= set(combinations(split))
    assert len({pair(labels) for labels in drawn}) == 20


def test_heldout_split_draws_held_out_pairs_only():
    drawn = {example("heldout", index, resolution=16).labels for index in range(300)}
    assert drawn == set(combinations("heldout"))


def test_every_single_value_is_seen_in_training():
    values = [set(column) for column in zip(*combinations("train"), strict=True)]
    assert values == [set(range(len(names))) for names in (SIZES, COLOURS, SHAPES, POSITIONS)]


def test_captions_name_all_four_attributes_and_tell_all_combinations_apart():
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 6
    assert TEMPLATES[0] == "a {size} {colour} {shape} in the {position}"
    for template in range(len(TEMPLATES)):
        texts = [caption(labels, template) for labels in ALL_COMBINATIONS]
        assert len(set(texts)) == len(ALL_COMBINATIONS)
        for labels, text in zip(ALL_COMBINATIONS, texts, strict=True):
            assert text == text.lower()
            words = text.replace(",", "").replace(":", "").split()
            assert labels.words["position"] in text
            assert {labels.words["size"], labels.words["colour"], labels.words["shape"]} <= set(words)
            named = [name for name in (*SIZES, *COLOURS, *SHAPES) if name in words]
            assert len(named) == 3, text
            assert "a orange" not in text


def test_captions_differ_in_word_order_and_length():
    fields = ("{size}", "{colour}", "{shape}", "{position}")
    orders = {tuple(sorted(fields, key=template.index)) for template in TEMPLATES}
    assert len(orders) >= 5
    assert len({len(template.split()) for template in TEMPLATES}) >= 5


def test_examples_use_every_template():
    used = set()
    for index in range(100):
        _, text, labels = example("train", index, resolution=16)
        used.add([caption(labels, template) for template in range(len(TEMPLATES))].index(text))
    assert used == set(range(len(TEMPLATES)))


def test_no_background_is_near_a_palette_colour():
    greys = np.arange(256)[:, None].repeat(3, axis=1)
    for rgb in COLOUR_RGB.values():
        assert np.linalg.norm(greys - np.array(rgb), axis=-1).min() > 90
    assert 0 < BACKGROUND_RANGE[0] < BACKGROUND_RANGE[1] < 255


def test_palette_colours_are_further_apart_than_the_checker_tolerates():
    for one, other in itertools.combinations(COLOUR_RGB.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 80


def test_example_is_a_pure_function_of_its_arguments():
    first = example("train", 7, seed=3)
    example("train", 8, seed=3)
    again = example("train", 7, seed=3)
    assert again.caption == first.caption
    assert again.labels == first.labels
    np.testing.assert_array_equal(again.image, first.image)


def test_split_index_and_seed_all_matter():
    images = [
        example(split, index, seed=seed).image.tobytes()
        for split, index, seed in itertools.product(("train", "test"), (0, 1), (0, 1))
    ]
    assert len(set(images)) == len(images)


def test_example_is_the_same_in_another_process():
    code = (
        "import hashlib; from shapes_world import example;"
        "e = [example(s, i, seed=5) for s in ('train', 'test', 'heldout') for i in range(8)];"
        "print(hashlib.sha256(b''.join(x.image.tobytes() + x.caption.encode() for x in e)).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (0, 1)
    ]
    assert runs[0] == runs[1]


def test_jitter_does_not_depend_on_the_labels():
    # Two objects drawn with equal generators stray alike: what is drawn does not shift the draws after it.
    one, other = (np.random.default_rng(0), np.random.default_rng(0))
    circle, star = scene(Labels(0, 0, 0, 0), one), scene(Labels(1, 3, 3, 0), other)
    assert circle.background == star.background
    assert circle.centre == star.centre
    assert one.random() == other.random()


@pytest.mark.parametrize("bad", [("valid", 0, 0), ("train", -1, 0), ("train", 0, -1)])
def test_bad_arguments_are_refused(bad):
    split, index, seed = bad
    with pytest.raises(ValueError, match=r"no split 'valid'.*train, test, heldout|non-negative"):
        example(split, index, seed=seed)


def test_split_sizes():
    assert SPLIT_SIZES == {"train": 20_000, "test": 2_000, "heldout": 1_000}
