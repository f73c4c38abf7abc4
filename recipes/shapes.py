"""Text to image on the shapes world: CLIP, prior, decoder, upsampler, each trained with those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipes.stage import (
    Plan,
    StageTraining,
    check_begin,
    check_directories,
    check_training,
    digest,
    fitted,
    saved_steps,
    train_stage,
)
from train_jax.begin import Begin
from train_jax.errors import UserError
from train_jax.optim import OptimConfig

if TYPE_CHECKING:
    from train_jax.state import TrainState


@dataclass(frozen=True)
class Data:
    """The shapes world as training data."""

    directory: Path = Path("data")
    """Prepared here on first use."""
    resolution: int = 64
    seed: int = 0
    train_examples: int = 20_000


@dataclass(frozen=True)
class Shapes(Begin):
    """The four stages of the whole system, in the order in which they need each other."""

    run: Path
    """Run directory: every stage's weights, checkpoints and logs."""
    clip: StageTraining
    prior: StageTraining
    decoder: StageTraining
    upsampler: StageTraining
    seed: int = 0
    weights: Literal["float32", "float16"] = "float32"
    """How the finished weights are stored; float16 halves the files."""
    data: Data = field(default_factory=Data)


@dataclass(frozen=True)
class OneStage(Begin, StageTraining):
    """One stage; the stages before it are taken from the run directory."""

    run: Path = Path("runs/shapes")
    """Run directory: every stage's weights, checkpoints and logs."""
    seed: int = 0
    weights: Literal["float32", "float16"] = "float32"
    """How the finished weights are stored; float16 halves the files."""
    data: Data = field(default_factory=Data)


def optim(lr: float, ema_decay: float = 0.995, **rest: Any) -> OptimConfig:
    common = {"warmup_steps": 50, "weight_decay": 0.01, "final_lr_fraction": 0.02}
    return OptimConfig(lr=lr, ema_decay=ema_decay, **(common | rest))


# Few dimensions and much decay are what makes CLIP's embeddings add up: in 64, or with a decay of 0.1, a pair that was
# never seen lies further off the sum of its colour and its shape, and the decoder takes it for one that it knows. Decay
# helps the decoder with unseen pairs in the same way; with 1.0 it learns no shapes.
SHAPES = Shapes(
    run=Path("runs/shapes"),
    clip=StageTraining("shapes-narrow", 1000, 64, optim(1.2e-3, ema_decay=0.99, b2=0.98, weight_decay=3.0)),
    prior=StageTraining("shapes-prior", 800, 64, optim(2e-3, kind="muon")),
    decoder=StageTraining("shapes-decoder", 1800, 16, optim(4e-3, kind="muon", weight_decay=0.3)),
    upsampler=StageTraining("shapes-upsampler", 600, 32, optim(2e-3)),
)

# Priors of other kinds, each trained by itself and kept beside the diffusion prior.
OTHER_PRIORS = {
    # Without so much decay it learns the pairs by heart: CLIP then reads 100 / 71 % (seen / held-out) of its embeddings
    # right after 1500 steps.
    "ar-prior": StageTraining("shapes-ar-prior", 800, 64, optim(1e-3, weight_decay=3.0)),
    "one-step-prior": StageTraining("shapes-one-step-prior", 800, 64, optim(1e-3)),
}


# With time enough the decoder composes anyway, and the narrow CLIP becomes too good: in 2400 steps its text embeddings
# come to lie so near to the images' that in their place they are drawn as well, and the prior has nothing left to do.
LONG = Shapes(
    run=Path("runs/shapes-long"),
    clip=StageTraining("shapes", 2400, 64, optim(1.2e-3, ema_decay=0.99, b2=0.98, weight_decay=0.1)),
    prior=dataclasses.replace(SHAPES.prior, num_steps=4000),
    decoder=StageTraining("shapes-decoder-guided", 5000, 16, optim(4e-3, kind="muon")),
    upsampler=dataclasses.replace(SHAPES.upsampler, num_steps=1500),
    weights="float16",
)


def tiny(name: str, steps: int) -> StageTraining:
    return StageTraining(name, steps, 8, optim(1e-3, warmup_steps=2), log_every=2, save_every=2)


TINY = Shapes(
    run=Path("runs/tiny"),
    clip=tiny("tiny", 8),
    prior=tiny("tiny-prior", 8),
    decoder=tiny("tiny-decoder", 8),
    upsampler=tiny("tiny-upsampler", 8),
    data=Data(resolution=32, train_examples=64),
)

