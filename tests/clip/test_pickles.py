"""Programs that are written to harm: bounded in time and memory, and refused in one short line."""

import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from clip_jax import UserError
from clip_jax.weights.files import read_checkpoint
from clip_jax.weights.pickles import MAX_STEPS

START = b"\x80\x02"
STORAGE = 16  # bytes


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def number(value):
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(kind="FloatStorage", key="0"):
    return b"(" + text("storage") + name("torch", kind) + text(key) + b"X\x03\0\0\0cpuK\x04tQ"


def tensor(offset=0, size=(4,), stride=(1,), kind="FloatStorage", made_of=None):
    what = storage(kind) if made_of is None else made_of
    view = number(offset) + number(size) + number(stride)
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + what + view + b"\x89}tR"


def held(value, key="a"):
    """A dict with `value` in it."""
    return START + b"}" + text(key) + value + b"s."


MODULE = name("__torch__", "A") + b")\x81"
KEEP, KEPT = b"q\x00", b"h\x00"
AS_LIST = name("torch.jit._pickle", "build_intlist") + b"(" + storage() + b"tR"


def repeated(levels, inner, outer):
    """Each level holds the one before it twice: `levels` objects, 2^levels paths."""
    step = b"0" + outer + b"}(" + text("a") + KEPT + text("b") + KEPT + (b"ub" if outer else b"u") + KEEP
    return START + inner + KEEP + step * levels + b"."


HOSTILE = {
    "a list of a storage": (held(tensor(made_of=AS_LIST)), "Storage"),
    "items of a tuple": (START + b")" + number(0) + number(1) + b"s.", "sets an item of a tuple"),
    "items of a storage": (START + storage() + b"(" + number(0) + number(1) + b"u.", "sets an item of a Storage"),
    "attributes of a type": (START + name("torch", "float16") + b"}" + text("itemsize") + number(64) + b"sb.", "Kind"),
    "attributes of a storage": (START + storage() + b"}b.", "sets attributes of a Storage"),
    "attributes of a function": (START + name("torch", "Size") + b"}b.", "sets attributes of a Function"),
    "appended to a tuple": (START + b")" + number(1) + b"a.", "appends to a tuple"),
    "a type called": (START + name("torch", "float16") + b")R.", "calls a Kind"),
    "a text called": (START + text("eval") + b")R.", "calls 'eval'"),
    "beyond the storage": (held(tensor(1)), "does not fit"),
    "a large stride": (held(tensor(0, (2,), (2**61,))), "does not fit"),
    "a negative offset": (held(tensor(-1)), "no proper shape"),
    "True as an offset": (held(tensor(True, (1,))), "no proper shape"),
    "a size of 2^64": (held(tensor(0, (2**64,), (0,))), "no proper shape"),
    "64 sizes of 2^61": (held(tensor(0, (2**61,) * 64, (2**61,) * 64)), "does not fit"),
    "a hundred thousand sizes": (held(tensor(0, (1,) * 100_000, (1,) * 100_000)), "no proper shape"),
    "wider elements": (held(tensor(kind="DoubleStorage")), "does not fit"),
    "modules that share": (repeated(30, MODULE + b"}" + text("w") + tensor() + b"sb", MODULE), "deeper"),
    "a module in itself": (START + MODULE + KEEP + b"}" + text("a") + KEPT + b"sb.", "deeper"),
    "a reference of references": (START + b")" + KEEP + (b"0(" + KEPT * 2 + b"t" + KEEP) * 60 + b"Q.", "a tuple"),
    "a memo of 2^26": (START + b"}r\0\0\0\4.", "no weights"),
    "a text of 4 GiB": (START + b"X\xff\xff\xff\xffabc.", "only 4 remain"),
    "a text of 2^62": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".", "remain"),
    "a number of 2 GiB": (START + b"\x8b\xff\xff\xff\x7f1.", "not enough data"),
    "a number of a million digits": (START + b"L" + b"9" * 1_000_000 + b"L\n.", "limit"),
    "a frame of 2^62": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.", "no weights"),
    "a long name": (START + name("a" * 2_000_000, "b") + b".", "asks for aaaa"),
    "a long key": (held(tensor(), "k" * 2_000_000), "a name of 2000000 characters"),
    "a terminal escape in a name": (START + name("\x1b[31mos", "system\x07") + b".", r"asks for \x1b[31mos.system\x07"),
    "a terminal escape in a key": (held(tensor(), "\x1b]0;x\x07"), "control characters"),
    "keys that collide": (START + b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(30_000)) + b"u.", ""),
    "too many steps": (START + b"N0" * MAX_STEPS + b".", "steps"),
    "the same list again and again": (
        START + b"](" + (b"]" * 50_000) + b"e" + KEEP + (name("torch", "Size") + b"(" + KEPT + b"tR0") * 50_000 + b".",
        "steps",
    ),
    "an object of nothing": (START + MODULE + b".", "no weights"),
    "no end": (START + b"}", "exhausted"),
    "an empty stack": (START + b"0.", "mark"),
    "another opcode": (START + b"(ios\nsystem\n.", "INST"),
    "a circle of calls": (
        START + name("torch._tensor", "_rebuild_from_type_v2") + KEEP + b"(" + KEPT + b"N)}tR.",
        "in a circle",
    ),
}


def write(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", np.arange(STORAGE // 4, dtype=np.float32).tobytes())
    return path


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_programs_are_refused_in_one_short_line(tmp_path, case, request):
    # Where the signature of every step is checked as well (tests/annotations.py), a step takes twenty times as long.
    seconds = 100 if request.config.pluginmanager.hasplugin("tests.annotations") else 5
    program, word = HOSTILE[case]
    path = write(tmp_path / "w.pt", program)
    start = time.process_time()
    with pytest.raises(UserError) as error:
        [entry.read() for entry in read_checkpoint(path).values()]
    assert time.process_time() - start < seconds
    line = str(error.value)
    assert word in line
    assert str(path) in line
    assert line.isprintable()
    assert len(line) < 1000


def test_what_a_program_claims_is_not_allocated(tmp_path):
    for case in ("a memo of 2^26", "a text of 4 GiB", "a number of 2 GiB", "64 sizes of 2^61", "modules that share"):
        path = write(tmp_path / "w.pt", HOSTILE[case][0])
        tracemalloc.start()
        with pytest.raises(UserError):
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 << 20, case


def test_what_a_tensor_may_be_made_of(tmp_path):
    """The programs above but for their faults: lists of sizes, offsets, strides, shared modules, older opcodes."""
    sizes = name("torch.jit._pickle", "build_intlist") + b"(" + b"](" + number(2) + number(1) + b"etR"
    view = name("torch._utils", "_rebuild_tensor") + b"(" + storage() + number(1) + sizes + number((1, 1)) + b"tR"
    found = read_checkpoint(write(tmp_path / "w.pt", START + b"}S'a'\n" + view + b"s."))
    np.testing.assert_array_equal(found["a"].read(), np.float32([[1], [2]]))
    weights = MODULE + b"}" + text("w") + tensor() + b"sb"
    shared = read_checkpoint(write(tmp_path / "w.pt", repeated(2, weights, MODULE)))
    assert shared.keys() == {"a.a.w", "a.b.w", "b.a.w", "b.b.w"}


def test_memory_beyond_the_storage_is_never_read(tmp_path):
    """The storage is shorter than it was when the tensor was made: what is there counts, not what was claimed."""
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", held(tensor()))
        archive.writestr("archive/data/0", b"\0" * 8)
    with pytest.raises(UserError, match="does not fit"):
        read_checkpoint(path)
