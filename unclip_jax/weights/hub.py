"""Downloads published systems from the Hugging Face hub by name; needs the optional package `huggingface_hub`."""

from __future__ import annotations

from pathlib import Path

from clip_jax.weights.hub import is_hub_name as is_name
from clip_jax.weights.hub import snapshot

__all__ = ["fetch_pipeline", "is_name"]


def fetch_pipeline(name: str) -> Path:
    """Downloads the configs and weights of a pipeline, or of a single network, and returns their directory.

    Torch's own files (`.bin`) are downloaded only for the parts that have no safetensors. Files in half precision and
    non-EMA weights are not downloaded.

    Args:
        name: "owner/name" on the hub.

    Raises:
        UserError: the name is unknown, the hub cannot be reached, or `huggingface_hub` is not installed.
    """
    ignore = ("*.fp16.*", "*.bf16.*", "*.non_ema.*")
    folder = snapshot(name, ("*.json", "*/*.json", "*/*.txt", "*.safetensors", "*/*.safetensors"), ignore)
    bare = [
        config.parent.relative_to(folder)
        for config in (*folder.glob("config.json"), *folder.glob("*/config.json"))
        if not list(config.parent.glob("*.safetensors"))
    ]
    if bare:
        snapshot(name, tuple((part / "*.bin").as_posix() for part in bare), ignore)
    return folder
