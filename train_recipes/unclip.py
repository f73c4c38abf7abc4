"""unCLIP on pictures with captions of one's own: prior, decoder and upsamplers over a CLIP that is trained already.

The rows of the paper (Ramesh et al. 2022, Table 3) are here beside one for a single accelerator. A run directory is
filled stage by stage, in any order; with CLIP, prior and decoder in it, `sample.py --run` draws from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from train_jax.begin import Begin
from train_jax.errors import UserError
from train_jax.optim import OptimConfig
from train_recipes.check import check_examples, check_settings, check_sizes, example, network, trace, with_prefix
from train_recipes.clip import Data, captions_of, check_damaged
from train_recipes.draw import drawn_examples
from train_recipes.engine import (
    Plan,
    StageTraining,
    architecture,
    check_begin,
    check_directories,
    digest,
    fitted,
    train_stage,
)
from train_recipes.samples import draw_sheet

if TYPE_CHECKING:
    from train_jax.state import TrainState

STATISTICS = 2048  # pictures that the mean and deviation of the embeddings are taken from
MEASURED = 256  # pictures that the error of a finished prior is measured on, for its analytic variance


@dataclass(frozen=True)
class Cascade(Begin):
    """Prior, decoder and first upsampler, one after the other."""

    run: Path
    """Run directory: every stage's weights, checkpoints and logs."""
    prior: StageTraining
    decoder: StageTraining
    upsampler_0: StageTraining
    clip: str = ""
    """The CLIP it is built on: a directory, file or name that clip_jax.load takes; kept in the run directory."""
    factor: int = 4
    """How much larger the upsampler's pictures are than the decoder's."""
    seed: int = 0
    weights: Literal["float32", "float16"] = "float32"
    """How the finished weights are stored; float16 halves the files."""
    data: Data = field(default_factory=Data)


@dataclass(frozen=True)
class OneStage(Begin, StageTraining):
    """One stage alone."""

    run: Path = Path("runs/unclip")
    """Run directory: every stage's weights, checkpoints and logs."""
    clip: str = ""
    """The CLIP it is built on: a directory, file or name that clip_jax.load takes; kept in the run directory."""
    factor: int = 4
    """Of an upsampler: how much larger its pictures are than what it starts from."""
    seed: int = 0
    weights: Literal["float32", "float16"] = "float32"
    """How the finished weights are stored; float16 halves the files."""
    data: Data = field(default_factory=Data)


def table3(lr: float, b2: float, eps: float, ema_decay: float = 0.9999, weight_decay: float = 0.0) -> OptimConfig:
    """AdamW as in the paper's Table 3, with β1 = 0.9.

    The table says nothing of a warm-up, a decay of the rate or a limit on the gradient: the rate is constant after 5000
    steps of warm-up, and the limit is this project's usual 1.
    """
    return OptimConfig(
        lr=lr, b2=b2, eps=eps, ema_decay=ema_decay, weight_decay=weight_decay, schedule="constant", warmup_steps=5000
    )


def smaller(lr: float, **rest: Any) -> OptimConfig:
    return OptimConfig(lr=lr, **({"b2": 0.999, "ema_decay": 0.9999, "warmup_steps": 1000} | rest))


# fmt: off
TRAINING: dict[str, StageTraining] = {
    #                                    preset                  steps     batch
    "dalle2-prior":       StageTraining("dalle2-prior",            600_000, 4096, table3(1.1e-4, 0.96, 1e-6, weight_decay=6e-2), save_every=5000),  # noqa: E501
    "dalle2-decoder":     StageTraining("dalle2-decoder",          800_000, 2048, table3(1.2e-4, 0.999, 1e-8), save_every=5000),  # noqa: E501
    "dalle2-upsampler_0": StageTraining("dalle2-upsampler-256",  1_000_000, 1024, table3(1.2e-4, 0.999, 1e-8), save_every=5000),  # noqa: E501
    "dalle2-upsampler_1": StageTraining("dalle2-upsampler-1024", 1_000_000,  512, table3(1.0e-4, 0.999, 1e-8), save_every=5000),  # noqa: E501

    "small-prior":        StageTraining("small-prior",             100_000,  512, smaller(3e-4, b2=0.96, eps=1e-6, weight_decay=6e-2), save_every=2000),  # noqa: E501
    "small-decoder":      StageTraining("small-decoder",           200_000,  256, smaller(1.2e-4), save_every=2000),
    "small-upsampler_0":  StageTraining("small-upsampler-256",     200_000,   64, smaller(1.2e-4), save_every=2000),
}
# fmt: on

