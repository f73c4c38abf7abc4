"""Compares the published unCLIP systems (Karlo, Kandinsky 2.2, ECLIPSE) with diffusers.

`tests/unclip/test_karlo.py` checks every case against the tolerances; `docs/parity.py` writes the table. `theirs` is
the reference, `ours` this project. The reference is built small, with random weights, saved with `save_pretrained` and
loaded by `unclip_jax.load`, so that every comparison includes the file format. Inputs are equal; diffusers' schedulers
are given the noise that our samplers draw.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
from tests.support.clip_parity import Case, Difference, difference, nchw
from unclip_jax import Cond, pipeline, sample_keys
from unclip_jax import stage as stages
from unclip_jax.diffusion.samplers import fold_in_each, normal
from unclip_jax.models.movq import MoVQDecoder
from unclip_jax.models.unet import Context
from unclip_jax.variables import flat

MAX_ABS = 1e-4  # of a network
MAX_PIXEL = 2e-3  # of a picture between 0 and 1, drawn by the whole system
PROMPTS = ["a small red circle", "the big blue star, in a corner of it"]
COLOURS = ["red", "green", "blue", "yellow", "circle", "square", "star", "small", "big", "corner"]


class Size(NamedTuple):
    """Sizes of a system; Karlo's are in `KARLO`."""

    dim: int  # of the joint space, and width of the text tower
    context: int  # tokens of a caption
    prior: tuple[int, int, int]  # heads, channels per head, layers
    decoder: tuple[int, ...]  # channels of the levels
    layers: int  # blocks per level
    head: int  # channels per attention head
    cross: int  # width of the cross-attention context
    tokens: int  # context tokens made from the image embedding
    groups: int  # of the group norms
    image: int  # side of the decoder's pictures
    upsampler: tuple[int, ...]  # channels of the levels
    large: int  # side of the upsampler's pictures


SMALL = {
    "small": Size(16, 12, (2, 8, 2), (32, 64), 1, 16, 24, 4, 8, 16, (16, 32), 32),
    "three levels": Size(24, 7, (3, 16, 1), (16, 32, 48), 2, 8, 40, 3, 16, 16, (16, 48), 64),
}
KARLO = Size(768, 77, (32, 64, 20), (320, 640, 960, 1280), 3, 64, 1536, 4, 32, 64, (320, 640, 960, 1280), 256)


