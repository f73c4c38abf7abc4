"""The preset table of `train.py`: `PRESETS`, one row per name.

A row names the recipe, a description for `--help`, the defaults of the flags, and the stages in training order. The
hyperparameters of a stage stand once, in a `StageTraining`, which the preset of the stage alone and the preset of the
whole system share.
"""

# ruff: noqa: E501 - a row is a line

from __future__ import annotations

from pathlib import Path
from typing import Any

from train_jax.optim import OptimConfig
from train_recipes import clip, distill, unclip
from train_recipes.data import CaptionData, FashionData, ShapesData
from train_recipes.evaluation import decoded_examples, fashion_accuracy, shapes_retrieval
from train_recipes.options import (
    Cascade,
    Distillation,
    OneBertCLIP,
    OneCLIP,
    OneStage,
    OneStageOverCLIP,
    StageTraining,
    WholeSystem,
)
from train_recipes.parts import CLIPPart, Preset, StagePart
from unclip_jax.degrade import BSRConfig, DegradeConfig

# Optimisers


def small(lr: float, **rest: Any) -> OptimConfig:
    """For the networks of the shapes world: AdamW, or Muon with `kind="muon"`."""
    common = {"ema_decay": 0.995, "warmup_steps": 50, "weight_decay": 0.01, "final_lr_fraction": 0.02}
    return OptimConfig(lr=lr, **(common | rest))


def table3(lr: float, b2: float, eps: float, weight_decay: float = 0.0) -> OptimConfig:
    """AdamW as in Table 3 of Ramesh et al. 2022, with β1 = 0.9 and an EMA decay of 0.9999.

    The table gives no warm-up, learning-rate schedule or gradient clipping. Here the learning rate is constant after a
    warm-up of 5000 steps, and gradients are clipped at `OptimConfig`'s default, a global norm of 1.
    """
    return OptimConfig(
        lr=lr, b2=b2, eps=eps, ema_decay=0.9999, weight_decay=weight_decay, schedule="constant", warmup_steps=5000
    )


def smaller(lr: float, **rest: Any) -> OptimConfig:
    """For the networks of small-64: the paper's, made small enough for one accelerator."""
    return OptimConfig(lr=lr, **({"b2": 0.999, "ema_decay": 0.9999, "warmup_steps": 1000} | rest))


def bert(lr: float, warmup_steps: int) -> OptimConfig:
    """For a CLIP with a BERT and batch norms: with warm-up, and without EMA.

    An EMA of the weights would not fit the running statistics of the batch norms, which belong to the latest weights.
    """
    return OptimConfig(lr=lr, warmup_steps=warmup_steps, b2=0.999, ema_decay=0.0)


ADAM = OptimConfig(lr=1e-3, warmup_steps=0, schedule="constant", b2=0.999, clip_norm=0.0, ema_decay=0.0)

# How each stage is trained

# fmt: off
# A joint space of few dimensions (16) and strong weight decay make CLIP's embeddings additive: with 64 dimensions, or a
# weight decay of 0.1, the embedding of an unseen pair of colour and shape lies further from the sum of the two, and the
# decoder draws a pair seen in training instead (docs/decisions/006). Weight decay helps the decoder with unseen pairs,
# too; with 1.0 it learns no shapes. With less weight decay the autoregressive prior memorises the seen pairs: after
# 1500 steps CLIP reads 100 / 71 % (seen / held-out) of its embeddings correctly.
#                                    model preset                 steps batch optimiser
SHAPES_CLIP           = StageTraining("shapes-narrow",             1000,   64, small(1.2e-3, ema_decay=0.99, b2=0.98, weight_decay=3.0))
SHAPES_PRIOR          = StageTraining("shapes-prior",               800,   64, small(2e-3, kind="muon"))
SHAPES_AR_PRIOR       = StageTraining("shapes-ar-prior",            800,   64, small(1e-3, weight_decay=3.0))
SHAPES_ONE_STEP_PRIOR = StageTraining("shapes-one-step-prior",      800,   64, small(1e-3))
SHAPES_DECODER        = StageTraining("shapes-decoder",            1800,   16, small(4e-3, kind="muon", weight_decay=0.3))
SHAPES_UPSAMPLER      = StageTraining("shapes-upsampler",           600,   32, small(2e-3))
SHAPES_UPSAMPLER_1    = StageTraining("shapes-upsampler_1",         600,   16, small(2e-3))