STAGES = ("prior", "decoder", "upsampler_0")
SMALL = Cascade(
    Path("runs/small-64"), TRAINING["small-prior"], TRAINING["small-decoder"], TRAINING["small-upsampler_0"]
)


def tiny(name: str) -> StageTraining:
    return StageTraining(name, 4, 8, smaller(1e-3, warmup_steps=2, ema_decay=0.9), log_every=2, save_every=2)


TINY = Cascade(
    Path("runs/tiny-captions"),
    tiny("tiny-captions-prior"),
    tiny("tiny-captions-decoder"),
    tiny("tiny-captions-upsampler"),
    factor=2,
)


def alone(name: str) -> OneStage:
    return OneStage(**vars(TRAINING[name]), run=Path("runs") / ("small-64" if name.startswith("small") else "dalle2"))


PRESETS: dict[str, tuple[str, Cascade | OneStage]] = {
    "small-64": (
        "prior, decoder of 64 pixels and upsampler to 256 on captions of your own, for one accelerator",
        SMALL,
    ),
    "tiny-captions": ("the same with tiny networks and 4 steps each, to see that it runs", TINY),
    **{
        name: (
            f"the {name.partition('-')[2]} stage of {'small-64' if name.startswith('small') else 'the paper'}",
            alone(name),
        )
        for name in TRAINING
    },
}


def check(name: str, config: Cascade | OneStage) -> None:
    """Refuses what can be seen to be wrong before anything is prepared or written, in any of the stages."""
    trainings = stages_of(name, config)
    check_settings({prefix_of(config, folder): training for folder, training in trainings.items()}, config.seed)
    check_directories(config.run)
    if not config.data.source:
        raise UserError("data.source: none was given; name a table, a folder or tfds:NAME:SPLIT")
    if not config.clip and not (config.run / "clip").is_dir():
        raise UserError(f"clip: none was given, and there is none in {config.run}; name the weights of one")
    if config.factor < 2:
        raise UserError(f"factor: {config.factor} is less than 2")
    check_damaged(config.data)
    check_begin(config, config.run, STAGES if isinstance(config, Cascade) else [name.partition("-")[2]])
    networks = {
        folder: stage_of(folder, training.model, config, prefix_of(config, folder))
        for folder, training in trainings.items()
    }
    check_cascade(config, networks)
    clip = find_clip(config)
    _, captions = read_captions(config)
    check_examples({prefix_of(config, folder): training for folder, training in trainings.items()}, len(captions))
    tokens = clip.tokenize(captions[:1])[0]
    for folder, training in trainings.items():
        check_stage(folder, training, fitted(networks[folder], clip.model.config), config, clip, tokens)


def stages_of(name: str, config: Cascade | OneStage) -> dict[str, StageTraining]:
    """The stages that are trained, by their folders, one after the other."""
    if isinstance(config, OneStage):
        return {name.partition("-")[2]: config}
    return {stage: getattr(config, stage) for stage in STAGES}


def prefix_of(config: Cascade | OneStage, folder: str) -> str:
    """What comes before the flags of a stage."""
    return "" if isinstance(config, OneStage) else f"{folder}."


