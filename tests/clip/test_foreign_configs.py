"""Foreign configs are followed to the letter, or refused by the name of the file and the field."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import clip_jax
from clip_jax import CLIPConfig, TextConfig, UserError
from clip_jax.weights import huggingface, open_clip
from clip_jax.weights.rules import expected, flat_variables
from tests.support.checkpoints import CONFIG, SIZES, edited, same_weights, state_of
from tests.support.checkpoints import huggingface as written

TEXT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256, "vocab_size": 60,
    "max_position_embeddings": 8, "eos_token_id": 59,
}  # fmt: skip
VISION = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
# What transformers 4.2x wrote into each nested config: none of it changes what the network computes.
VERBOSE = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0,
    "bad_words_ids": None, "begin_suppress_tokens": None, "bos_token_id": 0, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "dropout": 0.0, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "id2label": {"0": "LABEL_0"},
    "initializer_factor": 1.0, "initializer_range": 0.02, "is_decoder": False, "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0}, "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "prefix": None, "problem_type": None, "projection_dim": 512,
    "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True,
    "return_dict_in_generate": False, "sep_token_id": None, "suppress_tokens": None, "task_specific_params": None,
    "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": True,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": None, "torchscript": False,
    "transformers_version": "4.26.0", "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip


def clip(outer=None, text=None, vision=None):
    return {
        "model_type": "clip", "projection_dim": 24, "text_config": {**TEXT, **(text or {})},
        "vision_config": {**VISION, **(vision or {})}, **(outer or {}),
    }  # fmt: skip


def siglip(**text):
    return {"model_type": "siglip", "text_config": {**TEXT, **text}, "vision_config": VISION}


def read(data):
    return huggingface.config_from_json(json.loads(json.dumps(data)), "config.json")


def test_what_changes_nothing_is_taken():
    plain = read(clip())
    assert read(clip(VERBOSE | {"projection_dim": 24}, VERBOSE, VERBOSE)) == plain
    assert plain.embed_dim == 24
    said_by_others = {"output_past": True, "use_return_dict": True, "unsloth_version": "1", "neuron": {}, "tags": []}
    assert read(clip(said_by_others, said_by_others)) == plain
    assert read(clip(vision={"image_size": [VISION["image_size"]] * 2})) == plain


def test_chinese_clip_as_published():
    """The text tower of OFA-Sys' checkpoints keeps fields of the BERT that it was made of."""
    bert = {
        "architectures": ["ChineseCLIPTextModel"], "directionality": "bidi", "model_type": "chinese_clip_text_model",
        "output_past": True, "pooler_type": "first_token_transform", "vocab_size": 21128,
    }  # fmt: skip
    data = {
        "model_type": "chinese_clip",
        "projection_dim": 512,
        "text_config": bert,
        "vision_config": {"patch_size": 16},
    }
    config = read(data)
    assert (config.embed_dim, config.text.vocab_size, config.vision.patch_size) == (512, 21128, 16)


