"""Compares CLIP models with transformers, and with recorded outputs ("golden") of OpenAI's and EVA's own code.

`tests/clip/test_parity.py` checks every case against the tolerances; `docs/parity.py` writes the table. `theirs` is the
reference in torch, `ours` or `mine` the model of this project, with the same weights and inputs. Weights, norms and
biases are all random, so that no fault hides behind an initial zero or one. Families with files of their own go through
`clip_jax.load`.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import clip_jax
from clip_jax import BertConfig, PlainResNetConfig
from clip_jax.towers.bert import BertTower
from clip_jax.towers.resnet import ResNet
from clip_jax.weights import chinese_clip, openai
from clip_jax.weights.rules import Entry, convert, flat_variables, nested_variables

MAX_ABS, MAX_COSINE_ERROR = 1e-4, 1e-6
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MAX_POSITIONS = 40


class Difference(NamedTuple):
    """How far an output is from the reference's."""

    what: str
    max_abs: float  # of our output from the reference's
    largest: float  # of the reference's values
    cosine_error: float  # 1 − cos of the angle between the vectors along the last axis, the worst of them


class Case(NamedTuple):
    """A model to compare; `run` yields a difference per output."""

    family: str
    size: str
    run: Callable[[], Iterable[Difference]]
    slow: bool = False


def difference(what: str, ours: Any, theirs: Any) -> Difference:
    """The difference of two arrays of the same shape; `what` names the output."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, (what, a.shape, b.shape)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return Difference(what, float(np.abs(a - b).max()), float(np.abs(b).max()), float(max(0.0, (1 - cosine).max())))


def worst(what: str, ours: Any, theirs: Any) -> Difference:
    """The largest difference over two equally long sequences of arrays, such as all hidden states."""
    assert len(ours) == len(theirs), (what, len(ours), len(theirs))
    each = [difference(what, a, b) for a, b in zip(ours, theirs, strict=True)]
    return Difference(what, *(max(values) for values in list(zip(*each, strict=True))[1:]))


def apply(model: Any, variables: Any, *args: Any, **options: Any) -> Any:
    """`model.apply`, jitted, with matmuls in full float32 precision."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda v, *a: model.apply(v, *a, **options))(variables, *args)