STAGES = ("clip", "prior", "decoder", "upsampler")

# A second upsampler, 64 → 128, is trained on a world of its own size when asked for.
SHAPES_128 = OneStage(
    "shapes-upsampler_1", 600, 16, optim(2e-3), run=SHAPES.run, data=Data(resolution=128, train_examples=4000)
)
TINY_64 = OneStage(
    **vars(tiny("tiny-upsampler_1", 8)), run=TINY.run, data=Data(resolution=64, train_examples=TINY.data.train_examples)
)


def one_stage(recipe: Shapes, training: StageTraining) -> OneStage:
    shared: dict[str, Any] = {"run": recipe.run, "seed": recipe.seed, "weights": recipe.weights, "data": recipe.data}
    return OneStage(**vars(training), **shared)


PRESETS: dict[str, tuple[str, Shapes | OneStage]] = {
    "shapes": ("text to image on the shapes world, all four stages", SHAPES),
    "shapes-long": (
        "the same with more steps, most of them the decoder's",
        LONG,
    ),
    "tiny": ("the same in a minute or two, to see that it runs: the pictures are noise", TINY),
    **{f"shapes-{n}": (f"the {n} stage of shapes alone", one_stage(SHAPES, getattr(SHAPES, n))) for n in STAGES},
    "shapes-ar-prior": (
        "an autoregressive prior for a run of shapes, beside its own",
        one_stage(SHAPES, OTHER_PRIORS["ar-prior"]),
    ),
    "shapes-one-step-prior": (
        "a prior of one forward pass (ECLIPSE), likewise",
        one_stage(SHAPES, OTHER_PRIORS["one-step-prior"]),
    ),
    "shapes-upsampler_1": ("a second upsampler for shapes, to 128 pixels", SHAPES_128),
    **{f"tiny-{n}": (f"the {n} stage of tiny alone", one_stage(TINY, getattr(TINY, n))) for n in STAGES},
    **{f"tiny-{n}": (f"the {n} of tiny alone", one_stage(TINY, tiny(f"tiny-{n}", 8))) for n in OTHER_PRIORS},
    "tiny-upsampler_1": ("a second upsampler for tiny, to 64 pixels", TINY_64),
}


class World:
    """The training split in memory, and the batches the stages take from it."""

    def __init__(self, data: Data):
        import shapes_world
        from train_jax.data import InMemory
        from train_jax.datasets import shapes

        # The full world is prepared with all its splits; a smaller one is for tests and has this one alone.
        full = data.train_examples == shapes_world.SPLIT_SIZES["train"]
        source = shapes.source(
            "train",
            data_dir=data.directory,
            resolution=data.resolution,
            seed=data.seed,
            split_sizes=None if full else {"train": data.train_examples},
        )
        arrays = InMemory(source).arrays
        self.images = arrays["image"]
        self.captions: list[str] = arrays["caption"].tolist()

    def batches(self, tokenize: Any, training: StageTraining, seed: int) -> Any:
        """Step -> {"image", "tokens"}."""
        from train_jax.data import InMemory, batches

        arrays = {"image": self.images, "tokens": tokenize(self.captions)}
        return batches(InMemory(arrays), batch_size=training.batch_size, seed=seed)


def train_one(name: str, training: StageTraining, config: Shapes | OneStage, world: World) -> None:
    """Trains one stage to its end and writes its averaged weights into the run directory."""
    tokenize, plan = PLANS[name](training.model, config, world)
    data: dict[str, Any] = {"resolution": config.data.resolution, "seed": config.data.seed}
    data["examples"] = config.data.train_examples
    if not name.startswith(("clip", "upsampler")):  # trained against this very CLIP
        data["clip"] = digest(config.run / "clip")
    batches = world.batches(tokenize, training, config.seed)
    train_stage(name, training, plan, batches, run=config.run, seed=config.seed, data=data, begin=config)


def plan_clip(model: str, config: Shapes | OneStage, world: World) -> tuple[Any, Plan]:
    import clip_jax
    from unclip_jax.evaluate import retrieval

    clip = clip_jax.preset(model)
    tokenize = clip_jax.train_bpe(world.captions, clip.text.vocab_size, context_length=clip.text.context_length)

    def export(state: TrainState) -> None:
        clip_jax.save(config.run / "clip", clip, {"params": state.ema_params}, tokenize, dtype=config.weights)

    def evaluate(state: Any) -> dict[str, float]:
        splits = ("test", "heldout")
        return {f"retrieval/{split}": retrieval(clip, state.ema_params, tokenize, split, 200) for split in splits}

    return tokenize, Plan(clip_jax.CLIPTask(clip), clip.to_dict(), export, evaluate)


