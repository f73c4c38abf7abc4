import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import CLIP, UserError
from clip_jax.compat import FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection


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
        ({"attention_mask": jnp.ones((4, 24))}, "attention_mask is not supported"),
        ({"position_ids": jnp.ones((4, 24))}, "position_ids is not supported"),
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
