"""What a file is, when it holds no weights that can be read; and the containers and types that can."""

import argparse
import collections
import datetime
import fractions
import json
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import clip_jax
from clip_jax import UserError
from clip_jax.weights.files import inner_folder, read_checkpoint
from clip_jax.weights.jsons import read_json
from tests.support.torch_files import Call, Global, Module, View, write_legacy, write_torch

W = np.arange(6, dtype=np.float32).reshape(2, 3)
STATE = {"a.weight": W, "a.bias": np.arange(3, dtype=np.float16)}
OTHERS = {
    "GGUF": b"GGUF\x03\0\0\0" + bytes(60),
    "GGML": b"lmgg" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "ONNX": b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(60),
    "TensorFlow Lite": b"\x1c\0\0\0TFL3" + bytes(60),
    "msgpack": b"\x82\xa1a\xc4\x01\0\xa1b\xc0",
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "bzip2": b"BZh9" + bytes(60),
    "xz": b"\xfd7zXZ\0" + bytes(60),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(60),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(60),
    "tar archive": b"weights".ljust(257, b"\0") + b"ustar" + bytes(300),
    "one numpy array": b"\x93NUMPY\x01\0" + bytes(60),
    "HTML page": b"<!DOCTYPE html>\n<html><body>404: not found</body></html>",
    "XML or HTML page": b'\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "JSON text": b'{"error": "Access to this model is restricted"}',
    "plain text": "Entry not found: é".encode(),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(60),
    "empty (0 bytes)": b"",
    "zip archive that is cut off": b"PK\x03\x04" + bytes(200),
    "empty zip": b"PK\x05\x06" + bytes(18),
    "cut off": (600).to_bytes(8, "little") + b'{"a": {"dtype"',
    "bare pickle": b"\x80\x04\x95\x02\0\0\0\0\0\0\0}\x94.",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


def refused(path):
    with pytest.raises(UserError) as error:
        [entry.read() for entry in read_checkpoint(path).values()]
    line = str(error.value)
    assert line.isprintable()
    assert str(path) in line
    assert len(line) < 500
    return line.removeprefix("cannot read weights from ").replace(str(path), "FILE")


def assert_holds(path, state):
    found = read_checkpoint(path)
    assert found.keys() == state.keys()
    for name, array in state.items():
        assert found[name].shape == array.shape
        assert found[name].read().dtype == array.dtype
        np.testing.assert_array_equal(found[name].read(), array)


@pytest.mark.parametrize("what", OTHERS)
def test_what_a_file_is_stands_in_the_line(tmp_path, what):
    """Whatever its name says."""
    for name in ("model.safetensors", "weights.pt"):
        (tmp_path / name).write_bytes(OTHERS[what])
        assert what in refused(tmp_path / name)


@pytest.mark.parametrize(("name", "what"), [("tf_model.h5", "HDF5"), ("model.onnx", "ONNX"), ("a.gguf", "GGUF")])
def test_a_folder_with_another_kind_alone_names_it(tmp_path, name, what):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / name).write_bytes(OTHERS[what])
    with pytest.raises(UserError, match=what):
        clip_jax.load(tmp_path)


LORA = (
    "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a",
)


@pytest.mark.parametrize("name", LORA)
def test_a_lora_is_no_model(tmp_path, name):
    save_file({name: W}, tmp_path / "lora.safetensors")
    assert "LoRA" in refused(tmp_path / "lora.safetensors")


