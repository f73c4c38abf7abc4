"""What does not fit is refused, never warned about: one line that names the field, both values and the fix."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax import CLIPConfig, PreprocessConfig, TextConfig, UserError, ViTConfig, export
from clip_jax.weights.formats import FORMATS
from clip_jax.weights.rules import export as to_format
from clip_jax.weights.rules import flat_variables
from tests.support.torch_files import Call, Global, write_torch

SIZES = {"width": 64, "layers": 1, "heads": 1}
CONFIG = CLIPConfig(
    embed_dim=16,
    vision=ViTConfig(image_size=16, patch_size=8, **SIZES),
    text=TextConfig(vocab_size=640, context_length=24, **SIZES),
)
VARIABLES = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.5, np.float32),
    jax.eval_shape(lambda key: clip_jax.init(CONFIG, key), jax.random.key(0)),
)
STATE = to_format(flat_variables(VARIABLES), FORMATS["openai"].rules(CONFIG))


def changed(config=CONFIG, **fields):
    """`config` with other values: vision__ln_eps=1e-6."""
    data = config.to_dict()
    for path, value in fields.items():
        node, (*parents, name) = data, path.split("__")
        for parent in parents:
            node = node[parent]
        node[name] = value
    return CLIPConfig.from_dict(data)


class Place:
    """A directory to break things in."""

    def __init__(self, path, tokenizer):
        self.path, self.tokenizer = path, tokenizer

    def file(self, state=None, name="w.safetensors"):
        save_file(STATE if state is None else state, self.path / name)
        return self.path / name

    def patches_of_14(self):
        """Weights of which only the patches and positions matter: those of 224 pixels."""
        shapes = {"visual.conv1.weight": (1024, 3, 14, 14), "visual.positional_embedding": (257, 1024)}
        large = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
        return self.file({**STATE, **large})

    def layout(self, layout, tokenizer=None):
        export(self.path, CONFIG, VARIABLES, tokenizer, layout=layout)
        return self.path

    def edit(self, name, change):
        data = json.loads((self.path / name).read_text())
        change(data)
        (self.path / name).write_text(json.dumps(data))

    def edited(self, layout, name, change):
        self.layout(layout)
        self.edit(name, change)
        return self.path

    def write(self, name, content):
        (self.path / name).write_bytes(content)
        return self.path / name


def asked(layout, **fields):
    """A checkpoint that says what it is, and a config that says otherwise."""
    return lambda p: clip_jax.load(p.layout(layout), config=changed(**fields))


def without(*names):
    return {name: array for name, array in STATE.items() if name not in names}


def unset(data, *path):
    *parents, name = path
    for parent in parents:
        data = data[parent]
    del data[name]


def other_tokenizer(p, **options):
    p.layout("huggingface")
    clip_jax.train_bpe(["some other words here"], 600, **options).save(p.path / "vocabulary.json")
    return clip_jax.load(p.path, vocab=p.path / "vocabulary.json")


def wrong_end(p):
    config = changed(text__eos_id=5)
    export(p.path, config, VARIABLES)
    p.tokenizer.save(p.path / "tokenizer.json")
    return clip_jax.load(p.path)


def wordpiece(p):
    p.layout("huggingface")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    p.write("vocab.txt", "\n".join(words).encode())
    return clip_jax.load(p.path)


def archive(p, **fields):
    """OpenAI's own files are known by what lies beside the weights."""
    path = p.file({**STATE, "input_resolution": np.array(16), "vocab_size": np.array(640)})
    return clip_jax.load(path, config=changed(**fields))


def not_finite(value):
    return {**STATE, "text_projection": np.full_like(STATE["text_projection"], value)}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
MEAN = [0.5, 0.5, 0.5]
CONFIG_JSON, OPEN_CLIP, PICTURES = "config.json", "open_clip_config.json", "preprocessor_config.json"

