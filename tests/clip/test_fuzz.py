"""Files that others wrote, damaged in thousands of ways: each loads or is a UserError, soon and in little memory.

The mutants are seeded, and a failure says by which seed. 200 of each kind by default, 2,000 with `-m slow`.
"""

import gzip
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import clip_jax
from clip_jax import pretrained
from clip_jax.tokenizer import load_tokenizer
from clip_jax.weights import huggingface, open_clip
from clip_jax.weights.files import read_checkpoint, read_json
from image_text.source import open_source
from tests.support import fuzz as mutants
from tests.support.fuzz import COUNTS, fuzz
from tests.support.torch_files import Call, Global, Module, View, write_legacy, write_torch, write_torchscript

RNG = np.random.default_rng(0)
STATE = {
    "visual.conv1.weight": RNG.normal(size=(2, 3, 2, 2)).astype(np.float32),
    "ln.bias": RNG.normal(size=5).astype(np.float16),
    "scale": np.array(2.5, np.float32),
    "count": np.array(7),
    "view": View(np.arange(12, dtype=np.float32), 2, (3, 2), (1, 4)),
}
ARRAYS = {name: value for name, value in STATE.items() if not isinstance(value, View)}
TRAINING = {
    "epoch": 3,
    "args": Call(Global("argparse", "Namespace"), ()),
    "state_dict": STATE,
    "optimizer": {"state": ARRAYS, "param_groups": ()},
}


def read_arrays(path):
    for entry in read_checkpoint(path).values():
        assert entry.read().shape == entry.shape
        entry.read().tobytes()


def programs(tmp_path, root="archive"):
    """The pickles of good torch files: (program, storages)."""
    seeds = {
        "state": lambda p: write_torch(p, STATE),
        "training": lambda p: write_torch(p, TRAINING),
        "script": lambda p: write_torchscript(p, Module("a.B", {"c": Module("d.E", STATE), "name": "x"})),
    }
    for name, write in seeds.items():
        write(tmp_path / name)
        with zipfile.ZipFile(tmp_path / name) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        yield members.pop(f"{root}/data.pkl"), members


@pytest.mark.parametrize("count", COUNTS)
def test_programs_of_torch(tmp_path, count):
    path, seeds = tmp_path / "weights.pt", list(programs(tmp_path))

    def make(rng):
        program, members = rng.choice(seeds)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", mutants.of_pickle(rng, program))
            for name, content in members.items():
                archive.writestr(name, content[: rng.choice((None, None, None, 8))])

    fuzz(count, make, lambda: read_arrays(path))


@pytest.mark.parametrize("count", COUNTS)
def test_containers_of_torch(tmp_path, count):
    """The bytes of zips and of the legacy container, and the pickles of the latter."""
    path = tmp_path / "weights.pt"
    write_torch(tmp_path / "zip", STATE)
    write_torch(tmp_path / "deflated", STATE, compression=zipfile.ZIP_DEFLATED)
    write_legacy(tmp_path / "legacy", STATE)
    seeds = [(tmp_path / name).read_bytes() for name in ("zip", "deflated", "legacy")]
    system, data, rest = split_legacy(seeds[-1])

    def make(rng):
        if rng.random() < 0.4:
            path.write_bytes(system + mutants.of_pickle(rng, data) + rest)
        else:
            path.write_bytes(mutants.of_bytes(rng, rng.choice(seeds)))

    fuzz(count, make, lambda: read_arrays(path))


def split_legacy(content):
    file, ends = io.BytesIO(content), []
    for _ in range(3):
        pickle.load(file)
        ends.append(file.tell())
    program = content[ends[-1] :]
    end = ends[-1] + program.index(b"u.") + 2
    return content[: ends[-1]], content[ends[-1] : end], content[end:]


@pytest.mark.parametrize("count", COUNTS)
def test_archives_of_numpy(tmp_path, count):
    path = tmp_path / "weights.npz"
    seeds = []
    for save in (np.savez, np.savez_compressed):
        save(path, **ARRAYS)
        seeds.append(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(seeds[0])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def make(rng):
        if rng.random() < 0.5:
            path.write_bytes(mutants.of_bytes(rng, rng.choice(seeds)))
            return
        with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            hurt = rng.choice(sorted(members))
            for name, content in members.items():
                archive.writestr(name, npy(rng, content) if name == hurt else content)

    fuzz(count, make, lambda: read_arrays(path))


def npy(rng, content):
    """The header of an array, with other types and shapes in it, or its bytes damaged."""
    old, new = rng.choice(
        [
            *(
                (b"'<f4'", t)
                for t in (b"'|O'", b"'<f8'", b"('<f4', (2,))", b"[('a', '<f4')]", b"'V0'", b"'<U9'", b"'?'")
            ),
            *((b"(2, 3, 2, 2)", t) for t in (b"(-1, -24)", b"(24,)", b"(1e9,)", b"(9**9**9)", b"(" * 900, b"(True,)")),
            (b"False", b"True"),
            (b"False", b"None"),
        ]
    )
    return content.replace(old, new) if old in content and rng.random() < 0.8 else mutants.of_bytes(rng, content)


@pytest.mark.parametrize("count", COUNTS)
def test_safetensors(tmp_path, count):
    path = tmp_path / "weights.safetensors"
    save_file(ARRAYS, path, metadata={"format": "pt"})
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:end]), content[end:]

    def make(rng):
        if rng.random() < 0.5:
            path.write_bytes(mutants.of_bytes(rng, content))
            return
        text = mutants.of_json(rng, header)
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    fuzz(count, make, lambda: read_arrays(path))