def randomise(module: Any, seed: int = 0) -> Any:
    """Fills all parameters of a torch module with random numbers, scaled so that activations stay of order one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.normal_(generator=generator)
            if name.endswith("clip_std"):
                tensor.mul_(0.2).add_(1.0)
            elif tensor.ndim >= 2 and "positional" not in name and "prd" not in name and "clip_mean" not in name:
                tensor.mul_(tensor[0].numel() ** -0.5 if "token_embedding" not in name else 1.0)
            elif "norm" in name and name.endswith("weight"):
                tensor.mul_(0.2).add_(1.0)
            elif name.endswith("bias"):
                tensor.mul_(0.2)
    return module.eval()


def damped(pipe: Any) -> Any:
    """Scales down the last layers of a pipeline's networks, in place, towards the size of trained ones.

    Guidance scales of 4 and 8 amplify rounding errors of random networks at every step. And the output of a random MoVQ
    is a hundred times too large for a picture: clipped to 0 and 1 it would be black and white, with rounding errors of
    5e-3.
    """
    import torch

    with torch.no_grad():
        if "movq" in pipe.components:
            pipe.movq.decoder.conv_out.weight.mul_(0.01)
        for network in pipe.components.values():
            for name in ("proj_to_clip_embeddings", "conv_out"):
                if isinstance(network, torch.nn.Module) and hasattr(network, name):
                    getattr(network, name).weight.mul_(0.3)
    return pipe


# Networks of diffusers


def prior(size: Size) -> Any:
    from diffusers import PriorTransformer

    heads, channels, layers = size.prior
    return PriorTransformer(
        num_attention_heads=heads,
        attention_head_dim=channels,
        num_layers=layers,
        embedding_dim=size.dim,
        num_embeddings=size.context,
    )


def karlo_decoder(size: Size) -> Any:
    from diffusers import UNet2DConditionModel

    count = len(size.decoder)
    return UNet2DConditionModel(
        sample_size=size.image,
        in_channels=3,
        out_channels=6,
        layers_per_block=size.layers,
        block_out_channels=size.decoder,
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * (count - 1)),
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * (count - 1), "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=size.head,
        cross_attention_dim=size.cross,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=size.groups,
    )


def text_projection(size: Size) -> Any:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    return UnCLIPTextProjModel(
        clip_extra_context_tokens=size.tokens,
        clip_embeddings_dim=size.dim,
        time_embed_dim=4 * size.decoder[0],
        cross_attention_dim=size.cross,
    )


def upsampler(size: Size) -> Any:
    from diffusers import UNet2DModel

    count = len(size.upsampler)
    return UNet2DModel(
        sample_size=size.large,
        in_channels=6,
        out_channels=3,
        layers_per_block=size.layers,
        block_out_channels=size.upsampler,
        down_block_types=("ResnetDownsampleBlock2D",) * count,
        up_block_types=("ResnetUpsampleBlock2D",) * count,
        add_attention=False,
        norm_num_groups=size.groups,
    )


def text_encoder(size: Size) -> tuple[Any, Any]:
    """(text tower, tokenizer) of transformers; the tokenizer pads with "!" as Karlo's does."""
    import transformers

    ours = clip_jax.train_bpe(COLOURS, 530, context_length=size.context)
    vocab = {word: i for i, word in enumerate(ours._words)}
    tokenizer = transformers.CLIPTokenizer(
        vocab=vocab, merges=list(ours.merges), model_max_length=size.context, pad_token="!"
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=size.dim,
        intermediate_size=2 * size.dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=size.dim,
        max_position_embeddings=size.context,
        eos_token_id=len(vocab) - 1,
        bos_token_id=len(vocab) - 2,
        pad_token_id=0,
    )
    return randomise(transformers.CLIPTextModelWithProjection(config), 9), tokenizer


def image_encoder(size: Size) -> tuple[Any, Any]:
    """(image tower, preprocessing) of transformers."""
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=size.dim,
        image_size=24,
        patch_size=8,
    )
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    return randomise(transformers.CLIPVisionModelWithProjection(config), 8), processor


def karlo(size: Size, *, variation: bool = False) -> Any:
    """A whole Karlo pipeline of diffusers: text to image, or image variations."""
    from diffusers import UnCLIPImageVariationPipeline, UnCLIPPipeline, UnCLIPScheduler

    encoder, tokenizer = text_encoder(size)
    parts = {
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "text_proj": randomise(text_projection(size), 1),
        "decoder": randomise(karlo_decoder(size), 2),
        "super_res_first": randomise(upsampler(size), 3),
        "super_res_last": randomise(upsampler(size), 4),
        "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        "super_res_scheduler": UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    }
    if variation:
        vision, processor = image_encoder(size)
        return UnCLIPImageVariationPipeline(image_encoder=vision, feature_extractor=processor, **parts)
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
    )
    return UnCLIPPipeline(prior=randomise(prior(size), 5), prior_scheduler=scheduler, **parts)


@contextmanager
def saved(*pipelines: Any) -> Iterator[list[Path]]:
    """Context manager that saves pipelines and yields their temporary directories."""
    with tempfile.TemporaryDirectory() as root:
        directories = [Path(root) / str(i) for i in range(len(pipelines))]
        for theirs, directory in zip(pipelines, directories, strict=True):
            theirs.save_pretrained(directory)
        yield directories


# Comparisons