# With enough steps the decoder draws unseen pairs anyway. And after 2400 steps the text embeddings of the narrow CLIP lie
# so close to its image embeddings that the decoder draws from them equally well, which leaves the prior nothing to do.
LONG_CLIP             = StageTraining("shapes",                    2400,   64, small(1.2e-3, ema_decay=0.99, b2=0.98, weight_decay=0.1))
LONG_PRIOR            = StageTraining("shapes-prior",              4000,   64, small(2e-3, kind="muon"))
LONG_DECODER          = StageTraining("shapes-decoder-guided",     5000,   16, small(4e-3, kind="muon"))
LONG_UPSAMPLER        = StageTraining("shapes-upsampler",          1500,   32, small(2e-3))

TINY_CLIP             = StageTraining("tiny",                         8,    8, small(1e-3, warmup_steps=2), log_every=2, save_every=2)
TINY_PRIOR            = StageTraining("tiny-prior",                   8,    8, small(1e-3, warmup_steps=2), log_every=2, save_every=2)
TINY_AR_PRIOR         = StageTraining("tiny-ar-prior",                8,    8, small(1e-3, warmup_steps=2), log_every=2, save_every=2)
TINY_ONE_STEP_PRIOR   = StageTraining("tiny-one-step-prior",          8,    8, small(1e-3, warmup_steps=2), log_every=2, save_every=2)
TINY_DECODER          = StageTraining("tiny-decoder",                 8,    8, small(1e-3, warmup_steps=2), log_every=2, save_every=2)
TINY_UPSAMPLER        = StageTraining("tiny-upsampler",               8,    8, small(1e-3, warmup_steps=2), log_every=2, save_every=2)
TINY_UPSAMPLER_1      = StageTraining("tiny-upsampler_1",             8,    8, small(1e-3, warmup_steps=2), log_every=2, save_every=2)

# Ramesh et al. 2022, Table 3.
DALLE2_PRIOR          = StageTraining("dalle2-prior",           600_000, 4096, table3(1.1e-4, 0.96,  1e-6, weight_decay=6e-2), save_every=5000)
DALLE2_DECODER        = StageTraining("dalle2-decoder",         800_000, 2048, table3(1.2e-4, 0.999, 1e-8), save_every=5000)
DALLE2_UPSAMPLER_0    = StageTraining("dalle2-upsampler-256", 1_000_000, 1024, table3(1.2e-4, 0.999, 1e-8), save_every=5000)
DALLE2_UPSAMPLER_1    = StageTraining("dalle2-upsampler-1024", 1_000_000, 512, table3(1.0e-4, 0.999, 1e-8), save_every=5000)

SMALL_PRIOR           = StageTraining("small-prior",            100_000,  512, smaller(3e-4, b2=0.96, eps=1e-6, weight_decay=6e-2), save_every=2000)
SMALL_DECODER         = StageTraining("small-decoder",          200_000,  256, smaller(1.2e-4), save_every=2000)
SMALL_UPSAMPLER_0     = StageTraining("small-upsampler-256",    200_000,   64, smaller(1.2e-4), save_every=2000)

CAPTIONS_PRIOR        = StageTraining("tiny-captions-prior",          4,    8, smaller(1e-3, warmup_steps=2, ema_decay=0.9), log_every=2, save_every=2)
CAPTIONS_DECODER      = StageTraining("tiny-captions-decoder",        4,    8, smaller(1e-3, warmup_steps=2, ema_decay=0.9), log_every=2, save_every=2)
CAPTIONS_UPSAMPLER_0  = StageTraining("tiny-captions-upsampler",      4,    8, smaller(1e-3, warmup_steps=2, ema_decay=0.9), log_every=2, save_every=2)

