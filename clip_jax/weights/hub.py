"""Checkpoints by their name on the Hugging Face hub, "owner/name", if `huggingface_hub` is installed."""

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
    """The directory that the files of a CLIP on the hub were put in.

    Args:
        source: "owner/name", also with OpenCLIP's "hf-hub:" before it.

    Raises:
        UserError: it is no such name, cannot be reached, or is not there. It suggests the name of a preset that is
            spelled nearly so.
    """
    name = source.removeprefix("hf-hub:")
    if not is_hub_name(name):
        raise UserError(
            f"there is no {source}{did_you_mean(source)}: give a file, a directory, a name on the hub (owner/name), "
            "or a preset with weights="
        )
    return _fetch_whole(name)


def fetch_published(name: str, published: Published) -> Path:
    """The directory or file that the published weights of a preset were put in. A line of the log says whose they are.

    Args:
        name: of the preset, as the caller wrote it.
        published: where its weights are.

    Raises:
        UserError: they cannot be fetched; it names the repository.
    """
    repository = published.repository
    log.warning("%s: the published weights are those of %s on the hub", name, repository)
    absent = f"{name} is published on the hub as {repository}"
    if not published.file:
        return _fetch_whole(repository, absent)
    folder = snapshot(repository, (*CONFIGS, published.file), ("*/*",), absent)
    return folder if published.has_config else folder / published.file


def _fetch_whole(name: str, absent: str | None = None) -> Path:
    """The configs and weights of a repository. Torch's own files, and Flax's, are fetched where there are no others."""
    folder = snapshot(name, (*CONFIGS, "*.safetensors", "*.npz"), ("*/*",), absent)
    for kind in ("*.bin", "*.msgpack"):
        if any(file.suffix in (".safetensors", ".npz", ".bin") for file in folder.iterdir()):
            break
        folder = snapshot(name, (*CONFIGS, kind), ("*/*",), absent)
    return folder


def is_hub_name(name: str) -> bool:
    """Whether a name could be one on the hub: "owner/name", neither of which begins or ends with a dot or a dash."""
    part = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
    return re.fullmatch(rf"{part}/{part}", name, re.ASCII) is not None


def snapshot(name: str, patterns: tuple[str, ...], ignore: tuple[str, ...], absent: str | None = None) -> Path:
    """The directory that those of a repository's files were put in whose names match.

    Args:
        name: "owner/name".
        patterns: of the files to fetch, as a shell has them.
        ignore: of files to leave out of these.
        absent: how an error begins; None: there is no such file or directory, as a mistyped path looks like a name.

    Raises:
        UserError: the hub cannot be reached, knows no such name, or `huggingface_hub` is not installed.
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
    except Exception as error:  # whatever goes wrong between here and there
        raise UserError(
            f"{absent}, and it cannot be fetched from the hub: {one_line(error)[:200]}; give the path of a directory"
        ) from error