def randomise(model: Any) -> Any:
    """Fills all parameters of a torch module with random numbers, scaled so that activations stay of order one."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "running_var" in name:
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith("logit_scale"):
                tensor.fill_(2.0)
            elif tensor.ndim >= 2:
                fan_in = tensor[0].numel() if "embed" not in name else 1
                tensor.copy_(noise * (0.5 if fan_in == 1 else fan_in**-0.5))
            else:
                norm = "weight" in name  # a norm's scale; other parameters of one axis are biases
                tensor.copy_(1 + 0.2 * noise if norm else 0.2 * noise)
    return model.eval()


def texts(vocab_size: int, length: int, batch: int = 3, *, eot: bool = True, pad_id: int = 0) -> np.ndarray:
    """Random tokens int32 [batch, length], whose rows end at different places.

    With `eot`, rows begin and end with CLIP's start and end tokens, the last two ids; after the end they are `pad_id`.
    """
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, vocab_size - 2, (batch, length))
    for row, end in zip(tokens, (length - 1, length // 2, 3), strict=False):
        if eot:
            row[0], row[end] = vocab_size - 2, vocab_size - 1
        row[end + 1 :] = pad_id
    return tokens.astype(np.int32)


def pictures(size: int, batch: int = 2, channels: int = 3) -> np.ndarray:
    """Normal noise in place of normalised pictures, float32 [batch, size, size, channels]."""
    return np.random.default_rng(2).normal(size=(batch, size, size, channels)).astype(np.float32)


def nchw(images: np.ndarray) -> Any:
    """An NHWC array as an NCHW torch tensor."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def saved_and_loaded(model: Any) -> Any:
    """The model of transformers after `save_pretrained` and `clip_jax.load`."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return clip_jax.load(directory)


def whole(make: Callable[[], Any], *, eot: bool = True, batch: int = 2) -> Iterator[Difference]:
    """Compares embeddings, hidden states and logits of a CLIPModel, SiglipModel or ChineseCLIPModel."""
    import torch

    theirs = randomise(make())
    ours = saved_and_loaded(theirs)
    config = ours.model.config
    images = pictures(config.vision.image_size, batch)
    tokens = texts(config.text.vocab_size, config.text.context_length, 3 if batch > 1 else 1, eot=eot)
    options = {}
    if isinstance(config.text, BertConfig):
        options["attention_mask"] = torch.from_numpy((tokens != config.text.pad_id).astype(np.int64))
    pixels, ids = nchw(images), torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        image = theirs.get_image_features(pixels, output_hidden_states=True)
        text = theirs.get_text_features(ids, output_hidden_states=True, **options)
        logits = theirs(input_ids=ids, pixel_values=pixels, **options).logits_per_image
    mine = apply(ours.model, ours.variables, images, method="image_states")
    yield difference("image embedding", mine.embed, image.pooler_output)
    yield worst("image hidden states", mine.hidden_states, image.hidden_states)
    mine = apply(ours.model, ours.variables, tokens, method="encode_text", hidden_states=True)
    yield difference("text embedding", mine.embed, text.pooler_output)
    counted = mine.mask if isinstance(config.text, BertConfig) else np.ones_like(mine.mask)
    yield worst(
        "text hidden states", *([np.asarray(h)[counted] for h in hs] for hs in (mine.hidden_states, text.hidden_states))
    )
    out = apply(ours.model, ours.variables, images, tokens)
    similarity = np.exp(out.logit_scale) * out.image_features @ out.text_features.T
    similarity = similarity if out.logit_bias is None else similarity + out.logit_bias
    yield difference("logits", similarity, logits)


def text_alone(make: Callable[[], Any]) -> Iterator[Difference]:
    """Compares a text tower alone: CLIPTextModel, with or without projection."""
    import torch

    theirs = randomise(make())
    ours = saved_and_loaded(theirs)
    text = ours.model.config.text
    tokens = texts(text.vocab_size, text.context_length)
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens.astype(np.int64)), output_hidden_states=True)
    mine = apply(ours.model, ours.variables, tokens, method="encode_text", hidden_states=True)
    pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
    yield difference("text embedding", mine.embed, pooled)
    yield difference("last state, normed", mine.encodings, out.last_hidden_state)
    yield worst("text hidden states", mine.hidden_states, out.hidden_states)


def vision_alone(make: Callable[[], Any]) -> Iterator[Difference]:
    """Compares an image tower alone: CLIPVisionModel, with or without projection."""
    import torch

    theirs = randomise(make())
    ours = saved_and_loaded(theirs)
    images = pictures(ours.model.config.vision.image_size)
    with torch.no_grad():
        out = theirs(nchw(images), output_hidden_states=True)
    mine = apply(ours.model, ours.variables, images, method="image_states")
    yield difference("image embedding", mine.embed, out.image_embeds if "image_embeds" in out else out.pooler_output)
    yield worst("image hidden states", mine.hidden_states, out.hidden_states)


def tower(table: Any, module: Any, state: dict[str, Any], *inputs: Any, ignore: str = "") -> Any:
    """The variables of a tower that no published file contains alone, converted by the rules of a whole format.

    Args:
        table: rules of the format.
        module: the Flax tower.
        state: state dict of the torch tower.
        inputs: inputs to initialise `module` with.
        ignore: regex of names in `state` that have no counterpart.
    """
    checkpoint = {n: Entry(tuple(t.shape), lambda t=t: t.detach().numpy()) for n, t in state.items()}
    expect = flat_variables(jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)))
    return nested_variables(convert(checkpoint, table, expect, ignore=ignore, where="the reference"))


def bert(kind: str, pool: str, **fields: Any) -> Iterator[Difference]:
    """Compares the BERT tower with BertModel or RobertaModel of transformers; `kind` is "Bert" or "Roberta"."""
    import torch
    import transformers

    roberta = kind == "Roberta"
    theirs = randomise(
        getattr(transformers, f"{kind}Model")(
            getattr(transformers, f"{kind}Config")(
                hidden_act="gelu", max_position_embeddings=MAX_POSITIONS, pad_token_id=1 if roberta else 0, **fields
            )
        )
    )
    their_config = theirs.config
    config = BertConfig(
        vocab_size=their_config.vocab_size,
        context_length=20,
        width=their_config.hidden_size,
        layers=their_config.num_hidden_layers,
        heads=their_config.num_attention_heads,
        mlp_width=their_config.intermediate_size,
        max_positions=MAX_POSITIONS,
        type_vocab_size=their_config.type_vocab_size,
        ln_eps=their_config.layer_norm_eps,
        pad_id=their_config.pad_token_id,
        positions="roberta" if roberta else "bert",
        pool=pool,  # type: ignore[arg-type]
    )
    tokens = texts(config.vocab_size, 20, eot=False, pad_id=config.pad_id)
    module = BertTower(config, None)
    variables = tower(
        chinese_clip.BERT, module, theirs.state_dict(), tokens, ignore=r"pooler\..*|.*position_ids|.*token_type_ids"
    )
    mask = tokens != config.pad_id
    with torch.no_grad():
        out = theirs(
            torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            output_hidden_states=True,
        )
    mine = apply(module, variables, tokens, hidden_states=True)
    np.testing.assert_array_equal(mine.mask, mask)
    pooled = out.pooler_output if pool == "pooler" else out.last_hidden_state[:, 0]
    yield difference("text embedding", mine.embed, pooled)
    yield worst(
        "text hidden states", *([np.asarray(h)[mask] for h in hs] for hs in (mine.hidden_states, out.hidden_states))
    )


def resnet(layers: tuple[int, int, int, int], width: int, size: int) -> Iterator[Difference]:
    """Compares the plain ResNet with ResNetModel of transformers, whose parameters are renamed to torchvision's."""
    import re

    import torch
    import transformers

    theirs = randomise(
        transformers.ResNetModel(
            transformers.ResNetConfig(
                embedding_size=width, hidden_sizes=[4 * width * 2**i for i in range(4)], depths=list(layers)
            )
        )
    )
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name.endswith("layer.2.normalization.weight"):
                weight.mul_(0.25)  # small residual branches, as after training; otherwise activations grow to 80
    state = {}
    for name, tensor in theirs.state_dict().items():
        name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        name = re.sub(r"encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}.", name)
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        name = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", name)
        state[re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", name)] = tensor
    images = pictures(size)
    module = ResNet(PlainResNetConfig(image_size=size, layers=layers, width=width), None)
    variables = tower(openai.RESNET, module, state, images, ignore=".*num_batches_tracked")
    with torch.no_grad():
        out = theirs(nchw(images), output_hidden_states=True)
    mine = apply(module, variables, images, hidden_states=True)
    yield difference("image embedding", mine.embed, out.pooler_output[:, :, 0, 0])
    states = [h.permute(0, 2, 3, 1) for h in out.hidden_states]
    yield worst("stages", mine.hidden_states, states)


def golden(name: str) -> Iterator[Difference]:
    """Compares with outputs of OpenAI's or EVA's own code, recorded in tests/golden."""
    data = np.load(GOLDEN / f"{name}.npz")
    ours = clip_jax.load(GOLDEN / f"{name}.safetensors", config=json.loads(str(data["config"])))
    images = data["images_nchw"].transpose(0, 2, 3, 1)
    yield difference(
        "image embedding", apply(ours.model, ours.variables, images, method="encode_image"), data["image_embed"]
    )
    text = apply(ours.model, ours.variables, data["tokens"], method="encode_text")
    yield difference("text embedding", text.embed, data["text_embed"])
    if "logits_per_image" in data:
        out = apply(ours.model, ours.variables, images, data["tokens"])
        similarity = np.exp(out.logit_scale) * out.image_features @ out.text_features.T
        yield difference("logits", similarity, data["logits_per_image"])


def full_resnet() -> Iterator[Difference]:
    """Compares the image tower of OpenAI's RN50, at full size, with the same network written in torch."""
    import torch

    from tests.support.torch_resnet import ModifiedResNet

    config = clip_jax.preset("RN50")
    vision = config.vision
    theirs = randomise(ModifiedResNet(vision.layers, config.embed_dim, vision.heads, vision.image_size, vision.width))
    images = pictures(vision.image_size)
    module = clip_jax.CLIP(dataclasses.replace(config, text=None))
    state = {f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}
    checkpoint = {n: Entry(tuple(t.shape), lambda t=t: t.detach().numpy()) for n, t in state.items()}
    expect = flat_variables(jax.eval_shape(lambda key: clip_jax.init(module.config, key), jax.random.key(0)))
    flat = convert(checkpoint, openai.rules(config), expect, ignore=".*num_batches_tracked", where="the reference")
    with torch.no_grad():
        out, states = theirs(nchw(images))
    mine = apply(module, nested_variables(flat), images, method="image_states")
    yield difference("image embedding", mine.embed, out)
    yield worst("stages", mine.hidden_states, [h.permute(0, 2, 3, 1) for h in states])


def clip(vision: dict[str, Any], text: dict[str, Any], act: str = "quick_gelu", projection: int = 24) -> Any:
    import transformers

    vocab = text["vocab_size"]
    ends = {"bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": vocab - 1}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={"hidden_act": act, "projection_dim": projection, **ends, **text},
            vision_config={"hidden_act": act, "projection_dim": projection, **vision},
            projection_dim=projection,
        )
    )