# configs

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
HUGGING_FACE = {
    "model_type": "clip",
    "projection_dim": 24,
    "text_config": {
        **SIZES,
        "vocab_size": 60,
        "max_position_embeddings": 8,
        "eos_token_id": 59,
        "hidden_act": "quick_gelu",
    },
    "vision_config": {**SIZES, "image_size": 16, "patch_size": 8},
}
SIGLIP = {
    "model_type": "siglip",
    "text_config": {**SIZES, "vocab_size": 60, "max_position_embeddings": 8},
    "vision_config": {**SIZES, "image_size": 16, "patch_size": 8},
}
PREPROCESSOR = {
    "crop_size": {"height": 16, "width": 16},
    "size": {"shortest_edge": 16},
    "do_resize": True,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 60, "width": 64, "heads": 1, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.mark.parametrize("count", COUNTS)
def test_configs_of_others(tmp_path, count):
    path = tmp_path / "config.json"
    clip = huggingface.config_from_json(HUGGING_FACE, "config.json")
    readers = (
        (HUGGING_FACE, huggingface.config_from_json),
        (SIGLIP, huggingface.config_from_json),
        (PREPROCESSOR, lambda data, where: huggingface.preprocess_from_json(data, clip, where)),
        (OPEN_CLIP, open_clip.config_from_json),
    )
    chosen = {}

    def make(rng):
        data, chosen["read"] = rng.choice(readers)
        path.write_bytes(mutants.of_json(rng, data))

    fuzz(count, make, lambda: chosen["read"](read_json(path), str(path)))


@pytest.mark.parametrize("count", COUNTS)
def test_configs_of_our_own(tmp_path, count, monkeypatch):
    config = clip_jax.preset("tiny").to_dict()
    monkeypatch.setattr(pretrained, "expected", lambda config: (_ for _ in ()).throw(Read))
    path = tmp_path / "config.json"

    def read():
        try:
            clip_jax.load(tmp_path)
        except Read:
            return

    fuzz(count, lambda rng: path.write_bytes(mutants.of_json(rng, config)), read)


class Read(BaseException):
    """The config was read, and what it says would now be built, which takes longer."""


# tokenizers


@pytest.mark.parametrize("count", COUNTS)
def test_tokenizers(tmp_path, count, tokenizer):
    ours = tmp_path / "ours.json"
    tokenizer.save(ours)
    whole = json.loads(ours.read_text())
    vocab = {name: i for i, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "##b"))}
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in tokenizer.merges[:20])
    words = {**{c: i for c, i in whole["model"]["vocab"].items() if i < 532}}
    words |= {"<|startoftext|>": len(words), "<|endoftext|>": len(words) + 1}
    beside = {"model_max_length": 16, "pad_token": "<|endoftext|>", "do_lower_case": True}
    folder = tmp_path / "folder"
    others = {
        "ascii": {"type": "ascii", "context_length": 16, "pad_id": 0},
        "siglip": {"type": "siglip", "context_length": 16, "pad_id": 1, "model": unigram()},
        "unigram": unigram(),
    }

    def make(rng):
        for file in folder.iterdir() if folder.is_dir() else ():
            file.unlink()
        folder.mkdir(exist_ok=True)
        match rng.randrange(8):
            case 0:
                (folder / "tokenizer.json").write_bytes(mutants.of_json(rng, whole))
            case 1:
                (folder / "vocab.json").write_bytes(mutants.of_json(rng, words))
                (folder / "merges.txt").write_text(merges)
            case 2:
                (folder / "vocab.json").write_text(json.dumps(words))
                (folder / "merges.txt").write_bytes(mutants.of_lines(rng, merges))
            case 3:
                (folder / "vocab.txt").write_bytes(mutants.of_lines(rng, "\n".join(vocab)))
            case 4:
                (folder / "bpe_simple_vocab_16e6.txt").write_bytes(mutants.of_lines(rng, merges))
            case 5:
                packed = gzip.compress(merges.encode(), mtime=0)
                (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(mutants.of_bytes(rng, packed))
            case 6:
                (folder / "tokenizer.json").write_bytes(mutants.of_json(rng, rng.choice(list(others.values()))))
            case _:
                (folder / "tokenizer.json").write_text(json.dumps(whole))
                (folder / "tokenizer_config.json").write_bytes(mutants.of_json(rng, beside))

    fuzz(count, make, lambda: load_tokenizer(folder)(["a photo of a cat", ""]))


def unigram():
    """A `tokenizer.json` of SigLIP's kind."""
    pieces = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], *([c, -2.0] for c in "▁abcdefghijklmnopqrstuvwxyz")]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    parts = {**dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")), "added_tokens": []}
    parts |= {"pre_tokenizer": metaspace, "decoder": metaspace}
    model = {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False}
    return {
        **parts,
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": model,
    }


# tables

TABLES = {
    ".csv": "image,caption,label\n" + "".join(f'p{i}.png,"a cat, {i}",{i % 2}\n' for i in range(4)),
    ".tsv": "image\tcaption\n" + "".join(f"p{i}.png\ta dog {i}\n" for i in range(4)),
    ".jsonl": "".join(json.dumps({"image": f"p{i}.png", "caption": f"a bird {i}"}) + "\n" for i in range(4)),
}


@pytest.mark.parametrize("count", COUNTS)
def test_tables(tmp_path, count):
    for i in range(4):
        Image.new("RGB", (2, 2)).save(tmp_path / f"p{i}.png")
    chosen = {}

    def make(rng):
        suffix = rng.choice(sorted(TABLES))
        chosen["path"] = tmp_path / f"table{suffix}"
        chosen["path"].write_bytes(mutants.of_lines(rng, TABLES[suffix]))

    fuzz(count, make, lambda: open_source(str(chosen["path"])))