def test_an_older_whole_config_of_a_tower_counts_in_full():
    """transformers fills `text_config_dict` up with its defaults, and puts all of it over `text_config`."""
    text = read(clip({"text_config_dict": {"layer_norm_eps": 1e-3}})).text
    assert (text.width, text.layers, text.ln_eps, text.vocab_size) == (512, 12, 1e-3, 49408)
    assert read(clip({"text_config_dict": {}})).text.width == 512
    assert read(clip({"text_config_dict": None})) == read(clip())
    assert read(clip({"vision_config_dict": {**VISION, "layer_norm_eps": 1e-3}})).vision.ln_eps == 1e-3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (clip({"new_idea": 3}), ["config.json: new_idea is 3", "not known"]),
        (clip(text={"new_idea": 3}), ["text_config", "new_idea is 3", "not known"]),
        (clip(vision={"rope": 2, "qk_norm": True}), ["vision_config", "rope is 2", "qk_norm is True"]),
        (clip(vision={"pruned_heads": {"0": [1]}}), ["vision_config.pruned_heads"]),
        (clip({"quantization_config": {"bits": 4}}), ["quantization_config", "lack"]),
        (clip({"auto_map": {"AutoModel": "x.Y"}}), ["auto_map"]),
        (clip(text={"model_type": "t5"}), ["text_config.model_type is 't5'", "clip_text_model"]),
        (clip(text={"hidden_size": "x"}), ["text_config.hidden_size is 'x'", "integer"]),
        (clip(text={"hidden_size": None}), ["text_config.hidden_size is None", "integer"]),
        (clip(text={"layer_norm_eps": "small"}), ["text_config.layer_norm_eps", "number"]),
        (clip(text={"layer_norm_eps": float("nan")}), ["text_config.layer_norm_eps", "number"]),
        (clip(text={"hidden_act": ["gelu"]}), ["text_config.hidden_act", "quick_gelu"]),
        (clip(text={"eos_token_id": [59]}), ["text_config.eos_token_id", "integer"]),
        (clip(text={"num_hidden_layers": 10**7}), ["config.json", "layers is 10000000", "at most"]),
        (clip(vision={"hidden_size": 0}), ["config.json", "width is 0", "at least 1"]),
        (clip(vision={"image_size": [16, 32]}), ["vision_config.image_size", "square"]),
        (clip(vision={"num_channels": 4}), ["num_channels is 4", "preprocessor_config.json"]),
        (clip({"projection_dim": True}), ["projection_dim is True", "integer"]),
        (clip({"text_config": [1]}), ["text_config is [1]", "object"]),
        (clip({"model_type": ["clip"]}), ["model_type is ['clip']"]),
        (siglip(pooling="mean"), ["text_config", "pooling is 'mean'"]),
        ({"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}, ["vision_use_head is False"]),
        ({"model_type": "siglip_vision_model", **VISION, "vision_use_head": 1}, ["vision_use_head", "true or false"]),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_refused_by_name(data, words):
    with pytest.raises(UserError) as error:
        read(data)
    assert "config.json" in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_a_projection_is_told_from_the_weights(tmp_path):
    """Where `architectures` does not say whether a tower alone has one."""
    for config in (
        CLIPConfig(embed_dim=24, vision=None, text=CONFIG.text),
        CLIPConfig(embed_dim=None, vision=None, text=CONFIG.text),
        CLIPConfig(embed_dim=24, vision=CONFIG.vision, text=None),
    ):
        written(tmp_path, config, outer={"architectures": None})
        loaded = clip_jax.load(tmp_path)
        assert loaded.model.config.embed_dim == config.embed_dim
        same_weights(loaded, config)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(tmp_path, channels):
    vision = clip_jax.ViTConfig(image_size=16, patch_size=8, channels=channels, **SIZES)
    half = (0.5,) * channels
    config = CLIPConfig(
        embed_dim=24, vision=vision, text=CONFIG.text, preprocess=clip_jax.PreprocessConfig(mean=half, std=half)
    )
    written(tmp_path, config)
    preprocess = clip_jax.load(tmp_path).preprocess
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    picture[..., 3] = 255
    found = preprocess(picture if channels == 4 else picture[..., :1])
    np.testing.assert_allclose(found[0], picture[..., :channels] / 127.5 - 1, atol=1e-6)
    if channels == 4:
        with pytest.raises(UserError, match="4 channels"):
            preprocess(picture[..., :3])
    edited(tmp_path, preprocessor={"image_mean": [0.5, 0.5]})
    with pytest.raises(UserError, match=f"image_mean has 2 numbers, the pictures have {channels} channels"):
        clip_jax.load(tmp_path)


MODEL = {
    "embed_dim": 24, "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 2},
    "text_cfg": {"context_length": 8, "vocab_size": 60, "width": 64, "heads": 1, "layers": 2},
}  # fmt: skip


def opened(text=None, vision=None, preprocess=None, **model):
    data = {**MODEL, **model}
    data["text_cfg"] = {**MODEL["text_cfg"], **text} if text else data["text_cfg"]
    data["vision_cfg"] = {**MODEL["vision_cfg"], **vision} if vision else data["vision_cfg"]
    return open_clip.config_from_json({"model_cfg": data, "preprocess_cfg": preprocess or {}}, "open_clip_config.json")


def test_openclips_tokenizer_as_it_is_by_default():
    plain = opened()
    assert opened({"tokenizer_kwargs": {"clean": "lower", "context_length": 8}, "hf_tokenizer_name": ""}) == plain
    assert opened({"tokenizer_kwargs": {}, "dropout": 0.1}, {"patch_dropout": 0.5}) == plain


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, ["tokenizer_kwargs.clean", "canonicalize"]),
        ({"text": {"tokenizer_kwargs": {"strip_sep_token": True}}}, ["tokenizer_kwargs.strip_sep_token"]),
        ({"text": {"tokenizer_kwargs": {"context_length": 16}}}, ["context_length is 16", "8"]),
        ({"text": {"tokenizer_kwargs": {"new": 1}}}, ["tokenizer_kwargs", "new is 1", "not known"]),
        ({"text": {"hf_tokenizer_name": "bert"}}, ["text_cfg.hf_tokenizer_name is 'bert'", "another tokenizer"]),
        ({"text": {"width": "x"}}, ["text_cfg.width is 'x'", "integer"]),
        ({"vision": {"image_size": [16, 32]}}, ["vision_cfg.image_size", "square"]),
        ({"vision": {"layers": "x"}}, ["vision_cfg.layers", "integer"]),
        ({"vision": {"layers": [1, 2]}}, ["layers is (1, 2)", "4 integers"]),
        ({"vision": {"head_width": 0}}, ["vision_cfg.head_width is 0"]),
        ({"vision_cfg": [1]}, ["vision_cfg is [1]", "object"]),
        ({"embed_dim": 2.5}, ["embed_dim is 2.5", "integer"]),
        ({"preprocess": {"mean": 0.5}}, ["preprocess_cfg.mean is 0.5", "list"]),
        ({"preprocess": {"mode": "L"}}, ["preprocess_cfg.mode is 'L'"]),
        ({"preprocess": {"gamma": 2}}, ["preprocess_cfg", "gamma is 2"]),
    ],
)  # fmt: skip
def test_openclips_settings_are_followed_or_refused(options, words):
    with pytest.raises(UserError) as error:
        opened(**options)
    assert all(word in str(error.value) for word in ["open_clip_config.json", *words]), error.value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("vision", [1], ["vision is [1]", "object"]),
        ("vision.type", ["ViTConfig"], ["vision.type"]),
        ("vision.width", "x", ["ViTConfig.width is 'x'"]),
        ("vision.width", 2**40, ["ViTConfig.width", "at most"]),
        ("vision.layers", 10**7, ["ViTConfig.layers", "at most"]),
        ("vision.stem", 3, ["ViTConfig.stem is 3", "list"]),
        ("vision.ln_eps", float("nan"), ["ViTConfig.ln_eps", "finite"]),
        ("vision.scan_layers", "yes", ["ViTConfig.scan_layers", "true or false"]),
        ("vision.image_size", [16, 32], ["ViTConfig.image_size", "square"]),
        ("text.pad_id", "x", ["TextConfig.pad_id is 'x'"]),
        ("text.eos_id", 1.5, ["TextConfig.eos_id is 1.5"]),
        ("preprocess", "x", ["preprocess is 'x'"]),
        ("preprocess.mean", ["a", 0, 0], ["PreprocessConfig.mean"]),
        ("preprocess.std", 1, ["PreprocessConfig.std is 1"]),
        ("preprocess.resize_to", -3, ["PreprocessConfig.resize_to is -3"]),
        ("logit_scale_init", float("inf"), ["logit_scale_init is inf"]),
        ("embed_dim", -1, ["embed_dim is -1"]),
    ],
)
def test_own_configs_with_values_of_no_model(tmp_path, tokenizer, path, value, words):
    data = CONFIG.to_dict()
    node, (*parents, name) = data, path.split(".")
    for parent in parents:
        node = node[parent]
    node[name] = value
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        clip_jax.load(tmp_path)
    assert all(word in str(error.value) for word in [str(tmp_path / "config.json"), *words]), error.value


