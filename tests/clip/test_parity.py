"""Every family beside its reference: embeddings and hidden states within 1e-4, directions within 1e-6."""

import pytest

from tests.support.clip_parity import CASES, MAX_ABS, MAX_COSINE_ERROR


def cases():
    for case in CASES:
        of_golden = case.family.endswith("golden")  # its outputs are kept, no reference need be installed
        marks = [] if of_golden else [pytest.mark.parity]
        marks += [pytest.mark.slow] if case.slow else []
        yield pytest.param(case, marks=marks, id=f"{case.family}: {case.size}")


@pytest.mark.parametrize("case", cases())
def test_equals_its_reference(case):
    if not case.family.endswith("golden"):
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    found = list(case.run())
    assert found
    for difference in found:
        assert difference.max_abs <= MAX_ABS, difference
        assert difference.cosine_error <= MAX_COSINE_ERROR, difference
        assert difference.largest > 0.1, f"{difference}: nothing to compare"
