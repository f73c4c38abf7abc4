"""Tables from our parameter names to those of diffusers for Kandinsky 2.2: the image context of its decoder, MoVQ."""

from __future__ import annotations

from clip_jax.weights.rules import Rule, linear, norm, renamed
from unclip_jax.weights.karlo import convolution, convolution_1x1

IMAGE_CONTEXT = (
    *linear("context/image_to_time", "add_embedding.image_proj"),
    *norm("context/image_time_norm", "add_embedding.image_norm"),
    *linear("context/image_to_tokens", "encoder_hid_proj.image_embeds"),
    *norm("context/image_tokens_norm", "encoder_hid_proj.norm"),
)


def spatial_norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules for a `SpatialNorm`, which the latents modulate; `ours` and `theirs` are the names of the layer."""
    return (
        *norm(f"{ours}/norm", f"{theirs}.norm_layer"),
        *convolution_1x1(f"{ours}/scale", f"{theirs}.conv_y"),
        *convolution_1x1(f"{ours}/shift", f"{theirs}.conv_b"),
    )


MOVQ_BLOCK = (
    *spatial_norm("norm1", "norm1"),
    *convolution("conv1", "conv1"),
    *spatial_norm("norm2", "norm2"),
    *convolution("conv2", "conv2"),
    *convolution_1x1("conv_shortcut", "conv_shortcut"),
)
MOVQ_ATTENTION = (
    *spatial_norm("spatial_norm", "spatial_norm"),
    *(rule for name in ("to_q", "to_k", "to_v") for rule in linear(name, name)),
    *linear("to_out", "to_out.0"),
)
# The encoder and the quantiser are not used: latents are decoded without quantisation.
MOVQ_IGNORE = r"(encoder|quant_conv|quantize)\..*"


def movq(levels: int) -> tuple[Rule, ...]:
    """The table of a `MoVQDecoder`.

    Levels count from the coarsest in diffusers, from the finest here.

    Args:
        levels: number of resolutions.
    """
    blocks: list[tuple[tuple[Rule, ...], str, str]] = [
        (MOVQ_BLOCK, "middle_block_{i}", "mid_block.resnets.{i}"),
        (MOVQ_ATTENTION, "middle_attention", "mid_block.attentions.0"),
    ]
    for i in range(levels):
        theirs = f"up_blocks.{levels - 1 - i}"
        blocks += [
            (MOVQ_BLOCK, f"up_{i}_block_{{j}}", f"{theirs}.resnets.{{j}}"),
            (MOVQ_ATTENTION, f"up_{i}_attention_{{j}}", f"{theirs}.attentions.{{j}}"),
            (convolution("conv", "conv"), f"up_{i}_upsample", f"{theirs}.upsamplers.0"),
        ]
    return (
        *convolution_1x1("post_quant_conv", "post_quant_conv"),
        *renamed(
            (
                *convolution("conv_in", "conv_in"),
                *(rule for rules, ours, name in blocks for rule in renamed(rules, ours=f"{ours}/", theirs=f"{name}.")),
                *spatial_norm("norm_out", "conv_norm_out"),
                *convolution("conv_out", "conv_out"),
            ),
            theirs="decoder.",
        ),
    )
