"""Writes docs/parity.md: how far each family is from its reference. Needs requirements-parity.txt.

python docs/parity.py           # a few minutes and 4 GB of memory, for the models of full size
"""

import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.clip.parity import CASES, MAX_ABS, MAX_COSINE_ERROR  # noqa: E402

HEADER = f"""# Parity

Each model of this package beside the one it stands for: the same random weights (norms, biases and running statistics
too), the same inputs, float32 on a CPU with `jax_default_matmul_precision=highest`. Weights go through `clip_jax.load`
where the family has files of its own. `max |Δ|` is the largest difference of any number, `largest` the largest number
of the reference, `1 − cos` the worst angle between vectors. Allowed are {MAX_ABS:.0e} and {MAX_COSINE_ERROR:.0e}.

The rows "golden" compare with outputs of the original projects' own code, the others with transformers
{version("transformers")} and torch {version("torch").split("+")[0]}; OpenAI's ResNet of full size with the same
network written in torch (`tests/clip/torch_resnet.py`). jax {version("jax")}, flax {version("flax")}.
`python docs/parity.py` writes this file, `pytest -m parity` holds every row to the tolerances.

| family | size | compared | max \\|Δ\\| | largest | 1 − cos |
|---|---|---|---|---|---|
"""


def main() -> int:
    rows, failed = [], 0
    for case in CASES:
        start = time.perf_counter()
        for d in case.run():
            ok = d.max_abs <= MAX_ABS and d.cosine_error <= MAX_COSINE_ERROR
            failed += not ok
            rows.append(
                f"| {case.family} | {case.size} | {d.what} | {d.max_abs:.1e} | {d.largest:.3g} | {d.cosine_error:.0e} |"
                + ("" if ok else " **too far** |")
            )
        print(f"{case.family}, {case.size}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    (ROOT / "docs" / "parity.md").write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
