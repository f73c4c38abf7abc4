"""What people hand to the functions of clip_jax: the right result, or one line that names the argument."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import BPETokenizer, UserError
from clip_jax.images import Preprocess
from clip_jax.tokenizer import SigLIPTokenizer
from clip_jax.uses.embed import text_features
from clip_jax.uses.probe import Probe
from clip_jax.uses.retrieval import both_directions, nearest, recall
from clip_jax.uses.zero_shot import accuracy, classifier_weights, prompts, top_k

GEMMA = {
    "added_tokens": [{"id": i, "content": c, "special": True} for i, c in enumerate(("<pad>", "<eos>", "<unk>"))],
    "model": {
        "type": "BPE",
        "unk_token": "<unk>",
        "vocab": {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *"aeos<> "])},
        "merges": [],
    },
}
for token in GEMMA["added_tokens"]:
    token |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.fixture(scope="module")
def clip(tiny, tiny_variables, tokenizer):
    preprocess = Preprocess(tiny.preprocess, tiny.vision.image_size)
    return clip_jax.LoadedCLIP(clip_jax.CLIP(tiny), tiny_variables, tokenizer, preprocess)


def test_any_iterable_of_texts_is_tokenised(tokenizer):
    texts = ["a small star", "in the top left"]
    expected = tokenizer(texts)
    for given in (tuple(texts), (t for t in texts), map(str, texts), np.array(texts), dict.fromkeys(texts).keys()):
        np.testing.assert_array_equal(tokenizer(given), expected)
    np.testing.assert_array_equal(tokenizer(np.str_(texts[0])), expected[:1])
    assert tokenizer([]).shape == tokenizer(iter(())).shape == (0, 24)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "NoneType"), (3, "int"), (b"a", "bytes"), ([["a"]], "list"), (["a", float("nan")], "float"),
        (["a", None], "NoneType: None at place 1"), ({"a", "b"}, "set"), (np.array("a"), "ndarray"), ([b"a"], "bytes"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(tokenizer, given, words):
    with pytest.raises(UserError, match=words):
        tokenizer(given)


@pytest.mark.parametrize("length", [0, -1, 10**9, True])
def test_a_context_length_is_a_sensible_integer(tokenizer, length):
    with pytest.raises(UserError, match="context_length"):
        tokenizer("a", context_length=length)
    with pytest.raises(UserError, match="context_length"):
        BPETokenizer([], context_length=length)


def test_ids_beyond_the_vocabulary_are_not_decoded(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"an id {wrong}"):
            tokenizer.decode([tokenizer.sot_id, wrong])


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_of_a_siglip_tokenizer_keep_special_tokens_as_text(way):
    tokenizer = SigLIPTokenizer(GEMMA, context_length=16)
    row = tokenizer("a<eos>a")
    assert (row == tokenizer.eot_id).sum() == 1
    np.testing.assert_array_equal(way(tokenizer)("a<eos>a"), row)


def test_writing_a_tokenizer_leaves_it_as_it_is(tokenizer):
    before = tokenizer._library.to_str()
    tokenizer.to_json()
    assert tokenizer._library.to_str() == before


def test_one_str_is_one_text(clip, tiny):
    assert text_features(clip, "a star").shape == (1, tiny.embed_dim)
    assert text_features(clip, []).shape == text_features(clip, iter(())).shape == (0, tiny.embed_dim)
    for given in (("a star", ["{}"]), (["star"], "a {}"), ([None], ["{}"]), ([3], ["{}"]), ([["a", 3]], ["{}"])):
        with pytest.raises(UserError, match=r"classes|templates"):
            prompts(*given)
    with pytest.raises(UserError, match="classes is one str"):
        classifier_weights(lambda texts: np.eye(len(texts)), "star")
    assert prompts(np.array(["a", "b"]), ["{}"]) == prompts((c for c in "ab"), ["{}"]) == [["a"], ["b"]]


def test_what_is_no_array_is_told_in_one_line(clip, tiny):
    encode = jax.tree_util.Partial(clip.model.apply, clip.variables)
    for given in (clip.tokenize("a star").tolist(), "a star", None):
        with pytest.raises(UserError, match=r"tokens: got .*, not an array: give numpy\.asarray"):
            encode(given, method="encode_text")
        with pytest.raises(UserError, match=r"images: got .*, not an array: give numpy\.asarray"):
            encode(given, method="encode_image")
    with pytest.raises(UserError, match="classes: got NoneType"):
        prompts(None, ["{}"])
    with pytest.raises(UserError, match=r"batch_size: 1\.5 is not an integer"):
        text_features(clip, ["a"], batch_size=1.5)


def test_features_that_are_not_numbers_are_told():
    eye = np.eye(3, dtype=np.float32)
    for given, words in (
        ([[1.0, 2.0], [3.0]], "not of one length"),
        (eye.astype(complex), "complex128"),
        (np.full((1, 3), 1e300), "not finite"),
    ):
        with pytest.raises(UserError, match=f"queries: .*{words}"):
            nearest(given, eye, 1)
    for labels in ([0, 1, 3], [0, -1, 2]):
        with pytest.raises(UserError, match="none of the 3 classes"):
            accuracy(eye, eye, labels)


def test_wrong_images_are_told_in_one_line(clip, tiny):
    size = tiny.vision.image_size
    encode = jax.tree_util.Partial(clip.model.apply, clip.variables, method="encode_image")
    for shape, dtype, words in (
        ((1, size, size, 3), np.uint8, "uint8.*preprocess"),
        ((1, size, size, 3), np.int32, "int32.*normalise"),
        ((size, size, 3), np.float32, r"images\[None\]"),
        ((1, 3, size, size), np.float32, "transpose"),
        ((1, size, size, 1), np.float32, "1 channels"),
        ((1, size + 1, size, 3), np.float32, "the model takes"),
    ):
        with pytest.raises(UserError, match=words):
            encode(np.zeros(shape, dtype))


def test_wrong_tokens_are_told_in_one_line(clip, tiny):
    encode = jax.tree_util.Partial(clip.model.apply, clip.variables, method="encode_text")
    good = clip.tokenize("a star")
    for tokens, words in (
        (good[0], r"tokens\[None\]"),
        (good.astype(np.float32), "float32"),
        (good > 0, "bool"),
        (np.where(good == good.max(), tiny.text.vocab_size, good), f"an id {tiny.text.vocab_size}"),
        (jnp.asarray(good) - 1, "an id -1"),
        (good[:, :0], "shape"),
    ):
        with pytest.raises(UserError, match=words):
            encode(tokens)
    small = np.minimum(good, 120)
    expected = encode(small).embed
    for dtype in (np.int8, np.uint16, np.int64):
        np.testing.assert_array_equal(encode(small.astype(dtype)).embed, expected)


def test_a_batch_of_nothing_has_features_of_the_right_shape(clip, tiny):
    size = tiny.vision.image_size
    shapes = jax.eval_shape(
        lambda v: clip.model.apply(v, np.zeros((0, size, size, 3), np.float32), np.zeros((0, 24), np.int32)),
        clip.variables,
    )
    assert shapes.image_features.shape == shapes.text_features.shape == (0, tiny.embed_dim)


NOT_FINITE = np.eye(4, dtype=np.float32)
NOT_FINITE[2, 1] = np.nan


def test_a_feature_of_nan_is_never_a_hit():
    one, eye = np.eye(4, dtype=np.float32)[:1], np.eye(4, dtype=np.float32)
    probe = Probe(jnp.eye(4), jnp.zeros(4))
    for name, call in (
        ("candidates", lambda: nearest(one, NOT_FINITE, 4)),
        ("queries", lambda: nearest(NOT_FINITE, one, 4)),
        ("candidates", lambda: recall(one, NOT_FINITE, [2], (1,))),
        ("image_features", lambda: both_directions(NOT_FINITE, one, [0])),
        ("image_features", lambda: accuracy(NOT_FINITE, eye, np.arange(4), (1,))),
        ("weights", lambda: top_k(one, NOT_FINITE)),
        ("features", lambda: probe.accuracy(NOT_FINITE, np.arange(4))),
        ("candidates", lambda: nearest(one, jnp.asarray(NOT_FINITE, jnp.bfloat16), 4)),
    ):
        with pytest.raises(UserError, match=f"{name}: 1 of 4 rows are not finite, the first is row 2"):
            call()


def test_numbers_of_best_ones_and_labels_are_checked():
    eye = np.eye(3, dtype=np.float32)
    for k in (0, -1, True):
        with pytest.raises(UserError, match="k is"):
            nearest(eye, eye, k)
        with pytest.raises(UserError, match="k"):
            top_k(eye, eye, k)
    for call in (
        lambda: accuracy(eye, eye, [0, 1]),
        lambda: accuracy(eye, eye, [0.0, 1.0, 2.0]),
        lambda: accuracy(eye, eye, [0, 1, 2], ()),
        lambda: recall(eye, eye, [0, 1, 3]),
        lambda: both_directions(eye, eye, [0, 1, 3]),
        lambda: nearest(eye[0], eye),
    ):
        with pytest.raises(UserError):
            call()
    assert nearest([[1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], 5).indices.tolist() == [[1, 0]]


def test_tokens_that_a_program_closes_over_are_known(clip):
    """They are constants of the program, not its arguments."""
    tokens = jnp.asarray(clip.tokenize(["a small star"]))

    def embed():
        return clip.model.apply(clip.variables, tokens, method="encode_text").embed

    np.testing.assert_allclose(jax.jit(embed)(), embed(), rtol=1e-4, atol=1e-5)
