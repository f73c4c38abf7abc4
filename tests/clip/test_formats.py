"""Every published format: into the model and back, without a bit lost; and the same numbers as those who made it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax import CLIPConfig, PreprocessConfig, TextConfig, UserError, ViTConfig
from clip_jax.config import BertConfig, EVA02Config, ResNetConfig
from clip_jax.pretrained import export
from clip_jax.weights.formats import FORMATS
from clip_jax.weights.rules import export as to_format
from clip_jax.weights.rules import flat_variables
from tests.support.torch_files import Module, write_torch, write_torchscript

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
HALF = PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash")
SIZES = {"width": 64, "layers": 2, "heads": 1}
TEXT = TextConfig(vocab_size=60, context_length=8, **SIZES)
VIT = ViTConfig(image_size=16, patch_size=8, **SIZES)
TANH = {"activation": "gelu_tanh", "ln_eps": 1e-6}
SIGLIP_TEXT = TextConfig(
    vocab_size=60, context_length=8, attention="full", pool="last", projection_bias=True, pad_id=1, tokenizer="siglip",
    width=32, layers=2, heads=4, **TANH,
)  # fmt: skip
MODELS = {
    "openai": CLIPConfig(embed_dim=24, vision=VIT, text=TEXT),
    "openai resnet": CLIPConfig(
        embed_dim=24, vision=ResNetConfig(image_size=32, layers=(1, 2, 1, 1), width=4, heads=2), text=TEXT
    ),
    "eva": CLIPConfig(
        embed_dim=24,
        vision=EVA02Config(image_size=16, patch_size=8, width=32, layers=2, heads=2),
        text=dataclasses.replace(TEXT, activation="gelu"),
    ),
    "chinese_clip": CLIPConfig(
        embed_dim=24,
        vision=VIT,
        text=BertConfig(vocab_size=60, context_length=10, max_positions=10, **SIZES),
        preprocess=PreprocessConfig(resize="squash"),
    ),
    "siglip": CLIPConfig(
        embed_dim=32,
        vision=ViTConfig(
            image_size=16, patch_size=8, pool="map", ln_pre=False, patch_bias=True, width=32, layers=2, heads=2, **TANH
        ),
        text=SIGLIP_TEXT,
        preprocess=HALF,
        logit_scale_init=float(np.log(10)),
        logit_bias_init=-10.0,
    ),
}
TOWERS = {
    "text": CLIPConfig(embed_dim=24, vision=None, text=TEXT),
    "text, not projected": CLIPConfig(embed_dim=None, vision=None, text=TEXT),
    "vision": CLIPConfig(embed_dim=24, vision=VIT, text=None),
    "vision, not projected": CLIPConfig(embed_dim=None, vision=VIT, text=None),
}


def random_variables(config, seed=0):
    """Random in every leaf, the norms and the running statistics included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: clip_jax.init(config, key), jax.random.key(0))

    def leaf(path, shape):
        noise = rng.normal(0, 0.2, shape.shape).astype(np.float32)
        return np.float32(1) + noise**2 if path[-1].key in ("scale", "var") else noise

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def assert_same(loaded, config, variables):
    assert fields(loaded.model.config) == fields(config)
    a, b = flat_variables(loaded.variables), flat_variables(variables)
    assert a.keys() == b.keys()
    for name, leaf in a.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, b[name])


def fields(config):
    """The config but for where training starts, and with its defaults filled in.

    Where a crop begins is left out as well: transformers rounds down, and has no setting for that.
    """
    data = dataclasses.replace(config, logit_scale_init=0.0).to_dict()
    del data["preprocess"]["crop"]
    data["logit_bias_init"] = data["logit_bias_init"] is not None
    for tower in ("vision", "text"):
        if data[tower] and "mlp_width" in data[tower]:
            ratio = 2.6667 if data[tower]["type"] == "EVA02Config" else 4
            data[tower]["mlp_width"] = data[tower]["mlp_width"] or int(ratio * data[tower]["width"])
    return data


def state_of(name, config, variables):
    return to_format(flat_variables(variables), FORMATS[name].rules(config))


def under(prefix, state):
    return {prefix + name: array for name, array in state.items()}


