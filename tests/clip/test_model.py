import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import clip_jax
from clip_jax import CLIP, CLIPConfig, TextConfig, ViTConfig
from clip_jax.images import normalise
from clip_jax.towers.text import TextTransformer, eot_index
from clip_jax.weights.native import unflatten


@pytest.fixture(scope="module")
def golden(request):
    """OpenAI's own model with random weights: (model, variables, inputs and outputs)."""
    folder = request.config.rootpath / "tests" / "golden"
    data = dict(np.load(folder / "openai_vit_tiny.npz"))
    c = json.loads(str(data["config"]))
    config = CLIPConfig(
        embed_dim=c["embed_dim"],
        vision=ViTConfig(
            image_size=c["image_resolution"],
            patch_size=c["vision_patch_size"],
            width=c["vision_width"],
            layers=c["vision_layers"],
            heads=c["vision_width"] // 64,
        ),
        text=TextConfig(
            vocab_size=c["vocab_size"],
            context_length=c["context_length"],
            width=c["transformer_width"],
            layers=c["transformer_layers"],
            heads=c["transformer_heads"],
        ),
    )
    variables = {"params": from_openai(load_file(folder / "openai_vit_tiny.safetensors"))}
    return CLIP(config), variables, data


def apply(model, *args, **kwargs):
    return jax.jit(model.apply, static_argnames="method")(*args, **kwargs)


def from_openai(state):
    flat = {}
    for name, array in state.items():
        *path, leaf = name.replace("resblocks.", "resblocks_").replace("in_proj_", "in_proj.").split(".")
        if leaf == "weight" and (path[-1].startswith("ln_") or path[-1] == "token_embedding"):
            leaf = "scale" if path[-1].startswith("ln_") else "embedding"
        elif leaf == "weight":
            leaf, array = "kernel", array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        path = path if path[:1] == ["visual"] or leaf == "logit_scale" else ["text", *path]
        flat["/".join([*path, leaf])] = array
    return unflatten(flat)


def test_equals_openais_model(golden):
    model, variables, data = golden
    images = data["images_nchw"].transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        image_embed = apply(model, variables, images, method="encode_image")
        text = apply(model, variables, data["tokens"], method="encode_text")
        out = apply(model, variables, images, data["tokens"])
    np.testing.assert_allclose(image_embed, data["image_embed"], atol=1e-5)
    np.testing.assert_allclose(text.embed, data["text_embed"], atol=1e-5)
    logits = jnp.exp(out.logit_scale) * out.image_features @ out.text_features.T
    np.testing.assert_allclose(logits, data["logits_per_image"], atol=1e-5)


@pytest.mark.slow
def test_half_precision_points_the_same_way(golden):
    model, variables, data = golden
    images = data["images_nchw"].transpose(0, 2, 3, 1)
    exact = apply(model, variables, images, data["tokens"])
    for dtype in (jnp.bfloat16, jnp.float16):
        rough = apply(CLIP(model.config, dtype), variables, images, data["tokens"])
        for a, b in ((exact.image_features, rough.image_features), (exact.text_features, rough.text_features)):
            assert float((a * b).sum(-1).min()) > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_points_the_same_way_at_full_size(dtype):
    """ViT-B/32 as it is drawn at initialisation, on noise and on random ids."""
    config = clip_jax.preset("ViT-B/32")
    variables = jax.jit(lambda key: clip_jax.init(config, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 224, 224, 3)).astype(np.float32)
    tokens = rng.integers(0, 49406, (4, 77))
    tokens[np.arange(4), [76, 40, 12, 5]] = 49407
    exact, rough = (apply(CLIP(config, d), variables, images, tokens) for d in (jnp.float32, dtype))
    for a, b in ((exact.image_features, rough.image_features), (exact.text_features, rough.text_features)):
        assert float((a * b).sum(-1).min()) >= 0.999


def test_features_have_unit_norm(tiny, tiny_variables, images, tokenizer, captions):
    out = apply(CLIP(tiny), tiny_variables, normalise(images, tiny.preprocess), tokenizer(captions))
    for features in (out.image_features, out.text_features):
        np.testing.assert_allclose(jnp.linalg.norm(features, axis=-1), 1, atol=1e-6)
    assert float(jnp.exp(out.logit_scale)) == pytest.approx(1 / 0.07, rel=1e-5)


def test_text_depends_on_nothing_after_its_end(tiny, tiny_variables, tokenizer, captions):
    model, tokens = CLIP(tiny), tokenizer(captions)
    text = apply(model, tiny_variables, tokens, method="encode_text")
    assert text.encodings.shape == (4, 24, tiny.text.width)
    np.testing.assert_array_equal(text.mask.sum(-1), np.argmax(tokens, -1) + 1)

    noisy = np.where(text.mask, tokens, 7)
    np.testing.assert_allclose(
        apply(model, tiny_variables, noisy, method="encode_text").embed, text.embed, rtol=1e-5, atol=1e-6
    )
    shorter = apply(model, tiny_variables, tokens[:, :14], method="encode_text")
    np.testing.assert_allclose(shorter.embed, text.embed, rtol=1e-5, atol=1e-6)


def test_the_text_tower_stands_alone(tiny, tiny_variables, tokenizer, captions):
    tokens = tokenizer(captions)
    alone = TextTransformer(tiny.text, tiny.embed_dim).apply({"params": tiny_variables["params"]["text"]}, tokens)
    together = apply(CLIP(tiny), tiny_variables, tokens, method="encode_text")
    np.testing.assert_allclose(alone.embed, together.embed, atol=1e-5)


def test_end_of_text_is_the_highest_or_the_named_token():
    tokens = jnp.array([[5, 9, 2, 9], [5, 1, 9, 0]])
    assert eot_index(tokens, None).tolist() == eot_index(tokens, 9).tolist() == [1, 2]
    assert eot_index(tokens, 2).tolist() == [2, 0]


def test_keeping_every_patch_in_any_order_is_keeping_all(tiny, tiny_variables, images):
    model, pictures = CLIP(tiny), normalise(images, tiny.preprocess)
    order = np.stack([np.random.default_rng(i).permutation(tiny.vision.grid**2) for i in range(len(images))])
    np.testing.assert_allclose(
        apply(model, tiny_variables, pictures, order, method="encode_image"),
        apply(model, tiny_variables, pictures, method="encode_image"),
        atol=1e-5,
    )
    few = apply(model, tiny_variables, pictures, order[:, :5], method="encode_image")
    hidden = pictures.copy() if isinstance(pictures, np.ndarray) else np.array(pictures)
    p = tiny.vision.patch_size
    for i, row in enumerate(order):
        for patch in row[5:]:
            y, x = divmod(int(patch), tiny.vision.grid)
            hidden[i, y * p : (y + 1) * p, x * p : (x + 1) * p] = 3.0
    np.testing.assert_allclose(
        apply(model, tiny_variables, hidden, order[:, :5], method="encode_image"), few, atol=1e-5
    )


def test_inputs_of_another_size_are_refused(tiny, tiny_variables):
    model = CLIP(tiny)
    with pytest.raises(ValueError, match=r"\(30, 30\).*\(32, 32\)"):
        apply(model, tiny_variables, jnp.zeros((1, 30, 30, 3)), method="encode_image")
    with pytest.raises(ValueError, match="25 long, context_length is 24"):
        apply(model, tiny_variables, jnp.zeros((1, 25), jnp.int32), method="encode_text")