def sizes(width: int, layers: int, heads: int, mlp: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": mlp, **others,
    }  # fmt: skip


def clip_alone(kind: str, act: str, **fields: Any) -> Any:
    import transformers

    ends = {}
    if "Text" in kind:
        vocab = fields["vocab_size"]
        ends = {"bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": vocab - 1}
    config = transformers.CLIPTextConfig if "Text" in kind else transformers.CLIPVisionConfig
    return getattr(transformers, kind)(config(hidden_act=act, projection_dim=24, **ends, **fields))


def siglip(vision: dict[str, Any], text: dict[str, Any]) -> Any:
    import transformers

    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))


def chinese(vision: dict[str, Any], text: dict[str, Any]) -> Any:
    import transformers

    return transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(
            text_config={"projection_dim": 24, "hidden_act": "gelu", "layer_norm_eps": 1e-12, **text},
            vision_config={"projection_dim": 24, "hidden_act": "quick_gelu", **vision},
            projection_dim=24,
        )
    )


SMALL_TEXT = {"vocab_size": 120, "max_position_embeddings": 12}
CASES = (
    *(Case("OpenAI, golden", name, lambda name=name: golden(name)) for name in ("openai_vit_tiny", "openai_rn_tiny")),
    Case("EVA-02, golden", "eva02_tiny", lambda: golden("eva02_tiny")),
    Case("CLIPModel", "32 wide, QuickGELU", lambda: whole(lambda: clip(
        sizes(32, 2, 2, 128, image_size=32, patch_size=8), sizes(64, 3, 1, 256, **SMALL_TEXT)))),
    Case("CLIPModel", "80 wide, GELU, heads of 20", lambda: whole(lambda: clip(
        sizes(80, 3, 4, 192, image_size=42, patch_size=14), sizes(48, 2, 3, 96, **SMALL_TEXT), "gelu"))),
    Case("CLIPTextModel", "SD 1 like", lambda: text_alone(lambda: clip_alone(
        "CLIPTextModel", "quick_gelu", **sizes(64, 3, 4, 256, **SMALL_TEXT)))),
    Case("CLIPTextModel", "SD 2 like, GELU", lambda: text_alone(lambda: clip_alone(
        "CLIPTextModel", "gelu", **sizes(96, 4, 2, 384, **SMALL_TEXT)))),
    Case("CLIPTextModelWithProjection", "SDXL like", lambda: text_alone(lambda: clip_alone(
        "CLIPTextModelWithProjection", "gelu", **sizes(80, 3, 5, 320, **SMALL_TEXT)))),
    Case("CLIPVisionModelWithProjection", "64 wide", lambda: vision_alone(lambda: clip_alone(
        "CLIPVisionModelWithProjection", "quick_gelu", **sizes(64, 3, 4, 256, image_size=28, patch_size=7)))),
    Case("CLIPVisionModelWithProjection", "48 wide, GELU", lambda: vision_alone(lambda: clip_alone(
        "CLIPVisionModelWithProjection", "gelu", **sizes(48, 2, 2, 100, image_size=32, patch_size=16)))),
    Case("SiglipModel", "32 wide", lambda: whole(lambda: siglip(
        sizes(32, 2, 2, 64, image_size=32, patch_size=8),
        sizes(32, 2, 4, 64, vocab_size=120, max_position_embeddings=12, projection_size=32)), eot=False)),
    Case("SiglipModel", "72 wide, 27 of 4 × 6 pixels", lambda: whole(lambda: siglip(
        sizes(72, 3, 3, 108, image_size=27, patch_size=6),
        sizes(72, 2, 2, 108, vocab_size=90, max_position_embeddings=16, projection_size=72)), eot=False)),
    Case("SiglipModel", "SigLIP 2 fixed-res, giant like: text narrower", lambda: whole(lambda: siglip(
        sizes(48, 2, 3, 96, image_size=32, patch_size=8),
        sizes(24, 3, 2, 96, vocab_size=256_000, max_position_embeddings=10, projection_size=48)), eot=False)),
    Case("ChineseCLIPModel", "32 wide", lambda: whole(lambda: chinese(
        sizes(32, 2, 2, 128, image_size=32, patch_size=8), sizes(64, 2, 4, 256, vocab_size=120,
        max_position_embeddings=MAX_POSITIONS)), eot=False)),
    Case("ChineseCLIPModel", "96 wide", lambda: whole(lambda: chinese(
        sizes(96, 3, 6, 384, image_size=28, patch_size=14), sizes(48, 3, 3, 192, vocab_size=90,
        max_position_embeddings=MAX_POSITIONS)), eot=False)),
    *(Case(f"{kind}Model", f"{pool}, {width} wide", lambda kind=kind, pool=pool, width=width, layers=layers,
        heads=heads: bert(kind, pool, **sizes(width, layers, heads, 3 * width, vocab_size=100)))
      for kind in ("Bert", "Roberta")
      for pool, width, layers, heads in (("pooler", 48, 2, 3), ("cls", 64, 3, 4))),
    Case("ResNetModel", "(1, 2, 1, 1) × 8", lambda: resnet((1, 2, 1, 1), 8, 64)),
    Case("ResNetModel", "(2, 1, 1, 2) × 16, 80 pixels", lambda: resnet((2, 1, 1, 2), 16, 80)),
    Case("CLIPModel", "ViT-B/32, full size", lambda: whole(lambda: clip(
        sizes(768, 12, 12, 3072, image_size=224, patch_size=32),
        sizes(512, 12, 8, 2048, vocab_size=49408, max_position_embeddings=77), projection=512)), slow=True),
    Case("OpenAI ModifiedResNet", "RN50, full size", full_resnet, slow=True),
    Case("ResNetModel", "ResNet-50, full size", lambda: resnet((3, 4, 6, 3), 64, 224), slow=True),
)  # fmt: skip
