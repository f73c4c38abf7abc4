"""Writes a tiny Karlo in the layout of diffusers, without diffusers: our conversion rules are applied backwards."""

import dataclasses
import json

import numpy as np
from safetensors.numpy import save_file

import clip_jax
from clip_jax.weights.rules import export
from unclip_jax.diffusion.samplers import DDPM
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.unet import ImageCond, Level, LowRes, TextCond, UNetConfig
from unclip_jax.priors import OneStepStage
from unclip_jax.stage import Sampling, Stage
from unclip_jax.variables import flat
from unclip_jax.weights import karlo

DIM, CONTEXT, LEVELS = 16, 6, (Level(16, 1), Level(32, 1, True))
PRIOR = Stage(
    model=PriorConfig(DIM, DIM, CONTEXT, width=16, layers=1, heads=2, empty_caption=True),
    prediction="x0",
    schedule="cosine_float32",
    sampling=Sampling(DDPM(), num_steps=25, guidance_scale=4.0, clip=5.0),
)
DECODER = Stage(
    model=UNetConfig(
        image_size=8,
        levels=LEVELS,
        head_width=8,
        groups=8,
        time_width=64,
        image=ImageCond(DIM, tokens=3),
        text=TextCond(DIM, embed_dim=DIM, empty_caption=True),
        context_width=24,
        learned_variance=True,
    ),
    schedule="cosine_float32",
    sampling=Sampling(DDPM("learned"), num_steps=25, guidance_scale=8.0),
)
UPSAMPLER = Stage(
    model=UNetConfig(
        image_size=16,
        levels=(Level(16, 1),),
        head_width=1,
        groups=8,
        time_width=64,
        scale_shift=False,
        low_res=LowRes(),
    ),
    schedule="cosine_float32",
    sampling=Sampling(DDPM(), num_steps=7),
    last_network=True,
)
CLIP = clip_jax.CLIPConfig(
    embed_dim=DIM,
    vision=None,
    text=clip_jax.TextConfig(width=DIM, layers=1, heads=2, vocab_size=520, context_length=CONTEXT),
)


def unet_config(model, kind, attending, **more):
    """The config.json of a U-Net as diffusers writes it.

    Args:
        model: our `UNetConfig`.
        kind: class of diffusers.
        attending: (down block, up block) classes of levels with attention.
        more: further fields.
    """
    channels = model.channels
    return {
        "_class_name": kind,
        "sample_size": model.image_size,
        "in_channels": channels * (2 if model.low_res else 1),
        "out_channels": channels * (2 if model.learned_variance else 1),
        "block_out_channels": [level.width for level in model.levels],
        "layers_per_block": model.levels[0].blocks,
        "down_block_types": [attending[0] if l.attention else "ResnetDownsampleBlock2D" for l in model.levels],
        "up_block_types": [attending[1] if l.attention else "ResnetUpsampleBlock2D" for l in reversed(model.levels)],
        "attention_head_dim": model.head_width,
        "norm_num_groups": model.groups,
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift else "default",
        "act_fn": "silu",
        **more,
    }


def scheduler(directory, name, **fields):
    """Writes the config of an `UnCLIPScheduler` with these fields to the folder `name`."""
    write(directory / name / "scheduler_config.json", {"_class_name": "UnCLIPScheduler", **fields})


def write(path, data):
    """Writes JSON, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def save(folder, config, leaves, rules):
    """Writes a component: its config, and the flat parameters `leaves` under diffusers' names."""
    write(folder / "config.json", config)
    save_file(export(leaves, rules), folder / "diffusion_pytorch_model.safetensors")


def write_prior(folder, model, leaves):
    """Writes the prior with config `model` and flat parameters `leaves`."""
    fields = {
        "_class_name": "PriorTransformer",
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "num_layers": model.layers,
        "embedding_dim": DIM,
        "num_embeddings": CONTEXT,
        "additional_embeddings": model.length - model.context_length,
    }
    save(folder, fields, leaves, karlo.PRIOR)


def write_eclipse(directory, fill):
    """Writes ECLIPSE's prior, which reads no timestep; returns its flat parameters."""
    stage = OneStepStage(dataclasses.replace(PRIOR.model, time_token=False))
    leaves = {name: leaf for name, leaf in flat(fill(stage, 9)).items() if name not in karlo.NULLS}
    write_prior(directory, stage.model, leaves)
    return leaves


def write_karlo(directory, fill):
    """Writes the directory of the system.

    Args:
        directory: where to.
        fill: (init function or stage, seed) -> random variables.

    Returns:
        Variables of the text encoder, and the flat parameters of each stage by name.
    """
    tokenizer = clip_jax.train_bpe(["red", "blue", "circle"], 520, context_length=CONTEXT)
    text = dataclasses.replace(CLIP.text, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(CLIP, text=text)
    variables = fill(lambda key: clip_jax.init(config, key))
    clip_jax.export(directory / "text_encoder", config, variables)
    (directory / "tokenizer").mkdir()
    tokenizer.save(directory / "tokenizer" / "tokenizer.json")
    params = {name: flat(fill(stage, seed)) for seed, (name, stage) in enumerate(STAGES.items())}
    known = {
        name: {path: leaf for path, leaf in leaves.items() if not path.endswith(karlo.NULLS)}
        for name, leaves in params.items()
    }
    write_prior(directory / "prior", PRIOR.model, known["prior"])
    model, table = DECODER.model, karlo.unet(len(LEVELS))
    fields = {
        "_class_name": "UnCLIPTextProjModel",
        "clip_extra_context_tokens": model.image.tokens,
        "clip_embeddings_dim": DIM,
        "time_embed_dim": model.time_width,
        "cross_attention_dim": model.context_width,
    }
    context = {name: leaf for name, leaf in known["decoder"].items() if name.startswith("context/")}
    save(directory / "text_proj", fields, context, karlo.text_projection(model))
    fields = unet_config(
        model,
        "UNet2DConditionModel",
        ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_dim=model.context_width,
        class_embed_type="identity",
    )
    save(directory / "decoder", fields, {n: a for n, a in known["decoder"].items() if n not in context}, table)
    fields = unet_config(UPSAMPLER.model, "UNet2DModel", (None, None), add_attention=False)
    both, table = known["upsampler_0"], karlo.unet(1)
    last = {name.removeprefix("last/"): leaf for name, leaf in both.items() if name.startswith("last/")}
    save(directory / "super_res_first", fields, {n: a for n, a in both.items() if not n.startswith("last/")}, table)
    save(directory / "super_res_last", fields, last, table)
    scheduler(directory, "prior_scheduler", prediction_type="sample", clip_sample_range=5.0)
    scheduler(directory, "decoder_scheduler", variance_type="learned_range")
    scheduler(directory, "super_res_scheduler", variance_type="fixed_small_log")
    parts = {folder.name: ["library", "Class"] for folder in directory.iterdir()}
    write(directory / "model_index.json", {"_class_name": "UnCLIPPipeline", **parts})
    return variables, params


STAGES = {"prior": PRIOR, "decoder": DECODER, "upsampler_0": UPSAMPLER}


def edit_json(path, **changes):
    """Updates fields of a JSON file."""
    write(path, json.loads(path.read_text()) | changes)


def edit_weights(path, change):
    """Rewrites a safetensors file after `change(arrays)` has modified its dict of arrays."""
    from safetensors.numpy import load_file

    arrays = load_file(path)
    change(arrays)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
