"""The recipe that trains a CLIP: on the shapes world, on Fashion-MNIST or on your own captioned pictures.

The three builders (`CLIPPart.build`) differ in the tokenizer: BPE learned from the captions, ASCII characters, or
BERT's WordPiece.
"""

from __future__ import annotations

import dataclasses

import numpy as np

import clip_jax
from clip_jax.config import BertConfig
from clip_jax.task import CLIPTask, StartedTask
from clip_jax.tokenizer import AsciiTokenizer, Tokenizer, WordPieceTokenizer, load_tokenizer, train_bpe
from clip_jax.weights.native import unflatten
from clip_jax.weights.towers import load_tower
from train_jax.data import batches
from train_jax.errors import UserError
from train_jax.state import TrainState
from train_jax.task import Task
from train_recipes.check import check_average, check_examples, check_run, example, trace, with_prefix
from train_recipes.data import Examples, tokens_of
from train_recipes.engine import Plan, train_stage, variables_of
from train_recipes.options import OneBertCLIP, RunOptions, StageTraining
from train_recipes.parts import Built, CLIPPart, Evaluation, Preset, Recipe
from train_recipes.pictures import Seen, clip_preprocess

# The three builders


def with_learned_tokens(options: RunOptions, training: StageTraining, prefix: str) -> Built:
    """A CLIP whose BPE tokenizer is learned from the captions.

    Raises:
        UserError: there is no such model preset, or it is no CLIP of two towers with a BPE tokenizer.
    """
    clip = with_prefix(f"{prefix}model: ", lambda: clip_jax.preset(training.model))
    text = clip.text
    if not clip.two_towers or text is None or text.tokenizer != "clip":
        raise UserError(f"{prefix}model: {training.model} is no CLIP of two towers whose tokens are learned here")
    size, length = text.vocab_size, text.context_length
    return Built(clip, lambda captions: train_bpe(captions, size, context_length=length))


def of_grey_pictures(options: RunOptions, training: StageTraining, prefix: str) -> Built:
    """A CLIP of grey 28 × 28 pictures and ASCII captions: the tutorial "CLIP from scratch", with its bugs fixed.

    Architecture, captions and hyperparameters of preset `mini-fashion` are the tutorial's: 65,452 parameters; Adam at
    10⁻³ without warm-up, weight decay or clipping; batches of 128; 12 epochs. Fixed are: the pictures are garments, not
    digits; the temperature is limited; both towers end in a norm; the captions are encoded once per evaluation; and the
    weights that are exported are those of the last step.

    Raises:
        UserError: there is no such model preset, or it does not read 28 × 28 grey pictures and ASCII.
    """
    clip = with_prefix(f"{prefix}model: ", lambda: clip_jax.preset(training.model))
    vision, text = clip.vision, clip.text
    if vision is None or text is None or (vision.image_size, vision.channels, text.tokenizer) != (28, 1, "ascii"):
        raise UserError(
            f"{prefix}model: {training.model} does not take grey pictures of 28 × 28 and ASCII; use mini_fashion"
        )
    tokenize = AsciiTokenizer(context_length=text.context_length, pad_id=text.pad_id)
    return Built(clip, lambda captions: tokenize)


def with_bert(options: OneBertCLIP, training: StageTraining, prefix: str) -> Built:
    """A CLIP of a plain ResNet and a BERT, randomly initialised or from separately pretrained towers.

    The loss is the contrastive one, in both directions, between features of unit norm. The temperature is 0.07, fixed
    unless `--learned-temperature` is given. The running statistics of the batch norms are part of the model state and
    are exported with the weights.

    Raises:
        UserError: the vocabulary, the model, the context length or a file of tower weights does not fit.
    """
    tokenize = word_pieces(options)
    clip = clip_jax.preset(training.model)
    if not isinstance(clip.text, BertConfig) or clip.vision is None:
        raise UserError(f"{prefix}model: {training.model} is no CLIP with a BERT; use resnet50_bert_base")
    if not 2 <= options.context_length <= clip.text.context_length:
        raise UserError(f"context_length: {options.context_length} is not between 2 and {clip.text.context_length}")
    text = dataclasses.replace(clip.text, vocab_size=tokenize.vocab_size, pad_id=tokenize.pad_id)
    clip = dataclasses.replace(clip, text=text, logit_scale_learned=options.learned_temperature)
    start: dict[str, np.ndarray] = {}
    if options.image_weights is not None:
        start |= load_tower(options.image_weights, clip, "visual")
    if options.text_weights is not None:
        start |= load_tower(options.text_weights, clip, "text")
    identity = {"context_length": options.context_length, "started": sorted(unflatten(start))}
    return Built(clip, lambda captions: tokenize, start, identity)