BUFFERS = {"input_resolution": np.array(16), "context_length": np.array(8), "vocab_size": np.array(60)}


def write_openai(path, config, state):
    write_torch(path, {**state, "attn_mask": np.zeros((8, 8), np.float32)})


def write_torchscript_tree(path, config, state):
    tree: dict = {}
    for name, array in {**state, **BUFFERS}.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array

    def module(node):
        return Module("clip.M", {k: module(v) if isinstance(v, dict) else v for k, v in node.items()})

    write_torchscript(path, module(tree))


def write_eva(path, config, state):
    rope = np.zeros((4, config.vision.width // config.vision.heads), np.float32)
    state = {n if n.startswith(("visual.", "logit")) else f"text.{n}": array for n, array in state.items()}
    save_file({**state, "visual.rope.freqs_cos": rope, "visual.blocks.0.attn.rope.freqs_sin": rope}, path)


def write_chinese(path, config, state):
    pooler = {"bert.pooler.dense.weight": np.zeros((64, 64), np.float32)}
    write_torch(path, {"epoch": 3, "name": "x", "state_dict": under("module.", {**state, **pooler})})


def write_npz(path, config, state):
    with open(path, "wb") as file:
        np.savez(file, **under("params/", state))


def write_stacked_npz(path, config, state):
    stacked: dict = {}
    for name, array in state.items():
        head, found, tail = name.partition("encoderblock_")
        if found:
            stacked.setdefault(f"{head}encoderblock/{tail.split('/', 1)[1]}", []).append(array)
        else:
            stacked[name] = array
    write_npz(path, config, {n: np.stack(a) if isinstance(a, list) else a for n, a in stacked.items()})


# (model, format, how it is written, whether the shapes alone say what it is)
FILES = {
    "openai safetensors": ("openai", "openai", lambda p, c, s: save_file({**s, **BUFFERS}, p), True),
    "openai resnet": ("openai resnet", "openai", lambda p, c, s: save_file(s, p), True),
    "openai state dict": ("openai", "openai", write_openai, True),
    "openai torchscript": ("openai", "openai", write_torchscript_tree, True),
    "open_clip custom_text": (
        "openai", "openai",
        lambda p, c, s: save_file({n if n[:3] in ("vis", "log") else f"text.{n}": a for n, a in s.items()}, p), True,
    ),
    "eva": ("eva", "eva", write_eva, False),
    "chinese_clip": ("chinese_clip", "chinese_clip", write_chinese, True),
    "big_vision": ("siglip", "big_vision", write_npz, True),
    "big_vision stacked": ("siglip", "big_vision", write_stacked_npz, True),
    "huggingface": ("openai", "huggingface", lambda p, c, s: save_file(s, p), False),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_loaded_and_written_back_bit_by_bit(tmp_path, name):
    model, table, write, says_all = FILES[name]
    config, variables = MODELS[model], random_variables(MODELS[model])
    state = state_of(table, config, variables)
    write(tmp_path / "weights", config, state)
    loaded = clip_jax.load(tmp_path / "weights", config=None if says_all else config)
    if says_all and table == "big_vision":  # the tokenizer's kind is told from the size of the published vocabulary
        assert loaded.model.config.text.tokenizer == "siglip"
    assert_same(loaded, config, variables)
    again = state_of(table, loaded.model.config, loaded.variables)
    assert again.keys() == state.keys()
    for key, array in state.items():
        assert again[key].dtype == array.dtype
        np.testing.assert_array_equal(again[key], array)
    with pytest.raises(UserError, match=r"vocab=path"):
        loaded.tokenize(["a"])


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_half_precision_comes_back_as_float32(tmp_path, dtype):
    config = MODELS["openai"]
    state = {k: v.astype(dtype) for k, v in state_of("openai", config, random_variables(config)).items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = clip_jax.load(tmp_path / "w.safetensors")
    again = state_of("openai", loaded.model.config, loaded.variables)
    for name, array in state.items():
        assert again[name].dtype == np.float32
        np.testing.assert_array_equal(again[name], array.astype(np.float32))


@pytest.mark.parametrize("layout", ["huggingface", "open_clip", "openai"])
@pytest.mark.parametrize("model", [*MODELS, *TOWERS])
def test_export_is_loaded_bit_by_bit_or_refused(tmp_path, layout, model):
    config = {**MODELS, **TOWERS}[model]
    variables = random_variables(config)
    has_place = {
        "huggingface": model not in ("openai resnet", "eva"),
        "open_clip": model in ("openai", "openai resnet"),
        "openai": model in ("openai", "openai resnet"),
    }[layout]
    if not has_place:
        with pytest.raises(UserError) as error:
            export(tmp_path / "out", config, variables, layout=layout)
        assert "\n" not in str(error.value)
        assert not list(tmp_path.iterdir())
        return
    export(tmp_path / "out", config, variables, layout=layout)
    assert_same(clip_jax.load(tmp_path / "out"), config, variables)


def test_what_openclips_layout_says_is_believed(tmp_path):
    """Heads, MLP, activation and preprocessing that no shape tells."""
    vision = ViTConfig(image_size=16, patch_size=8, width=48, layers=1, heads=3, mlp_width=209, activation="gelu")
    text = TextConfig(vocab_size=60, context_length=8, width=32, layers=1, heads=4, activation="gelu")
    config = CLIPConfig(embed_dim=24, vision=vision, text=text, preprocess=HALF)
    export(tmp_path, config, random_variables(config), layout="open_clip")
    assert fields(clip_jax.load(tmp_path).model.config) == fields(config)
    with pytest.raises(UserError, match="gelu"):
        export(tmp_path / "openai", config, random_variables(config), layout="openai")
    assert not (tmp_path / "openai").exists()


def test_a_scanned_model_is_exported_layer_by_layer(tmp_path):
    config = MODELS["openai"]
    scanned = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, scan_layers=True),
        text=dataclasses.replace(config.text, scan_layers=True),
    )
    variables = random_variables(config)
    params = variables["params"]
    stacked = {
        **params,
        **{
            n: {**params[n], "transformer": clip_jax.towers.layers.stack_layers(params[n]["transformer"])}
            for n in ("visual", "text")
        },
    }
    export(tmp_path, scanned, {"params": stacked})
    assert_same(clip_jax.load(tmp_path), config, variables)


def test_shards_and_towers_without_prefix(tmp_path):
    """Hugging Face's sharded files with their index, and the names transformers 5 gives a tower alone."""
    config = TOWERS["text, not projected"]
    variables = random_variables(config)
    export(tmp_path, config, variables)
    state = {n.removeprefix("text_model."): a for n, a in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    half = len(state) // 2
    files = {"model-1.safetensors": dict(list(state.items())[:half]), "model-2.bin": dict(list(state.items())[half:])}
    save_file(files["model-1.safetensors"], tmp_path / "model-1.safetensors")
    write_torch(tmp_path / "model-2.bin", files["model-2.bin"])
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(clip_jax.load(tmp_path), config, variables)


@pytest.mark.parametrize(
    ("prefix", "table", "projected", "activation"),
    [
        ("cond_stage_model.transformer.", "huggingface", False, "quick_gelu"),
        ("cond_stage_model.model.", "openai", True, "gelu"),
        ("conditioner.embedders.0.transformer.", "huggingface", False, "quick_gelu"),
        ("conditioner.embedders.1.model.", "openai", True, "gelu"),
    ],
)
def test_the_text_encoders_of_stable_diffusion(tmp_path, prefix, table, projected, activation):
    text = dataclasses.replace(TEXT, activation=activation, pad_id=0 if projected else 59)
    config = CLIPConfig(embed_dim=24 if projected else None, vision=None, text=text)
    variables = random_variables(config)
    state = under(prefix, state_of(table, config, variables))
    state |= {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((4, 4), np.float32)}
    state |= {f"{prefix}logit_scale": np.zeros((), np.float32)} if projected else {}
    save_file(state, tmp_path / "sd.safetensors")
    assert_same(clip_jax.load(tmp_path / "sd.safetensors"), config, variables)


def test_of_two_encoders_one_has_to_be_chosen(tmp_path):
    first, second = TOWERS["text, not projected"], TOWERS["text"]
    state = under("conditioner.embedders.0.transformer.", state_of("huggingface", first, random_variables(first)))
    state |= under("conditioner.embedders.1.model.", state_of("openai", second, random_variables(second, 1)))
    save_file(state, tmp_path / "sdxl.safetensors")
    with pytest.raises(UserError, match="text_encoder_2"):
        clip_jax.load(tmp_path / "sdxl.safetensors")
    model = clip_jax.load(tmp_path / "sdxl.safetensors", part="text_encoder_2").model
    assert (model.config.embed_dim, model.config.text.activation) == (24, "gelu")
    model = clip_jax.load(tmp_path / "sdxl.safetensors", part="text_encoder").model
    assert (model.config.embed_dim, model.config.text.activation) == (None, "quick_gelu")


def test_our_own_layout_keeps_running_statistics(tmp_path, tokenizer):
    config = MODELS["openai resnet"]
    text = dataclasses.replace(config.text, vocab_size=640, context_length=24)
    config = dataclasses.replace(config, text=text)
    variables = random_variables(config)
    clip_jax.save(tmp_path, config, variables, tokenizer)
    assert_same(clip_jax.load(tmp_path), config, variables)


def test_the_tokenizer_travels_along(tmp_path, tokenizer, captions):
    text = dataclasses.replace(TEXT, vocab_size=640, context_length=24, eos_id=tokenizer.eot_id)
    config = dataclasses.replace(MODELS["openai"], text=text)
    export(tmp_path, config, random_variables(config), tokenizer)
    loaded = clip_jax.load(tmp_path)
    np.testing.assert_array_equal(loaded.tokenize(captions), tokenizer(captions))
    cropped_as_there = dataclasses.replace(config.preprocess, crop="floor")
    assert loaded.model.config == dataclasses.replace(
        config, vision=loaded.model.config.vision, text=loaded.model.config.text, preprocess=cropped_as_there
    )


def test_a_preset_with_its_weights(tmp_path):
    """One layer of ViT-B/32's text tower would do, but a preset is a whole model: the small one of this project."""
    config = clip_jax.preset("tiny")
    save_file(state_of("openai", config, random_variables(config)), tmp_path / "w.safetensors")
    assert clip_jax.load("tiny", weights=tmp_path / "w.safetensors").model.config == config
    with pytest.raises(UserError, match=r"text\.vocab_size is 640 in the weights, the preset ViT-B/32 says 49408"):
        clip_jax.load("ViT-B/32", weights=tmp_path / "w.safetensors")


GOLDENS = sorted(path.stem for path in GOLDEN.glob("*_tiny.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_the_originals_outputs(name):
    """What openai/CLIP and baaivision/EVA computed from these very files."""
    data = dict(np.load(GOLDEN / f"{name}.npz"))
    says_all = name.startswith("openai")
    config = None if says_all else json.loads(str(data["config"]))
    model, variables, *_ = clip_jax.load(GOLDEN / f"{name}.safetensors", config=config)
    image, text = embeddings(model, variables, data["images_nchw"].transpose(0, 2, 3, 1), data["tokens"])
    np.testing.assert_allclose(image, data["image_embed"], atol=1e-4)
    np.testing.assert_allclose(text, data["text_embed"], atol=1e-4)


def embeddings(model, variables, images, tokens):
    def both(variables, images, tokens):
        found = []
        if model.config.vision is not None:
            found.append(model.apply(variables, images, method="encode_image"))
        if model.config.text is not None:
            found.append(model.apply(variables, tokens, method="encode_text").embed)
        return found

    with jax.default_matmul_precision("highest"):
        return jax.jit(both)(variables, images, tokens)


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "tensorflow", "huggingface_hub", "open_clip"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import clip_jax, numpy as np

for source in sys.argv[1:]:
    model, variables, tokenize, preprocess = clip_jax.load(source)
    assert preprocess(np.zeros((9, 9, 3), np.uint8)).shape == (1, 16, 16, 3)
try:
    clip_jax.load("openai/clip-vit-base-patch32")
except clip_jax.UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_loading_needs_no_other_framework(tmp_path):
    """Where torch, transformers, tensorflow and the hub cannot even be imported."""
    config = MODELS["openai"]
    variables = random_variables(config)
    for layout in ("huggingface", "open_clip"):
        export(tmp_path / layout, config, variables, layout=layout)
    write_torch(tmp_path / "w.pt", state_of("openai", config, variables))
    sources = [str(tmp_path / name) for name in ("huggingface", "open_clip", "w.pt")]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "huggingface_hub" in done.stdout
    assert "pip install" in done.stdout
    assert done.stdout.count("\n") == 1


# against transformers

T = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99,
    "max_position_embeddings": 16, "projection_dim": 24, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 1,
}  # fmt: skip
V = {
    "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 5, "image_size": 24,
    "patch_size": 8, "projection_dim": 24,
}  # fmt: skip
GELU = {"hidden_act": "gelu"}
BERT = {k: v for k, v in T.items() if k != "max_position_embeddings"}


def reference(name):
    """(a transformers model with random weights, how it embeds images, how it embeds tokens)."""
    hf = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    siglip_v = {**V, "hidden_size": 32, "num_attention_heads": 4}
    model = {
        "CLIPModel": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=T, vision_config=V, projection_dim=24)),
        "CLIPModel gelu": lambda: hf.CLIPModel(
            hf.CLIPConfig(text_config={**T, **GELU}, vision_config={**V, **GELU}, projection_dim=20)
        ),
        "CLIPTextModel": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**T)),
        "CLIPTextModelWithProjection": lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**T)),
        "CLIPVisionModelWithProjection": lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**V)),
        "CLIPVisionModel": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**V)),
        "SiglipModel": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=T, vision_config=siglip_v)),
        "SiglipTextModel": lambda: hf.SiglipTextModel(hf.SiglipTextConfig(**T)),
        "SiglipVisionModel": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**siglip_v)),
        "ChineseCLIPModel": lambda: hf.ChineseCLIPModel(
            hf.ChineseCLIPConfig(text_config=BERT, vision_config=V, projection_dim=24)
        ),
    }[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


REFERENCES = [
    "CLIPModel", "CLIPModel gelu", "CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModel",
    "CLIPVisionModelWithProjection", "SiglipModel", "SiglipTextModel", "SiglipVisionModel", "ChineseCLIPModel",
]  # fmt: skip


def their_embeddings(model, images, tokens):
    import torch

    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    ids = torch.from_numpy(tokens.astype(np.int64))
    both = hasattr(model, "get_image_features")
    mask = {"attention_mask": (ids != 1).long()} if "Chinese" in type(model).__name__ else {}

    def pick(out):
        if isinstance(out, torch.Tensor):
            return out
        for name in ("text_embeds", "image_embeds", "pooler_output"):
            if getattr(out, name, None) is not None:
                return getattr(out, name)
        raise AssertionError(type(out))

    with torch.no_grad():
        if both:
            found = [model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=ids, **mask)]
        elif "Text" in type(model).__name__:
            found = [model(input_ids=ids)]
        else:
            found = [model(pixel_values=pixels)]
    return [pick(out).numpy() for out in found]


