"""The recipe of progressive distillation: a decoder or upsampler that samples in few steps, without guidance.

Each round halves the number of sampling steps; the student of one round is the teacher of the next. The new run
directory holds a whole system: the networks that are not distilled are copied from the teacher's run directory.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

import clip_jax
from train_jax.data import batches
from train_jax.errors import UserError
from train_jax.state import TrainState
from train_recipes.check import check_examples, check_run, example, trace, with_prefix
from train_recipes.data import HostBatch, tokens_of
from train_recipes.engine import Plan, architecture, digest, train_stage, variables_of
from train_recipes.evaluation import decoded_examples
from train_recipes.options import Distillation
from train_recipes.parts import Measure, Preset, Recipe
from train_recipes.pictures import Seen, clip_preprocess
from train_recipes.sheets import draw_sheet
from train_recipes.unclip import DECODER, SHOWN, kind_of
from unclip_jax import pipeline
from unclip_jax.distill import DistillTask, student_of, student_variables
from unclip_jax.pipeline import LoadedUnCLIP, UnCLIP, save_stage
from unclip_jax.stage import Stage
from unclip_jax.tasks import DecoderTask, UpsamplerTask


def check(name: str, preset: Preset, options: Distillation) -> None:
    """Checks all rounds before any data are prepared or files written.

    Raises:
        UserError: a flag, the data or the teacher does not fit.
    """
    if not options.rounds:
        raise UserError("rounds: none was given; name the steps of each student, as in --rounds 8 4")
    for before, after in itertools.pairwise(options.rounds):
        if before != 2 * after:
            raise UserError(f"rounds: {after} is not half of {before}, the steps of the student before it")
    if not 0 <= options.drop_text <= 1:
        raise UserError(f"drop_text: {options.drop_text} is not between 0 and 1")
    directory = teacher_directory(options)
    if options.model not in networks_in(directory):
        raise UserError(f"model: {directory} has no decoder or upsampler of the name {options.model!r}")
    if options.run.resolve() == directory.resolve():
        raise UserError(f"run: {options.run} is the teacher's own directory; choose another")
    rounds = [round_name(options, num_steps) for num_steps in options.rounds]
    check_run(options, rounds)
    check_examples(options, rounds)
    loaded = pipeline.load(directory)
    if options.model not in loaded.params:
        raise UserError(f"model: {options.model} is not part of the system in {directory}")
    check_rounds(options, loaded)


def check_rounds(options: Distillation, loaded: LoadedUnCLIP) -> None:
    """Traces the training of every round, shapes only.

    Raises:
        UserError: the teacher cannot be distilled to these steps, or does not fit the data.
    """
    teacher, variables = stages_of(loaded.unclip)[options.model], loaded.params[options.model]
    seen = seen_by(teacher, loaded)
    options.data.check_fits(seen, options.model)
    fields = example(options.data.fields(seen), loaded.unclip.clip.text.context_length)
    for num_steps in options.rounds:
        student = with_prefix("rounds: ", partial(student_of, teacher, num_steps))
        inner = teacher_task(options, loaded, teacher)
        trace("", options, partial(DistillTask, inner, teacher, num_steps=num_steps), variables, fields)
        teacher, variables = student, student_variables(variables)


def train(name: str, preset: Preset, options: Distillation) -> None:
    """Trains the students one after the other and draws a contact sheet with the last."""
    directory = teacher_directory(options)
    loaded = pipeline.load(directory)
    stages = stages_of(loaded.unclip)
    teacher, variables = stages[options.model], loaded.params[options.model]
    for other in sorted({"clip", "prior", *stages} - {options.model}):
        shutil.copytree(directory / other, options.run / other, dirs_exist_ok=True)

    examples = options.data.open()
    source = examples.with_tokens(tokens_of(loaded.tokenize, examples.captions), seen_by(teacher, loaded))
    batch_of = batches(source, batch_size=options.batch_size, seed=options.seed)
    identity = examples.identity | {"drop_text": options.drop_text, "teacher": digest(directory / options.model)}
    for num_steps in options.rounds:
        task = DistillTask(teacher_task(options, loaded, teacher), teacher, variables, num_steps)
        measure = shown(task.student, options, examples.drawn(source, SHOWN, options.seed))
        plan = Plan(task, architecture(task.student), exporter(task.student, options), measure)
        state = train_stage(round_name(options, num_steps), options, plan, batch_of, options, data=identity)
        teacher, variables = task.student, jax.device_get(variables_of(state))
    print(f"pictures: {draw_sheet(options.run, examples.prompts)}")
    print(f'more: python sample.py "{examples.prompt}" --run {options.run}')


def teacher_directory(options: Distillation) -> Path:
    """Run directory of the teacher: `--teacher`, else the shipped weights."""
    return pipeline.SHIPPED if options.teacher is None else options.teacher


def networks_in(directory: Path) -> set[str]:
    """Names of the folders in a run directory that hold a decoder or an upsampler."""
    return {path.name for pattern in ("decoder", "upsampler_*") for path in directory.glob(pattern) if path.is_dir()}


def round_name(options: Distillation, num_steps: int) -> str:
    """Name of a round, such as "decoder-4"; its checkpoints are in RUN/train/NAME."""
    return f"{options.model}-{num_steps}"


def stages_of(unclip: UnCLIP) -> dict[str, Stage]:
    """Decoder and upsamplers by the names of their folders, in sampling order."""
    return {"decoder": unclip.decoder} | {f"upsampler_{i}": stage for i, stage in enumerate(unclip.upsamplers)}


def seen_by(teacher: Stage, loaded: LoadedUnCLIP) -> Seen:
    """Which pictures the teacher reads in training, and so does its student."""
    return kind_of(teacher).seen(teacher, clip_preprocess(loaded.unclip.clip))


def teacher_task(options: Distillation, loaded: LoadedUnCLIP, teacher: Stage) -> DecoderTask | UpsamplerTask:
    """A training task of the teacher's kind: it turns a batch into x0 and the conditioning."""
    unclip = loaded.unclip
    if kind_of(teacher) is DECODER:
        return DecoderTask(teacher, unclip.clip, loaded.params["clip"], drop_image=0.0, drop_text=options.drop_text)
    stages = stages_of(unclip)
    before = {after: stage for stage, after in zip(stages.values(), list(stages)[1:], strict=False)}[options.model]
    size = teacher.sample_shape[0]
    return UpsamplerTask(teacher, low_res_size=before.sample_shape[0], crop_size=size // 2)


def exporter(student: Stage, options: Distillation) -> Callable[[TrainState], None]:
    """Returns a function of the final state that exports the student to the run directory."""

    def export(state: TrainState) -> None:
        clip = options.run / "clip" if kind_of(student) is DECODER else None
        save_stage(options.run / options.model, student, variables_of(state), dtype=options.weights, clip=clip)

    return export


def shown(student: Stage, options: Distillation, examples: HostBatch) -> Measure | None:
    """The evaluation of a student decoder: `examples` decoded from their own embeddings. None for an upsampler."""
    if kind_of(student) is not DECODER:
        return None
    clip = clip_jax.load(teacher_directory(options) / "clip")
    return decoded_examples(student, clip, examples).measure


RECIPE = Recipe(check, train)
