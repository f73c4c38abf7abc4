"""Pretrained single towers to initialise a CLIP with: torchvision's ResNet and Hugging Face's BERT.

The rules are those of published CLIPs with such towers. The projection into the joint space is not in these checkpoints
and keeps its random initialisation.
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

# tower: (class of its config, rules, path of the projection, regular expression for heads and buffers to ignore)
TOWERS = {
    "visual": (PlainResNetConfig, RESNET, "proj/", r"fc\..*|.*\.num_batches_tracked"),
    "text": (BertConfig, BERT, "text_projection/", r"cls\..*|.*position_ids"),
}
# A name that each tower has once: the text before it is the prefix of all its names ("module.", "bert.").
ANCHORS = {"visual": "layer1.0.conv1.weight", "text": "embeddings.word_embeddings.weight"}
TENSORFLOW = {"gamma": "weight", "beta": "bias"}  # names of LayerNorm's scale and bias in the released BERT


def load_tower(path: str | os.PathLike, config: CLIPConfig, tower: Literal["visual", "text"]) -> dict[str, np.ndarray]:
    """Reads the pretrained weights of one tower as flat variables of a CLIP, {path: float32 array}, no projection.

    Args:
        path: a weights file (safetensors or torch): torchvision's `resnet50` for "visual", Hugging Face's BERT
            ("google-bert/bert-base-uncased") for "text".
        config: the config of the CLIP to initialise.
        tower: which of its towers.

    Raises:
        UserError: the file cannot be read; an array is missing, unused or of another shape; or the config has another
            kind of tower.
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
    expect = {
        name: leaf
        for name, leaf in expected(config).items()
        if (inner := name.removeprefix(BATCH_STATS)).startswith(f"{tower}/")
        and not inner.startswith(f"{tower}/{projection}")
    }
    rules = renamed(table, ours=f"{tower}/")
    return convert(checkpoint, rules, expect, ignore=ignore, where=str(path))


def _modern(name: str) -> str:
    return re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda found: TENSORFLOW[found[1]], name)