def gaussian(seed: int, *shape: int) -> np.ndarray:
    """Standard normal noise, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nhwc(x: Any) -> np.ndarray:
    """An NCHW torch tensor as an NHWC array."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def apply(stage: stages.Stage, params: Any, x_t: np.ndarray, t: np.ndarray, cond: Cond) -> np.ndarray:
    """The output of our network, jitted, with matmuls in full float32 precision."""
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p, *args: stages.network(stage).apply(p, *args))
        return np.asarray(run(params, x_t, t, cond))


def inputs(size: Size, width: int | None = None) -> dict[str, np.ndarray]:
    """Text features and image embeddings of a batch of three; the captions end at different places."""
    ends = np.array([size.context, size.context // 2, 3])
    return {
        "text_embed": gaussian(1, 3, size.dim),
        "text_encodings": gaussian(2, 3, size.context, width or size.dim),
        "text_mask": np.arange(size.context) < ends[:, None],
        "image_embed": gaussian(3, 3, size.dim),
    }


TIMES = np.array([999, 500, 0])


def compare_prior(theirs: Any, stage: stages.Stage, params: Any, size: Size) -> Iterator[Difference]:
    """Compares a prior's output, and its map from standardised embeddings back to embeddings."""
    import torch

    given, x_t = inputs(size), gaussian(4, 3, size.dim)
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    cond = Cond(**{name: given[name] for name in ("text_embed", "text_encodings", "text_mask")})
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x_t),
            torch.from_numpy(TIMES),
            proj_embedding=tensors["text_embed"],
            encoder_hidden_states=tensors["text_encodings"],
            attention_mask=tensors["text_mask"],
        ).predicted_image_embedding
    yield difference("prior", apply(stage, params, x_t, TIMES, cond), expected.numpy())
    restored = stages.network(stage).apply(params, x_t, method="restore")
    with torch.no_grad():
        yield difference("prior, restored", restored, theirs.post_process_latents(torch.from_numpy(x_t)).numpy())


