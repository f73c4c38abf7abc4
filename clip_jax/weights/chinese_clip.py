"""Original Chinese-CLIP checkpoints (OFA-Sys): OpenAI's names for the image tower, `bert.*` for the text tower.

The files also hold BERT's pooler, which Chinese-CLIP does not use: it is ignored.
"""

from typing import Any

from clip_jax.config import BertConfig, CLIPConfig, PreprocessConfig, ResNetConfig
from clip_jax.errors import UserError
from clip_jax.weights import openai
from clip_jax.weights.rules import Checkpoint, Format, Rule, count, linear, norm, renamed, same

LAYER = "encoder/layer_{i}"
THEIR_LAYER = "encoder.layer.{i}"
BERT = (
    *(
        Rule(f"embeddings/{name}_embeddings/embedding", f"embeddings.{name}_embeddings.weight", same)
        for name in ("word", "position", "token_type")
    ),
    *norm("embeddings/LayerNorm", "embeddings.LayerNorm"),
    *(
        rule
        for name in ("query", "key", "value")
        for rule in linear(f"{LAYER}/attention/self/{name}", f"{THEIR_LAYER}.attention.self.{name}")
    ),
    *linear(f"{LAYER}/attention/output/dense", f"{THEIR_LAYER}.attention.output.dense"),
    *norm(f"{LAYER}/attention/output/LayerNorm", f"{THEIR_LAYER}.attention.output.LayerNorm"),
    *linear(f"{LAYER}/intermediate/dense", f"{THEIR_LAYER}.intermediate.dense"),
    *linear(f"{LAYER}/output/dense", f"{THEIR_LAYER}.output.dense"),
    *norm(f"{LAYER}/output/LayerNorm", f"{THEIR_LAYER}.output.LayerNorm"),
    *linear("pooler/dense", "pooler.dense"),
)
PREPROCESS = PreprocessConfig(resize="squash")  # OpenAI's mean and std
CONTEXT_LENGTH = 52  # of all published models; the position table has 512 rows


def rules(config: CLIPConfig) -> tuple[Rule, ...]:
    """The rules of OpenAI's image tower and a `BertTower`."""
    visual = openai.RESNET if isinstance(config.vision, ResNetConfig) else openai.VIT
    return (
        *renamed(visual, ours="visual/", theirs="visual."),
        *renamed(BERT, ours="text/", theirs="bert."),
        Rule("text/text_projection/kernel", "text_projection", same),
        *openai.SCALE,
    )


def bert_sizes(checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    """The sizes of a BERT from its shapes, {"text.width": 768, …}; `prefix` (a regular expression) begins its names."""
    found: dict[str, Any] = {"text.layers": count(checkpoint, rf"{prefix}encoder\.layer\.(\d+)\.")}
    if word := checkpoint.get(f"{prefix}embeddings.word_embeddings.weight"):
        found["text.vocab_size"], found["text.width"] = word.shape
    if position := checkpoint.get(f"{prefix}embeddings.position_embeddings.weight"):
        found["text.max_positions"] = position.shape[0]
    if kind := checkpoint.get(f"{prefix}embeddings.token_type_embeddings.weight"):
        found["text.type_vocab_size"] = kind.shape[0]
    if hidden := checkpoint.get(f"{prefix}encoder.layer.0.intermediate.dense.bias"):
        found["text.mlp_width"] = hidden.shape[0]
    return found


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config fields that the shapes determine, {"vision.width": 768, …}."""
    found = {**bert_sizes(checkpoint, "bert."), **openai.vision_sizes(checkpoint)}
    if "text_projection" in checkpoint:
        found["embed_dim"] = checkpoint["text_projection"].shape[-1]
    return found


def infer(checkpoint: Checkpoint) -> CLIPConfig:
    """The config of one of the five published models: heads of 64 channels (80 in the image tower of ViT-H).

    Raises:
        UserError: the width of a tower is no multiple of 64, so the number of heads is not known.
    """
    found = sizes(checkpoint)
    vision, text = openai.tower(found, "vision"), openai.tower(found, "text")
    if text["width"] % 64 or (isinstance(vision.get("layers"), int) and vision["width"] % 64):
        raise UserError(
            f"the heads of towers of width {vision.get('width')} and {text['width']} are not in the weights: give "
            "config= (a preset, or a CLIPConfig)"
        )
    bert = BertConfig(heads=text["width"] // 64, context_length=min(CONTEXT_LENGTH, text["max_positions"]), **text)
    if vision.get("width") == 1280:
        vision["heads"] = 16
    image = openai.vision_config(vision) if vision else None
    return CLIPConfig(embed_dim=found["embed_dim"], vision=image, text=bert, preprocess=PREPROCESS)


KNOWN = {
    "vision.activation": "quick_gelu",
    "vision.ln_eps": 1e-5,
    "text.activation": "gelu",
    "text.ln_eps": 1e-12,
}
IGNORE = rf"{openai.BUFFERS}|bert\.pooler\..*|.*position_ids"
FORMAT = Format("chinese_clip", rules, sizes, infer, IGNORE, lambda checkpoint: KNOWN)
