"""A CLIP of a plain ResNet and BERT on pictures with captions of one's own.

Loss in both directions between features of unit norm, at the temperature 0.07, which can be learned. The batch norms'
running statistics are part of the state and are written with the weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_jax.begin import Begin
from train_jax.errors import UserError
from train_jax.optim import OptimConfig
from train_recipes.check import check_average, check_examples, check_settings, example, trace
from train_recipes.engine import Plan, StageTraining, check_begin, check_directories, train_stage

if TYPE_CHECKING:
    from train_jax.state import TrainState


@dataclass(frozen=True)
class Data:
    """Pictures and their captions."""

    source: str = ""
    """A table (.csv, .tsv, .jsonl with columns image and caption), a folder of classes, or tfds:NAME:SPLIT."""
    directory: Path | None = None
    """Where TFDS keeps its data; None: where it usually does."""
    max_damaged: float = 0.01
    """Share of the pictures that may be damaged: the next stands in, the log counts `bad`."""


@dataclass(frozen=True)
class ImageCaptions(Begin, StageTraining):
    """A ResNet and BERT on pictures with captions."""

    run: Path = Path("runs/resnet50-bert")
    """Run directory: weights, checkpoints and logs."""
    seed: int = 0
    vocab: Path | None = None
    """WordPiece vocabulary: BERT's vocab.txt or tokenizer.json."""
    context_length: int = 64
    """Tokens of a caption, start and end included; BERT has positions for 512, but long rows cost time."""
    learned_temperature: bool = False
    """Whether the temperature is learned, from 0.07."""
    image_weights: Path | None = None
    """Start of the image tower: a file of torchvision's resnet50."""
    text_weights: Path | None = None
    """Start of the text tower: a file of Hugging Face's bert-base-uncased."""
    data: Data = field(default_factory=Data)


def optim(lr: float, warmup_steps: int) -> OptimConfig:
    # Warmed up, since a whole BERT is trained. Not averaged: running statistics are those of the latest weights.
    return OptimConfig(lr=lr, warmup_steps=warmup_steps, b2=0.999, ema_decay=0.0)


PRESETS = {
    "resnet50-bert": (
        "ResNet-50 and BERT-base on pictures with captions of your own (an accelerator's work)",
        ImageCaptions("resnet50_bert_base", 10_000, 32, optim(1e-4, 1000)),
    ),
    "tiny-resnet-bert": (
        "the same with towers of a few thousand parameters, to see that it runs",
        ImageCaptions(
            "tiny_resnet_bert",
            8,
            8,
            optim(1e-3, 2),
            log_every=2,
            save_every=4,
            run=Path("runs/tiny-resnet-bert"),
            context_length=32,
        ),
    ),
}


def check(name: str, config: ImageCaptions) -> None:
    """Refuses what can be seen to be wrong before anything is prepared or written."""
    import clip_jax
    from image_text.source import open_source

    check_settings({"": config}, config.seed)
    check_directories(config.run)
    if not config.data.source:
        raise UserError("data.source: none was given; name a table, a folder or tfds:NAME:SPLIT")
    if config.vocab is None:
        raise UserError("vocab: none was given; name BERT's vocab.txt")
    check_damaged(config.data)
    check_begin(config, config.run, ["clip"])
    tokenize = tokenizer(config)
    clip = architecture(config, tokenize)
    check_average(clip, config)
    listing = open_source(config.data.source, data_dir=config.data.directory)
    captions_of(listing, config.data.source)
    check_examples({"": config}, len(listing.names))
    size = clip.vision.image_size
    fields = example(image=((size, size, clip.vision.channels), "uint8"), tokens=((config.context_length,), "int32"))
    trace("", config, lambda _: clip_jax.CLIPTask(clip), {}, fields)
    start(config, clip)


def check_damaged(data: Data) -> None:
    """Refuses a share of damaged pictures that is none."""
    if not 0 <= data.max_damaged <= 1:
        raise UserError(f"data.max_damaged: {data.max_damaged} is not between 0 and 1")


