"""A CLIP of 65,452 parameters on Fashion-MNIST, the program of a tutorial ("CLIP from scratch") as it was meant.

Architecture, captions and hyper-parameters are the tutorial's to the letter: Adam at 10⁻³ without warm-up, decay or
clipping, batches of 128, 12 epochs. Its faults are not: it shows garments and not digits, the temperature is limited,
both towers end in a norm, the captions are encoded once per evaluation, and what is written is the last step.

With ten captions a batch of 128 holds each about thirteen times, so the loss cannot fall below 2.585 nats, the entropy
of which of the equal captions belongs to an image. A loss that stays at 2.6 is success.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_jax.begin import Begin
from train_jax.errors import UserError
from train_jax.optim import OptimConfig
from train_recipes.check import check_examples, check_settings, example, trace, with_prefix
from train_recipes.engine import Plan, StageTraining, check_begin, check_directories, train_stage

if TYPE_CHECKING:
    from train_jax.state import TrainState

EPOCHS, EXAMPLES, BATCH = 12, 60_000, 128


@dataclass(frozen=True)
class Data:
    """Fashion-MNIST as training data."""

    directory: Path = Path("data")
    """Prepared here on first use."""
    files: Path | None = None
    """Directory of the four idx files; None: TFDS's fashion_mnist, downloaded if it is not in `directory`."""


@dataclass(frozen=True)
class MiniFashion(Begin, StageTraining):
    """A small CLIP on Fashion-MNIST."""

    run: Path = Path("runs/mini-fashion")
    """Run directory: weights, checkpoints and logs."""
    seed: int = 0
    data: Data = field(default_factory=Data)


ADAM = OptimConfig(lr=1e-3, warmup_steps=0, schedule="constant", b2=0.999, clip_norm=0.0, ema_decay=0.0)
PRESETS = {
    "mini-fashion": (
        "a CLIP of 65,452 parameters on Fashion-MNIST, measured on ten captions",
        MiniFashion("mini_fashion", EPOCHS * EXAMPLES // BATCH, BATCH, ADAM),
    )
}


def check(name: str, config: MiniFashion) -> None:
    """Refuses what can be seen to be wrong before anything is prepared or written."""
    import clip_jax
    from image_text import fashion_mnist

    check_settings({"": config}, config.seed)
    check_directories(config.run, config.data.directory)
    check_begin(config, config.run, ["clip"])
    clip = with_prefix("model: ", lambda: clip_jax.preset(config.model))
    vision, text = clip.vision, clip.text
    if vision is None or text is None or (vision.image_size, vision.channels, text.tokenizer) != (28, 1, "ascii"):
        raise UserError(f"model: {config.model} does not take grey pictures of 28 × 28 and ASCII; use mini_fashion")
    files = config.data.files
    check_examples({"": config}, EXAMPLES if files is None else len(fashion_mnist.read_idx(files)["train"].images))
    fields = example(image=((28, 28, 1), "uint8"), tokens=((text.context_length,), "int32"))
    trace("", config, lambda _: clip_jax.CLIPTask(clip), {}, fields)


def train(name: str, config: MiniFashion) -> None:
    """Trains it, and prints loss and zero-shot accuracy on the test split."""
    import numpy as np

    import clip_jax
    from clip_jax.tokenizer import AsciiTokenizer
    from image_text import fashion_mnist
    from train_jax.data import InMemory, batches

    clip = clip_jax.preset(config.model)
    tokenize = AsciiTokenizer(context_length=clip.text.context_length, pad_id=clip.text.pad_id)
    captions = tokenize(fashion_mnist.CAPTIONS)

    def pairs(split: str) -> tuple[InMemory, np.ndarray]:
        data = config.data
        arrays = InMemory(fashion_mnist.source(split, data_dir=data.directory, files=data.files)).arrays
        return InMemory({"image": arrays["image"], "tokens": captions[arrays["label"]]}), arrays["label"]

    examples, (test, labels) = pairs("train")[0], pairs("test")
    task = clip_jax.CLIPTask(clip)
    evaluate = evaluation(task, tokenize, fashion_mnist.CAPTIONS, test, labels, config.batch_size)

    def export(state: TrainState) -> None:
        clip_jax.save(config.run / "clip", clip, {"params": state.ema_params}, tokenize)

    state = train_stage(
        "clip",
        config,
        Plan(task, clip.to_dict(), export, evaluate),
        batches(examples, batch_size=config.batch_size, seed=config.seed),
        run=config.run,
        seed=config.seed,
        data={"examples": len(examples)},
        begin=config,
    )
    found = evaluate(state)
    above = found["test/loss"] - found["test/loss_floor"]
    print(
        f"test: loss {found['test/loss']:.3f}, {above:.3f} above its floor of {found['test/loss_floor']:.3f}; "
        f"zero-shot accuracy {100 * found['test/accuracy']:.2f} % of {len(labels)} images, {len(captions)} captions"
    )
    print(f"weights: {config.run / 'clip'}")


def evaluation(task: Any, tokenize: Any, captions: Any, test: Any, labels: Any, batch_size: int) -> Any:
    """State -> loss, its floor and zero-shot accuracy on the test split.

    The loss and its floor are those of batches as in training, as both depend on how many captions a batch repeats.
    """
    import jax
    import numpy as np

    from clip_jax.images import Preprocess
    from clip_jax.model import CLIP
    from clip_jax.pretrained import LoadedCLIP
    from clip_jax.uses.embed import image_features, text_features
    from clip_jax.uses.zero_shot import accuracy
    from train_jax.data import batches

    config = task.config
    preprocess = Preprocess(config.preprocess, config.vision.image_size)
    batch_size = min(batch_size, len(test))
    batch = batches(test, batch_size=batch_size, seed=0)
    loss = jax.jit(
        lambda params, batch: task.loss(params, {}, batch, jax.random.key(0, impl="threefry2x32"), train=False)[1][0]
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        params = jax.device_get(state.ema_params)
        clip = LoadedCLIP(CLIP(config), {"params": params}, tokenize, preprocess)
        found = [loss(params, batch(i)) for i in range(len(test) // batch_size)]
        features = image_features(clip, list(test.arrays["image"]), batch_size=1000)
        right = accuracy(features, text_features(clip, captions), labels, ks=(1,))[1]
        means = {f"test/{name}": float(np.mean([one[name] for one in found])) for name in ("loss", "loss_floor")}
        return {**means, "test/accuracy": right}

    return evaluate
