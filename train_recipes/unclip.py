"""The recipe of unCLIP: trains prior, decoder and upsamplers over a CLIP, each by itself and in any order.

Every stage exports its weights to a folder of the run directory. Once the directory holds a CLIP, a prior and a
decoder, `sample.py --run` draws from it. The CLIP is trained first (presets of whole systems of the shapes world), or
is in the run directory already, or is a pretrained one (`--clip`) that is copied into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import clip_jax
from clip_jax.config import CLIPConfig
from clip_jax.encode import joined
from clip_jax.images import Preprocess
from clip_jax.pretrained import LoadedCLIP
from train_jax.data import batches
from train_jax.errors import UserError
from train_jax.state import TrainState
from train_jax.task import Task
from train_recipes.check import check_examples, check_run, example, trace, with_prefix
from train_recipes.clip import build, check_clip, train_clip
from train_recipes.data import Examples, HostBatch, tokens_of
from train_recipes.engine import Plan, architecture, digest, saved_steps, train_stage, variables_of
from train_recipes.options import OverCLIP, SystemOptions
from train_recipes.parts import Kind, Preset, Recipe, StagePart, Weights
from train_recipes.pictures import Seen, clip_preprocess
from train_recipes.sheets import draw_sheet
from unclip_jax import presets as stage_presets
from unclip_jax import stage as stages
from unclip_jax import tasks
from unclip_jax.conditioning import need
from unclip_jax.models.ar_prior import measure as measure_quantiser
from unclip_jax.pipeline import save_stage
from unclip_jax.priors import ARStage, OneStepStage, Prior
from unclip_jax.seams import cascade_with, check_seams, drawn, starting_from, starts_from
from unclip_jax.stage import Stage
from unclip_jax.variables import Variables

MEASURED = 256  # examples on which the x0 error of a trained prior is measured, for its analytic variance
SHOWN = 16  # examples that an evaluation draws during training


# The kinds of stages and their tasks (`Kind.task`)


def prior_task(part: StagePart, stage: Stage, clip: CLIPConfig, weights: Weights, examples: HostBatch | None) -> Task:
    """The task of a diffusion prior: denoising standardised image embeddings. Statistics are blank without examples."""
    return tasks.PriorTask(stage, clip, weights, *embedding_statistics(clip, weights, examples))


def one_step_task(
    part: StagePart, stage: OneStepStage, clip: CLIPConfig, weights: Weights, examples: HostBatch | None
) -> Task:
    """The task of a one-step prior: standardised image embeddings in one forward pass (ECLIPSE).

    Without examples the statistics are blank.
    """
    return tasks.OneStepPriorTask(stage, clip, weights, *embedding_statistics(clip, weights, examples))


def embedding_statistics(clip: CLIPConfig, weights: Weights, examples: HostBatch | None) -> Any:
    """Mean and standard deviation of the image embeddings of `examples`; blank ones if it is None."""
    if examples is None:
        return tasks.blank_statistics(clip)
    return tasks.embedding_statistics(clip, weights, examples["image"])


def ar_task(part: StagePart, stage: ARStage, clip: CLIPConfig, weights: Weights, examples: HostBatch | None) -> Task:
    """The task of an autoregressive prior: next-token prediction of quantised image embeddings.

    Without examples the quantiser is blank.
    """
    if examples is None:
        return tasks.ARPriorTask(stage, clip, weights, tasks.blank_quantiser(stage))
    pairs = tasks.embedding_pairs(clip, weights, examples["image"], examples["tokens"])
    return tasks.ARPriorTask(stage, clip, weights, measure_quantiser(stage.model, *pairs))


def decoder_task(part: StagePart, stage: Stage, clip: CLIPConfig, weights: Weights, examples: HostBatch | None) -> Task:
    """The task of a decoder: denoising pictures, given their image embeddings and captions."""
    return tasks.DecoderTask(stage, clip, weights)


def upsampler_task(
    part: StagePart, stage: Stage, clip: CLIPConfig, weights: Weights, examples: HostBatch | None
) -> Task:
    """The task of an upsampler: denoising pictures, given a degraded low-resolution one (Ramesh et al. 2022, §2.1).

    Trained on crops of half the side, a quarter of the area.
    """
    size = starts_from(stage)
    return tasks.UpsamplerTask(stage, low_res_size=size, crop_size=stage.sample_shape[0] // 2, degrade=part.degrade)


def seen_by_clip(stage: Prior, preprocess: Preprocess) -> Seen:
    """A prior reads pictures as CLIP reads them, to compute their embeddings."""
    return Seen(None, preprocess)


def seen_with_clip(stage: Stage, preprocess: Preprocess) -> Seen:
    """A decoder reads pictures of its own size, and the same pictures as CLIP reads them."""
    return Seen(stage.sample_shape[0], preprocess)


def seen_alone(stage: Stage, preprocess: Preprocess) -> Seen:
    """An upsampler reads pictures of its own size only: CLIP does not condition it."""
    return Seen(stage.sample_shape[0], None)


PRIOR = Kind(
    "a prior",
    lambda stage: isinstance(stage, Stage) and stage.model.role == "prior",
    seen_by_clip,
    prior_task,
    statistics=True,
)
AR_PRIOR = Kind("a prior", lambda stage: isinstance(stage, ARStage), seen_by_clip, ar_task, statistics=True)
ONE_STEP_PRIOR = Kind(
    "a prior", lambda stage: isinstance(stage, OneStepStage), seen_by_clip, one_step_task, statistics=True
)
DECODER = Kind("a decoder", lambda stage: stage.model.role == "decoder", seen_with_clip, decoder_task, draws=True)
UPSAMPLER = Kind(
    "an upsampler",
    lambda stage: stage.model.role == "upsampler",
    seen_alone,
    upsampler_task,
    draws=True,
    low_res=True,
)
KINDS = (PRIOR, AR_PRIOR, ONE_STEP_PRIOR, DECODER, UPSAMPLER)


def kind_of(stage: Prior) -> Kind:
    """The kind of a stage."""
    return next(kind for kind in KINDS if kind.holds(stage))


def fitted(stage: Any, clip: CLIPConfig) -> Any:
    """The stage with the embedding and text widths of this CLIP in its config; an upsampler stays as it is."""
    return dataclasses.replace(stage, model=stage.model.fitted(clip))


# Checks before the first step


def check(name: str, preset: Preset, options: SystemOptions) -> None:
    """Checks all stages before any data are prepared or files written.

    Raises:
        UserError: a flag, the data, the CLIP or a network does not fit.
    """
    check_run(options, preset.names)
    check_clip_is_there(name, preset, options)
    if isinstance(options, OverCLIP) and options.factor < 2:
        raise UserError(f"factor: {options.factor} is less than 2")
    check_clip_stays(preset, options)
    networks = {part.name: network(part, options) for part in preset.stages}
    check_cascade(preset, options, networks)
    if preset.clip is None:
        loaded = find_clip(options)
        clip, weights = loaded.model.config, joined(loaded.variables)
    else:  # it is trained first: only its shapes are known
        built = build(preset.clip, options)
        check_clip(preset.clip, options, built)
        clip = built.config
        weights = joined(jax.eval_shape(lambda key: clip_jax.init(clip, key), jax.random.key(0)))
    check_examples(options, preset.names)
    for part in preset.stages:
        check_stage(part, options, fitted(networks[part.name], clip), clip, weights)


def check_clip_is_there(name: str, preset: Preset, options: SystemOptions) -> None:
    """Checks that the run trains a CLIP, has one in its directory, or is given one with `--clip`.

    Raises:
        UserError: it has no CLIP.
    """
    named = isinstance(options, OverCLIP) and options.clip
    if preset.clip is not None or named or (options.run / "clip").is_dir():
        return
    if preset.after:
        first = f"first run train.py {preset.after} --run {options.run}"
        raise UserError(f"{options.run} holds no CLIP, which {name} needs; {first}")
    raise UserError(f"clip: none was given, and there is none in {options.run}; name the weights of one")


def check_clip_stays(preset: Preset, options: SystemOptions) -> None:
    """Refuses to extend the training of a CLIP against which other stages of the run were trained already.

    Raises:
        UserError: `--extend` would change the CLIP under a trained stage.
    """
    if preset.clip is None or not options.extend:
        return
    clip = saved_steps(options.run / "train" / preset.clip.name)
    trained = [part.name for part in preset.stages if saved_steps(options.run / "train" / part.name)]
    if clip and trained and options.training(preset.clip.name).num_steps > max(clip):
        raise UserError(
            f"{preset.clip.name}.num_steps: {options.run} has a {trained[0]} trained against its CLIP of {max(clip)} "
            "steps; begin another run from it with --begin-from"
        )


def check_kind(part: StagePart, stage: Prior, model: str, prefix: str) -> None:
    """Checks that a model preset is of the kind that its part trains.

    Raises:
        UserError: it is of another kind.
    """
    kind = kind_of(stage)
    if kind is part.kind:
        return
    if kind.called == part.kind.called:
        raise UserError(f"{prefix}model: {model} is another kind of prior than {part.name}")
    raise UserError(f"{prefix}model: {model} is {kind.called}, not {part.kind.called}")


def check_cascade(preset: Preset, options: SystemOptions, networks: Mapping[str, Any]) -> None:
    """Checks that every upsampler's input size is the output size of the stage before it in the cascade.

    Stages that this run trains and stages in its directory are compared.

    Raises:
        UserError: two neighbouring stages do not fit.
    """
    trained = {part.folder: drawn(part.folder, networks[part.name].model) for part in preset.stages if part.kind.draws}
    if not trained:
        return
    upsampling = any(part.kind.low_res for part in preset.stages)
    hint = f" (factor is {options.factor})" if isinstance(options, OverCLIP) and upsampling else ""
    for row in cascade_with(options.run, trained):
        try:
            check_seams(row)
        except UserError as error:
            raise UserError(f"{error}{hint}") from error


def check_stage(part: StagePart, options: SystemOptions, stage: Any, clip: CLIPConfig, weights: Weights) -> None:
    """Traces the training of a stage over this CLIP, shapes only.

    Raises:
        UserError: the network, the CLIP and the data do not fit.
    """
    training, seen = options.training(part.name), part.kind.seen(stage, clip_preprocess(clip))
    options.data.check_fits(seen, training.model)
    fields = example(options.data.fields(seen), clip.text.context_length)
    trace(
        options.prefix(part.name),
        training,
        lambda given: part.kind.task(part, stage, clip, given, None),
        weights,
        fields,
    )


# Training


def train(name: str, preset: Preset, options: SystemOptions) -> None:
    """Trains the stages one after the other; a preset of several stages then draws a contact sheet."""
    examples = options.data.open()
    if preset.clip is not None:
        train_clip(preset.clip, options, examples)
    if preset.stages:
        clip = the_clip(options)
        tokens = tokens_of(clip.tokenize, examples.captions)
        for part in preset.stages:
            train_one(part, options, clip, examples, tokens)
    if len(preset.names) > 1:
        print(f"pictures: {draw_sheet(options.run, examples.prompts)}")
        print(f'more: python sample.py "{examples.prompt}" --run {options.run}')


def train_one(
    part: StagePart, options: SystemOptions, clip: LoadedCLIP, examples: Examples, tokens: np.ndarray
) -> TrainState:
    """Trains one stage to its last step and exports its EMA weights to RUN/`part.folder`; returns the final state."""
    training, kind = options.training(part.name), part.kind
    config, weights = clip.model.config, joined(clip.variables)
    stage = fitted(network(part, options), config)
    source = examples.with_tokens(tokens, kind.seen(stage, clip.preprocess))
    statistics = examples.drawn(source, examples.statistics, options.seed) if kind.statistics else None
    task = kind.task(part, stage, config, weights, statistics)
    measure = None
    if part.evaluate is not None:
        measure = part.evaluate(stage, clip, examples.drawn(source, SHOWN, options.seed)).measure

    def export(state: TrainState) -> None:
        trained = variables_of(state)
        if isinstance(stage, Stage) and stage.x0_error:
            trained = with_x0_error(task, trained, examples.drawn(source, MEASURED, options.seed))
        against = options.run / "clip" if "clip" in part.needs else None
        save_stage(options.run / part.folder, stage, trained, dtype=options.weights, clip=against)

    identity = examples.identity | {folder: digest(options.run / folder) for folder in part.needs}
    if kind.low_res and part.factor is None:  # the user chose it with --factor, so it identifies the run
        identity["low_res_size"] = starts_from(stage)
    return train_stage(
        part.name,
        training,
        Plan(task, architecture(stage), export, measure),
        batches(source, batch_size=training.batch_size, seed=options.seed),
        options,
        data=identity,
    )


def network(part: StagePart, options: SystemOptions) -> Any:
    """The stage of a part, from its model preset; for an upsampler, with the input size that the factor gives.

    Raises:
        UserError: there is no such model preset, it is of another kind, or the factor does not divide its image size.
    """
    prefix, model = options.prefix(part.name), options.training(part.name).model
    stage = with_prefix(f"{prefix}model: ", lambda: stage_presets.preset(model))
    check_kind(part, stage, model, prefix)
    if not part.kind.low_res:
        return stage
    size, factor = stage.model.image_size, factor_of(part, options)
    if size % factor:
        raise UserError(f"factor: {factor} does not divide {size}, the size of {prefix}model {model}")
    return starting_from(stage, size // factor)


def factor_of(part: StagePart, options: SystemOptions) -> int:
    """The upsampling factor of a part: its own, else `--factor`."""
    if part.factor is not None:
        return part.factor
    assert isinstance(options, OverCLIP)
    return options.factor


def find_clip(options: SystemOptions) -> LoadedCLIP:
    """Loads the CLIP of `--clip`, or else of the run directory. Writes nothing.

    Raises:
        UserError: it cannot be loaded, it has one tower only, or it differs from the CLIP in the run directory.
    """
    kept, named = options.run / "clip", options.clip if isinstance(options, OverCLIP) else ""
    if not named:
        return two_towers(clip_jax.load(kept), kept)
    clip = two_towers(with_prefix("clip: ", lambda: clip_jax.load(named)), named)
    if not kept.is_dir():
        return clip
    before = clip_jax.load(kept)
    same = before.model.config == clip.model.config and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, before.variables, clip.variables))
    )
    if not same:
        raise UserError(f"clip: {named} is not the CLIP in {options.run}; choose another run directory")
    return before


def two_towers(clip: LoadedCLIP, source: Any) -> LoadedCLIP:
    """Returns `clip` if it has both towers.

    Args:
        clip: the CLIP.
        source: where it is from, for the message.

    Raises:
        UserError: it has one tower only.
    """
    if not clip.model.config.two_towers:
        raise UserError(f"clip: {source} has one tower; unCLIP needs both")
    return clip


def the_clip(options: SystemOptions) -> LoadedCLIP:
    """The CLIP of the run directory; that of `--clip` is copied there first if there is none."""
    clip = find_clip(options)
    if not (options.run / "clip").is_dir():
        clip_jax.save(options.run / "clip", clip.model, clip.variables, clip.tokenize)
    return clip


def with_x0_error(task: Task, variables: Variables, examples: HostBatch) -> Variables:
    """The variables of a diffusion prior with its x0 error measured on `examples`, which analytic variance needs."""
    assert isinstance(task, tasks.PriorTask)

    @jax.jit
    def measure(variables: Variables, clip_params: Any, images: jax.Array, tokens: jax.Array) -> jax.Array:
        cond = tasks.encode(task.clip, clip_params, images, tokens)
        x0 = tasks.standardise(task.stage, variables, need(cond.image_embed, "image_embed"))
        return stages.measure_x0_error(task.stage, variables, x0, cond, jax.random.key(0, impl="threefry2x32"))

    error = measure(variables, task.clip_params, examples["image"], examples["tokens"])
    return {**variables, "statistics": {**variables["statistics"], "x0_error": error}}


RECIPE = Recipe(check, train)