def plan_prior(model: str, config: Shapes | OneStage, world: World, folder: str = "prior") -> tuple[Any, Plan]:
    import clip_jax
    from unclip_jax.presets import preset
    from unclip_jax.stage import Stage
    from unclip_jax.tasks import OneStepPriorTask, PriorTask, embedding_statistics

    clip = clip_jax.load(config.run / "clip")
    stage = fitted(preset(model), clip.model.config)
    params = clip.variables["params"]
    mean, std = embedding_statistics(clip.model.config, params, world.images[:4096])
    kind = PriorTask if isinstance(stage, Stage) else OneStepPriorTask
    task = kind(stage, clip.model.config, params, mean, std)
    return clip.tokenize, Plan(task, dataclasses.asdict(stage), save_as(folder, stage, config))


def plan_ar_prior(model: str, config: Shapes | OneStage, world: World) -> tuple[Any, Plan]:
    import clip_jax
    from unclip_jax.models.ar_prior import measure
    from unclip_jax.presets import preset
    from unclip_jax.tasks import ARPriorTask, embedding_pairs

    clip = clip_jax.load(config.run / "clip")
    stage = fitted(preset(model), clip.model.config)
    params = clip.variables["params"]
    tokens = clip.tokenize(world.captions[:4096])
    embeds = embedding_pairs(clip.model.config, params, world.images[:4096], tokens)
    task = ARPriorTask(stage, clip.model.config, params, measure(stage.model, *embeds))
    return clip.tokenize, Plan(task, dataclasses.asdict(stage), save_as("ar_prior", stage, config))


def plan_decoder(model: str, config: Shapes | OneStage, world: World) -> tuple[Any, Plan]:
    import clip_jax
    from unclip_jax.presets import preset
    from unclip_jax.tasks import DecoderTask

    clip = clip_jax.load(config.run / "clip")
    stage = fitted(preset(model), clip.model.config)
    task = DecoderTask(stage, clip.model.config, clip.variables["params"])
    evaluate = decoded_examples(stage, clip, world.images[:16], clip.tokenize(world.captions[:16]))
    return clip.tokenize, Plan(task, dataclasses.asdict(stage), save_as("decoder", stage, config), evaluate)