# Parts: stages with the folders of their checkpoints and of their exported weights
#                               RUN/train/…       RUN/…             builder or kind
CLIP                 = CLIPPart("clip",           "clip",           clip.with_learned_tokens, evaluate=shapes_retrieval)
FASHION_CLIP         = CLIPPart("clip",           "clip",           clip.of_grey_pictures, evaluate=fashion_accuracy)
BERT_CLIP            = CLIPPart("clip",           "clip",           clip.with_bert)

PRIOR               = StagePart("prior",          "prior",          unclip.PRIOR)
AR_PRIOR            = StagePart("ar-prior",       "ar_prior",       unclip.AR_PRIOR)
ONE_STEP_PRIOR      = StagePart("one-step-prior", "one_step_prior", unclip.ONE_STEP_PRIOR)
DECODER             = StagePart("decoder",        "decoder",        unclip.DECODER)
UPSAMPLER_0         = StagePart("upsampler_0",    "upsampler_0",    unclip.UPSAMPLER, needs=(), degrade=DegradeConfig())  # blur (§2.1)
UPSAMPLER_1         = StagePart("upsampler_1",    "upsampler_1",    unclip.UPSAMPLER, needs=(), degrade=BSRConfig())

SHAPES_DECODES      = StagePart("decoder",        "decoder",        unclip.DECODER, evaluate=decoded_examples)
SHAPES_DOUBLES      = StagePart("upsampler",      "upsampler_0",    unclip.UPSAMPLER, needs=(), factor=2)
SHAPES_DOUBLES_1    = StagePart("upsampler_1",    "upsampler_1",    unclip.UPSAMPLER, needs=(), factor=2)


def in_shapes(training: StageTraining, data: ShapesData = ShapesData()) -> OneStage:  # noqa: B008 - a frozen value
    """Options to train one stage of the system in runs/shapes."""
    return OneStage(**vars(training), run=Path("runs/shapes"), data=data)


def in_tiny(training: StageTraining, resolution: int = 32) -> OneStage:
    """Options to train one stage of the system in runs/tiny."""
    data = ShapesData(resolution=resolution, train_examples=64)
    return OneStage(**vars(training), run=Path("runs/tiny"), data=data)


def over_clip(training: StageTraining, run: str) -> OneStageOverCLIP:
    """Options to train one stage on your own captioned pictures, over a pretrained CLIP."""
    return OneStageOverCLIP(**vars(training), run=Path(run), data=CaptionData())