def train(name: str, config: ImageCaptions) -> None:
    """Trains it on all pictures of the source."""
    import clip_jax
    from clip_jax.images import Preprocess
    from clip_jax.task import StartedTask
    from image_text.source import open_source
    from train_jax.data import batches

    tokenize = tokenizer(config)
    clip = architecture(config, tokenize)
    listing = open_source(config.data.source, data_dir=config.data.directory)
    captions = captions_of(listing, config.data.source)
    tokens = tokenize(captions)
    pairs = Pairs(listing.pictures, tokens, Preprocess(clip.preprocess, clip.vision.image_size))
    task: Any = clip_jax.CLIPTask(clip)
    if weights := start(config, clip):
        task = StartedTask(task, weights)

    def export(state: TrainState) -> None:
        clip_jax.save(config.run / "clip", clip, {"params": state.ema_params, **state.model_state}, tokenize)

    said = "\n".join(f"{name}\t{caption}" for name, caption in zip(listing.names, captions, strict=True))
    train_stage(
        "clip",
        config,
        Plan(task, clip.to_dict(), export),
        batches(pairs, batch_size=config.batch_size, seed=config.seed, max_damaged=config.data.max_damaged),
        run=config.run,
        seed=config.seed,
        data={
            "examples": len(pairs),
            "names and captions": hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest(),
            "context_length": config.context_length,
            "started": sorted({path.partition("/")[0] for path in weights}),
        },
        begin=config,
    )
    weights_at = config.run / "clip"
    print(f"weights: {weights_at}")
    print(f"how well they find each other: python -m clip_jax retrieve {config.data.source} --model {weights_at}")


class Pairs:
    """Pictures and tokens as a random-access source; a picture is opened, resized and cropped when it is asked for."""

    def __init__(self, pictures: Any, tokens: Any, preprocess: Any):
        self.pictures, self.tokens, self.preprocess = pictures, tokens, preprocess

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """-> image uint8 [H, W, 3], tokens int32 [L]."""
        return {"image": self.preprocess.pixels(self.pictures[index]), "tokens": self.tokens[index]}


def tokenizer(config: ImageCaptions) -> Any:
    """The WordPiece of the vocabulary; a .txt is one whatever its name."""
    from clip_jax.tokenizer import WordPieceTokenizer, load_tokenizer

    length = config.context_length
    if config.vocab.suffix == ".txt":
        return WordPieceTokenizer.from_vocabulary(config.vocab, context_length=length)
    return load_tokenizer(config.vocab, context_length=length, kind="bert")


def architecture(config: ImageCaptions, tokenize: Any) -> Any:
    """The preset with the size of this vocabulary."""
    import clip_jax

    clip = clip_jax.preset(config.model)
    if not isinstance(clip.text, clip_jax.BertConfig) or clip.vision is None:
        raise UserError(f"model: {config.model} is no CLIP with a BERT; use resnet50_bert_base")
    if not 2 <= config.context_length <= clip.text.context_length:
        raise UserError(f"context_length: {config.context_length} is not between 2 and {clip.text.context_length}")
    text = dataclasses.replace(clip.text, vocab_size=tokenize.vocab_size, pad_id=tokenize.pad_id)
    return dataclasses.replace(clip, text=text, logit_scale_learned=config.learned_temperature)


def captions_of(listing: Any, source: str) -> list[str]:
    """Captions as given, else a sentence with the name of the class."""
    from clip_jax.uses.prompts import TEMPLATES

    if listing.captions is not None:
        return listing.captions
    if listing.labels is None:
        raise UserError(f"{source} has neither captions nor classes; write a table with columns image and caption")
    (sentence,) = TEMPLATES["plain"]
    return [sentence.format(listing.classes[label]) for label in listing.labels]


def start(config: ImageCaptions, clip: Any) -> dict[str, Any]:
    """The weights that towers start from, flat."""
    from clip_jax.weights.towers import load_tower

    weights: dict[str, Any] = {}
    if config.image_weights is not None:
        weights |= load_tower(config.image_weights, clip, "visual")
    if config.text_weights is not None:
        weights |= load_tower(config.text_weights, clip, "text")
    return weights