# what is wrong: (how to provoke it, what the line says)
TABLE = {
    # the checkpoint says one thing, the caller another
    "activation, open_clip": (
        asked("open_clip", vision__activation="gelu"), ["vision.activation is 'quick_gelu'", "'gelu'", "config"]),
    "activation, huggingface": (
        asked("huggingface", text__activation="gelu"), ["text.activation is 'quick_gelu'", "'gelu'", "config"]),
    "activation, openai": (
        lambda p: archive(p, vision__activation="gelu"), ["vision.activation is 'quick_gelu'", "'gelu'", "config"]),
    "eps": (asked("huggingface", vision__ln_eps=1e-6), ["vision.ln_eps is 1e-05", "1e-06", "config"]),
    "eps, openai": (lambda p: archive(p, text__ln_eps=1e-6), ["text.ln_eps is 1e-05", "1e-06"]),
    "mean": (asked("open_clip", preprocess__mean=MEAN), ["preprocess.mean is [0.48", "[0.5, 0.5, 0.5]", "config"]),
    "std": (asked("huggingface", preprocess__std=MEAN), ["preprocess.std is [0.26", "[0.5, 0.5, 0.5]", "config"]),
    "mean, openai": (lambda p: archive(p, preprocess__mean=MEAN), ["preprocess.mean", "[0.5, 0.5, 0.5]"]),
    "resize": (asked("huggingface", preprocess__resize="squash"), ["preprocess.resize is 'shortest'", "'squash'"]),
    "interpolation": (
        asked("open_clip", preprocess__interpolation="bilinear"), ["interpolation is 'bicubic'", "'bilinear'"]),
    "heads": (asked("open_clip", vision__heads=2), ["vision.heads is 1", "2", "config"]),
    "end of text": (asked("huggingface", text__eos_id=7), ["text.eos_id is 639", "7", "config"]),
    "pooling": (
        asked("huggingface", text__pool="last"), ["text.pool is 'eos'", "'last'", "config"]),
    "attention": (asked("huggingface", text__attention="full"), ["text.attention is 'causal'", "'full'"]),
    # the weights are of another size
    "context length": (
        lambda p: clip_jax.load(p.file(), config=changed(text__context_length=20)),
        ["text.context_length is 24 in the weights", "20", "config"]),
    "vocabulary": (
        lambda p: clip_jax.load(p.file(), config=changed(text__vocab_size=639)),
        ["text.vocab_size is 640 in the weights", "639", "config"]),
    "picture size": (
        lambda p: clip_jax.load(p.file(), config=changed(vision__image_size=33)), ["image_size 33", "patch_size 8"]),
    "picture size of a preset": (
        lambda p: clip_jax.load("ViT-L/14@336px", weights=p.patches_of_14()),
        ["vision.image_size is 224 in the weights", "says 336", "image_size=336"]),
    "picture size, twice": (
        lambda p: clip_jax.load(p.file(), config=changed(vision__image_size=32), image_size=24),
        ["image_size is 24", "config= says 32"]),
    "picture size of a text tower": (
        lambda p: clip_jax.load(p.file(without(*[n for n in STATE if n.startswith("visual.")])), image_size=32),
        ["image_size=32", "texts only"]),
    "picture size, not square": (lambda p: clip_jax.load(p.file(), image_size=(32, 64)), ["(32, 64)", "square"]),
    "layers": (
        lambda p: clip_jax.load(p.file(), config=changed(text__layers=2)), ["text.layers is 1 in the weights", "2"]),
    "embed_dim": (lambda p: clip_jax.load(p.file(), config=changed(embed_dim=8)), ["embed_dim is 16", "8", "config"]),
    "a preset": (
        lambda p: clip_jax.load("ViT-B/32", weights=p.file()), ["text.context_length is 24", "ViT-B/32 says 77"]),
    "a whole model for a tower": (
        lambda p: clip_jax.load(p.file(), config=dataclasses.replace(CONFIG, text=None)), ["text tower", "config"]),
    "config.json, context length": (
        lambda p: clip_jax.load(p.edited(
            "huggingface", CONFIG_JSON, lambda d: d["text_config"].update(max_position_embeddings=77))),
        ["text.context_length is 24 in the weights", "77", "config"]),
    "config.json, vocabulary": (
        lambda p: clip_jax.load(p.edited(
            "huggingface", CONFIG_JSON, lambda d: d["text_config"].update(vocab_size=49408))),
        ["text.vocab_size is 640 in the weights", "49408"]),
    # a config says what we have not, or nothing
    "config.json, activation": (
        lambda p: clip_jax.load(p.edited(
            "huggingface", CONFIG_JSON, lambda d: d["vision_config"].update(hidden_act="relu"))),
        ["hidden_act is 'relu'", "quick_gelu"]),
    "config.json, another model": (
        lambda p: clip_jax.load(p.edited("huggingface", CONFIG_JSON, lambda d: d.update(model_type="bert"))),
        ["model_type is 'bert'", "clip"]),
    "pictures, size": (
        lambda p: clip_jax.load(p.edited(
            "huggingface", PICTURES, lambda d: d.update(crop_size={"height": 224, "width": 224}))),
        ["224 pixels", "16", "take the file"]),
    "pictures, interpolation": (
        lambda p: clip_jax.load(p.edited("huggingface", PICTURES, lambda d: d.update(resample=7))),
        ["resample is 7", "3 (bicubic)", "set one"]),
    "pictures, std": (
        lambda p: clip_jax.load(p.edited("huggingface", PICTURES, lambda d: d.update(image_std=[1, 1, 0]))),
        [PICTURES, "std"]),
    "open_clip, setting of another network": (
        lambda p: clip_jax.load(p.edited(
            "open_clip", OPEN_CLIP, lambda d: d["model_cfg"]["vision_cfg"].update(global_average_pool=True))),
        ["global_average_pool is True", "False"]),
    "open_clip, unknown setting": (
        lambda p: clip_jax.load(p.edited(
            "open_clip", OPEN_CLIP, lambda d: d["model_cfg"]["text_cfg"].update(new_idea=3))),
        ["new_idea is 3", "not known"]),
    "open_clip, interpolation": (
        lambda p: clip_jax.load(p.edited(
            "open_clip", OPEN_CLIP, lambda d: d["preprocess_cfg"].update(interpolation="nearest"))),
        ["interpolation is 'nearest'", "bicubic", "set one"]),
    "open_clip, half a config": (
        lambda p: clip_jax.load(p.edited("open_clip", OPEN_CLIP, lambda d: unset(d, "model_cfg", "embed_dim"))),
        [OPEN_CLIP, "embed_dim", "missing"]),
    # tokenizers
    "vocabulary of another model": (other_tokenizer, ["vocab_size", "640", "not the tokenizer of this model"]),
    "end of another vocabulary": (wrong_end, ["ends texts with", "eos_id 5", "not the tokenizer"]),
    "another kind of tokenizer": (wordpiece, ["vocab.txt", "bert", "clip"]),
    "no tokenizer": (lambda p: clip_jax.load(p.file()).tokenize(["a"]), ["vocabulary", "vocab=path"]),
    "tokenizer longer than the model": (
        lambda p: export(p.path / "new", changed(text__context_length=20), VARIABLES, p.tokenizer),
        ["context_length 24", "20", "not the tokenizer"]),
    # keys
    "missing": (
        lambda p: clip_jax.load(p.file(without("ln_final.weight", "visual.ln_pre.bias"))),
        ["missing: ln_final.weight, visual.ln_pre.bias"]),
    "unused": (
        lambda p: clip_jax.load(p.file({**STATE, "visual.extra": np.zeros(2, np.float32)})), ["unused: visual.extra"]),
    "all kinds at once": (
        lambda p: clip_jax.load(p.file({
            **without("ln_final.bias"), "x": np.zeros(1, np.float32), "ln_final.weight": np.zeros(3, np.float32)})),
        ["missing: ln_final.bias", "unused: x", "wrong shape: ln_final.weight is [3], not [64]"]),
    "integers": (
        lambda p: clip_jax.load(p.file({**STATE, "text_projection": np.zeros((64, 16), np.int32)})),
        ["text_projection is int32"]),
    "of no format": (
        lambda p: clip_jax.load(p.file({"layer.weight": np.zeros(2, np.float32)})),
        ["no known format", "layer.weight"]),
    "heads not in the weights": (
        lambda p: clip_jax.load(p.file(
            to_format(flat_variables(VARIABLES), FORMATS["huggingface"].rules(CONFIG)))), ["heads", "config="]),
    # files
    "NaN": (lambda p: clip_jax.load(p.file(not_finite(np.nan))), ["not finite: text_projection"]),
    "infinity": (lambda p: clip_jax.load(p.file(not_finite(np.inf))), ["not finite: text_projection"]),
    "Git LFS": (lambda p: clip_jax.load(p.write("w.safetensors", LFS)), ["git lfs pull"]),
    "truncated": (
        lambda p: clip_jax.load(p.write("w.safetensors", p.file().read_bytes()[:-9])),
        ["cannot read", "w.safetensors"]),
    "header length": (
        lambda p: clip_jax.load(p.write("w.safetensors", b"\xff" * 8 + b"{}")), ["cannot read", "w.safetensors"]),
    "a pickle with code": (
        lambda p: clip_jax.load(_pickle(p)), ["os.system", "code"]),
    "absent": (lambda p: clip_jax.load(p.path / "nothing.safetensors"), ["nothing.safetensors", "no such file"]),
    "no such name": (lambda p: clip_jax.load("nothing.safetensors"), ["nothing.safetensors", "give a file"]),
    "no weights": (lambda p: clip_jax.load(p.path), ["holds no CLIP"]),
    "two weights": (lambda p: clip_jax.load((p.file(), p.file(name="v.safetensors"))[0].parent), ["2 weights", "give"]),
    "not JSON": (lambda p: clip_jax.load(p.write(CONFIG_JSON, b"{").parent), ["not JSON"]),
    # the call
    "a preset without weights": (lambda p: clip_jax.load("shapes"), ["architecture", "weights=path"]),
    "weights without a preset": (lambda p: clip_jax.load(p.path, weights=p.file()), ["weights=", "ViT-B/32"]),
    "a part of what has none": (
        lambda p: clip_jax.load(p.file(), part="text_encoder"), ["part='text_encoder'", "leave"]),
    # export
    "layout": (lambda p: export(p.path / "new", CONFIG, VARIABLES, layout="keras"), ["'keras'", "huggingface"]),
    "export of NaN": (
        lambda p: export(p.path / "new", CONFIG, jax.tree.map(lambda leaf: leaf * np.nan, VARIABLES)), ["NaN"]),
    "export that openai cannot say": (
        lambda p: export(p.path / "new", changed(vision__activation="gelu", text__activation="gelu"), VARIABLES,
                         layout="openai"), ["activation 'gelu'", "'quick_gelu'", "export to"]),
    "export that open_clip cannot say": (
        lambda p: export(p.path / "new", changed(text__ln_eps=1e-6), VARIABLES, layout="open_clip"),
        ["ln_eps 1e-06", "1e-05", "export to"]),
}  # fmt: skip