def encoder(gelu, projected, name="huggingface", seed=0):
    text = TextConfig(vocab_size=60, context_length=8, activation="gelu" if gelu else "quick_gelu", **SIZES)
    config = CLIPConfig(embed_dim=24 if projected else None, vision=None, text=text)
    return config, state_of(name, config, seed)


@pytest.mark.parametrize(
    ("file", "prefix", "gelu", "pad_id"),
    [
        ("clip_l.safetensors", "", False, 59),
        ("clip_g.safetensors", "", True, 0),
        ("x.safetensors", "", False, 59),  # two layers are no H or bigG
        ("sd3.safetensors", "text_encoders.clip_l.transformer.", False, 59),
        ("sd3.safetensors", "text_encoders.clip_g.", True, 0),
        ("flux.safetensors", "model.text_encoders.clip_l.transformer.", False, 59),
    ],
)
def test_encoders_of_newer_diffusion_models(tmp_path, file, prefix, gelu, pad_id):
    config, state = encoder(gelu, projected=True)
    beside = {"text_encoders.t5xxl.transformer.shared.weight": np.zeros((3, 3), np.float32)} if prefix else {}
    save_file({f"{prefix}{name}": array for name, array in state.items()} | beside, tmp_path / file)
    if prefix:
        loaded = clip_jax.load(tmp_path / file, part="text_encoder_2" if gelu else "text_encoder")
    else:
        with pytest.warns(UserWarning, match="GELU"):
            loaded = clip_jax.load(tmp_path / file)
    assert (loaded.model.config.text.activation, loaded.model.config.text.pad_id) == (config.text.activation, pad_id)
    same_weights(loaded, config)


