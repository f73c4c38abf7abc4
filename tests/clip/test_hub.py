"""Names that `load` fetches from the hub: what is fetched, what is said, and what is suggested. The hub is a fake."""

import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

import clip_jax
from clip_jax import UserError
from clip_jax.presets import PRESETS, SPELLINGS, did_you_mean
from clip_jax.weights.find import OPEN_CLIP_NAMES, find
from clip_jax.weights.hub import is_hub_name
from clip_jax.weights.hub_repositories import PUBLISHED, published_weights
from tests.support.checkpoints import CONFIG, huggingface, random_variables, same_weights, state_of


@pytest.fixture
def hub(monkeypatch):
    """The hub with one folder, which the test fills; `hub.requests` has what was asked for."""
    fake = SimpleNamespace(requests=[], folder=None)

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        fake.requests.append((name, tuple(allow_patterns)))
        if fake.folder is None:
            raise OSError("no route to the hub")
        return str(fake.folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return fake


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32"])
def test_a_short_name_is_fetched_and_told(hub, tmp_path, monkeypatch, caplog, name):
    monkeypatch.chdir(tmp_path)
    hub.folder = huggingface(tmp_path / "hub")
    with caplog.at_level(logging.WARNING):
        same_weights(clip_jax.load(name))
    assert [asked for asked, _ in hub.requests] == ["openai/clip-vit-base-patch32"]
    (line,) = caplog.messages
    assert name in line
    assert "openai/clip-vit-base-patch32 on the hub" in line


def test_where_the_hub_is_not_reached_the_repository_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (None, "absent"):
        if module:
            monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(
            UserError, match="ViT-L-14 is published on the hub as openai/clip-vit-large-patch14"
        ) as error:
            clip_jax.load("ViT-L-14")
        assert "\n" not in str(error.value)


def test_a_directory_or_weights_of_ones_own_come_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    huggingface(tmp_path / "ViT-B-32")
    same_weights(clip_jax.load("ViT-B-32"))
    with pytest.raises(UserError, match="No such file"):
        clip_jax.load("ViT-B-16", weights=tmp_path / "absent.pt")
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "meant"),
    [("ViT-B32", "ViT-B/32"), ("vit-b/32", "ViT-B/32"), ("RN50x46", "RN50x4"), ("siglip-base-patch16", "siglip-base")],
)
def test_a_near_miss_gets_a_suggestion(hub, name, meant):
    for call in (clip_jax.load, clip_jax.preset):
        with pytest.raises(UserError, match=f"did you mean {meant}"):
            call(name)


def test_what_is_near_to_nothing_gets_none():
    assert did_you_mean("a photograph of my cat") == ""
    with pytest.raises(UserError, match=r"there is no my_clip: give a file"):
        clip_jax.load("my_clip")


def test_a_preset_without_published_weights_needs_them(hub):
    with pytest.raises(UserError, match="shapes is an architecture, not weights"):
        clip_jax.load("shapes")
    assert not hub.requests


def test_one_file_of_a_repository_is_read_by_the_preset(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.folder = tmp_path
    save_file(state_of("openai"), tmp_path / PUBLISHED["EVA02-B-16"].file)
    with pytest.raises(UserError, match="the preset EVA02-B-16 says"):  # it is another model's
        clip_jax.load("EVA02-B-16")
    ((name, patterns),) = hub.requests
    assert name == "QuanSun/EVA-CLIP"
    assert patterns[-1] == "EVA02_CLIP_B_psz16_s8B.pt"


def test_the_whole_clip_is_read_beside_timms_image_tower(tmp_path):
    """As in the repositories timm/resnet50x4_clip.openai and the like."""
    clip_jax.export(tmp_path, CONFIG, random_variables(), layout="open_clip")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50_clip", "num_classes": 1024}))
    save_file({"stem.conv1.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    same_weights(clip_jax.load(tmp_path))
    assert find(tmp_path).file.name in OPEN_CLIP_NAMES


def test_each_row_is_a_preset_and_a_repository():
    assert PUBLISHED.keys() <= PRESETS.keys()
    assert all(is_hub_name(row.repository) for row in PUBLISHED.values())
    assert set(SPELLINGS.values()) <= PUBLISHED.keys()
    for spelled, name in SPELLINGS.items():
        assert published_weights(spelled) is published_weights(name)
        assert clip_jax.preset(spelled) is clip_jax.preset(name)
