"""CLIP for JAX: load, run, train and export published and own models.

Example:
    model, variables, tokenize, preprocess = clip_jax.load(directory)
    image_embed = model.apply(variables, preprocess(images), method="encode_image")       # [B, D]
    text = model.apply(variables, tokenize(texts), method="encode_text")                  # text.embed: [B, D]
"""

from clip_jax.config import (
    BertConfig,
    CLIPConfig,
    EVA02Config,
    PlainResNetConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from clip_jax.encode import encode_images, encode_texts
from clip_jax.errors import UserError
from clip_jax.losses import clip_loss, distillation_loss, same_rows, sigmoid_loss
from clip_jax.model import CLIP, CLIPOutput, init, unit_norm
from clip_jax.presets import PRESETS, available_models, preset
from clip_jax.pretrained import LoadedCLIP, export, load, save
from clip_jax.task import CLIPTask
from clip_jax.tokenizer import BPETokenizer, Tokenizer, TruncationWarning, load_tokenizer, train_bpe
from clip_jax.towers.text import TextFeatures
from clip_jax.towers.vit import ImageFeatures
from image_text import __version__

__all__ = [
    "CLIP",
    "PRESETS",
    "BPETokenizer",
    "BertConfig",
    "CLIPConfig",
    "CLIPOutput",
    "CLIPTask",
    "EVA02Config",
    "ImageFeatures",
    "LoadedCLIP",
    "PlainResNetConfig",
    "PreprocessConfig",
    "ResNetConfig",
    "TextConfig",
    "TextFeatures",
    "Tokenizer",
    "TruncationWarning",
    "UserError",
    "ViTConfig",
    "__version__",
    "available_models",
    "clip_loss",
    "distillation_loss",
    "encode_images",
    "encode_texts",
    "export",
    "init",
    "load",
    "load_tokenizer",
    "preset",
    "same_rows",
    "save",
    "sigmoid_loss",
    "train_bpe",
    "unit_norm",
]
