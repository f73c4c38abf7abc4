"""The unCLIP systems of diffusers beside ours: the same random weights, inputs and noise.

`test_karlo.py` holds every case to the tolerances; `docs/parity.py` writes the table. Theirs are
built small, saved with `save_pretrained` and loaded by `unclip_jax.load`; nothing is compared that did not go through a
file. Noise is drawn by us and given to their schedulers.
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
    """Numbers of a system; Karlo's are in `KARLO`."""

    dim: int  # of the joint space, and of the text tower
    context: int
    prior: tuple[int, int, int]  # heads, channels of each, layers
    decoder: tuple[int, ...]  # widths
    layers: int
    head: int
    cross: int
    tokens: int
    groups: int
    image: int
    upsampler: tuple[int, ...]
    large: int


SMALL = {
    "small": Size(16, 12, (2, 8, 2), (32, 64), 1, 16, 24, 4, 8, 16, (16, 32), 32),
    "three levels": Size(24, 7, (3, 16, 1), (16, 32, 48), 2, 8, 40, 3, 16, 16, (16, 48), 64),
}
KARLO = Size(768, 77, (32, 64, 20), (320, 640, 960, 1280), 3, 64, 1536, 4, 32, 64, (320, 640, 960, 1280), 256)


def randomise(module: Any, seed: int = 0) -> Any:
    """All parameters of a torch module random, and activations of order one."""
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
    """A pipeline whose networks' last layers are smaller, as trained ones' are.

    Guidance 4 and 8 of random networks stretch the rounding of the last bit at every step. And what a random MoVQ makes
    of latents is a hundred times too large for a picture: cut at 0 and 1 it would be black or white, and its rounding
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


# their networks


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
    """(the tower, its tokenizer), which pads with "!" as Karlo's does."""
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
    """(the tower, its preprocessing)."""
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
    """A whole pipeline of theirs."""
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
    """The directories their pipelines were saved in."""
    with tempfile.TemporaryDirectory() as root:
        directories = [Path(root) / str(i) for i in range(len(pipelines))]
        for theirs, directory in zip(pipelines, directories, strict=True):
            theirs.save_pretrained(directory)
        yield directories


# comparing


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nhwc(x: Any) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def apply(stage: stages.Stage, params: Any, x_t: np.ndarray, t: np.ndarray, cond: Cond) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p, *args: stages.network(stage).apply(p, *args))
        return np.asarray(run(params, x_t, t, cond))