def _pickle(p):
    write_torch(p.path / "w.pt", {"a": Call(Global("os", "system"), ("touch RAN",))})
    return p.path / "w.pt"


@pytest.mark.parametrize("name", TABLE)
def test_one_line_and_nothing_left_behind(tmp_path, monkeypatch, tokenizer, name):
    monkeypatch.chdir(tmp_path)
    provoke, words = TABLE[name]
    place = Place(tmp_path, tokenizer)
    seen = []
    original = UserError.__init__

    def note(self, *args):  # what there was when it was refused
        seen.append(sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")))
        original(self, *args)

    monkeypatch.setattr(UserError, "__init__", note)
    with pytest.raises(UserError) as error:
        provoke(place)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    missing = [word for word in words if word not in message]
    assert not missing, message
    left = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert left == seen[0]
    assert not (tmp_path / "RAN").exists()
    assert not (tmp_path / "new").exists()


def test_the_table_is_long_enough():
    assert len(TABLE) >= 25


def test_what_is_not_broken_is_not_refused(tmp_path, tokenizer):
    place = Place(tmp_path, tokenizer)
    assert clip_jax.load(place.file()).model.config.embed_dim == 16
    assert clip_jax.load(place.path / "w.safetensors", config=CONFIG).model.config == CONFIG
    for layout in ("huggingface", "open_clip"):
        (tmp_path / layout).mkdir()
        loaded = clip_jax.load(Place(tmp_path / layout, tokenizer).layout(layout), config=CONFIG)
        crop = "floor" if layout == "huggingface" else "round"
        assert loaded.model.config.preprocess == PreprocessConfig(crop=crop)
    assert load_file(tmp_path / "w.safetensors").keys() == STATE.keys()
