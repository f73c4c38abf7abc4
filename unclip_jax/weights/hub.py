"""Published systems by their name on the hub, if `huggingface_hub` is installed: it is asked for nothing else."""

from __future__ import annotations

from pathlib import Path

from clip_jax.weights.hub import is_hub_name as is_name
from clip_jax.weights.hub import snapshot

__all__ = ["fetch_pipeline", "is_name"]


def fetch_pipeline(name: str) -> Path:
    """Where the configs and weights of a pipeline, or of a network alone, were put.

    Weights in torch's own files are fetched for the parts that have no others, and those in other precisions never.

    Raises: UserError when the name is unknown, the hub cannot be reached, or `huggingface_hub` is not installed.
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
