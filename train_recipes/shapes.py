"""Text to image on the shapes world: CLIP, prior, decoder, upsampler, each trained with those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from train_jax.begin import Begin
from train_jax.errors import UserError
from train_jax.optim import OptimConfig
from train_recipes.check import (
    check_average,
    check_examples,
    check_settings,
    check_sizes,
    example,
    network,
    trace,
    with_prefix,
)
from train_recipes.engine import (
    Plan,
    StageTraining,
    architecture,
    check_begin,
    check_directories,
    digest,
    fitted,
    saved_steps,
    train_stage,
)
from train_recipes.samples import decoded_examples, write_samples

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
        from image_text import shapes
        from train_jax.data import InMemory

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
    tokenize, plan = plan_clip(training, config, world) if name == "clip" else plan_stage(name, training, config, world)
    data: dict[str, Any] = {"resolution": config.data.resolution, "seed": config.data.seed}
    data["examples"] = config.data.train_examples
    if not name.startswith(("clip", "upsampler")):  # trained against this very CLIP
        data["clip"] = digest(config.run / "clip")
    batches = world.batches(tokenize, training, config.seed)
    train_stage(name, training, plan, batches, run=config.run, seed=config.seed, data=data, begin=config)


def plan_clip(training: StageTraining, config: Shapes | OneStage, world: World) -> tuple[Any, Plan]:
    import clip_jax
    from clip_jax.encode import joined
    from unclip_jax.evaluation.shapes import retrieval

    clip = clip_jax.preset(training.model)
    tokenize = clip_jax.train_bpe(world.captions, clip.text.vocab_size, context_length=clip.text.context_length)

    def variables(state: TrainState) -> dict[str, Any]:
        return {"params": state.ema_params, **state.model_state}

    def export(state: TrainState) -> None:
        clip_jax.save(config.run / "clip", clip, variables(state), tokenize, dtype=config.weights)

    def evaluate(state: Any) -> dict[str, float]:
        params, splits = joined(variables(state)), ("test", "heldout")
        return {f"retrieval/{split}": retrieval(clip, params, tokenize, split, 200) for split in splits}

    return tokenize, Plan(clip_jax.CLIPTask(clip), clip.to_dict(), export, evaluate)


def plan_stage(name: str, training: StageTraining, config: Shapes | OneStage, world: World) -> tuple[Any, Plan]:
    import clip_jax
    from clip_jax.encode import joined

    clip = clip_jax.load(config.run / "clip")
    stage = fitted(stage_of(name, training.model), clip.model.config)
    examples = None
    if kind_of(name) == "prior":
        # Of all examples, for each is a draw by itself: the first ones are like the others.
        examples = {"image": world.images[:MEASURED], "tokens": clip.tokenize(world.captions[:MEASURED])}
    task = task_of(name, stage, clip.model.config, joined(clip.variables), examples)
    evaluate = None
    if name == "decoder":
        evaluate = decoded_examples(stage, clip, world.images[:16], clip.tokenize(world.captions[:16]))
    return clip.tokenize, Plan(task, architecture(stage), save_as(FOLDERS.get(name, name), stage, config), evaluate)


MEASURED = 4096  # pictures that the statistics of a prior are taken from

FOLDERS = {"ar-prior": "ar_prior", "one-step-prior": "one_step_prior", "upsampler": "upsampler_0"}


def kind_of(name: str) -> str:
    """ "prior", "decoder" or "upsampler"."""
    return "prior" if name.endswith("prior") else name.partition("_")[0]


def stage_of(name: str, model: str, prefix: str = "") -> Any:
    """The network of a stage, of the kind that its name says; an upsampler starts from half its size.

    Raises:
      UserError: there is no such network, or it is of another kind.
    """
    from unclip_jax.priors import ARStage
    from unclip_jax.seams import starting_from

    stage = network(model, kind_of(name), prefix)
    if kind_of(name) == "upsampler":
        return starting_from(stage, stage.model.image_size // 2)
    if isinstance(stage, ARStage) != (name == "ar-prior"):
        raise UserError(f"{prefix}model: {model} is another kind of prior than {name}")
    return stage


def task_of(name: str, stage: Any, clip: Any, params: Any, examples: dict[str, Any] | None) -> Any:
    """The task of a stage over a CLIP's config and weights.

    Args:
      examples: fields "image" and "tokens" that a prior's statistics are taken from; without them they are blank, for
        shapes alone.
    """
    from unclip_jax import tasks
    from unclip_jax.models.ar_prior import measure
    from unclip_jax.stage import Stage

    kind = kind_of(name)
    if kind == "decoder":
        return tasks.DecoderTask(stage, clip, params)
    if kind == "upsampler":
        size = stage.model.image_size
        return tasks.UpsamplerTask(stage, low_res_size=stage.model.low_res.size, crop_size=size // 2)
    if name == "ar-prior":
        if examples is None:
            return tasks.ARPriorTask(stage, clip, params, tasks.blank_quantiser(stage))
        pairs = tasks.embedding_pairs(clip, params, examples["image"], examples["tokens"])
        return tasks.ARPriorTask(stage, clip, params, measure(stage.model, *pairs))
    task = tasks.PriorTask if isinstance(stage, Stage) else tasks.OneStepPriorTask
    if examples is None:
        return task(stage, clip, params, *tasks.blank_statistics(clip))
    return task(stage, clip, params, *tasks.embedding_statistics(clip, params, examples["image"]))


def save_as(name: str, stage: Any, config: Shapes | OneStage) -> Callable[[TrainState], None]:
    """Writes a stage into the run directory, and into its config which CLIP it was trained against, if any."""
    from unclip_jax.pipeline import save_stage

    clip = None if name.startswith("upsampler") else config.run / "clip"

    def save(state: TrainState) -> None:
        variables = {"params": state.ema_params, **state.model_state}
        save_stage(config.run / name, stage, variables, dtype=config.weights, clip=clip)

    return save


def check(name: str, config: Shapes | OneStage) -> None:
    """Refuses what can be seen to be wrong before anything is prepared or written, in any of the stages."""
    trainings = stages_of(name, config)
    flagged = {prefix_of(config, stage): training for stage, training in trainings.items()}
    check_settings(flagged, config.seed)
    check_directories(config.run, config.data.directory)
    check_examples(flagged, config.data.train_examples)
    if isinstance(config, OneStage) and not name.endswith("-clip") and not (config.run / "clip").is_dir():
        clip = f"{name.partition('-')[0]}-clip"
        raise UserError(f"{config.run} holds no CLIP, which {name} needs; first run train.py {clip} --run {config.run}")
    check_begin(config, config.run, STAGES if isinstance(config, Shapes) else [name.partition("-")[2]])
    if isinstance(config, Shapes) and config.extend:
        check_clip_stays(config)
    networks = {
        stage: stage_of(stage, training.model, prefix_of(config, stage))
        for stage, training in trainings.items()
        if stage != "clip"
    }
    clip, params = the_clip(trainings, config)
    check_resolution(config, networks, clip)
    check_cascade(config, networks)
    check_stages(trainings, networks, config, clip, params)


def check_clip_stays(config: Shapes) -> None:
    """Refuses to train a CLIP on under the stages that were trained against it, before it is done."""
    clip, others = saved_steps(config.run / "train" / "clip"), STAGES[1:]
    trained = [stage for stage in others if saved_steps(config.run / "train" / stage)]
    if clip and trained and config.clip.num_steps > max(clip):
        raise UserError(
            f"clip.num_steps: {config.run} has a {trained[0]} trained against its CLIP of {max(clip)} steps; "
            "begin another run from it with --begin-from"
        )


def stages_of(name: str, config: Shapes | OneStage) -> dict[str, StageTraining]:
    """The stages that are trained, one after the other."""
    if isinstance(config, OneStage):
        return {name.partition("-")[2]: config}
    return {stage: getattr(config, stage) for stage in STAGES}


def prefix_of(config: Shapes | OneStage, stage: str) -> str:
    """What comes before the flags of a stage."""
    return "" if isinstance(config, OneStage) else f"{stage}."


def check_cascade(config: Shapes | OneStage, networks: dict[str, Any]) -> None:
    """Refuses an upsampler that does not start from what is drawn before it, here or in the run directory."""
    from unclip_jax.seams import cascade_with, drawn

    own = {FOLDERS.get(name, name): stage.model for name, stage in networks.items() if kind_of(name) != "prior"}
    if own:
        check_sizes(cascade_with(config.run, {folder: drawn(folder, model) for folder, model in own.items()}))


def the_clip(trainings: dict[str, StageTraining], config: Shapes | OneStage) -> tuple[Any, Any]:
    """(config, weights as one tree) of the CLIP under the stages: their shapes alone where it is trained first."""
    import jax

    import clip_jax
    from clip_jax.encode import joined

    if "clip" not in trainings:
        loaded = clip_jax.load(config.run / "clip")
        return loaded.model.config, joined(loaded.variables)
    clip = clip_of(trainings["clip"], prefix_of(config, "clip"))
    return clip, joined(jax.eval_shape(lambda key: clip_jax.init(clip, key), jax.random.key(0)))


def check_resolution(config: Shapes | OneStage, networks: dict[str, Any], clip: Any) -> None:
    """Refuses a world whose pictures the networks cannot take: CLIP needs its own size, an upsampler whole boxes."""
    resolution = config.data.resolution
    if isinstance(config, OneStage) and any(kind_of(name) == "upsampler" for name in networks):
        (stage,) = networks.values()
        size = stage.model.image_size
        if resolution < size or resolution % size:
            raise UserError(f"data.resolution: {resolution} is no multiple of {size}, the size of {config.model}")
        return
    size = clip.vision.image_size
    if resolution != size:
        raise UserError(f"data.resolution: {resolution} is not {size}, the size of this CLIP's pictures")


def check_stages(
    trainings: dict[str, StageTraining], networks: dict[str, Any], config: Shapes | OneStage, clip: Any, params: Any
) -> None:
    """Builds every stage, shapes only. Raises UserError where its parts do not fit."""
    import clip_jax

    side = config.data.resolution
    fields = example(image=((side, side, 3), "uint8"), tokens=((clip.text.context_length,), "int32"))
    for name, training in trainings.items():

        def make(params: Any, name: str = name) -> Any:
            if name == "clip":
                return clip_jax.CLIPTask(clip)
            return task_of(name, fitted(networks[name], clip), clip, params, None)

        trace(prefix_of(config, name), training, make, params, fields)


def clip_of(training: StageTraining, prefix: str) -> Any:
    """The preset of a CLIP that can be trained on the shapes world.

    Raises:
      UserError: it has one tower, another kind of tokenizer, or batch norms under an average of the weights.
    """
    import clip_jax

    clip = with_prefix(f"{prefix}model: ", lambda: clip_jax.preset(training.model))
    if not clip.two_towers or clip.text.tokenizer != "clip":
        raise UserError(f"{prefix}model: {training.model} is no CLIP of two towers whose tokens are learned here")
    check_average(clip, training, prefix)
    return clip


def train(name: str, config: Shapes | OneStage) -> None:
    """Trains the stages, and after all four draws a sheet of pictures."""
    world = World(config.data)
    for stage, training in stages_of(name, config).items():
        train_one(stage, training, config, world)
    if isinstance(config, OneStage):
        return
    print(f"pictures: {write_samples(config.run)}")
    print(f'more: python sample.py "a small red circle in the top left" --run {config.run}')
