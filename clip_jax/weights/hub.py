"""Checkpoints by their name on the hub, "owner/name", if `huggingface_hub` is installed."""

import re
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.weights.files import one_line

CONFIGS = ("*.json", "*.txt", "*.model")


def fetch(source: str) -> Path:
    """Where the files of a CLIP on the hub were put. Torch's own files, and Flax's, are fetched if there are no others.

    Raises: UserError when it is no such name, cannot be reached, or is not there.
    """
    name = source.removeprefix("hf-hub:")
    if not is_hub_name(name):
        raise UserError(
            f"there is no {source}: give a file, a directory, a name on the hub (owner/name), or a preset with weights="
        )
    folder = snapshot(name, (*CONFIGS, "*.safetensors", "*.npz"), ("*/*",))
    for kind in ("*.bin", "*.msgpack"):
        if any(file.suffix in (".safetensors", ".npz", ".bin") for file in folder.iterdir()):
            break
        folder = snapshot(name, (*CONFIGS, kind), ("*/*",))
    return folder


def is_hub_name(name: str) -> bool:
    """Whether a name could be one on the hub: "owner/name", neither of which begins or ends with a dot or a dash."""
    part = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
    return re.fullmatch(rf"{part}/{part}", name, re.ASCII) is not None


def snapshot(name: str, patterns: tuple[str, ...], ignore: tuple[str, ...]) -> Path:
    """Where the hub's files of a name that match were put.

    Raises: UserError when it cannot be reached, knows no such name, or `huggingface_hub` is not installed. It also says
        that there is no such directory: a mistyped path looks like a name.
    """
    absent = f"there is no file or directory {name} in {Path.cwd()}"
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{absent}, and huggingface_hub, which would fetch it as a name on the hub, is not installed: "
            "pip install huggingface_hub, or download it and give the directory"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(ignore))
        )
    except Exception as error:  # whatever goes wrong between here and there
        raise UserError(
            f"{absent}, and it cannot be fetched from the hub: {one_line(error)[:200]}; give the path of a directory"
        ) from error