def test_of_a_config_of_two_towers_the_one_in_the_weights_counts(tmp_path):
    config, state = encoder(gelu=False, projected=False)
    save_file(state, tmp_path / "te.safetensors")
    same_weights(clip_jax.load(tmp_path / "te.safetensors", config=CONFIG), config)


def test_a_text_tower_that_no_diffusion_model_has_needs_its_config(tmp_path):
    text = TextConfig(vocab_size=60, context_length=8, width=512, layers=1, heads=8)
    save_file(state_of("huggingface", CLIPConfig(embed_dim=None, vision=None, text=text)), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"width 512 .* config="):
        clip_jax.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, scan_layers=True)),
        dataclasses.replace(
            CONFIG,
            vision=clip_jax.EVA02Config(image_size=16, patch_size=8, width=32, layers=3, heads=2),
            text=clip_jax.BertConfig(vocab_size=60, context_length=8, width=32, layers=3, heads=2),
        ),
        dataclasses.replace(
            CONFIG, vision=clip_jax.ResNetConfig(image_size=32, layers=(1, 2, 1, 1), width=8, heads=2), text=None
        ),
    ],
)
def test_the_shapes_of_all_layers_follow_from_one(config):
    whole = flat_variables(jax.eval_shape(lambda key: clip_jax.init(config, key), jax.random.key(0)))
    found = expected(config)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in whole.items()
    }


def test_a_thousand_layers_take_no_minutes(tmp_path):
    data = CONFIG.to_dict()
    data["vision"]["layers"] = 1024
    (tmp_path / "config.json").write_text(json.dumps(data))
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"missing: .* and \d+ more; unused: a"):
        clip_jax.load(tmp_path)
