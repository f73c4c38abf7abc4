import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from clip_jax import UserError
from clip_jax.weights.files import read_checkpoint
from tests.support.torch_files import Call, Global, Module, View, write_torch, write_torchscript

RNG = np.random.default_rng(0)
STATE = {
    "a.weight": RNG.normal(size=(2, 3)).astype(np.float32),
    "a.bias": RNG.normal(size=3).astype(np.float16),
    "b": RNG.normal(size=(4, 2, 2)).astype(ml_dtypes.bfloat16),
    "scale": np.array(2.5, np.float32),
    "count": np.array(7),
    "none": np.zeros((0, 3), np.float32),
}


def assert_holds(path, state):
    found = read_checkpoint(path)
    assert found.keys() == state.keys()
    for name, array in state.items():
        assert found[name].shape == array.shape
        read = found[name].read()
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_every_container_gives_the_same(tmp_path):
    """The kind of a file is told from its content, so the name does not matter."""
    save_file(STATE, tmp_path / "0")
    np.savez(tmp_path / "1.npz", **STATE)
    np.savez_compressed(tmp_path / "2.npz", **STATE)
    write_torch(tmp_path / "3", STATE)
    write_torch(tmp_path / "4", {"epoch": 3, "name": "x", "state_dict": STATE, "optimizer": {"state": STATE}})
    shards = {"one.bin": dict(list(STATE.items())[:2]), "two.safetensors": dict(list(STATE.items())[2:])}
    write_torch(tmp_path / "one.bin", shards["one.bin"])
    save_file(shards["two.safetensors"], tmp_path / "two.safetensors")
    index = {"weight_map": {name: file for file, state in shards.items() for name in state}}
    (tmp_path / "5.index.json").write_text(json.dumps(index))
    for name in ("0", "1.npz", "2.npz", "3", "4", "5.index.json"):
        assert_holds(tmp_path / name, STATE)


def test_strides_and_offsets_of_torch_are_followed(tmp_path):
    storage = np.arange(12, dtype=np.float32)
    write_torch(tmp_path / "w.pt", {"t": View(storage, 2, (3, 2), (1, 4))})
    assert_holds(tmp_path / "w.pt", {"t": np.lib.stride_tricks.as_strided(storage[2:], (3, 2), (4, 16))})


def test_a_torchscript_archive_is_named_by_its_attributes_and_not_run(tmp_path):
    block = Module("torch.nn.Linear", {"weight": STATE["a.weight"], "training": False})
    blocks = Module("torch.nn.Sequential", {"0": block})
    root = Module("clip.model.CLIP", {"visual": blocks, "scale": STATE["scale"], "name": "CLIP", "training": False})
    write_torchscript(tmp_path / "w.pt", root)
    assert_holds(tmp_path / "w.pt", {"visual.0.weight": STATE["a.weight"], "scale": STATE["scale"]})


@pytest.mark.parity
def test_what_torch_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
            self.scale = torch.nn.Parameter(torch.tensor(1.5))
            self.register_buffer("size", torch.tensor(7))

        def forward(self, x):
            return self.blocks(x) * self.scale

    net = Net().half()
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    torch.save(net.state_dict(), tmp_path / "state.pt")
    torch.save({"state_dict": dict(net.named_parameters()), "epoch": 1}, tmp_path / "parameters.pt")
    torch.jit.save(torch.jit.script(net), tmp_path / "script.pt")
    torch.jit.save(torch.jit.trace(net.float(), torch.zeros(1, 3)), tmp_path / "trace.pt")
    assert_holds(tmp_path / "state.pt", state)
    assert_holds(tmp_path / "parameters.pt", {name: array for name, array in state.items() if name != "size"})
    assert_holds(tmp_path / "script.pt", state)
    whole = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    assert_holds(tmp_path / "trace.pt", whole)
    bf16 = {"a": torch.arange(6).reshape(2, 3).T.bfloat16()}
    torch.save(bf16, tmp_path / "bf16.pt")
    assert_holds(tmp_path / "bf16.pt", {"a": np.arange(6).reshape(2, 3).T.astype(ml_dtypes.bfloat16)})


def lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def truncated(write, path):
    write(path)
    path.write_bytes(path.read_bytes()[:-40])


def damaged(write, path):
    write(path)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(STATE["a.weight"].tobytes())
    content[place] ^= 1
    path.write_bytes(content)


def safetensors_header(path, header, data=b"\0" * 8, length=None):
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def overlapping(path):
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    safetensors_header(path, {"a": tensor, "b": tensor})


def zip_of(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(80):
            file.write(bytes(1 << 20))


def short_npy(path):
    path.write_bytes(npz(a=np.zeros(3)))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("a.npy").replace(b"(3,)", b"(9,)")
    zip_of(path, [("a.npy", content)])


def index(path, weight_map):
    save_file(STATE, path.parent / "shard.safetensors")
    path.write_text(json.dumps({"weight_map": weight_map} if weight_map is not None else {}))


def set_attributes(path):
    """A BUILD opcode with state for the reader's own function."""
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}(X\x0c\x00\x00\x00__defaults__)utb."
    zip_of(path, [("archive/data.pkl", program)])


