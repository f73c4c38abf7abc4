"""Writes docs/parity.md: how far each family is from its reference. Needs requirements-parity.txt.

python docs/parity.py           # both parts: 20 minutes and 15 GB of memory, for the models of full size
python docs/parity.py clip      # or one of them; the other stays as it is
python docs/parity.py unclip
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

Each model of this package beside the one it stands for: the same random weights (norms, biases and running statistics
too), the same inputs, float32 on a CPU with `jax_default_matmul_precision=highest`. Weights go through `clip_jax.load`
where the family has files of its own. `max |Δ|` is the largest difference of any number, `largest` the largest number
of the reference, `1 − cos` the worst angle between vectors. Allowed are {MAX_ABS:.0e} and {MAX_COSINE_ERROR:.0e}.

The rows "golden" compare with outputs of the original projects' own code, the others with transformers
{version("transformers")} and torch {version("torch").split("+")[0]}; OpenAI's ResNet of full size with the same
network written in torch (`tests/support/torch_resnet.py`). jax {version("jax")}, flax {version("flax")}.
`python docs/parity.py` writes this file, `pytest -m parity` holds every row to the tolerances.

| family | size | compared | max \\|Δ\\| | largest | 1 − cos |
|---|---|---|---|---|---|
"""


UNCLIP_HEADER = f"""{SECOND}

The networks and whole systems of diffusers {version("diffusers")}: random weights saved by `save_pretrained` and read
by `unclip_jax.load`; for pictures, the noise that we draw is put into their schedulers, at the published settings
(Karlo: 25 steps of the prior, 25 of the decoder with guidance 8, 6 + 1 of the upsampler; Kandinsky 2.2: 25 and 100);
the last layers are smaller than random ones, see `damped` in `tests/support/unclip_parity.py`. Published systems have a
schedule in float32 arithmetic (`Float32Schedule`), rounded as theirs is: with an exact one Karlo's pictures differ by
4e-4 to 6e-3.
Allowed are {unclip.MAX_ABS:.0e} for a network and {unclip.MAX_PIXEL:.0e} for pictures between 0 and 1.
Rows of full width have Karlo's real widths and depths, one forward pass of each network (`python
tests/support/full_width.py`), with the peak of memory of both copies together.

| system | size | compared | max \\|Δ\\| | largest |
|---|---|---|---|---|
"""

ROUNDING_HEADER = """
### Pictures and rounding

Without smaller last layers, Karlo's pictures at guidance 8 depend on the order of sums: diffusers draws others on one
thread, without oneDNN, or with channels last. What they differ by from diffusers' own of before, and ours from the same
(`python tests/support/rounding.py`):

"""


def timed(cases: Iterable[Case]):
    for case in cases:
        start = time.perf_counter()
        yield from ((case, d) for d in case.run())
        print(f"{case.family}, {case.size}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def clip_part() -> tuple[str, int]:
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
            [sys.executable, str(ROOT / "tests" / "unclip" / script)], check=False, stdout=subprocess.PIPE, text=True
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
