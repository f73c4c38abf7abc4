"""Tables from our parameter names to those of diffusers for Karlo: prior, decoder, text projection, upsamplers.

The networks of Kandinsky 2.2 and ECLIPSE are of the same classes of diffusers and share these tables.
"""

from __future__ import annotations

from clip_jax.weights.rules import (
    Op,
    Rule,
    conv,
    drop_axes,
    join,
    join_linear,
    linear,
    norm,
    renamed,
    same,
)
from unclip_jax.models.unet import UNetConfig

NULLS = ("null_text_encodings", "null_text_embed")  # CLIP's features of the empty caption, which are not in their files
QKV = tuple(f"transformer_blocks.{{i}}.attn1.to_{name}" for name in "qkv")

PRIOR = (
    *linear("encodings_proj", "encoder_hidden_states_proj"),
    *linear("text_embed_proj", "embedding_proj"),
    *linear("time_embedding/linear_1", "time_embedding.linear_1"),
    *linear("time_embedding/linear_2", "time_embedding.linear_2"),
    *linear("image_embed_proj", "proj_in"),
    Rule("query", "prd_embedding", drop_axes(2)),
    Rule("positional_embedding", "positional_embedding", drop_axes(1)),
    *norm("transformer/resblocks_{i}/ln_1", "transformer_blocks.{i}.norm1"),
    Rule("transformer/resblocks_{i}/attn/in_proj/kernel", tuple(f"{name}.weight" for name in QKV), join_linear),
    Rule("transformer/resblocks_{i}/attn/in_proj/bias", tuple(f"{name}.bias" for name in QKV), join),
    *linear("transformer/resblocks_{i}/attn/out_proj", "transformer_blocks.{i}.attn1.to_out.0"),
    *norm(
        "transformer/resblocks_{i}/ln_2", "transformer_blocks.{i}.norm3"
    ),  # norm2 is that of cross-attention, which a prior lacks
    *linear("transformer/resblocks_{i}/mlp/c_fc", "transformer_blocks.{i}.ff.net.0.proj"),
    *linear("transformer/resblocks_{i}/mlp/c_proj", "transformer_blocks.{i}.ff.net.2"),
    *norm("norm_out", "norm_out"),
    *linear("out_proj", "proj_to_clip_embeddings"),
    Rule("embed_mean", "clip_mean", drop_axes(1)),
    Rule("embed_std", "clip_std", drop_axes(1)),
)
PRIOR_IGNORE = "causal_attention_mask"  # a buffer that older files hold

pointwise = Op(lambda x: x[:, :, 0, 0].T, lambda x: (x.T[:, :, None, None],))  # a 1×1 convolution, OI11 -> IO


def convolution(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """Rules for a torch Conv2d with bias; `ours` and `theirs` are the names of the layer."""
    return Rule(f"{ours}/kernel", f"{theirs}.weight", conv), Rule(f"{ours}/bias", f"{theirs}.bias", same)


def convolution_1x1(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """Rules for a torch Conv2d with a 1×1 kernel and bias, which is a Dense layer here."""
    return Rule(f"{ours}/kernel", f"{theirs}.weight", pointwise), Rule(f"{ours}/bias", f"{theirs}.bias", same)


RES_BLOCK = (
    *norm("norm1/norm", "norm1"),
    *convolution("conv1", "conv1"),
    *linear("time_emb_proj", "time_emb_proj"),
    *norm("norm2/norm", "norm2"),
    *convolution("conv2", "conv2"),
    *convolution_1x1("conv_shortcut", "conv_shortcut"),
)
ATTENTION = (
    *norm("group_norm/norm", "group_norm"),
    *(rule for name in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj") for rule in linear(name, name)),
    *linear("to_out", "to_out.0"),
)


def unet(levels: int) -> tuple[Rule, ...]:
    """The table of a `UNet` without its `Context`.

    Levels of the way up count from the coarsest in diffusers, from the finest here.

    Args:
        levels: number of resolutions.
    """
    blocks: list[tuple[tuple[Rule, ...], str, str]] = [
        (RES_BLOCK, "middle_block_{i}", "mid_block.resnets.{i}"),
        (ATTENTION, "middle_attention", "mid_block.attentions.0"),
    ]
    for i in range(levels):
        for way, k in (("down", i), ("up", levels - 1 - i)):
            theirs = f"{way}_blocks.{k}"
            blocks += [
                (RES_BLOCK, f"{way}_{i}_block_{{j}}", f"{theirs}.resnets.{{j}}"),
                (ATTENTION, f"{way}_{i}_attention_{{j}}", f"{theirs}.attentions.{{j}}"),
                (RES_BLOCK, f"{way}_{i}_{way}sample", f"{theirs}.{way}samplers.0"),
            ]
    return (
        *convolution("conv_in", "conv_in"),
        *linear("time_embedding/linear_1", "time_embedding.linear_1"),
        *linear("time_embedding/linear_2", "time_embedding.linear_2"),
        *(rule for table, ours, theirs in blocks for rule in renamed(table, ours=f"{ours}/", theirs=f"{theirs}.")),
        *norm("norm_out/norm", "conv_norm_out"),
        *convolution("conv_out", "conv_out"),
    )


def _interleaved(tokens: int) -> Op:
    """Reorders the rows of Karlo's projection to n tokens: [C · n, …], token index fastest, to [n · C, …] here."""

    def turn(x, rows, columns):
        return x.reshape(rows, columns, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    return Op(lambda x: turn(x, x.shape[0] // tokens, tokens), lambda x: (turn(x, tokens, x.shape[0] // tokens),))


def text_projection(config: UNetConfig) -> tuple[Rule, ...]:
    """The table of Karlo's `text_proj`, which is the `Context` of the decoder here.

    Args:
        config: config of the decoder.

    Raises:
        ValueError: the decoder reads no image embedding.
    """
    if config.image is None:
        raise ValueError("a text projection makes tokens of an image embedding, which this network does not read")
    rows = _interleaved(config.image.tokens)
    kernel = Op(lambda x: rows.read(x).T, lambda x: rows.write(x.T))
    return renamed(
        (
            Rule("null_image_embed", "learned_classifier_free_guidance_embeddings", same),
            *linear("image_to_time", "clip_image_embeddings_project_to_time_embeddings"),
            *linear("text_to_time", "embedding_proj"),
            Rule("image_to_tokens/kernel", "clip_extra_context_tokens_proj.weight", kernel),
            Rule("image_to_tokens/bias", "clip_extra_context_tokens_proj.bias", rows),
            *linear("text_to_tokens", "encoder_hidden_states_proj"),
            *norm("text_norm", "text_encoder_hidden_states_norm"),
        ),
        ours="context/",
    )