def inputs(size: Size, width: int | None = None) -> dict[str, np.ndarray]:
    """Text features of a batch of three, whose captions end at different places."""
    ends = np.array([size.context, size.context // 2, 3])
    return {
        "text_embed": gaussian(1, 3, size.dim),
        "text_encodings": gaussian(2, 3, size.context, width or size.dim),
        "text_mask": np.arange(size.context) < ends[:, None],
        "image_embed": gaussian(3, 3, size.dim),
    }


TIMES = np.array([999, 500, 0])


def compare_prior(theirs: Any, stage: stages.Stage, params: Any, size: Size) -> Iterator[Difference]:
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
    """The variables of a part of a network alone."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def compare_karlo_decoder(theirs: Any, projection: Any, stage: stages.Stage, params: Any, size: Size) -> Iterator:
    """The projection and the decoder, of pictures with and without their embedding."""
    import torch

    given, x_t = inputs(size), gaussian(4, 3, size.image, size.image, 3)
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    # With guidance theirs puts the learned embedding before those it is given; and then wants twice the captions.
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
    import torch

    x_t, low_res = gaussian(4, 3, size.large, size.large, 3), gaussian(5, 3, size.image, size.image, 3)
    with torch.no_grad():
        large = torch.nn.functional.interpolate(
            nchw(low_res), size=[size.large] * 2, mode="bicubic", align_corners=False, antialias=True
        )
        expected = theirs(torch.cat([nchw(x_t), large], dim=1), torch.from_numpy(TIMES)).sample
    yield difference(name, apply(stage, params, x_t, TIMES, Cond(low_res=low_res)), nhwc(expected))


def compare_karlo(size: Size) -> Iterator[Difference]:
    """Every network."""
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
    """What a stage draws: to start from, and at every step but the last."""

    start: np.ndarray
    steps: list[np.ndarray]


def noise(stage: stages.Stage, keys: jax.Array) -> Noise:
    times = stages.timesteps(stage)[:-1]
    return Noise(
        np.asarray(stages.starting_noise(stage, keys)),
        [np.asarray(normal(fold_in_each(keys, int(t)), stage.sample_shape)) for t in times],
    )


@contextmanager
def given_noise(module: Any, steps: Iterable[np.ndarray]) -> Iterator[None]:
    """A module of their schedulers, drawing these."""
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
    with jax.default_matmul_precision("highest"):
        return jax.jit(pipeline.generate, static_argnums=0)(unclip, params, tokens, keys, **options)


def karlo_pictures(theirs: Any) -> tuple[pipeline.Generation, Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """From prompts to pictures, at the published settings: what we draw, and a call that draws the same with theirs.

    It gives (image embeddings, pictures between 0 and 1).
    """
    from diffusers.schedulers import scheduling_unclip

    theirs.set_progress_bar_config(disable=True)
    with saved(theirs) as (directory,):
        unclip, params, tokenize = pipeline.load(directory)
    keys = sample_keys(jax.random.key(3), jnp.arange(2))
    ours = draw(unclip, params, tokenize(PROMPTS), keys)
    small = fold_in_each(keys, 1)
    first = sample_keys_of_prior(keys)
    a, b, c = (
        noise(unclip.prior, first),
        noise(unclip.decoder, fold_in_each(small, 0)),
        noise(unclip.upsamplers[0], fold_in_each(small, 1)),
    )
    embeds: list[Any] = []
    finish = theirs.prior.post_process_latents
    theirs.prior.post_process_latents = lambda x: embeds.append(finish(x)) or embeds[-1]

    def draw_theirs() -> tuple[np.ndarray, np.ndarray]:
        with given_noise(scheduling_unclip, [*a.steps, *b.steps, *c.steps]):
            pictures = theirs(
                PROMPTS,
                prior_latents=as_tensor(a.start),
                decoder_latents=nchw(b.start),
                super_res_latents=nchw(c.start),
                output_type="np",
            ).images
        return embeds[-1].numpy(), pictures

    return ours, draw_theirs


def between_0_and_1(images: Any) -> np.ndarray:
    return (np.clip(images, -1, 1) + 1) / 2


def compare_karlo_pictures(size: Size) -> Iterator[Difference]:
    """From prompts to pictures, at the published settings."""
    ours, draw_theirs = karlo_pictures(damped(karlo(size)))
    embed, pictures = draw_theirs()
    yield difference("image embedding", ours.image_embed, embed)
    yield difference("pictures", between_0_and_1(ours.images), pictures)


def compare_karlo_variations(size: Size) -> Iterator[Difference]:
    """From a picture's embedding to other pictures."""
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
    b, c = noise(unclip.decoder, fold_in_each(small, 0)), noise(unclip.upsamplers[0], fold_in_each(small, 1))
    with given_noise(scheduling_unclip, [*b.steps, *c.steps]):
        expected = theirs(
            image_embeddings=as_tensor(np.asarray(embed)),
            image=nchw(pixels),
            decoder_latents=nchw(b.start),
            super_res_latents=nchw(c.start),
            output_type="np",
        ).images
    yield difference("pictures", between_0_and_1(ours.images), expected)


def sample_keys_of_prior(keys: jax.Array) -> jax.Array:
    """The keys of the one candidate that a published prior draws per picture."""
    return jax.vmap(lambda key: sample_keys(key, jnp.arange(1)))(fold_in_each(keys, 0)).reshape(-1)


def as_tensor(array: np.ndarray) -> Any:
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
    """With attention at the coarsest level, as the published one."""
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
    """(the pipeline of the prior, that of the decoder)."""
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
        # In float64: in float32 its own rounding is as large as ours.
        expected = theirs.double().decode(nchw(latents).double(), force_not_quantize=True).sample.float()
    theirs.float()
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(lambda p, x: MoVQDecoder(config).apply(p, x))(params, latents)
    yield difference("MoVQ", ours, nhwc(expected))


def compare_kandinsky(name: str) -> Iterator[Difference]:
    """Every network."""
    size, (first, second) = SMALL[name], kandinsky(name)
    with saved(second, first) as directories:
        unclip, params, _ = pipeline.load(*directories)
    yield from compare_prior(first.prior, unclip.prior, params["prior"], size)
    yield from compare_kandinsky_decoder(second.unet, unclip.decoder, params["decoder"], size)
    black = first.get_zero_embed().detach().numpy()[0]
    yield difference("the black picture", flat(params["decoder"])["context/null_image_embed"], black)
    yield from compare_movq(second.movq, unclip.movq, params["movq"], size.image)


def compare_kandinsky_pictures(name: str) -> Iterator[Difference]:
    """From prompts to pictures, at the published settings."""
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
    """A prior without time, as ECLIPSE's own class is: diffusers' with a token less."""
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
    """In the place of Karlo's prior and of Kandinsky's: the embedding it draws."""
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
