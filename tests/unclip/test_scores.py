import numpy as np
import pytest

import shapes_world
from shapes_world import Labels
from unclip_jax.evaluation import scores
from unclip_jax.evaluation.judging import agreement, diversity
from unclip_jax.evaluation.scores import nearest, paired_difference, proportion, wilson

RESOLUTION = 32
LABELS = np.array([Labels(0, 0, 0, 0), Labels(1, 2, 1, 3), Labels(1, 5, 3, 1)])


def renders(samples, seed=0):
    """Real pictures uint8 [K, samples, R, R, 3] of ``LABELS``."""
    rng = np.random.default_rng(seed)
    pictures = [[shapes_world.render(Labels(*row), rng, RESOLUTION) for _ in range(samples)] for row in LABELS.tolist()]
    return np.array(pictures)


def hits(*counts):
    """bool [sum(counts)]: that many True, then that many False, and so on."""
    return np.repeat(np.arange(len(counts)) % 2 == 0, counts)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (500, 500, 0.9924, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_known_values(count, n, low, high):
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 500])
def test_wilson_holds_the_proportion_and_mirrors(n):
    for count in range(0, n + 1, max(1, n // 20)):
        low, high = wilson(count, n)
        assert 0 <= low <= count / n <= high <= 1
        assert high - low > 0
        assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_narrows_with_more_questions():
    widths = [np.subtract(*wilson(n // 4, n)) for n in (4, 40, 400, 4000)]
    assert widths == sorted(widths)
    assert -widths[-1] == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 4000), rel=1e-2)


def test_proportion_is_plain_json():
    assert proportion(hits(3, 1)) == {"value": 0.75, "low": wilson(3, 4)[0], "high": wilson(3, 4)[1], "n": 4}
    assert {type(value) for value in proportion(hits(3, 1)).values()} == {float, int}


def test_paired_difference():
    first, second = hits(60, 40), hits(30, 70)
    gain = paired_difference(first, second)
    assert gain["value"] == pytest.approx(0.3)
    assert 0 < gain["low"] < 0.3 < gain["high"]
    loss = paired_difference(second, first)
    assert (loss["value"], loss["low"], loss["high"]) == pytest.approx((-0.3, -gain["high"], -gain["low"]))


def test_paired_difference_knows_that_the_questions_are_the_same():
    """Two that fail on the same questions differ less uncertainly than two that fail on others, at equal rates."""
    same = paired_difference(hits(50, 50), hits(50, 50))
    others = paired_difference(hits(50, 50), ~hits(50, 50))
    assert same["value"] == others["value"] == 0
    assert 0 < same["high"] - same["low"] < 0.2 * (others["high"] - others["low"])


def test_agreement():
    found = LABELS.copy()
    found[0, 2] = 3
    found[1] = -1
    scores = agreement(found, LABELS)
    assert scores["exact_match"]["value"] == pytest.approx(1 / 3)
    right = {name: cell["value"] * cell["n"] for name, cell in scores["attributes"].items()}
    assert right == pytest.approx({"size": 2, "colour": 2, "shape": 1, "position": 2})
    assert scores["rolled"] == 0


def test_rolled_is_the_mean_over_all_rolls():
    found, wanted = (np.random.default_rng(seed).integers(0, 2, (12, 4)) for seed in (0, 1))
    rolls = [(found == np.roll(wanted, k, axis=0)).all(1).mean() for k in range(1, 12)]
    assert agreement(found, wanted)["rolled"] == pytest.approx(np.mean(rolls))


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_rolled_captions_agree_at_chance(split):
    labels = np.array([shapes_world.example(split, i, resolution=16).labels for i in range(500)])
    assert agreement(labels, labels)["rolled"] == pytest.approx(1 / len(shapes_world.combinations(split)), rel=0.05)


def test_real_pictures_are_as_diverse_as_real_ones():
    scores = diversity(renders(24, seed=1), renders(24, seed=2), LABELS)
    assert scores["ratio"] == pytest.approx(1, abs=0.25)
    assert all(scores[name]["ratio"] == pytest.approx(1, abs=0.4) for name in ("position", "size", "background"))
    assert scores["right"] == scores["drawn"] == 24 * len(LABELS)


def test_deviations_are_those_of_the_renderer():
    real = diversity(renders(24), renders(24), LABELS)
    assert real["position"]["real"] == pytest.approx(0.04 / np.sqrt(3), rel=0.15)
    assert real["background"]["real"] == pytest.approx(125 / np.sqrt(12), rel=0.2)


def test_a_prototype_has_no_diversity():
    collapsed = np.repeat(renders(1), 8, axis=1)
    assert diversity(collapsed, renders(8), LABELS)["ratio"] == pytest.approx(0, abs=1e-4)


def test_mistakes_are_not_diversity():
    pictures = renders(6)
    mistaken = pictures.copy()
    mistaken[:, 4:] = pictures[[1, 2, 0], 4:]
    scores = diversity(mistaken, renders(6), LABELS)
    assert scores["right"] == 4 * len(LABELS)
    assert scores["position"]["generated"] == diversity(pictures[:, :4], renders(6), LABELS)["position"]["generated"]


def test_nothing_right_leaves_diversity_unknown():
    scores = diversity(np.full((3, 4, RESOLUTION, RESOLUTION, 3), 120, np.uint8), renders(4), LABELS)
    assert scores["ratio"] is None
    assert scores["size"]["ratio"] is None
    assert scores["size"]["generated"] is None
    assert scores["right"] == 0


def test_nearest_is_the_smallest_distance(monkeypatch):
    monkeypatch.setattr(scores, "NEAREST_CHUNK", 2)
    rng = np.random.default_rng(0)
    images, references = (rng.integers(0, 256, (n, 16, 16, 3), np.uint8) for n in (3, 5))
    differences = images[:, None].astype(float) - references
    expected = np.sqrt((differences**2).mean((2, 3, 4))).min(1)
    np.testing.assert_allclose(nearest(images, references), expected, rtol=1e-4)
    np.testing.assert_allclose(nearest(references, references), 0, atol=0.1)