@pytest.mark.parity
@pytest.mark.parametrize("name", REFERENCES)
def test_transformers_and_we_open_each_others_checkpoints(tmp_path, name):
    """Theirs loads here and computes the same; what is exported opens there without a missing or unexpected key."""
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "theirs")
    model, variables, *_ = clip_jax.load(tmp_path / "theirs")
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 97, (3, 16)).astype(np.int32)
    tokens[:, 10] = 98  # the end; for BERT a word like another
    if "Siglip" not in name:
        tokens[0, 11:] = model.config.text.pad_id if model.config.text is not None else 0
    images = rng.normal(size=(3, 24, 24, 3)).astype(np.float32)
    ours = embeddings(model, variables, images, tokens)
    expected = their_embeddings(theirs, images, tokens)
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)

    export(tmp_path / "ours", model, variables)
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for a, b in zip(their_embeddings(again.eval(), images, tokens), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    written, original = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    if not model.config.two_towers:  # transformers 5 leaves out the prefix that 4 needs, and reads both
        prefix = "text_model." if model.config.vision is None else "vision_model."
        written, original = ({k.removeprefix(prefix): v for k, v in d.items()} for d in (written, original))
    assert written.keys() == original.keys()
    for key, array in original.items():
        np.testing.assert_array_equal(written[key], array)