def plan_upsampler(
    model: str, config: Shapes | OneStage, world: World, folder: str = "upsampler_0"
) -> tuple[Any, Plan]:
    import clip_jax
    from unclip_jax.presets import preset
    from unclip_jax.tasks import UpsamplerTask

    stage = preset(model)
    size = stage.model.image_size
    task = UpsamplerTask(stage, low_res_size=size // 2, crop_size=size // 2)
    tokenize = clip_jax.load(config.run / "clip").tokenize
    return tokenize, Plan(task, dataclasses.asdict(stage), save_as(folder, stage, config))


def save_as(name: str, stage: Any, config: Shapes | OneStage) -> Callable[[TrainState], None]:
    """Writes a stage into the run directory."""
    from unclip_jax.pipeline import save_stage

    return lambda state: save_stage(config.run / name, stage, state.ema_params, dtype=config.weights)


PLANS: dict[str, Callable[[str, Shapes | OneStage, World], tuple[Any, Plan]]] = {
    "clip": plan_clip,
    "prior": plan_prior,
    "ar-prior": plan_ar_prior,
    "one-step-prior": partial(plan_prior, folder="one_step_prior"),
    "decoder": plan_decoder,
    "upsampler": plan_upsampler,
    "upsampler_1": partial(plan_upsampler, folder="upsampler_1"),
}


def decoded_examples(stage: Any, clip: Any, images: Any, tokens: Any) -> Callable[[Any], dict[str, Any]]:
    """An evaluation that decodes a few training examples from their own embeddings: a grid, real above decoded."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax import stage as stages
    from unclip_jax.diffusion.samplers import sample_keys
    from unclip_jax.tasks import encode, to_uint8

    size = stage.model.image_size
    cond = encode(clip.model.config, clip.variables["params"], jnp.asarray(images), jnp.asarray(tokens))
    keys = sample_keys(jax.random.key(0), jnp.arange(len(images)))
    real = images.reshape(len(images), size, images.shape[1] // size, size, images.shape[1] // size, 3).mean((2, 4))
    draw = jax.jit(lambda params: to_uint8(stages.run(stage, params, cond, keys)))

    def evaluate(state: Any) -> dict[str, Any]:
        rows = [np.hstack(list(pictures)) for pictures in (real.astype(np.uint8), np.asarray(draw(state.ema_params)))]
        return {"samples": np.vstack(rows)}

    return evaluate


def write_samples(run: Path) -> Path:
    """A sheet of pictures for a few captions, seen and held out in turn: ``run/samples.png``."""
    import shapes_world

    picked = [shapes_world.combinations(split)[i] for i in (3, 11, 20) for split in ("train", "heldout")]
    return draw_sheet(run, [shapes_world.caption(labels) for labels in picked])


def draw_sheet(run: Path, prompts: list[str]) -> Path:
    """Four pictures for each prompt, by the system in the run directory: ``run/samples.png``."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax import pipeline
    from unclip_jax.diffusion.samplers import sample_keys
    from unclip_jax.pictures import contact_sheet, save_png
    from unclip_jax.tasks import to_uint8

    loaded = pipeline.load(run)
    captions = [prompt for prompt in prompts for _ in range(4)]
    keys = sample_keys(jax.random.key(0), jnp.arange(len(captions)))
    generation = pipeline.generate_jit(loaded.unclip, loaded.params, loaded.tokenize(captions), keys)
    images = np.asarray(to_uint8(generation.images))
    rows = [(captions[i], list(images[i : i + 4])) for i in range(0, len(captions), 4)]
    save_png(run / "samples.png", contact_sheet(rows))
    return run / "samples.png"


def check(name: str, config: Shapes | OneStage) -> None:
    """Refuses what can be seen to be wrong before anything is prepared or written."""
    trainings = {"": config} if isinstance(config, OneStage) else {f"{s}.": getattr(config, s) for s in STAGES}
    for prefix, training in trainings.items():
        check_training(training, prefix)
    check_directories(config.run, config.data.directory)
    if isinstance(config, OneStage) and not name.endswith("-clip") and not (config.run / "clip").is_dir():
        clip = f"{name.partition('-')[0]}-clip"
        raise UserError(f"{config.run} holds no CLIP, which {name} needs; first run train.py {clip} --run {config.run}")
    check_resolution(name, config)
    check_begin(config, config.run, STAGES if isinstance(config, Shapes) else [name.partition("-")[2]])
    if isinstance(config, Shapes) and config.extend:
        check_clip_stays(config)


def check_clip_stays(config: Shapes) -> None:
    """Refuses to train a CLIP on under the stages that were trained against it, before it is done."""
    clip, others = saved_steps(config.run / "train" / "clip"), STAGES[1:]
    trained = [stage for stage in others if saved_steps(config.run / "train" / stage)]
    if clip and trained and config.clip.num_steps > max(clip):
        raise UserError(
            f"clip.num_steps: {config.run} has a {trained[0]} trained against its CLIP of {max(clip)} steps; "
            "begin another run from it with --begin-from"
        )


def check_resolution(name: str, config: Shapes | OneStage) -> None:
    """Refuses a world whose pictures the networks cannot take: CLIP needs its own size, an upsampler whole boxes."""
    import clip_jax
    from unclip_jax.presets import preset

    resolution = config.data.resolution
    if isinstance(config, OneStage) and "-upsampler" in name:
        size = preset(config.model).model.image_size
        if resolution < size or resolution % size:
            raise UserError(f"data.resolution: {resolution} is no multiple of {size}, the size of {config.model}")
        return
    if isinstance(config, Shapes):
        clip = clip_jax.preset(config.clip.model)
    elif name.endswith("-clip"):
        clip = clip_jax.preset(config.model)
    else:
        clip = clip_jax.load(config.run / "clip").model.config
    size = clip.vision.image_size
    if resolution != size:
        raise UserError(f"data.resolution: {resolution} is not {size}, the size of this CLIP's pictures")


def train(name: str, config: Shapes | OneStage) -> None:
    """Trains the stages, and after all four draws a sheet of pictures."""
    world = World(config.data)
    if isinstance(config, OneStage):
        train_one(name.partition("-")[2], config, config, world)
        return
    for stage in STAGES:
        train_one(stage, getattr(config, stage), config, world)
    print(f"pictures: {write_samples(config.run)}")
    print(f'more: python sample.py "a small red circle in the top left" --run {config.run}')