def stage_of(folder: str, model: str, config: Cascade | OneStage, prefix: str = "") -> Any:
    """The network of a stage, of the kind that its folder is for; an upsampler knows what size it starts from.

    Raises:
      UserError: there is no such network, it is of another kind, or the factor does not divide its pictures.
    """
    from unclip_jax.seams import starting_from
    from unclip_jax.stage import Stage

    kind = folder.partition("_")[0]
    stage = network(model, kind, prefix)
    if not isinstance(stage, Stage):
        raise UserError(f"{prefix}model: {model} is no diffusion prior, the only kind that is trained here")
    if kind != "upsampler":
        return stage
    size = stage.model.image_size
    if size % config.factor:
        raise UserError(f"factor: {config.factor} does not divide {size}, the size of {prefix}model {model}")
    return starting_from(stage, size // config.factor)


def check_cascade(config: Cascade | OneStage, networks: dict[str, Any]) -> None:
    """Refuses an upsampler that does not start from what is drawn before it, here or in the run directory."""
    from unclip_jax.seams import cascade_with, drawn

    own = {folder: drawn(folder, stage.model) for folder, stage in networks.items() if folder != "prior"}
    if not own:
        return
    upsampling = any(folder != "decoder" for folder in own)
    check_sizes(cascade_with(config.run, own), f" (factor is {config.factor})" if upsampling else "")


def check_stage(folder: str, training: StageTraining, stage: Any, config: Any, clip: Any, tokens: Any) -> None:
    """Builds a stage over this CLIP, shapes only. Raises UserError where its parts do not fit."""
    from clip_jax.encode import joined

    kind = folder.partition("_")[0]
    size, preprocess = SEEN[kind](stage, clip)
    fields: dict[str, Any] = {"tokens": (tokens.shape, "int32")}
    if preprocess is not None:
        vision = clip.model.config.vision
        seen = (vision.image_size, vision.image_size, vision.channels)
        fields["image" if size is None else "clip_image"] = (seen, "uint8")
    if size is not None:
        fields["image"] = ((size, size, 3), "uint8")

    def make(params: Any) -> Any:
        return TASKS[kind](stage, clip.model.config, params, None, folder)

    trace(prefix_of(config, folder), training, make, joined(clip.variables), example(**fields))


def train(name: str, config: Cascade | OneStage) -> None:
    """Trains the stages on all pictures of the source; after a whole cascade draws a sheet of pictures."""
    clip = the_clip(config)
    listing, captions = read_captions(config)
    said = "\n".join(f"{name}\t{caption}" for name, caption in zip(listing.names, captions, strict=True))
    data = {
        "examples": len(captions),
        "names and captions": hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest(),
    }
    tokens = clip.tokenize(captions)
    for folder, training in stages_of(name, config).items():
        train_one(folder, training, config, clip, listing.pictures, tokens, data)
    if isinstance(config, OneStage):
        return
    print(f"pictures: {draw_sheet(config.run, list(dict.fromkeys(captions))[:4])}")
    print(f'more: python sample.py "{captions[0]}" --run {config.run}')


def read_captions(config: Cascade | OneStage) -> tuple[Any, list[str]]:
    """(what the source lists, a caption for each of its pictures)."""
    from image_text.source import open_source

    listing = open_source(config.data.source, data_dir=config.data.directory)
    return listing, captions_of(listing, config.data.source)


def find_clip(config: Cascade | OneStage) -> Any:
    """The CLIP that is named, or that of the run directory. Writes nothing.

    Raises:
      UserError: it has one tower, or it is another than that of the run directory.
    """
    import jax
    import numpy as np

    import clip_jax

    kept = config.run / "clip"
    if not config.clip:
        return two_towers(clip_jax.load(kept), kept)
    clip = two_towers(with_prefix("clip: ", lambda: clip_jax.load(config.clip)), config.clip)
    if not kept.is_dir():
        return clip
    before = clip_jax.load(kept)
    same = before.model.config == clip.model.config and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, before.variables, clip.variables))
    )
    if not same:
        raise UserError(f"clip: {config.clip} is not the CLIP in {config.run}; choose another run directory")
    return before


def two_towers(clip: Any, source: Any) -> Any:
    """The CLIP itself. Raises UserError for one that has only one tower."""
    if not clip.model.config.two_towers:
        raise UserError(f"clip: {source} has one tower; unCLIP needs both")
    return clip


def the_clip(config: Cascade | OneStage) -> Any:
    """The CLIP of the run directory, put there first if there is none."""
    import clip_jax

    clip = find_clip(config)
    if not (config.run / "clip").is_dir():
        clip_jax.save(config.run / "clip", clip.model, clip.variables, clip.tokenize)
    return clip