HOSTILE = {
    "os.system": lambda p: write_torch(p, {"a": Call(Global("os", "system"), ("touch RAN",))}),
    "builtins.eval": lambda p: write_torch(p, Call(Global("builtins", "eval"), ("open('RAN', 'w')",))),
    "argparse.Namespace": lambda p: write_torch(p, {"args": Call(Global("argparse", "Namespace"), ())}),
    "torch.load": lambda p: write_torch(p, Call(Global("torch", "load"), ("x",))),
    "numpy.load": lambda p: write_torch(p, Call(Global("numpy", "load"), ("x",))),
}
BROKEN = {
    "cannot read weights": [
        lambda p: None,
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"\xff" * 64),
        lambda p: p.mkdir(),
        lambda p: truncated(lambda q: save_file(STATE, q), p),
        lambda p: truncated(lambda q: write_torch(q, STATE), p),
        lambda p: safetensors_header(p, {}, length=1 << 60),
        lambda p: safetensors_header(p, {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}),
        lambda p: write_torch(p, {"a": View(np.zeros(4, np.float32), 0, (2, 3), (3, 1))}),
        lambda p: write_torch(p, {"a": View(np.zeros(4, np.float32), 2, (4,), (1,))}),
        lambda p: write_torch(p, {"a": View(np.zeros(4, np.float32), 0, (2, 2), (-2, 1))}),
        lambda p: write_torch(p, {"a": View(np.zeros(1, np.float32), 0, (1 << 40,), (0,))}),
        lambda p: write_torch(p, {"a": np.zeros(4, np.float32)}, storages=[]),
        lambda p: zip_of(p, [("archive/data.pkl", b"\x80\x02K\x01")]),
        overlapping,
    ],
    "git lfs pull": [lfs],
    "bare pickle": [lambda p: p.write_bytes(b"\x80\x02}.")],
    "holds no weights": [lambda p: write_torch(p, {"epoch": 3})],
    "sets attributes": [set_attributes],
    "neither": [lambda p: zip_of(p, [("readme.txt", b"x")])],
    "big-endian": [lambda p: zip_of(p, [("a/data.pkl", b"\x80\x02}."), ("a/byteorder", b"big")])],
    "points outside": [
        lambda p: zip_of(p, [("../a.npy", b"x")]),
        lambda p: zip_of(p, [("/a.npy", b"x")]),
        lambda p: write_torch(p, STATE, extra=[("archive/../../x", b"")]),
    ],
    "claims to hold": [bomb],
    "Python objects": [lambda p: p.write_bytes(npz(a=np.array([{}], object)))],
    "as many numbers": [short_npy],
    "not a numpy array": [lambda p: zip_of(p, [("a.npy", b"nothing of the kind")])],
}
BROKEN_INDEX = {
    "no weight_map": [lambda p: index(p, None), lambda p: index(p, {"a": 3})],
    "beside their index": [
        lambda p: index(p, {"scale": "../shard.safetensors"}),
        lambda p: index(p, {"scale": str(p.parent / "shard.safetensors")}),
        lambda p: index(p, {"scale": p.name}),
    ],
    "not in the shard": [lambda p: index(p, {"other": "shard.safetensors"})],
    "cannot read weights": [lambda p: index(p, {"scale": "absent.safetensors"})],
    "not JSON": [lambda p: p.write_text("{"), lambda p: p.write_text("[" * 100_000)],
    "not a JSON object": [lambda p: p.write_text("[]")],
}


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def refused(path):
    with pytest.raises(UserError) as error:
        [entry.read() for entry in read_checkpoint(path).values()]
    assert "\n" not in str(error.value)
    assert str(path.parent) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("make", "word"), [pytest.param(m, w, id=f"{w}-{i}") for w, makes in BROKEN.items() for i, m in enumerate(makes)]
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, make, word):
    make(tmp_path / "weights")
    assert word in refused(tmp_path / "weights")


@pytest.mark.parametrize(
    ("make", "word"),
    [pytest.param(m, w, id=f"{w}-{i}") for w, makes in BROKEN_INDEX.items() for i, m in enumerate(makes)],
)
def test_a_broken_index_is_refused_in_one_line(tmp_path, make, word):
    path = tmp_path / "model.safetensors.index.json"
    make(path)
    assert word in refused(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_asks_for_anything_else_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    HOSTILE[name](tmp_path / "weights.bin")
    assert name in refused(tmp_path / "weights.bin")
    assert not (tmp_path / "RAN").exists()


def test_a_flipped_bit_in_a_zip_is_found(tmp_path):
    damaged(lambda p: write_torch(p, STATE), tmp_path / "w")
    assert "CRC" in refused(tmp_path / "w")
