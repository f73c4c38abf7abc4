import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import CLIP, UserError
from clip_jax.compat import (
    FlaxCLIPModel,
    FlaxCLIPTextModel,
    FlaxCLIPTextModelWithProjection,
    FlaxCLIPVisionModel,
    FlaxCLIPVisionModelWithProjection,
)

pytestmark = pytest.mark.slow  # each test compiles models of its own


@pytest.fixture(scope="module")
def model(tiny, tiny_variables):
    return FlaxCLIPTextModel(tiny, tiny_variables["params"])


@pytest.fixture(scope="module")
def tokens(tokenizer, captions):
    return tokenizer(captions)


def test_it_is_the_text_tower(model, tiny, tiny_variables, tokens):
    out = jax.jit(lambda ids, params: model(ids, params=params, output_hidden_states=True))(tokens, model.params)
    text = CLIP(tiny).apply(tiny_variables, tokens, method="encode_text")
    np.testing.assert_allclose(out.last_hidden_state, text.encodings, atol=1e-5)
    end = tokens.argmax(-1)
    np.testing.assert_allclose(out.pooler_output, text.encodings[np.arange(len(tokens)), end], atol=1e-5)
    assert len(out.hidden_states) == tiny.text.layers + 1
    projected = FlaxCLIPTextModelWithProjection(tiny, tiny_variables["params"])(tokens)
    np.testing.assert_allclose(projected.text_embeds, text.embed, atol=1e-5)
    assert projected.hidden_states is None


def test_results_are_found_by_name_key_and_place(model, tokens):
    out = model(tokens)
    assert out[0] is out.last_hidden_state is out["last_hidden_state"]
    assert out[1] is out["pooler_output"]
    assert len(out.to_tuple()) == 2
    assert isinstance(model(tokens, return_dict=False), tuple)


def test_a_directory_and_its_subfolder(model, tiny, tiny_variables, tokenizer, tokens, tmp_path):
    clip_jax.save(tmp_path / "text_encoder", tiny, tiny_variables, tokenizer)
    loaded = FlaxCLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder", dtype=jnp.bfloat16, from_pt=True)
    out = loaded(tokens, params=loaded.params, train=False)
    assert out.last_hidden_state.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out.last_hidden_state), model(tokens).last_hidden_state, atol=0.1)


def test_what_it_cannot_do_is_refused(tiny, tiny_variables, model, tokens):
    for options, words in [
        ({"position_ids": jnp.full((4, 24), 24)}, "position_ids"),
        ({"output_attentions": True}, "output_attentions is not supported"),
    ]:
        with pytest.raises(UserError, match=words):
            model(tokens, **options)
    with pytest.raises(UserError, match="no parameters of its own"):
        FlaxCLIPTextModel(tiny)(tokens)
    with pytest.raises(UserError, match="no text tower"):
        FlaxCLIPTextModel(dataclasses.replace(tiny, text=None))
    alone = dataclasses.replace(tiny, vision=None, embed_dim=None)
    params = {"text": {k: v for k, v in tiny_variables["params"]["text"].items() if k != "text_projection"}}
    with pytest.raises(UserError, match="no projection"):
        FlaxCLIPTextModelWithProjection(alone, params)(tokens)


SMALL = clip_jax.CLIPConfig(
    embed_dim=12,
    vision=clip_jax.ViTConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2),
    text=clip_jax.TextConfig(vocab_size=40, context_length=6, width=16, layers=2, heads=2),
)
IDS = np.array([[38, 3, 4, 39, 0, 0], [38, 5, 39, 0, 0, 0]])


@pytest.fixture(scope="module")
def small():
    return jax.jit(lambda key: clip_jax.init(SMALL, key))(jax.random.key(0))["params"]


@pytest.mark.parametrize("scanned", [False, True])
def test_parameters_are_in_transformers_layout_and_ours_are_taken_too(small, scanned):
    config, params = SMALL, small
    if scanned:
        text, vision = (dataclasses.replace(tower, scan_layers=True) for tower in (SMALL.text, SMALL.vision))
        config = dataclasses.replace(SMALL, text=text, vision=vision)
        params = jax.jit(lambda key: clip_jax.init(config, key))(jax.random.key(0))["params"]
    model = FlaxCLIPModel(config, params)
    layer = model.params["text_model"]["encoder"]["layers"]["1"]
    assert layer["self_attn"]["q_proj"]["kernel"].shape == (16, 16)
    assert model.params["visual_projection"]["kernel"].shape == (16, 12)
    pixels = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    run = jax.jit(lambda params: model(IDS, pixels, params=params))
    theirs, ours = run(model.params), run(params)
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    assert theirs.logits_per_image.shape == (3, 2)
    again = FlaxCLIPModel(config, model.params).params
    jax.tree.map(np.testing.assert_array_equal, again, model.params)