def part(variables: Any, name: str) -> Any:
    """The variables of the submodule `name`."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def compare_karlo_decoder(theirs: Any, projection: Any, stage: stages.Stage, params: Any, size: Size) -> Iterator:
    """Compares the text projection and the decoder, with the image embedding and without it (the null condition)."""
    import torch

    given, x_t = inputs(size), gaussian(4, 3, size.image, size.image, 3)
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    # With guidance, diffusers puts the learned null embedding before the given ones, and needs the captions twice.
    with torch.no_grad():
        context, added = projection(
            image_embeddings=tensors["image_embed"],
            prompt_embeds=torch.cat([tensors["text_embed"]] * 2),
            text_encoder_hidden_states=torch.cat([tensors["text_encodings"]] * 2),
            do_classifier_free_guidance=True,
        )
        mask = torch.nn.functional.pad(torch.cat([tensors["text_mask"]] * 2), (size.tokens, 0), value=True)
        expected = theirs(
            torch.cat([nchw(x_t)] * 2),
            torch.from_numpy(np.tile(TIMES, 2)),
            encoder_hidden_states=context,
            class_labels=added,
            attention_mask=mask,
        ).sample
    cond = jax.tree.map(lambda a: jnp.concatenate([a, a]), Cond(**given))
    cond = cond.replace(keep_image=np.arange(6) >= 3, keep_text=np.ones(6, bool))
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(Context(stage.model).apply)(part(params, "context"), cond)
    yield difference("text_proj, tokens", ours[1], context.numpy())
    yield difference("text_proj, time", ours[0], added.numpy())
    out = apply(stage, params, np.concatenate([x_t, x_t]), np.tile(TIMES, 2), cond)
    yield difference("decoder", out, nhwc(expected))


def compare_upsampler(name: str, theirs: Any, stage: stages.Stage, params: Any, size: Size) -> Iterator[Difference]:
    """Compares a network of an upsampler, called `name` in the table."""
    import torch

    x_t, low_res = gaussian(4, 3, size.large, size.large, 3), gaussian(5, 3, size.image, size.image, 3)
    with torch.no_grad():
        large = torch.nn.functional.interpolate(
            nchw(low_res), size=[size.large] * 2, mode="bicubic", align_corners=False, antialias=True
        )
        expected = theirs(torch.cat([nchw(x_t), large], dim=1), torch.from_numpy(TIMES)).sample
    yield difference(name, apply(stage, params, x_t, TIMES, Cond(low_res=low_res)), nhwc(expected))


def compare_karlo(size: Size) -> Iterator[Difference]:
    """Compares every network of Karlo."""
    theirs = karlo(size)
    with saved(theirs) as (directory,):
        unclip, params, _ = pipeline.load(directory)
    yield from compare_prior(theirs.prior, unclip.prior, params["prior"], size)
    yield from compare_karlo_decoder(theirs.decoder, theirs.text_proj, unclip.decoder, params["decoder"], size)
    (stage,), both = unclip.upsamplers, params["upsampler_0"]
    yield from compare_upsampler("super_res_first", theirs.super_res_first, stage, both, size)
    yield from compare_upsampler(
        "super_res_last",
        theirs.super_res_last,
        stage,
        part(both, "last"),
        size,
    )


class Noise(NamedTuple):
    """The noise that a stage draws: at the start, and at every step but the last."""

    start: np.ndarray
    steps: list[np.ndarray]


def noise(stage: stages.Stage, keys: jax.Array) -> Noise:
    """The noise that our sampler draws for these keys."""
    times = stages.timesteps(stage)[:-1]
    return Noise(
        np.asarray(stages.starting_noise(stage, keys)),
        [np.asarray(normal(fold_in_each(keys, int(t)), stage.sample_shape)) for t in times],
    )


@contextmanager
def given_noise(module: Any, steps: Iterable[np.ndarray]) -> Iterator[None]:
    """Context manager: `module`, a scheduler of diffusers, takes its noise from `steps`, and must use all of it."""
    import torch

    left = [torch.from_numpy(a) if a.ndim == 2 else nchw(a) for a in steps]

    def randn_tensor(shape: Any, **_: Any) -> Any:
        drawn = left.pop(0)
        assert drawn.shape == tuple(shape)
        return drawn

    original, module.randn_tensor = module.randn_tensor, randn_tensor
    try:
        yield
        assert not left
    finally:
        module.randn_tensor = original


def draw(unclip: pipeline.UnCLIP, params: Any, tokens: Any, keys: jax.Array, **options: Any) -> pipeline.Generation:
    """`pipeline.generate`, jitted, with matmuls in full float32 precision."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(pipeline.generate, static_argnums=0)(unclip, params, tokens, keys, **options)


