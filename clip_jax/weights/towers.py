"""Towers that were trained alone, to start a CLIP from: torchvision's ResNet and Hugging Face's BERT.

Their tables are those that the published CLIPs with such towers are read by; what a tower alone has no weights for, its
projection into the joint space, is left to be drawn.
"""

import os
import re
from typing import Literal

import numpy as np

from clip_jax.config import BertConfig, CLIPConfig, PlainResNetConfig
from clip_jax.errors import UserError
from clip_jax.weights.chinese_clip import BERT
from clip_jax.weights.files import read_checkpoint
from clip_jax.weights.openai import RESNET
from clip_jax.weights.prefixes import prefixes, under, without_inner_wrappers
from clip_jax.weights.rules import BATCH_STATS, Entry, convert, expected, renamed, some

# tower: the config that it has, its table, its projection, and the heads and buffers that are not part of it
TOWERS = {
    "visual": (PlainResNetConfig, RESNET, "proj/", r"fc\..*|.*\.num_batches_tracked"),
    "text": (BertConfig, BERT, "text_projection/", r"cls\..*|.*position_ids"),
}
# A name that the tower has once: what comes before it comes before all its names ("module.", "bert.").
ANCHORS = {"visual": "layer1.0.conv1.weight", "text": "embeddings.word_embeddings.weight"}
TENSORFLOW = {"gamma": "weight", "beta": "bias"}  # how the scales and biases of norms are called in BERT as released


def load_tower(path: str | os.PathLike, config: CLIPConfig, tower: Literal["visual", "text"]) -> dict[str, np.ndarray]:
    """One tower's published weights as flat float32 variables of this CLIP, all but the projection.

    Args:
        path: a weights file (safetensors or a torch zip) of torchvision's `resnet50` for "visual", of Hugging Face's
            BERT ("google-bert/bert-base-uncased") for "text".
        config: of the CLIP that starts with it.
        tower: which of its towers.

    Raises:
        UserError: the file cannot be read, or an array is missing, left over, or of another shape; or when the config
            has another kind of tower.
    """
    kind, table, projection, ignore = TOWERS[tower]
    part = config.vision if tower == "visual" else config.text
    if not isinstance(part, kind):
        raise UserError(f"{path}: it could start a {kind.__name__}, the model has a {type(part).__name__}")
    checkpoint: dict[str, Entry] = {_modern(name): entry for name, entry in read_checkpoint(path).items()}
    checkpoint = without_inner_wrappers(checkpoint, str(path))
    found = prefixes(checkpoint, (ANCHORS[tower],))
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} towers ({some(found, 4)}): save the one to begin with alone")
    checkpoint = under(checkpoint, found[0], found) if found else checkpoint
    wanted = {
        name: leaf
        for name, leaf in expected(config).items()
        if (inner := name.removeprefix(BATCH_STATS)).startswith(f"{tower}/")
        and not inner.startswith(f"{tower}/{projection}")
    }
    rules = renamed(table, ours=f"{tower}/")
    return convert(checkpoint, rules, wanted, ignore=ignore, where=str(path))


def _modern(name: str) -> str:
    return re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda found: TENSORFLOW[found[1]], name)
