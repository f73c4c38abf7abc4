"""A decoder or upsampler of few steps, distilled round by round from a trained system of the shapes world.

The new run directory is a whole system: what is not distilled is copied from the teacher's.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from train_jax.begin import Begin
from train_jax.errors import UserError
from train_recipes.check import check_examples, check_settings, example, trace, with_prefix
from train_recipes.engine import Plan, StageTraining, architecture, check_begin, check_directories, digest, train_stage
from train_recipes.samples import decoded_examples, write_samples
from train_recipes.shapes import Data, World, optim

if TYPE_CHECKING:
    from train_jax.state import TrainState


@dataclass(frozen=True)
class Distillation(Begin, StageTraining):
    """Rounds of progressive distillation, each trained alike."""

    model: str
    """What is distilled: decoder, upsampler_0, …"""
    run: Path = Path("runs/shapes-distill")
    """Run directory: a whole system with the last student in it, checkpoints and logs."""
    teacher: Path | None = None
    """Run directory of the trained system; None: the weights that come with the package."""
    rounds: tuple[int, ...] = (8, 4)
    """Steps of the students, each half of the one before; the teacher of the first takes twice as many, guided."""
    drop_text: float = 0.2
    """How often the decoder is taught to draw from the image embedding alone."""
    seed: int = 0
    weights: Literal["float32", "float16"] = "float32"
    """How the finished weights are stored; float16 halves the files."""
    data: Data = field(default_factory=Data)


# The student starts as its teacher, so its rate is lower than the teacher's was.
SHAPES = Distillation("decoder", 400, 16, optim(1e-3, kind="muon"))
TINY = Distillation(
    "decoder",
    4,
    8,
    optim(1e-3, warmup_steps=2),
    log_every=2,
    save_every=2,
    run=Path("runs/tiny-distill"),
    teacher=Path("runs/tiny"),
    data=Data(resolution=32, train_examples=64),
)

PRESETS: dict[str, tuple[str, Distillation]] = {
    "shapes-distill": ("a decoder of 4 steps without guidance, taught by that of shapes", SHAPES),
    "tiny-distill": ("the same of tiny, to see that it runs", TINY),
}


def teacher_directory(config: Distillation) -> Path:
    from unclip_jax.pipeline import SHIPPED

    return SHIPPED if config.teacher is None else config.teacher


def check(name: str, config: Distillation) -> None:
    """Refuses what can be seen to be wrong before anything is prepared or written, in any of the rounds."""
    from unclip_jax import pipeline

    check_settings({"": config}, config.seed)
    check_directories(config.run, config.data.directory)
    check_examples({"": config}, config.data.train_examples)
    if not config.rounds:
        raise UserError("rounds: none was given; name the steps of each student, as in --rounds 8 4")
    for before, after in zip(config.rounds, config.rounds[1:], strict=False):
        if before != 2 * after:
            raise UserError(f"rounds: {after} is not half of {before}, the steps of the student before it")
    if not 0 <= config.drop_text <= 1:
        raise UserError(f"drop_text: {config.drop_text} is not between 0 and 1")
    directory = teacher_directory(config)
    if not (directory / config.model).is_dir() or config.model in ("clip", "train") or config.model.endswith("prior"):
        raise UserError(f"model: {directory} has no decoder or upsampler of the name {config.model!r}")
    if config.run.resolve() == directory.resolve():
        raise UserError(f"run: {config.run} is the teacher's own directory; choose another")
    check_begin(config, config.run, [f"{config.model}-{num_steps}" for num_steps in config.rounds])

    loaded = pipeline.load(directory)
    if config.model not in loaded.params:
        raise UserError(f"model: {config.model} is not part of the system in {directory}")
    side = config.data.resolution
    clip = loaded.unclip.clip
    if config.model == "decoder" and side != clip.vision.image_size:
        raise UserError(f"data.resolution: {side} is not {clip.vision.image_size}, the size of the CLIP's pictures")
    check_rounds(config, loaded)


def check_rounds(config: Distillation, loaded: Any) -> None:
    """Builds every round, shapes only. Raises UserError where its parts do not fit."""
    from unclip_jax.distill import DistillTask, student_of, student_variables

    side, length = config.data.resolution, loaded.unclip.clip.text.context_length
    fields = example(image=((side, side, 3), "uint8"), tokens=((length,), "int32"))
    teacher, params = stages_of(loaded.unclip)[config.model], loaded.params[config.model]
    for num_steps in config.rounds:
        student = with_prefix("rounds: ", partial(student_of, teacher, num_steps))
        of = teacher_task(config, loaded, teacher)
        trace("", config, partial(DistillTask, of, teacher, num_steps=num_steps), params, fields)
        teacher, params = student, student_variables(params)


def train(name: str, config: Distillation) -> None:
    """Trains the students one after the other and draws a sheet of pictures with the last."""
    import jax

    from unclip_jax import pipeline
    from unclip_jax.distill import DistillTask

    directory = teacher_directory(config)
    loaded = pipeline.load(directory)
    stages = stages_of(loaded.unclip)
    teacher, params = stages[config.model], loaded.params[config.model]
    for other in sorted({"clip", "prior", *stages} - {config.model}):
        shutil.copytree(directory / other, config.run / other, dirs_exist_ok=True)

    world = World(config.data)
    data = {
        "resolution": config.data.resolution,
        "seed": config.data.seed,
        "examples": config.data.train_examples,
        "drop_text": config.drop_text,
        "teacher": digest(directory / config.model),
    }
    for num_steps in config.rounds:
        task = DistillTask(teacher_task(config, loaded, teacher), teacher, params, num_steps)
        state = train_stage(
            f"{config.model}-{num_steps}",
            config,
            plan(task, config, loaded, world),
            world.batches(loaded.tokenize, config, config.seed),
            run=config.run,
            seed=config.seed,
            data=data,
            begin=config,
        )
        teacher, params = task.student, jax.device_get({"params": state.ema_params, **state.model_state})
    print(f"pictures: {write_samples(config.run)}")
    print(f'more: python sample.py "a small red circle in the top left" --run {config.run}')


def stages_of(unclip: Any) -> dict[str, Any]:
    """Decoder and upsamplers, in the order in which they draw."""
    return {"decoder": unclip.decoder} | {f"upsampler_{i}": stage for i, stage in enumerate(unclip.upsamplers)}


def teacher_task(config: Distillation, loaded: Any, teacher: Any) -> Any:
    """What the teacher was trained for: says what of a batch it is given."""
    from unclip_jax.tasks import DecoderTask, UpsamplerTask

    unclip = loaded.unclip
    if config.model == "decoder":
        return DecoderTask(teacher, unclip.clip, loaded.params["clip"], drop_image=0.0, drop_text=config.drop_text)
    names = list(stages_of(unclip))
    before = stages_of(unclip)[names[names.index(config.model) - 1]]
    return UpsamplerTask(teacher, low_res_size=before.model.image_size, crop_size=teacher.model.image_size // 2)


def plan(task: Any, config: Distillation, loaded: Any, world: World) -> Plan:
    import clip_jax
    from unclip_jax.pipeline import save_stage

    student = task.student

    def export(state: TrainState) -> None:
        clip = config.run / "clip" if config.model == "decoder" else None
        variables = {"params": state.ema_params, **state.model_state}
        save_stage(config.run / config.model, student, variables, dtype=config.weights, clip=clip)

    evaluate = None
    if config.model == "decoder":
        clip = clip_jax.load(teacher_directory(config) / "clip")
        evaluate = decoded_examples(student, clip, world.images[:16], clip.tokenize(world.captions[:16]))
    return Plan(task, architecture(student), export, evaluate)