def karlo_pictures(theirs: Any) -> tuple[pipeline.Generation, Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """Draws pictures from `PROMPTS` at the published settings.

    Returns:
        What our pipeline draws, and a function that draws with diffusers from the same noise; the function returns
        (image embeddings, pictures between 0 and 1).
    """
    from diffusers.schedulers import scheduling_unclip

    theirs.set_progress_bar_config(disable=True)
    with saved(theirs) as (directory,):
        unclip, params, tokenize = pipeline.load(directory)
    keys = sample_keys(jax.random.key(3), jnp.arange(2))
    ours = draw(unclip, params, tokenize(PROMPTS), keys)
    small = fold_in_each(keys, 1)
    of_prior, of_decoder, of_upsampler = (
        noise(unclip.prior, sample_keys_of_prior(keys)),
        noise(unclip.decoder, fold_in_each(small, 0)),
        noise(unclip.upsamplers[0], fold_in_each(small, 1)),
    )
    embeds: list[Any] = []
    finish = theirs.prior.post_process_latents
    theirs.prior.post_process_latents = lambda x: embeds.append(finish(x)) or embeds[-1]

    def draw_theirs() -> tuple[np.ndarray, np.ndarray]:
        with given_noise(scheduling_unclip, [*of_prior.steps, *of_decoder.steps, *of_upsampler.steps]):
            pictures = theirs(
                PROMPTS,
                prior_latents=as_tensor(of_prior.start),
                decoder_latents=nchw(of_decoder.start),
                super_res_latents=nchw(of_upsampler.start),
                output_type="np",
            ).images
        return embeds[-1].numpy(), pictures

    return ours, draw_theirs


def between_0_and_1(images: Any) -> np.ndarray:
    """Pictures in [−1, 1], clipped and mapped to [0, 1]."""
    return (np.clip(images, -1, 1) + 1) / 2


def compare_karlo_pictures(size: Size) -> Iterator[Difference]:
    """Compares embeddings and pictures drawn from prompts, at the published settings."""
    ours, draw_theirs = karlo_pictures(damped(karlo(size)))
    embed, pictures = draw_theirs()
    yield difference("image embedding", ours.image_embed, embed)
    yield difference("pictures", between_0_and_1(ours.images), pictures)


def compare_karlo_variations(size: Size) -> Iterator[Difference]:
    """Compares Karlo's image variations: pictures drawn from the embedding of a picture."""
    from diffusers.schedulers import scheduling_unclip

    theirs = damped(karlo(size, variation=True))
    theirs.set_progress_bar_config(disable=True)
    with saved(theirs) as (directory,):
        unclip, params, tokenize = pipeline.load(directory)
    pixels = gaussian(7, 2, 24, 24, 3)
    clip = clip_jax.CLIP(unclip.clip)
    with jax.default_matmul_precision("highest"):
        embed = jax.jit(lambda p: clip.apply({"params": p}, pixels, method="encode_image"))(params["clip"])
    yield difference("image embedding", embed, theirs.image_encoder(nchw(pixels)).image_embeds.detach().numpy())
    keys = sample_keys(jax.random.key(3), jnp.arange(2))
    ours = draw(unclip, params, tokenize([""] * 2), keys, image_embed=embed)
    small = fold_in_each(keys, 1)
    of_decoder = noise(unclip.decoder, fold_in_each(small, 0))
    of_upsampler = noise(unclip.upsamplers[0], fold_in_each(small, 1))
    with given_noise(scheduling_unclip, [*of_decoder.steps, *of_upsampler.steps]):
        expected = theirs(
            image_embeddings=as_tensor(np.asarray(embed)),
            image=nchw(pixels),
            decoder_latents=nchw(of_decoder.start),
            super_res_latents=nchw(of_upsampler.start),
            output_type="np",
        ).images
    yield difference("pictures", between_0_and_1(ours.images), expected)


def sample_keys_of_prior(keys: jax.Array) -> jax.Array:
    """The keys with which a published prior draws its only candidate for each picture."""
    return jax.vmap(lambda key: sample_keys(key, jnp.arange(1)))(fold_in_each(keys, 0)).reshape(-1)


def as_tensor(array: np.ndarray) -> Any:
    """A torch tensor with a copy of the array."""
    import torch

    return torch.from_numpy(np.array(array))


# Kandinsky 2.2


def kandinsky_decoder(size: Size) -> Any:
    from diffusers import UNet2DConditionModel

    count = len(size.decoder)
    return UNet2DConditionModel(
        sample_size=size.image,
        in_channels=4,
        out_channels=8,
        layers_per_block=size.layers,
        block_out_channels=size.decoder,
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * (count - 1)),
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * (count - 1), "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=size.head,
        cross_attention_dim=size.cross,
        addition_embed_type="image",
        encoder_hid_dim=size.dim,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=size.groups,
    )