def train_one(
    folder: str, training: StageTraining, config: Cascade | OneStage, clip: Any, pictures: Any, tokens: Any, data: Any
) -> None:
    """Trains one stage to its end and writes its averaged weights into the run directory."""
    from clip_jax.encode import joined
    from train_jax.data import Replacing, batches

    stage = fitted(stage_of(folder, training.model, config, prefix_of(config, folder)), clip.model.config)
    kind = folder.partition("_")[0]
    source = Replacing(Pictures(pictures, tokens, *SEEN[kind](stage, clip)), max_damaged=config.data.max_damaged)
    examples = None if kind != "prior" else drawn_examples(source, STATISTICS, config.seed)
    task = TASKS[kind](stage, clip.model.config, joined(clip.variables), examples, folder)

    def export(state: TrainState) -> None:
        from unclip_jax.pipeline import save_stage

        variables = {"params": state.ema_params, **state.model_state}
        if stage.x0_error:
            variables = measured(task, variables, drawn_examples(source, MEASURED, config.seed))
        clip = None if kind == "upsampler" else config.run / "clip"
        save_stage(config.run / folder, stage, variables, dtype=config.weights, clip=clip)

    if kind == "upsampler":
        data = data | {"low_res_size": stage.model.low_res.size}
    else:  # trained against this very CLIP
        data = data | {"clip": digest(config.run / "clip")}
    train_stage(
        folder,
        training,
        Plan(task, architecture(stage), export),
        batches(source, batch_size=training.batch_size, seed=config.seed),
        run=config.run,
        seed=config.seed,
        data=data,
        begin=config,
    )


class Pictures:
    """Pictures and tokens as a random-access source; a picture is opened and resized when it is asked for."""

    def __init__(self, pictures: Any, tokens: Any, size: int | None, preprocess: Any):
        self.pictures, self.tokens, self.size, self.preprocess = pictures, tokens, size, preprocess

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """-> tokens int32 [L]; image uint8 [size, size, 3], the square in the middle; clip_image, what CLIP sees.

        Without a size, ``image`` is what CLIP sees.
        """
        import numpy as np
        from PIL import Image, ImageOps

        from clip_jax.images import open_image

        picture = open_image(self.pictures[index])
        example: dict[str, Any] = {"tokens": self.tokens[index]}
        if self.preprocess is not None:
            example["image" if self.size is None else "clip_image"] = self.preprocess.pixels(picture)
        if self.size is not None:
            square = ImageOps.fit(picture.convert("RGB"), (self.size, self.size), Image.Resampling.BICUBIC)
            example["image"] = np.asarray(square)
        return example


# Which pictures a kind of stage is given: the side of its own, and CLIP's if it needs them.
SEEN = {
    "prior": lambda stage, clip: (None, clip.preprocess),
    "decoder": lambda stage, clip: (stage.model.image_size, clip.preprocess),
    "upsampler": lambda stage, clip: (stage.model.image_size, None),
}


# The task of a kind of stage over a CLIP's config and weights; `examples` is what statistics are taken from.


def prior_task(stage: Any, clip: Any, params: Any, examples: dict[str, Any] | None, folder: str) -> Any:
    """Without examples the statistics are blank: for shapes alone."""
    from unclip_jax.tasks import PriorTask, blank_statistics, embedding_statistics

    if examples is None:
        return PriorTask(stage, clip, params, *blank_statistics(clip))
    return PriorTask(stage, clip, params, *embedding_statistics(clip, params, examples["image"]))


def decoder_task(stage: Any, clip: Any, params: Any, examples: Any, folder: str) -> Any:
    from unclip_jax.tasks import DecoderTask

    return DecoderTask(stage, clip, params)


def upsampler_task(stage: Any, clip: Any, params: Any, examples: Any, folder: str) -> Any:
    """On windows of a quarter of the area; blur before the first upsampler, BSR before the second (§2.1)."""
    from unclip_jax.degrade import BSRConfig, DegradeConfig
    from unclip_jax.tasks import UpsamplerTask

    worse = DegradeConfig() if folder == "upsampler_0" else BSRConfig()
    model = stage.model
    return UpsamplerTask(stage, low_res_size=model.low_res.size, crop_size=model.image_size // 2, degrade=worse)


TASKS = {"prior": prior_task, "decoder": decoder_task, "upsampler": upsampler_task}


def measured(task: Any, variables: Any, examples: dict[str, Any]) -> Any:
    """The variables of a prior with the error of its estimates, which its analytic variance needs."""
    import jax

    from unclip_jax import stage as stages
    from unclip_jax.tasks import encode, standardise

    @jax.jit
    def measure(variables: Any, clip_params: Any, images: jax.Array, tokens: jax.Array) -> jax.Array:
        cond = encode(task.clip, clip_params, images, tokens)
        x0 = standardise(task.stage, variables, cond.image_embed)
        return stages.measure_x0_error(task.stage, variables, x0, cond, jax.random.key(0, impl="threefry2x32"))

    error = measure(variables, task.clip_params, examples["image"], examples["tokens"])
    return {**variables, "statistics": {**variables["statistics"], "x0_error": error}}
