"""The configs of diffusers: a value of a wrong type is refused by the file and the field."""

import json

import pytest

from clip_jax.errors import UserError
from unclip_jax.weights import diffusers_configs as configs

PRIOR = {"_class_name": "PriorTransformer", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
UNET = {
    "_class_name": "UNet2DModel", "sample_size": 16, "in_channels": 6, "block_out_channels": [32],
    "down_block_types": ["ResnetDownsampleBlock2D"], "up_block_types": ["ResnetUpsampleBlock2D"],
    "add_attention": False,
}  # fmt: skip
SCHEDULER = {"_class_name": "UnCLIPScheduler"}


@pytest.mark.parametrize(
    ("read", "data", "changes", "word"),
    [
        (configs.prior_config, PRIOR, {"num_layers": "x"}, "num_layers is 'x', it must be an integer"),
        (configs.prior_config, PRIOR, {"num_layers": None}, "num_layers is None"),
        (configs.prior_config, PRIOR, {"num_attention_heads": 10**9}, "num_attention_heads is 1000000000"),
        (configs.prior_config, PRIOR, {"dropout": "no"}, "dropout is 'no', it must be a number"),
        (configs.prior_config, PRIOR, {"time_embed_dim": [1]}, "time_embed_dim"),
        (configs.upsampler_config, UNET, {"block_out_channels": 32}, "block_out_channels is 32, it must be a list"),
        (configs.upsampler_config, UNET, {"block_out_channels": ["a"]}, "block_out_channels"),
        (configs.upsampler_config, UNET, {"down_block_types": "x"}, "down_block_types is 'x'"),
        (configs.upsampler_config, UNET, {"in_channels": True}, "in_channels is True"),
        (configs.upsampler_config, UNET, {"time_embedding_dim": -3}, "time_embedding_dim is -3"),
        (configs.upsampler_config, UNET, {"new_idea": 3}, "new_idea is 3"),
        (lambda d: configs.schedule(d, {}), SCHEDULER, {"num_train_timesteps": "x"}, "num_train_timesteps is 'x'"),
        (lambda d: configs.schedule(d, {}), SCHEDULER, {"clip_sample": "x"}, "clip_sample is 'x', it must be true"),
        (lambda d: configs.schedule(d, {}), SCHEDULER, {"prediction_type": [1]}, "prediction_type"),
    ],
)
def test_wrong_types(tmp_path, read, data, changes, word):
    for name in (configs.CONFIG, configs.SCHEDULER):
        (tmp_path / name).write_text(json.dumps({**data, **changes}))
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert word in str(error.value), error.value
    assert ".json" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_counts_for_others_alone_is_taken(tmp_path):
    """Kandinsky's scheduler says of options that are off how they would be, and other schedulers read the same file."""
    scheduler = {
        "_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012,
        "clip_sample": True, "clip_sample_range": 2.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 2.0,
        "set_alpha_to_one": False, "steps_offset": 0, "thresholding": False, "num_train_timesteps": 1000,
    }  # fmt: skip
    (tmp_path / configs.SCHEDULER).write_text(json.dumps(scheduler))
    assert configs.schedule(tmp_path, {})