def movq(widths: tuple[int, ...], layers: int) -> Any:
    """A MoVQ of diffusers, with attention at the coarsest level as in the published one."""
    from diffusers import VQModel

    finer = len(widths) - 1
    return VQModel(
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=16,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=(*["DownEncoderBlock2D"] * finer, "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * finer),
        norm_type="spatial",
    )


MOVQ = {"small": ((32, 64), 1), "three levels": ((32, 64, 96), 2)}


def kandinsky(name: str) -> tuple[Any, Any]:
    """(pipeline of the prior, pipeline of the decoder) of Kandinsky 2.2 in diffusers; `name` is a key of `SMALL`."""
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, KandinskyV22PriorPipeline, UnCLIPScheduler

    size = SMALL[name]
    (encoder, tokenizer), (vision, processor) = text_encoder(size), image_encoder(size)
    first = KandinskyV22PriorPipeline(
        prior=randomise(prior(size), 5),
        text_encoder=encoder,
        tokenizer=tokenizer,
        image_encoder=vision,
        image_processor=processor,
        scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0, num_train_timesteps=1000
        ),
    )
    second = KandinskyV22Pipeline(
        unet=randomise(kandinsky_decoder(size), 2),
        movq=randomise(movq(*MOVQ[name]), 6),
        scheduler=DDPMScheduler(
            beta_schedule="linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            variance_type="learned_range",
        ),
    )
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    return first, second


def compare_kandinsky_decoder(theirs: Any, stage: stages.Stage, params: Any, size: Size) -> Iterator[Difference]:
    import torch

    image_embed, x_t = gaussian(3, 3, size.dim), gaussian(4, 3, size.image, size.image, 4)
    with torch.no_grad():
        expected = theirs(
            nchw(x_t),
            torch.from_numpy(TIMES),
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": torch.from_numpy(image_embed)},
        ).sample
    yield difference("decoder", apply(stage, params, x_t, TIMES, Cond(image_embed=image_embed)), nhwc(expected))


def compare_movq(theirs: Any, config: Any, params: Any, side: int) -> Iterator[Difference]:
    import torch

    latents = gaussian(4, 2, side, side, config.latent_channels)
    with torch.no_grad():
        # In float64: in float32 the reference would have rounding errors as large as ours.
        expected = theirs.double().decode(nchw(latents).double(), force_not_quantize=True).sample.float()
    theirs.float()
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(lambda p, x: MoVQDecoder(config).apply(p, x))(params, latents)
    yield difference("MoVQ", ours, nhwc(expected))


def compare_kandinsky(name: str) -> Iterator[Difference]:
    """Compares every network of Kandinsky 2.2, and its null condition, the embedding of a black picture."""
    size, (first, second) = SMALL[name], kandinsky(name)
    with saved(second, first) as directories:
        unclip, params, _ = pipeline.load(*directories)
    yield from compare_prior(first.prior, unclip.prior, params["prior"], size)
    yield from compare_kandinsky_decoder(second.unet, unclip.decoder, params["decoder"], size)
    black = first.get_zero_embed().detach().numpy()[0]
    yield difference("the black picture", flat(params["decoder"])["context/null_image_embed"], black)
    yield from compare_movq(second.movq, unclip.movq, params["movq"], size.image)


def compare_kandinsky_pictures(name: str) -> Iterator[Difference]:
    """Compares embeddings and pictures drawn from prompts, at the published settings."""
    from diffusers.schedulers import scheduling_ddpm, scheduling_unclip

    size, (first, second) = SMALL[name], map(damped, kandinsky(name))
    with saved(second, first) as directories:
        unclip, params, tokenize = pipeline.load(*directories)
    keys = sample_keys(jax.random.key(3), jnp.arange(2))
    ours = draw(unclip, params, tokenize(PROMPTS), keys)
    drawn = noise(unclip.prior, sample_keys_of_prior(keys))
    with given_noise(scheduling_unclip, drawn.steps):
        embeds = first(PROMPTS, latents=as_tensor(drawn.start))
    yield difference("image embedding", ours.image_embed, embeds.image_embeds.numpy())
    drawn = noise(unclip.decoder, fold_in_each(fold_in_each(keys, 1), 0))
    side = size.image * unclip.movq.scale
    with given_noise(scheduling_ddpm, drawn.steps):
        expected = second(
            embeds.image_embeds,
            embeds.negative_image_embeds,
            height=side,
            width=side,
            latents=nchw(drawn.start),
            output_type="np",
        ).images
    yield difference("pictures", (np.asarray(ours.images) + 1) / 2, expected)


