"""Measures how much rounding alone changes diffusers' Karlo pictures, and the difference of ours for comparison.

    python tests/support/rounding.py               # half a minute, requirements-parity.txt

diffusers draws from the same weights and noise again on one thread, without oneDNN, and with channels last, which
changes the order of floating-point sums; guidance 8 amplifies the difference at every step. Weights are not scaled down
as `unclip_parity.damped` does. Prints a row of `docs/parity.md` for each.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from tests.support import unclip_parity as parity  # noqa: E402


def row(size: str, weights: str, what: str, pictures: np.ndarray, others: np.ndarray) -> None:
    """Prints the largest difference of two sets of pictures, and its 99.9 % quantile."""
    apart = np.abs(pictures - others)
    print(f"| {size} | {weights} | {what} | {apart.max():.1e} | {np.quantile(apart, 0.999):.1e} |", flush=True)


def compare(name: str, weights: str) -> None:
    """Prints the rows of one size."""
    theirs = parity.karlo(parity.SMALL[name])
    ours, draw_theirs = parity.karlo_pictures(theirs)
    _, expected = draw_theirs()
    row(name, weights, "ours", parity.between_0_and_1(ours.images), expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    row(name, weights, "theirs on one thread", draw_theirs()[1], expected)
    torch.set_num_threads(threads)
    with torch.backends.mkldnn.flags(enabled=False):
        row(name, weights, "theirs without oneDNN", draw_theirs()[1], expected)
    for network in (theirs.decoder, theirs.super_res_first, theirs.super_res_last):
        network.to(memory_format=torch.channels_last)
    row(name, weights, "theirs, channels last", draw_theirs()[1], expected)


def main() -> None:
    print("| size | weights | pictures | largest difference | 99.9 % within |\n|---|---|---|---|---|")
    for name in parity.SMALL:
        compare(name, "random, norms and biases too")
    parity.randomise = lambda module, seed=0: module.eval()
    for name in parity.SMALL:
        torch.manual_seed(0)
        compare(name, "torch's default")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