def test_a_folder_of_sentence_transformers_leads_to_its_clip(tmp_path):
    assert inner_folder(tmp_path) == tmp_path
    (tmp_path / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(UserError, match="0_CLIPModel"):
        clip_jax.load(tmp_path)
    (tmp_path / "0_CLIPModel").mkdir()
    assert inner_folder(tmp_path) == tmp_path / "0_CLIPModel"


# containers


def test_the_legacy_container_of_torch_is_read(tmp_path):
    state = {**STATE, "view": View(np.arange(12, dtype=np.float32), 2, (3, 2), (1, 4)), "n": np.array(7)}
    want = {**STATE, "view": np.float32([[2, 6], [3, 7], [4, 8]]), "n": np.array(7)}
    write_legacy(tmp_path / "a.pt", {"state_dict": state, "epoch": 3})
    assert_holds(tmp_path / "a.pt", want)


def test_views_in_the_legacy_container(tmp_path):
    """A storage that stands for a part of another has its own size and beginning."""
    base = np.arange(10, dtype=np.float32)
    write_legacy(tmp_path / "a.pt", {"a": View(base, 1, (2,), (1,))}, views={"0": (3, 4)})
    assert_holds(tmp_path / "a.pt", {"a": base[4:6]})
    write_legacy(tmp_path / "a.pt", {"a": View(base, 3, (2,), (1,))}, views={"0": (3, 4)})
    assert "does not fit" in refused(tmp_path / "a.pt")
    write_legacy(tmp_path / "a.pt", {"a": View(base, 0, (2,), (1,))}, views={"0": (8, 4)})
    assert "does not lie in it" in refused(tmp_path / "a.pt")


def test_a_damaged_legacy_container_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    write_legacy(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert "cut off" in refused(path)
    path.write_bytes(whole.replace(struct.pack("<q", 6), struct.pack("<q", 2**40)))
    assert "cut off or damaged" in refused(path)
    path.write_bytes(whole.replace(b"little_endian", b"xittle_endian"))
    assert_holds(path, STATE)
    write_legacy(path, {"a": Call(Global("os", "system"), ("touch RAN",))})
    assert "os.system" in refused(path)


@pytest.mark.parity
def test_the_legacy_container_as_torch_writes_it(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0)
    state = {
        "a": base.reshape(3, 4).T,
        "b": base[2:5],  # of the same storage
        "half": torch.ones(2, 2).half(),
        "bf16": torch.ones(3).bfloat16(),
        "n": torch.tensor(7),
        "p": torch.nn.Parameter(torch.ones(2)),
        "none": torch.zeros(0, 3),
    }
    optimizer = torch.optim.AdamW([state["p"]])
    state["p"].grad = torch.ones(2)
    optimizer.step()
    whole = {"model_state_dict": state, "optimizer": optimizer.state_dict(), "epoch": np.int64(3)}
    want = {
        name: tensor.detach().float().numpy().astype(ml_dtypes.bfloat16) if name == "bf16" else tensor.detach().numpy()
        for name, tensor in state.items()
    }
    for zipped in (False, True):
        torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        assert_holds(tmp_path / "a.pt", want)


@pytest.mark.parity
def test_what_torch_writes_beside_plain_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    marked = torch.nn.Parameter(torch.ones(2))
    marked.no_decay = True  # pickled with its attribute, by another function
    kinds = {kind: torch.arange(4).to(getattr(torch, kind)) for kind in ("float8_e4m3fn", "float8_e5m2", "uint16")}
    size = {"size": torch.Size([1, 2]), "dtype": torch.bfloat16, "device": torch.device("cpu"), "set": {1}}
    for protocol in (2, 4, 5):
        torch.save({"state_dict": {"marked": marked, **kinds}, **size}, tmp_path / "a.pt", pickle_protocol=protocol)
        want = {kind: np.arange(4).astype(np.dtype(getattr(ml_dtypes, kind, kind))) for kind in kinds}
        assert_holds(tmp_path / "a.pt", {"marked": np.ones(2, np.float32), **want})


LOSS = np.array(0.5, np.float32)
NAMESPACE = Call(Global("argparse", "Namespace"), ())
TRAINING = {
    "state_dict": {"epoch": 3, "state_dict": STATE},
    "model_state_dict, with a loss": {"model_state_dict": STATE, "loss": LOSS},
    "a name of one's own": {
        "student": STATE,
        "loss": np.array(0.5, np.float32),
        "args": Call(Global("argparse", "Namespace"), ()),
    },
    "within another": {"checkpoint": {"model": STATE, "step": 3}},
    "with its average": {"net": STATE, "ema": STATE},
    "with an optimizer": {"weights": STATE, "optimizer": {"state": STATE, "param_groups": ()}},
    "an optimizer by another name": {
        "mine": STATE,
        "o": {"state": {"x": np.zeros(9, np.float32)}, "param_groups": ()},
    },
    "a scripted module": {"model": Module("a.B", {"a": Module("c.D", {"weight": W, "bias": STATE["a.bias"]})})},
}


@pytest.mark.parametrize("case", TRAINING)
def test_the_model_is_found_in_what_training_leaves(tmp_path, case):
    write_torch(tmp_path / "a.pt", TRAINING[case])
    assert_holds(tmp_path / "a.pt", STATE)


def test_two_models_are_refused_by_their_names(tmp_path):
    write_torch(tmp_path / "a.pt", {"student": STATE, "teacher": STATE})
    assert "'student', 'teacher'" in refused(tmp_path / "a.pt")


# damage


def npy(descr, shape, data=b"\0" * 24):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("'<f4'", "(-1, -6)"),
        ("'<f4'", "(-2, -3)"),
        ("('<f4', (2,))", "(3,)"),
        ("[('a', '<f4')]", "(6,)"),
        ("'<f4'", "(9**9**9,)"),
        ("'<f4'", "(" * 5000),
        ("'<f4'", "(" + "9" * 5000 + ",)"),
        ("'<M8[s]'", "(3,)"),
        ("'V0'", "(9,)"),
        ("__import__('os').system('x')", "(6,)"),
    ],
)
def test_headers_of_numpy_are_not_evaluated(tmp_path, descr, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy(descr, shape))
    refused(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy("'<f4'", "(2L, 3L)"))  # as Python 2 wrote it
    assert_holds(tmp_path / "a.npz", {"a": np.zeros((2, 3), np.float32)})


def test_a_damaged_stream_in_a_zip_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).normal(size=5000))
    content = bytearray(path.read_bytes())
    content[3000:3040] = b"\xff" * 40
    path.write_bytes(content)
    refused(path)
    content[50:80] = b"\xff" * 30
    path.write_bytes(content)
    refused(path)


def zip_of(path, flags=0, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", npy("'<f4'", "(6,)"))
    content = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + place] |= flags
    path.write_bytes(content)