# ECLIPSE


def eclipse(size: Size) -> Any:
    """ECLIPSE's prior in torch: diffusers' `PriorTransformer` without the timestep and its token."""
    import diffusers
    import torch

    class PriorTransformer(diffusers.PriorTransformer):
        def forward(self, noise: Any, text_embed: Any, encodings: Any, mask: Any) -> Any:
            extra = [self.embedding_proj(text_embed), self.proj_in(noise), self.prd_embedding[0].expand(len(noise), -1)]
            h = torch.cat([self.encoder_hidden_states_proj(encodings), torch.stack(extra, dim=1)], dim=1)
            padding = torch.nn.functional.pad(-10000.0 * (~mask).float(), (0, 3))[:, None] + self.causal_attention_mask
            h = h + self.positional_embedding
            for block in self.transformer_blocks:
                h = block(h, attention_mask=padding.repeat_interleave(self.config.num_attention_heads, dim=0))
            return self.proj_to_clip_embeddings(self.norm_out(h)[:, -1])

    heads, channels, layers = size.prior
    module = PriorTransformer(
        num_attention_heads=heads,
        attention_head_dim=channels,
        num_layers=layers,
        embedding_dim=size.dim,
        num_embeddings=size.context,
        additional_embeddings=3,
    )
    del module.time_embedding
    return randomise(module, 11)


def compare_eclipse(name: str) -> Iterator[Difference]:
    """Compares the embedding that ECLIPSE's prior draws, loaded in place of Karlo's prior and of Kandinsky's."""
    import torch

    size = SMALL[name]
    theirs, text = eclipse(size), inputs(size)
    for family, pipelines in (("Karlo", (karlo(size),)), ("Kandinsky", kandinsky(name)[::-1])):
        with saved(*pipelines, theirs) as directories:
            unclip, params, _ = pipeline.load(*directories)
        keys = sample_keys(jax.random.key(3), jnp.arange(3))
        features = clip_jax.TextFeatures(text["text_embed"], text["text_encodings"], text["text_mask"])
        with jax.default_matmul_precision("highest"):
            ours = jax.jit(pipeline.sample_prior, static_argnums=0)(unclip, params, features, keys)
        own = jax.vmap(lambda key: sample_keys(key, jnp.arange(1)))(keys).reshape(-1)
        start = normal(own, (size.dim,))
        with torch.no_grad():
            expected = theirs(*map(as_tensor, (start, *features[:3])))
        yield difference(f"one step, before {family}'s decoder", ours, expected.numpy())


NETWORKS = (
    *(Case("Karlo", name, lambda size=size: compare_karlo(size)) for name, size in SMALL.items()),
    *(Case("Kandinsky 2.2", name, lambda name=name: compare_kandinsky(name)) for name in SMALL),
    *(Case("ECLIPSE", name, lambda name=name: compare_eclipse(name)) for name in SMALL),
)
PICTURES = (
    *(Case("Karlo, 25 + 25 + 7 steps", n, lambda s=s: compare_karlo_pictures(s), slow=True) for n, s in SMALL.items()),
    Case("Karlo, variations", "small", lambda: compare_karlo_variations(SMALL["small"]), slow=True),
    *(Case("Kandinsky 2.2, 25 + 100 steps", n, lambda n=n: compare_kandinsky_pictures(n), slow=True) for n in SMALL),
)