def test_a_mask_hides_and_positions_place(small):
    model = FlaxCLIPTextModel(SMALL, small)
    model_of = jax.jit(lambda options: model(IDS, **options))
    plain = model_of({})
    order = np.arange(6)[None]
    for options in ({"attention_mask": np.ones_like(IDS)}, {"position_ids": order}):
        np.testing.assert_allclose(model_of(options).last_hidden_state, plain.last_hidden_state, atol=1e-6)
    end = np.array([4, 3])
    hidden = model_of({"attention_mask": (order < end[:, None]).astype(np.int32)})
    np.testing.assert_allclose(hidden.pooler_output, plain.pooler_output, atol=1e-6)
    assert not np.allclose(hidden.last_hidden_state, plain.last_hidden_state)
    assert not np.allclose(model_of({"position_ids": order[:, ::-1]}).pooler_output, plain.pooler_output)


def test_models_are_made_from_configs_of_transformers(small, tmp_path):
    first = FlaxCLIPTextModel(SMALL, small)
    config = first.config
    assert (config.hidden_size, config.max_position_embeddings, config.vocab_size) == (16, 6, 40)
    drawn = FlaxCLIPTextModel(config, seed=1, dtype="bfloat16")
    assert jax.tree.map(jnp.shape, drawn.params) == jax.tree.map(jnp.shape, first.params)
    assert FlaxCLIPTextModel(config, _do_init=False).params is None
    assert drawn(IDS).last_hidden_state.dtype == jnp.bfloat16
    halves = drawn.to_bf16(drawn.params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(halves)} == {"bfloat16"}
    first.save_pretrained(tmp_path)
    loaded, params = FlaxCLIPTextModel.from_pretrained(tmp_path, _do_init=False)
    assert loaded.params is None
    np.testing.assert_allclose(loaded(IDS, params=params)[0], first(IDS)[0], atol=1e-6)
    with pytest.raises(UserError, match="output_loading_info"):
        FlaxCLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)


@pytest.mark.parity
def test_transformers_agrees_on_both_towers(small, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = FlaxCLIPModel(SMALL, small)
    model.save_pretrained(tmp_path)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    pixels = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    with jax.default_matmul_precision("highest"), torch.no_grad():
        expected = theirs(torch.tensor(IDS), torch.tensor(pixels), attention_mask=torch.tensor(mask))
        states = theirs.vision_model(torch.tensor(pixels))
        found = model(IDS, pixels, mask)
        vision = FlaxCLIPVisionModel(SMALL, small)(pixels)
        projected = FlaxCLIPVisionModelWithProjection(SMALL, small)(pixels, output_hidden_states=True)
    for name in ("logits_per_image", "text_embeds", "image_embeds"):
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=1e-4)
    np.testing.assert_allclose(vision.last_hidden_state, states.last_hidden_state.numpy(), atol=1e-4)
    np.testing.assert_allclose(vision.pooler_output, states.pooler_output.numpy(), atol=1e-4)
    norm = np.linalg.norm(projected.image_embeds, axis=-1, keepdims=True)
    np.testing.assert_allclose(projected.image_embeds / norm, expected.image_embeds.numpy(), atol=1e-4)
    assert len(projected.hidden_states) == 3


def from_torch(state, layers):
    """Hugging Face's names and orientation -> ours, written out."""

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def dense(*names):
        kernel = np.concatenate([state[f"{name}.weight"].T for name in names], axis=1)
        return {"kernel": kernel, "bias": np.concatenate([state[f"{name}.bias"] for name in names])}

    blocks = {}
    for i in range(layers):
        at = f"encoder.layers.{i}."
        attention = dense(*(f"{at}self_attn.{x}_proj" for x in "qkv"))
        blocks[f"resblocks_{i}"] = {
            "ln_1": norm(f"{at}layer_norm1"),
            "attn": {"in_proj": attention, "out_proj": dense(f"{at}self_attn.out_proj")},
            "ln_2": norm(f"{at}layer_norm2"),
            "mlp": {"c_fc": dense(f"{at}mlp.fc1"), "c_proj": dense(f"{at}mlp.fc2")},
        }
    return {
        "token_embedding": {"embedding": state["embeddings.token_embedding.weight"]},
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "transformer": blocks,
        "ln_final": norm("final_layer_norm"),
    }


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_agrees(activation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            **sizes, num_attention_heads=4, max_position_embeddings=12, hidden_act=activation,
            bos_token_id=97, eos_token_id=98, pad_token_id=98,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    state = {k.removeprefix("text_model."): v.numpy() for k, v in theirs.state_dict().items()}
    config = clip_jax.CLIPConfig(
        embed_dim=None,
        vision=None,
        text=clip_jax.TextConfig(
            width=32, layers=3, heads=4, mlp_width=64, vocab_size=99, context_length=12, activation=activation,
            eos_id=98, pad_id=98,
        ),
    )  # fmt: skip
    tokens = np.array([[97, 4, 5, 98] + [98] * 8, [97, *range(1, 11), 98]])
    with jax.default_matmul_precision("highest"), torch.no_grad():
        ours = FlaxCLIPTextModel(config, {"text": from_torch(state, 3)})(tokens, output_hidden_states=True)
        expected = theirs(torch.tensor(tokens), output_hidden_states=True)
    np.testing.assert_allclose(ours.last_hidden_state, expected.last_hidden_state.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.pooler_output, expected.pooler_output.numpy(), atol=1e-4)
    for a, b in zip(ours.hidden_states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-4)
