"""`flax_model.msgpack` of transformers' Flax models, and what is no such file."""

import contextlib

import jax
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util

import clip_jax
from clip_jax import CLIPConfig, UserError
from clip_jax.weights.flax_msgpack import read_flax
from tests.support.checkpoints import CONFIG, huggingface, same_weights, state_of


def as_flax(state):
    """The names and axes of transformers' Flax models: kernels are [in, out] and HWIO, norms have scales."""
    flat = {}
    for name, array in state.items():
        *parents, last = name.split(".")
        if last == "weight" and array.ndim in (2, 4) and "_embedding" not in name.replace("patch_embedding", ""):
            last, array = "kernel", array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
        elif last == "weight":
            last = "embedding" if array.ndim == 2 else "scale"
        flat[*parents, last] = np.ascontiguousarray(array)
    return traverse_util.unflatten_dict(flat)


def written(folder, config=CONFIG):
    huggingface(folder, config)
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(serialization.to_bytes(as_flax(state_of("huggingface", config))))
    return folder / "flax_model.msgpack"


@pytest.mark.parametrize("towers", [{}, {"text": None}, {"vision": None}])
def test_a_directory_of_transformers(tmp_path, towers):
    config = CLIPConfig(**{"embed_dim": 24, "vision": CONFIG.vision, "text": CONFIG.text, **towers})
    written(tmp_path, config)
    same_weights(clip_jax.load(tmp_path), config)


def test_a_file_with_its_config(tmp_path):
    file = written(tmp_path / "a")
    moved = tmp_path / "w.msgpack"
    file.rename(moved)
    same_weights(clip_jax.load(moved, config=CONFIG))


def test_arrays_in_chunks_and_in_bfloat16(tmp_path, monkeypatch):
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    data = {"a": {"kernel": rows, "bias": jax.numpy.ones(3, jax.numpy.bfloat16)}, "logit_scale": np.float32(2)}
    (tmp_path / "w.msgpack").write_bytes(serialization.msgpack_serialize(data))
    found = read_flax(tmp_path / "w.msgpack")
    shapes = {name: entry.shape for name, entry in found.items()}
    assert shapes == {"a.weight": (6, 4), "a.bias": (3,), "logit_scale": ()}
    np.testing.assert_array_equal(found["a.weight"].read(), rows.T)
    np.testing.assert_array_equal(found["a.bias"].read().astype(np.float32), np.ones(3))
    assert found["logit_scale"].read() == 2


def array(shape, dtype, content):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content), use_bin_type=True))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "cannot read"),
        (msgpack.packb([1, 2]), "type 0x92"),
        (msgpack.packb(3), "not one map"),
        (msgpack.packb({"a": array((0, 2**62), "float32", b"")}), "too large"),
        (msgpack.packb({}), "no weights"),
        (msgpack.packb({"a": 3}), "a is no array"),
        (msgpack.packb({"a": None}), "type 0xc0"),
        (msgpack.packb({"a": 1.5}), "type 0xcb"),
        (msgpack.packb({"a": msgpack.ExtType(9, b"x")}), "extension 9"),
        (msgpack.packb({"a": array((4,), "float32", b"1234")}), r"\[4\] in it has 4 bytes"),
        (msgpack.packb({"a": array((9, 9), "float32", b"1234")}), "4 bytes"),
        (msgpack.packb({"a": array((1,), "object", b"1234")}), "'object', known are"),
        (msgpack.packb({"a": array(("x",), "float32", b"1234")}), "not of integers"),
        (msgpack.packb({"a": {"kernel": array((1,), "float32", b"1234")}}), "two axes, or four"),
        (msgpack.packb({"a": {"scale": array((1,), "float32", b"1234"), "weight": array((1,), "float32", b"1234")}}),
         r"two of its arrays are a\.weight"),
        (b"\xdf\xff\xff\xff\xff", "more names"),
        (b"\x81\xdb\x7f\xff\xff\xff", "a name of"),
        (b"\x82\xa1a\x01\xa1a\x01", "twice"),
        (b"\x81\xa1a" * 60, "nested deeper"),
        (msgpack.packb({"a": array((1,), "float32", b"1234")}) + b"x", "not one map"),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {}}}), "chunks"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_refused(tmp_path, data, word):
    (tmp_path / "w.msgpack").write_bytes(data)
    with pytest.raises(UserError, match=word) as error:
        read_flax(tmp_path / "w.msgpack")
    assert "w.msgpack" in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    """500 mutants: each is read in full, or refused in one line."""
    whole = serialization.msgpack_serialize({"a": {"kernel": np.ones((3, 2), np.float32)}, "b": np.ones(4, np.float16)})
    rng = np.random.default_rng(0)
    path = tmp_path / "w.msgpack"
    for _ in range(500):
        mutant = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            mutant[int(rng.integers(len(mutant)))] = int(rng.integers(256))
        path.write_bytes(mutant[: int(rng.integers(1, len(mutant) + 1))] if rng.random() < 0.3 else mutant)
        with contextlib.suppress(UserError):
            for entry in read_flax(path).values():
                assert entry.read().shape == entry.shape