PRESETS: dict[str, Preset] = {
    # Text to image on the shapes world
    "shapes": Preset(
        unclip.RECIPE,
        "text to image on the shapes world, all four stages",
        WholeSystem(clip=SHAPES_CLIP, prior=SHAPES_PRIOR, decoder=SHAPES_DECODER, upsampler=SHAPES_UPSAMPLER, run=Path("runs/shapes"), data=ShapesData()),
        CLIP, (PRIOR, SHAPES_DECODES, SHAPES_DOUBLES),
    ),
    "shapes-long": Preset(
        unclip.RECIPE,
        "shapes with more steps, most of them for the decoder",
        WholeSystem(clip=LONG_CLIP, prior=LONG_PRIOR, decoder=LONG_DECODER, upsampler=LONG_UPSAMPLER, run=Path("runs/shapes-long"), data=ShapesData(), weights="float16"),
        CLIP, (PRIOR, SHAPES_DECODES, SHAPES_DOUBLES),
    ),
    "tiny": Preset(
        unclip.RECIPE,
        "smoke test of shapes in a few minutes, with tiny networks: the pictures are noise",
        WholeSystem(clip=TINY_CLIP, prior=TINY_PRIOR, decoder=TINY_DECODER, upsampler=TINY_UPSAMPLER, run=Path("runs/tiny"), data=ShapesData(resolution=32, train_examples=64)),
        CLIP, (PRIOR, SHAPES_DECODES, SHAPES_DOUBLES),
    ),
    #                               recipe         description                                            flags                             parts
    "shapes-clip":           Preset(clip.RECIPE,   "the clip stage of shapes alone",                      in_shapes(SHAPES_CLIP),           CLIP),
    "shapes-prior":          Preset(unclip.RECIPE, "the prior stage of shapes alone",                     in_shapes(SHAPES_PRIOR),          stages=(PRIOR,),            after="shapes-clip"),
    "shapes-decoder":        Preset(unclip.RECIPE, "the decoder stage of shapes alone",                   in_shapes(SHAPES_DECODER),        stages=(SHAPES_DECODES,),   after="shapes-clip"),
    "shapes-upsampler":      Preset(unclip.RECIPE, "the upsampler stage of shapes alone",                 in_shapes(SHAPES_UPSAMPLER),      stages=(SHAPES_DOUBLES,),   after="shapes-clip"),
    "shapes-ar-prior":       Preset(unclip.RECIPE, "an autoregressive prior for a run of shapes, beside its own diffusion prior", in_shapes(SHAPES_AR_PRIOR), stages=(AR_PRIOR,),       after="shapes-clip"),
    "shapes-one-step-prior": Preset(unclip.RECIPE, "a one-step prior (ECLIPSE) for a run of shapes, beside its own diffusion prior", in_shapes(SHAPES_ONE_STEP_PRIOR), stages=(ONE_STEP_PRIOR,),   after="shapes-clip"),
    "shapes-upsampler_1":    Preset(unclip.RECIPE, "a second upsampler for shapes, to 128 pixels",        in_shapes(SHAPES_UPSAMPLER_1, ShapesData(resolution=128, train_examples=4000)), stages=(SHAPES_DOUBLES_1,), after="shapes-clip"),
    "tiny-clip":             Preset(clip.RECIPE,   "the clip stage of tiny alone",                        in_tiny(TINY_CLIP),               CLIP),
    "tiny-prior":            Preset(unclip.RECIPE, "the prior stage of tiny alone",                       in_tiny(TINY_PRIOR),              stages=(PRIOR,),            after="tiny-clip"),
    "tiny-decoder":          Preset(unclip.RECIPE, "the decoder stage of tiny alone",                     in_tiny(TINY_DECODER),            stages=(SHAPES_DECODES,),   after="tiny-clip"),
    "tiny-upsampler":        Preset(unclip.RECIPE, "the upsampler stage of tiny alone",                   in_tiny(TINY_UPSAMPLER),          stages=(SHAPES_DOUBLES,),   after="tiny-clip"),
    "tiny-ar-prior":         Preset(unclip.RECIPE, "an autoregressive prior for a run of tiny",           in_tiny(TINY_AR_PRIOR),           stages=(AR_PRIOR,),         after="tiny-clip"),
    "tiny-one-step-prior":   Preset(unclip.RECIPE, "a one-step prior (ECLIPSE) for a run of tiny",        in_tiny(TINY_ONE_STEP_PRIOR),     stages=(ONE_STEP_PRIOR,),   after="tiny-clip"),
    "tiny-upsampler_1":      Preset(unclip.RECIPE, "a second upsampler for tiny, to 64 pixels",           in_tiny(TINY_UPSAMPLER_1, resolution=64), stages=(SHAPES_DOUBLES_1,), after="tiny-clip"),

    # Progressive distillation. The student starts from the teacher's weights, so its learning rate is lower.
    "shapes-distill": Preset(
        distill.RECIPE,
        "the decoder of a shapes system distilled to 4 steps without guidance",
        Distillation("decoder", 400, 16, small(1e-3, kind="muon"), run=Path("runs/shapes-distill"), data=ShapesData()),
    ),
    "tiny-distill": Preset(
        distill.RECIPE,
        "smoke test of shapes-distill, on a run of tiny",
        Distillation("decoder", 4, 8, small(1e-3, warmup_steps=2), log_every=2, save_every=2, run=Path("runs/tiny-distill"), teacher=Path("runs/tiny"), data=ShapesData(resolution=32, train_examples=64)),
    ),

    # unCLIP on your own captioned pictures
    "small-64": Preset(
        unclip.RECIPE,
        "prior, decoder of 64 pixels and upsampler to 256 on captions of your own, for one accelerator",
        Cascade(prior=SMALL_PRIOR, decoder=SMALL_DECODER, upsampler_0=SMALL_UPSAMPLER_0, run=Path("runs/small-64"), data=CaptionData()),
        stages=(PRIOR, DECODER, UPSAMPLER_0),
    ),
    "tiny-captions": Preset(
        unclip.RECIPE,
        "smoke test of small-64: tiny networks, 4 steps per stage",
        Cascade(prior=CAPTIONS_PRIOR, decoder=CAPTIONS_DECODER, upsampler_0=CAPTIONS_UPSAMPLER_0, factor=2, run=Path("runs/tiny-captions"), data=CaptionData()),
        stages=(PRIOR, DECODER, UPSAMPLER_0),
    ),
    #                            recipe         description                            flags                                         parts
    "dalle2-prior":       Preset(unclip.RECIPE, "the prior stage of DALL-E 2",        over_clip(DALLE2_PRIOR, "runs/dalle2"),        stages=(PRIOR,)),
    "dalle2-decoder":     Preset(unclip.RECIPE, "the decoder stage of DALL-E 2",      over_clip(DALLE2_DECODER, "runs/dalle2"),      stages=(DECODER,)),
    "dalle2-upsampler_0": Preset(unclip.RECIPE, "the upsampler_0 stage of DALL-E 2",  over_clip(DALLE2_UPSAMPLER_0, "runs/dalle2"),  stages=(UPSAMPLER_0,)),
    "dalle2-upsampler_1": Preset(unclip.RECIPE, "the upsampler_1 stage of DALL-E 2",  over_clip(DALLE2_UPSAMPLER_1, "runs/dalle2"),  stages=(UPSAMPLER_1,)),
    "small-prior":        Preset(unclip.RECIPE, "the prior stage of small-64",        over_clip(SMALL_PRIOR, "runs/small-64"),       stages=(PRIOR,)),
    "small-decoder":      Preset(unclip.RECIPE, "the decoder stage of small-64",      over_clip(SMALL_DECODER, "runs/small-64"),     stages=(DECODER,)),
    "small-upsampler_0":  Preset(unclip.RECIPE, "the upsampler_0 stage of small-64",  over_clip(SMALL_UPSAMPLER_0, "runs/small-64"), stages=(UPSAMPLER_0,)),

    # CLIPs
    "mini-fashion": Preset(  # 12 epochs
        clip.RECIPE,
        "a CLIP of 65,452 parameters on Fashion-MNIST, measured on ten captions",
        OneCLIP("mini_fashion", 12 * 60_000 // 128, 128, ADAM, run=Path("runs/mini-fashion"), data=FashionData()),
        FASHION_CLIP,
    ),
    "resnet50-bert": Preset(
        clip.RECIPE,
        "ResNet-50 and BERT-base on pictures with captions of your own (needs an accelerator)",
        OneBertCLIP("resnet50_bert_base", 10_000, 32, bert(1e-4, 1000), run=Path("runs/resnet50-bert"), data=CaptionData()),
        BERT_CLIP,
    ),
    "tiny-resnet-bert": Preset(
        clip.RECIPE,
        "smoke test of resnet50-bert: towers of a few thousand parameters",
        OneBertCLIP("tiny_resnet_bert", 8, 8, bert(1e-3, 2), log_every=2, save_every=4, context_length=32, run=Path("runs/tiny-resnet-bert"), data=CaptionData()),
        BERT_CLIP,
    ),
}
# fmt: on
