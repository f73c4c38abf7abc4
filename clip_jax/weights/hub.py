"""Downloads checkpoints from the Hugging Face hub by name ("owner/name"); needs `huggingface_hub`."""

import logging
import re
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.presets import did_you_mean
from clip_jax.weights.files import one_line
from clip_jax.weights.hub_repositories import Published

CONFIGS = ("*.json", "*.txt", "*.model")

log = logging.getLogger(__name__)


def fetch(source: str) -> Path:
    """Downloads the config and weights of a repository and returns their directory.

    Args:
        source: "owner/name", or "hf-hub:owner/name" as in OpenCLIP.

    Raises:
        UserError: `source` is no such name, the repository does not exist, or the hub cannot be reached. The error
            suggests a preset with a similar name.
    """
    name = source.removeprefix("hf-hub:")
    if not is_hub_name(name):
        raise UserError(
            f"there is no {source}{did_you_mean(source)}: give a file, a directory, a name on the hub (owner/name), "
            "or a preset with weights="
        )
    return _fetch_whole(name)


def fetch_published(name: str, published: Published) -> Path:
    """Downloads the published weights of a preset and returns their directory or file. Logs the repository.

    Args:
        name: the preset, as the caller spelled it.
        published: the repository of its weights.

    Raises:
        UserError: the download fails; the error names the repository.
    """
    repository = published.repository
    log.warning("%s: the published weights are those of %s on the hub", name, repository)
    absent = f"{name} is published on the hub as {repository}"
    if not published.file:
        return _fetch_whole(repository, absent)
    folder = snapshot(repository, (*CONFIGS, published.file), ("*/*",), absent)
    return folder if published.has_config else folder / published.file


def _fetch_whole(name: str, absent: str | None = None) -> Path:
    """Downloads configs and weights: safetensors or npz, else torch's `.bin`, else Flax's `.msgpack`."""
    folder = snapshot(name, (*CONFIGS, "*.safetensors", "*.npz"), ("*/*",), absent)
    for kind in ("*.bin", "*.msgpack"):
        if any(file.suffix in (".safetensors", ".npz", ".bin") for file in folder.iterdir()):
            break
        folder = snapshot(name, (*CONFIGS, kind), ("*/*",), absent)
    return folder


def is_hub_name(name: str) -> bool:
    """Whether a text is "owner/name", neither of which begins or ends with a dot or a dash."""
    part = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
    return re.fullmatch(rf"{part}/{part}", name, re.ASCII) is not None


def snapshot(name: str, patterns: tuple[str, ...], ignore: tuple[str, ...], absent: str | None = None) -> Path:
    """Downloads the files of a repository that match, and returns their directory in the hub's cache.

    Args:
        name: "owner/name".
        patterns: shell patterns of the files to download.
        ignore: shell patterns of files to leave out.
        absent: the beginning of an error; None: "there is no file or directory …", as `name` may be a mistyped path.

    Raises:
        UserError: the hub cannot be reached, the repository does not exist, or `huggingface_hub` is not installed.
    """
    absent = absent or f"there is no file or directory {name} in {Path.cwd()}{did_you_mean(name)}"
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
    except Exception as error:  # huggingface_hub raises many types: network, HTTP, disk
        raise UserError(
            f"{absent}, and it cannot be fetched from the hub: {one_line(error)[:200]}; give the path of a directory"
        ) from error
