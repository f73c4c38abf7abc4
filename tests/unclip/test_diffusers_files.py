import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from clip_jax.weights.files import read_checkpoint
from unclip_jax.weights.diffusers import _weights_file

STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("shard", "index"),
    [
        ("{stem}-{i}-of-2.safetensors", "{stem}.safetensors.index.json"),
        ("{stem}.fp16-{i}-of-2.safetensors", "{stem}.safetensors.index.fp16.json"),  # diffusers from 0.31
        ("{stem}-{i}-of-2.fp16.safetensors", "{stem}.safetensors.fp16.index.json"),  # and before
    ],
)
def test_all_shards_of_a_variant_are_read(tmp_path, shard, index):
    files = {f"w{i}": shard.format(stem=STEM, i=i) for i in (1, 2)}
    for name, file in files.items():
        save_file({name: np.ones((2, 2), np.float16)}, tmp_path / file)
    (tmp_path / index.format(stem=STEM)).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert read_checkpoint(_weights_file(tmp_path)).keys() == files.keys()
