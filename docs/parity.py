"""Writes docs/parity.md: the differences of each model family from its reference. Needs requirements-parity.txt.

    python docs/parity.py           # both parts: 20 minutes and 15 GB of memory, for the models of full size
    python docs/parity.py clip      # one part; the other stays as it is in the file
    python docs/parity.py unclip

The exit status is 0 if every row is within its tolerance.
"""

import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import unclip_parity as unclip  # noqa: E402
from tests.support.clip_parity import CASES, MAX_ABS, MAX_COSINE_ERROR, Case  # noqa: E402

FILE, SECOND = ROOT / "docs" / "parity.md", "## unCLIP"
HEADER = f"""# Parity

Each model of this package compared with its reference implementation: the same random weights (norms, biases and
running statistics too), the same inputs, float32 on a CPU with `jax_default_matmul_precision=highest`. Weights go
through `clip_jax.load` where the family has files of its own. `max |Δ|` is the largest absolute difference, `largest`
the largest value of the reference, `1 − cos` the worst cosine error of a vector. The tolerances are {MAX_ABS:.0e} for
`max |Δ|` and {MAX_COSINE_ERROR:.0e} for `1 − cos`.

The rows "golden" compare with recorded outputs of the original projects' own code, the others with transformers
{version("transformers")} and torch {version("torch").split("+")[0]}; OpenAI's ResNet of full size is compared with the
same network written in torch (`tests/support/torch_resnet.py`). jax {version("jax")}, flax {version("flax")}.
`python docs/parity.py` writes this file, `pytest -m parity` checks every row against the tolerances.

| family | size | compared | max \\|Δ\\| | largest | 1 − cos |
|---|---|---|---|---|---|
"""


UNCLIP_HEADER = f"""{SECOND}

The networks and whole systems of diffusers {version("diffusers")}, with random weights that `save_pretrained` saved and
`unclip_jax.load` read. For pictures, diffusers' schedulers use the noise that this package draws, at the published
settings (Karlo: 25 steps of the prior, 25 of the decoder with guidance 8, 6 + 1 of the upsampler; Kandinsky 2.2: 25 and
100); the weights of the last layers are scaled down, see `damped` in `tests/support/unclip_parity.py`. Published
systems use `Float32Schedule`, which repeats diffusers' float32 arithmetic: with an exact schedule Karlo's pictures
differ by 4e-4 to 6e-3.
The tolerances are {unclip.MAX_ABS:.0e} for a network and {unclip.MAX_PIXEL:.0e} for pictures between 0 and 1.
Rows "full width" have Karlo's real widths and depths, one forward pass of each network (`python
tests/support/full_width.py`); in brackets is the peak memory of reference and copy together.

| system | size | compared | max \\|Δ\\| | largest |
|---|---|---|---|---|
"""

ROUNDING_HEADER = """
### Pictures and rounding

With last layers that are not scaled down, Karlo's pictures at guidance 8 depend on the order of floating-point sums:
diffusers itself draws other pictures on one thread, without oneDNN, or with channels last. The table compares these
pictures ("theirs"), and the pictures of this package ("ours"), with those that diffusers draws by default (`python
tests/support/rounding.py`):

"""


def timed(cases: Iterable[Case]):
    """(case, difference) of every case, whose time is printed to stderr."""
    for case in cases:
        start = time.perf_counter()
        yield from ((case, d) for d in case.run())
        print(f"{case.family}, {case.size}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def clip_part() -> tuple[str, int]:
    """The first part of the page, and the number of rows beyond their tolerance."""
    rows, failed = [], 0
    for case, d in timed(CASES):
        ok = d.max_abs <= MAX_ABS and d.cosine_error <= MAX_COSINE_ERROR
        failed += not ok
        rows.append(
            f"| {case.family} | {case.size} | {d.what} | {d.max_abs:.1e} | {d.largest:.3g} | {d.cosine_error:.0e} |"
            + ("" if ok else " **too far** |")
        )
    return HEADER + "\n".join(rows) + "\n", failed


def unclip_part() -> tuple[str, int]:
    """The second part of the page, and the number of rows beyond their tolerance."""
    rows, failed = [], 0
    for case, d in timed((*unclip.NETWORKS, *unclip.PICTURES)):
        ok = d.max_abs <= (unclip.MAX_PIXEL if d.what == "pictures" else unclip.MAX_ABS)
        failed += not ok
        rows.append(
            f"| {case.family} | {case.size} | {d.what} | {d.max_abs:.1e} | {d.largest:.3g} |"
            + ("" if ok else " **too far** |")
        )
    full, rounding = (
        subprocess.run(
            [sys.executable, str(ROOT / "tests" / "support" / script)], check=False, stdout=subprocess.PIPE, text=True
        )
        for script in ("full_width.py", "rounding.py")
    )
    table = UNCLIP_HEADER + "\n".join(rows) + "\n" + full.stdout
    return table + ROUNDING_HEADER + rounding.stdout, failed + full.returncode + rounding.returncode


def main(argv: list[str]) -> int:
    first, _, second = FILE.read_text(encoding="utf-8").partition(f"\n{SECOND}")
    parts, failed = [first, SECOND + second], 0
    for i, (name, part) in enumerate((("clip", clip_part), ("unclip", unclip_part))):
        if not argv or name in argv:
            parts[i], faults = part()
            failed += faults
    FILE.write_text("\n".join(parts), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
