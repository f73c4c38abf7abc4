"""Evaluations during training: retrieval, zero-shot accuracy, decoded pictures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.config import CLIPConfig
from clip_jax.encode import joined
from clip_jax.model import CLIP
from clip_jax.pretrained import LoadedCLIP
from clip_jax.task import CLIPTask
from clip_jax.tokenizer import Tokenizer
from clip_jax.uses.embed import image_features, text_features
from clip_jax.uses.zero_shot import accuracy
from image_text import fashion_mnist
from train_jax.data import batches
from train_jax.state import TrainState
from train_recipes.data import FashionData, HostBatch, tokens_of
from train_recipes.engine import variables_of
from train_recipes.options import RunOptions
from train_recipes.parts import Evaluation
from train_recipes.pictures import Seen, clip_preprocess
from unclip_jax import stage as stages
from unclip_jax.diffusion.keys import sample_keys
from unclip_jax.evaluation.shapes import retrieval
from unclip_jax.stage import Stage
from unclip_jax.tasks import encode, to_uint8

PICTURES = 200  # evaluated per split of the shapes world


def shapes_retrieval(clip: CLIPConfig, tokenize: Tokenizer, options: RunOptions) -> Evaluation:
    """Retrieval on the shapes world: the share of pictures whose caption a CLIP finds among all 192.

    Logged as "retrieval/test" (combinations seen in training) and "retrieval/heldout".
    """

    def measure(state: TrainState) -> dict[str, float]:
        weights, splits = joined(variables_of(state)), ("test", "heldout")
        return {f"retrieval/{split}": retrieval(clip, weights, tokenize, split, PICTURES) for split in splits}

    return Evaluation(measure)


def fashion_accuracy(clip: CLIPConfig, tokenize: Tokenizer, options: RunOptions) -> Evaluation:
    """Contrastive loss, its lower bound ("floor") and zero-shot accuracy on the test split of Fashion-MNIST.

    Both losses are means over batches of the training size, since they depend on how often a batch repeats a caption:
    with ten captions, a batch of 128 holds each about 13 times, so the loss cannot fall below 2.585 nats, the entropy
    of which of the equal captions belongs to an image. A loss of 2.6 is therefore nearly perfect.
    """
    data = options.data
    assert isinstance(data, FashionData)
    task, captions = CLIPTask(clip), fashion_mnist.CAPTIONS
    test = data.open("test")
    preprocess = clip_preprocess(clip)
    source = test.with_tokens(tokens_of(tokenize, test.captions), Seen(None, preprocess))
    batch_size = min(options.training("clip").batch_size, len(source))
    batch = batches(source, batch_size=batch_size, seed=0)
    loss = jax.jit(
        lambda params, batch: task.loss(params, {}, batch, jax.random.key(0, impl="threefry2x32"), train=False)[1][0]
    )

    def measure(state: TrainState) -> dict[str, float]:
        params = jax.device_get(state.ema_params)
        loaded = LoadedCLIP(CLIP(clip), {"params": params}, tokenize, preprocess)
        losses = [loss(params, batch(i)) for i in range(len(source) // batch_size)]
        features = image_features(loaded, list(test.images), batch_size=1000)
        right = accuracy(features, text_features(loaded, captions), test.labels, ks=(1,))[1]
        means = {f"test/{name}": float(np.mean([one[name] for one in losses])) for name in ("loss", "loss_floor")}
        return {**means, "test/accuracy": right}

    def report(state: TrainState) -> str:
        metrics = measure(state)
        above = metrics["test/loss"] - metrics["test/loss_floor"]
        return (
            f"test: loss {metrics['test/loss']:.3f}, {above:.3f} above its floor of {metrics['test/loss_floor']:.3f}; "
            f"zero-shot accuracy {100 * metrics['test/accuracy']:.2f} % of {len(test.labels)} images, "
            f"{len(captions)} captions"
        )

    return Evaluation(measure, report)


def decoded_examples(stage: Stage, clip: LoadedCLIP, examples: HostBatch) -> Evaluation:
    """Draws a few training examples from their own CLIP embeddings: a grid, originals above, decoded pictures below.

    Args:
        stage: the decoder.
        clip: the CLIP that conditions it.
        examples: fields "tokens", int32 [N, L]; "image", uint8 [N, H, H, 3], H a multiple of the decoder's image size;
            and "clip_image", uint8, if CLIP reads pictures of another size.
    """
    images, size = examples["image"], stage.sample_shape[0]
    seen = jnp.asarray(examples.get("clip_image", images))
    cond = encode(clip.model.config, joined(clip.variables), seen, jnp.asarray(examples["tokens"]))
    keys = sample_keys(jax.random.key(0), jnp.arange(len(images)))
    real = images.reshape(len(images), size, images.shape[1] // size, size, images.shape[1] // size, 3).mean((2, 4))
    draw = jax.jit(lambda weights: to_uint8(stages.run(stage, weights, cond, keys)))

    def measure(state: TrainState) -> dict[str, np.ndarray]:
        rows = [
            np.hstack(list(pictures)) for pictures in (real.astype(np.uint8), np.asarray(draw(variables_of(state))))
        ]
        return {"samples": np.vstack(rows)}

    return Evaluation(measure)
