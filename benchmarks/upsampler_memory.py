"""Measures the memory of an upsampler at full resolution: as XLA plans it, and the peak when the program runs.

    python benchmarks/upsampler_memory.py                                     # a small one at 1024 pixels
    python benchmarks/upsampler_memory.py --run                               # run, too: each row in its own process
    python benchmarks/upsampler_memory.py --model dalle2-upsampler-1024       # the paper's (minutes to compile)

The rows: a forward pass of a batch at once and of one picture after the other (`lax.map`, as `sample.py --chunk 1`
does), and the gradient of a training step with and without gradient checkpointing (`remat`). "planned" is the temporary
memory of `compiled.memory_analysis()` for this backend, without parameters and pictures. With `--run`, "whole process"
is the peak resident memory of the process on the host, which says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # Python adds only the script's own folder

from unclip_jax.conditioning import Cond
from unclip_jax.models.unet import Level, LowRes, UNet, UNetConfig
from unclip_jax.presets import preset

# The paper's second upsampler with a twelfth of its channels and one block per level.
SMALL = UNetConfig(
    image_size=1024,
    levels=tuple(Level(width, 1) for width in (16, 16, 32, 32, 64, 64)),
    groups=8,
    time_width=64,
    low_res=LowRes(),
)


def temporary_bytes(function, *arguments) -> int:
    """The temporary memory that XLA plans for the compiled function, in bytes."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def peak_bytes(row: int) -> int:
    """Peak memory of a process that runs only this row, in bytes."""
    argv = [arg for arg in sys.argv[1:] if arg != "--run"]
    done = subprocess.run([sys.executable, __file__, *argv, "--row", str(row)], check=True, stdout=subprocess.PIPE)
    return int(done.stdout)


def run(function, *arguments) -> int:
    """Runs a function on zeros and returns the peak memory of this process in bytes."""
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), arguments)
    jax.block_until_ready(jax.jit(function)(*zeros))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="row of the stage presets; the default is a small network of 1024 pixels")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels, if not the model's own")
    parser.add_argument("--batch", type=int, default=4, help="pictures that are drawn")
    parser.add_argument("--run", action="store_true", help="run each program, too, in a process of its own")
    parser.add_argument("--row", type=int, help="run this program alone, and print the peak of memory in bytes")
    options = parser.parse_args()

    config = preset(options.model).model if options.model else SMALL
    size = options.size or config.image_size

    def shapes(batch):
        pictures = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
        low_res = jax.ShapeDtypeStruct((batch, size // 4, size // 4, 3), jnp.float32)
        return pictures, jax.ShapeDtypeStruct((batch,), jnp.int32), low_res

    x_t, t, low_res = shapes(1)
    params = jax.eval_shape(
        lambda key, x_t, t, low_res: UNet(config).init(key, x_t, t, Cond(low_res=low_res)),
        jax.random.key(0),
        x_t,
        t,
        low_res,
    )["params"]

    def forward(params, x_t, t, low_res):
        return UNet(config).apply({"params": params}, x_t, t, Cond(low_res=low_res))

    def one_by_one(params, x_t, t, low_res):
        return jax.lax.map(lambda one: forward(params, *(a[None] for a in one))[0], (x_t, t, low_res))

    def gradient(config):
        def loss(params, x_t, t, low_res):
            return jnp.square(UNet(config).apply({"params": params}, x_t, t, Cond(low_res=low_res))).mean()

        return jax.grad(loss)

    rows = (
        (f"forward, {options.batch} pictures at once", forward, shapes(options.batch)),
        (f"forward, {options.batch} pictures one by one", one_by_one, shapes(options.batch)),
        ("gradient, one picture", gradient(dataclasses.replace(config, remat=False)), shapes(1)),
        ("gradient, one picture, remat", gradient(dataclasses.replace(config, remat=True)), shapes(1)),
    )
    if options.row is not None:
        _, function, arguments = rows[options.row]
        print(run(function, params, *arguments))
        return
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"{options.model or 'small'}: {count / 1e6:.1f} M parameters, {size} pixels, {jax.default_backend()}, float32"
    )
    print(f"{'':42s}    planned{'   whole process' if options.run else ''}")
    for row, (name, function, arguments) in enumerate(rows):
        planned = f"{temporary_bytes(function, params, *arguments) / 2**30:7.2f} GiB"
        print(f"  {name:40s}{planned}{f'{peak_bytes(row) / 2**30:12.2f} GiB' if options.run else ''}", flush=True)


if __name__ == "__main__":
    main()
