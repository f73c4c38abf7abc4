"""Compares Karlo's networks at their real widths with diffusers', one at a time, and measures the peak memory.

    python tests/support/full_width.py             # all of them; 15 GB of memory, requirements-parity.txt
    python tests/support/full_width.py prior       # one, in this process

One forward pass of each network in float32, with random weights and smaller pictures than Karlo's, since the networks
are convolutional. Prints a row of `docs/parity.md` for each comparison.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from tests.support import unclip_parity as parity  # noqa: E402
from tests.support.clip_parity import Difference  # noqa: E402
from tests.support.published import scheduler  # noqa: E402
from unclip_jax.weights import diffusers  # noqa: E402

SIZE = parity.KARLO._replace(image=32, large=64)
EMPTY = {
    "null_text_encodings": np.zeros((2, SIZE.dim), np.float32),
    "null_text_embed": np.zeros(SIZE.dim, np.float32),
}


def prior(folder: Path) -> Iterator[Difference]:
    """Compares the prior; files go to `folder`."""
    theirs = parity.randomise(parity.prior(SIZE))
    theirs.save_pretrained(folder / "prior")
    scheduler(folder, "scheduler", prediction_type="sample", clip_sample_range=5.0)
    stage, params = diffusers._prior(folder / "prior", folder / "scheduler", EMPTY, "float32")
    yield from parity.compare_prior(theirs, stage, params, SIZE)


def decoder(folder: Path) -> Iterator[Difference]:
    """Compares the decoder and its text projection; files go to `folder`."""
    theirs, projection = parity.randomise(parity.karlo_decoder(SIZE)), parity.randomise(parity.text_projection(SIZE))
    theirs.save_pretrained(folder / "decoder")
    projection.save_pretrained(folder / "text_proj")
    scheduler(folder, "scheduler", variance_type="learned_range")
    parts = (folder / name for name in ("decoder", "text_proj", "scheduler"))
    stage, params = diffusers._karlo_decoder(*parts, EMPTY, "float32")
    yield from parity.compare_karlo_decoder(theirs, projection, stage, params, SIZE)


def upsampler(folder: Path) -> Iterator[Difference]:
    """Compares one network of the upsampler; files go to `folder`."""
    theirs = parity.randomise(parity.upsampler(SIZE))
    theirs.save_pretrained(folder / "super_res")
    scheduler(folder, "scheduler", variance_type="fixed_small_log")
    stage, params = diffusers._upsampler(folder / "super_res", folder / "super_res", folder / "scheduler", "float32")
    yield from parity.compare_upsampler("super_res", theirs, stage, params, SIZE)


COMPONENTS = {"prior": prior, "decoder": decoder, "upsampler": upsampler}


def main(argv: list[str]) -> int:
    if not argv:
        return max(subprocess.run([sys.executable, __file__, name], check=False).returncode for name in COMPONENTS)
    failed = 0
    for name in argv:
        with tempfile.TemporaryDirectory() as folder:
            rows = list(COMPONENTS[name](Path(folder)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        for d in rows:
            failed += d.max_abs > parity.MAX_ABS
            print(
                f"| Karlo, full width ({peak:.1f} GB) | {SIZE.image} → {SIZE.large} pixels | {d.what} "
                f"| {d.max_abs:.1e} | {d.largest:.3g} |",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv[1:]))
