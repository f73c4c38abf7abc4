"""Fuzzing of file readers: seeded mutations of valid bytes, JSON, pickles and text lines, and the loop that reads them.

A reader must accept a mutant or raise a one-line `UserError`, within bounds of time and memory.
"""

import copy
import io
import json
import pickletools
import random
import struct
import sys
import time
from contextlib import contextmanager

import jax
import pytest

from clip_jax import UserError

SECONDS = 1.0  # limit of processor time for one file
MEMORY = 512 << 20  # limit of address space in bytes, above what the process has already
COUNTS = [pytest.param(200, id="200"), pytest.param(2000, id="2000", marks=pytest.mark.slow)]

ODD = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**62, 2**64, 10**25, 0.5, -0.0, 1e309, float("nan")),
    *("", "x", "gelu", "../x", "\x1b[31m", "é" * 50, "\ud800", "a" * 20_000, "1"),
    *([], {}, [1], [[]], [None], {"a": 1}, [0.5] * 3, ["x", 2], {"type": "x"}),
)


def of_bytes(rng: random.Random, content: bytes) -> bytes:
    """A few bytes flipped, cut off, repeated, removed or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 2, 4, 8, 40))
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if at < len(data) else b""
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                del data[at : at + size]
            case 4:
                data[at : at + size] = rng.choice((b"\xff", b"\0", b"\x7f")) * size
            case _:
                data[at:at] = rng.randbytes(size)
    return bytes(data)


def of_json(rng: random.Random, data: object) -> bytes:
    """A JSON text with values replaced, removed, renamed, added or nested, or with its bytes mutated."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _changed(rng, data)
    text = json.dumps(data)
    match rng.randrange(12):
        case 0:
            text = text.replace("{", '{"a": 1, "a": 2, ', 1)
        case 1:
            depth = rng.choice((10, 3000, 100_000))
            text = text.replace(": ", ": " + "[" * depth, 1)
        case 2:
            return of_bytes(rng, text.encode())
        case 3:
            return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
    return text.encode()


def _changed(rng: random.Random, data: object) -> object:
    """`data`, changed in place at one random value in it."""
    places = list(_places(data))
    if not places:
        return copy.deepcopy(rng.choice(ODD))
    holder, key = rng.choice(places)
    other = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("x", "", key + "s", "\x1b[2J", "k" * 5000))] = holder.pop(key)
        case 2:
            holder[key] = copy.deepcopy(other[0][other[1]])
        case 3:
            holder[key] = [holder[key]]
        case 4 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 5 if type(holder[key]) in (int, float):
            holder[key] = rng.choice((-1, 2, 1000, 10**7)) * holder[key]
        case _:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return data


def _places(data):
    """(dict or list, key) of every value in `data`, at any depth."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from _places(value)


def of_pickle(rng: random.Random, program: bytes) -> bytes:
    """A pickle with opcodes removed, repeated, swapped, inserted or given other arguments."""
    parts = _opcodes(program)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(parts))
        match rng.randrange(7):
            case 0:
                del parts[at]
            case 1:
                parts.insert(at, parts[rng.randrange(len(parts))])
            case 2:
                other = rng.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts.insert(at, _opcode(rng))
            case 4:
                parts[at] = _opcode(rng)
            case 5:
                end = rng.randrange(at, len(parts))
                parts[at:at] = parts[at:end][:20]
            case _:
                parts[at] = parts[at][:1] + rng.randbytes(max(0, len(parts[at]) - 1))
        if not parts:
            return b"."
    return b"".join(parts)


def _opcodes(program: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(io.BytesIO(program))]
    return [program[a:b] for a, b in zip(places, [*places[1:], len(program)], strict=True)]


NAMES = (
    "os system", "builtins eval", "builtins getattr", "torch.storage UntypedStorage", "torch FloatStorage",
    "torch DoubleStorage", "torch.jit._pickle build_intlist", "torch.jit._pickle restore_type_tag", "torch Size",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch._tensor _rebuild_from_type_v2", "collections OrderedDict", "collections defaultdict", "__torch__.a B",
    "argparse Namespace", "torch float8_e4m3fn", "torch bfloat16",
)  # fmt: skip


def _opcode(rng: random.Random) -> bytes:
    """A random opcode, with a valid argument or an excessive one."""
    match rng.randrange(6):
        case 0:
            return b"c" + rng.choice(NAMES).replace(" ", "\n").encode() + b"\n"
        case 1:
            return b"J" + struct.pack("<i", rng.choice((0, 1, 3, -1, 2**31 - 1, -(2**31))))
        case 2:
            return rng.choice((b"r", b"j", b"X", b"B", b"T", b"\x8b")) + rng.choice((b"\xff\xff\xff\x7f", b"\0\0\0\4"))
        case 3:
            return b"\x8a\x08" + struct.pack("<q", rng.choice((2**62, -1, 2**40, 16, 10**18)))
        case 4:
            return rng.choice((b"\x8d", b"\x8e", b"\x95", b"\x96")) + struct.pack("<Q", rng.choice((4, 2**40, 2**63)))
    return bytes([rng.choice(b"(.012NQRabdehlopqstu}]\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97")])


def of_lines(rng: random.Random, text: str) -> bytes:
    """A text with lines or cells removed, repeated, swapped, joined or made odd, or with its bytes mutated."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(8):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(at, lines[other])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] += rng.choice(
                    (",", "\t", '"', " ", "'", "\0", "\r", "\x1b[31m", "\ufeff", "é", "a" * 200_000)
                )
            case 4:
                cut = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][cut:]
            case 5:
                cut = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:cut] + rng.choice((",", '"', "{", "\n", "]", ";", " ")) + lines[at][cut:]
            case 6:
                lines[at] = "[" * rng.choice((5, 100_000)) + lines[at]
            case _:
                return of_bytes(rng, "\n".join(lines).encode())
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return "\n".join(lines).encode(encoding, errors="replace")


@contextmanager
def bounded_memory():
    """Context manager that limits the address space to `MEMORY` bytes above the present size (on Linux)."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    jax.devices()  # start the backend now: inside the limit it would run out of memory and abort the process
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(count, make, read):
    """Writes and reads `count` mutants; some of them, but not all, must be readable.

    Args:
        count: number of mutants.
        make: function of a `random.Random` that writes a mutant.
        read: reads the mutant; it must return or raise a UserError.
    """
    good = 0
    with bounded_memory():
        for seed in range(count):
            make(random.Random(seed))
            start, line = time.process_time(), ""
            try:
                read()
                good += 1
            except UserError as error:
                line = str(error)
            except Exception as error:
                pytest.fail(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
            taken = time.process_time() - start
            assert taken < SECONDS, f"seed {seed}: {taken:.1f} s, {line}"
            assert line.isprintable(), f"seed {seed}: {line!r}"
            assert len(line) < 3000, f"seed {seed}: a line of {len(line)} characters"
            assert "not enough memory" not in line, f"seed {seed}: {line}"
    assert 0 < good < count