def test_zips_of_other_kinds_are_named(tmp_path):
    zip_of(tmp_path / "a.npz", flags=1)
    assert "encrypted" in refused(tmp_path / "a.npz")
    zip_of(tmp_path / "a.npz", method=zipfile.ZIP_LZMA)
    assert "compressed in a way" in refused(tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[-10:-6] = b"\xff\xff\xff\x7f"  # what the list of members claims to have
    (tmp_path / "a.npz").write_bytes(content)
    assert "list of its members" in refused(tmp_path / "a.npz")


def safetensors(path, text, data=bytes(8)):
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return path


TWO = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
HEADERS = {
    f'{{"a": {TWO}, "a": {TWO}}}': "stands twice",
    '{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}': "stands twice",
    '{"a": ' + "[" * 100_000: "nested too deep",
    '{"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}': "no proper shape",
    '{"a": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}': "no proper shape",
    '{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}': "8 bytes are kept",
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}': "hole",
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}': "end at byte",
    '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}': "cut off",
    '{"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}': "'F4'",
    '{"a": {"dtype": "F32", "shape": [2]}}': "data_offsets of a",
    '{"\\u001b[31m": ' + TWO + "}": "control characters",
    '{"' + "k" * 5000 + '": ' + TWO + "}": "5000 characters",
    '{"__metadata__": {"a": 1}, "a": ' + TWO + "}": "__metadata__",
    "[]": "not a JSON object",
}


@pytest.mark.parametrize(("text", "word"), HEADERS.items(), ids=HEADERS.values())
def test_damaged_headers_of_safetensors(tmp_path, text, word):
    assert word in refused(safetensors(tmp_path / "a.safetensors", text))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    save_file({"a": W}, tmp_path / "a.safetensors")
    found = read_checkpoint(tmp_path / "a.safetensors")
    save_file({"a": W, "b": W}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="was changed"):
        found["a"].read()


def test_json_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"embed_dim": 4, "text": {"width": 1, "width": 2}}')
    with pytest.raises(UserError, match="'width' stands twice"):
        read_json(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())  # as Notepad saves it
    assert read_json(path) == {"a": 1}


# eight bits


FP8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


def write_fp8(path, kind="F8_E4M3", shape=(2, 3), **beside):
    """A float8 weight, which numpy has no type to save, and float32 arrays beside it."""
    weight = W.astype(FP8[kind]).tobytes()
    header, data = {"a.weight": {"dtype": kind, "shape": list(shape), "data_offsets": [0, 6]}}, weight
    for name, value in beside.items():
        array = np.asarray(value, np.float32)
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    return safetensors(path, json.dumps(header), data)


@pytest.mark.parametrize("kind", FP8)
def test_float8_is_read_as_the_numbers_it_holds(tmp_path, kind):
    assert_holds(write_fp8(tmp_path / "a.safetensors", kind), {"a.weight": W.astype(FP8[kind])})


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("scale", [0.5, [0.5], [0.5, 2], [[0.5], [2]]])
def test_the_scale_of_a_float8_weight_is_multiplied_in(tmp_path, suffix, scale):
    path = write_fp8(tmp_path / "a.safetensors", **{f"a.{suffix}": scale, "a.input_scale": 3, "scaled_fp8": [0, 0]})
    rows = np.float32(scale).reshape(-1, 1) if np.size(scale) > 1 else np.float32(0.5)
    assert_holds(path, {"a.weight": W.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * rows})


def test_scales_that_are_not_understood_are_refused(tmp_path):
    assert "b.scale_weight without b.weight" in refused(write_fp8(tmp_path / "a", **{"b.scale_weight": 1}))
    assert "not one number" in refused(write_fp8(tmp_path / "a", **{"a.scale_weight": [1, 2, 3]}))
    assert "quantized" in refused(write_fp8(tmp_path / "a", **{"a.weight_scale_inv": [1]}))
    save_file({"a.weight": W, "a.scale_weight": np.array(2, np.float32)}, tmp_path / "a")
    assert "float32 with a scale" in refused(tmp_path / "a")


@pytest.mark.parity
def test_settings_beside_the_weights_are_passed_over(tmp_path):
    """Of the classes that training scripts use for them; one's own are refused by name."""
    torch = pytest.importorskip("torch")
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("/tmp/x")),
        "when": datetime.datetime(2026, 1, 1),
        "best": np.float64(0.3),
        "history": collections.deque([1, 2]),
        "counts": collections.Counter("aab"),
        "seen": {1, 2},
        "grouped": collections.defaultdict(list, {"a": [1]}),
        "array": np.zeros(3),
    }
    for protocol in (2, 4):
        torch.save({**beside, "state_dict": {"w": torch.ones(2)}}, tmp_path / "a.pt", pickle_protocol=protocol)
        assert_holds(tmp_path / "a.pt", {"w": np.ones(2, np.float32)})
    torch.save({"state_dict": {"w": torch.ones(2)}, "mine": fractions.Fraction(1, 2)}, tmp_path / "a.pt")
    assert "fractions.Fraction" in refused(tmp_path / "a.pt")