def word_pieces(options: OneBertCLIP) -> Tokenizer:
    """The WordPiece tokenizer of `options.vocab`: a vocabulary (any .txt file) or a tokenizer.json.

    Raises:
        UserError: no vocabulary is named, or the file is none.
    """
    if options.vocab is None:
        raise UserError("vocab: none was given; name BERT's vocab.txt")
    if options.vocab.suffix == ".txt":
        return WordPieceTokenizer.from_vocabulary(options.vocab, context_length=options.context_length)
    return load_tokenizer(options.vocab, context_length=options.context_length, kind="bert")


# The recipe


def build(part: CLIPPart, options: RunOptions) -> Built:
    """The CLIP of a run: `part.build`, with the EMA setting checked.

    Raises:
        UserError: the model does not fit the recipe, or it has batch norms and `ema_decay` is not 0.
    """
    training, prefix = options.training(part.name), options.prefix(part.name)
    built = part.build(options, training, prefix)
    check_average(built.config, training, prefix)
    return built


def task_of(built: Built) -> Task:
    """The contrastive task of a CLIP, started from `built.start` if it holds pretrained weights."""
    task = CLIPTask(built.config)
    return StartedTask(task, built.start) if built.start else task


def check_clip(part: CLIPPart, options: RunOptions, built: Built) -> None:
    """Traces the training of a CLIP, shapes only.

    Raises:
        UserError: the CLIP does not fit its data.
    """
    training, seen = options.training(part.name), Seen(None, clip_preprocess(built.config))
    options.data.check_fits(seen, training.model)
    length = built.identity.get("context_length", built.config.text.context_length)
    trace(
        options.prefix(part.name),
        training,
        lambda _: CLIPTask(built.config),
        {},
        example(options.data.fields(seen), length),
    )


def train_clip(part: CLIPPart, options: RunOptions, examples: Examples) -> tuple[TrainState, Evaluation | None]:
    """Trains a CLIP to its last step and exports its EMA weights to RUN/`part.folder`.

    Returns:
        The final state, and the part's evaluation (None if it has none).
    """
    training, built = options.training(part.name), build(part, options)
    tokenize = built.tokenizer(examples.captions)
    source = examples.with_tokens(tokens_of(tokenize, examples.captions), Seen(None, clip_preprocess(built.config)))
    evaluation = part.evaluate(built.config, tokenize, options) if part.evaluate else None

    def export(state: TrainState) -> None:
        folder = options.run / part.folder
        clip_jax.save(folder, built.config, variables_of(state), tokenize, dtype=options.stored_as)

    state = train_stage(
        part.name,
        training,
        Plan(task_of(built), built.config.to_dict(), export, evaluation and evaluation.measure),
        batches(source, batch_size=training.batch_size, seed=options.seed),
        options,
        data={**examples.identity, **built.identity},
    )
    return state, evaluation


def check(name: str, preset: Preset, options: RunOptions) -> None:
    """Checks a run before any data are prepared or files written.

    Raises:
        UserError: a flag, the data or the model does not fit.
    """
    assert preset.clip is not None
    check_run(options, preset.names)
    built = build(preset.clip, options)
    check_examples(options, preset.names)
    check_clip(preset.clip, options, built)


def train(name: str, preset: Preset, options: RunOptions) -> None:
    """Trains the CLIP; prints its final metrics, the folder of its weights and a command to measure it, if any."""
    assert preset.clip is not None
    state, evaluation = train_clip(preset.clip, options, options.data.open())
    if evaluation is not None and evaluation.report is not None:
        print(evaluation.report(state))
    folder = options.run / preset.clip.folder
    print(f"weights: {folder}")
    if hint := options.data.hint(folder):
        print(hint)


RECIPE = Recipe(check, train)
