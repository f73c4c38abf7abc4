"""`draw "a prompt" ...`: draws pictures from prompts (text to image)."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import tyro

from image_text.errors import UserError
from unclip_jax.commands.drawing import Job, guidance_scale
from unclip_jax.commands.options import Sampled, shown
from unclip_jax.pipeline import Guidance, LoadedUnCLIP, generate_jit


@dataclass(frozen=True, kw_only=True)
class Draw(Sampled):
    """Draws pictures from prompts."""

    prompt: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT ...", help_behavior_hint="")
    ] = ()
    """What to draw, each prompt in quotes; several are drawn one after the other."""
    prompts: Annotated[Path | None, shown("FILE", "none")] = None
    """UTF-8 text file with one prompt per line, drawn after those of the command line; empty lines are skipped."""

    def check(self) -> None:
        """See `System.check`."""
        super().check()
        if not self.all_prompts:
            where = f"{self.prompts} is empty" if self.prompts else "none was given"
            raise UserError(f'prompt: {where}; say what to draw, "a small red circle in the top left" for example')

    @cached_property
    def all_prompts(self) -> list[str]:
        """The prompts of the command line, then those of the file.

        Cached, because the file may be a pipe, which can be read only once.

        Raises:
            UserError: the file is not UTF-8 text.
            OSError: the file cannot be read.
        """
        lines = [] if self.prompts is None else lines_of(self.prompts)
        return [*self.prompt, *(line.strip() for line in lines if line.strip())]


def job(options: Draw, loaded: LoadedUnCLIP) -> Job:
    """The job of `draw`: `options.num` pictures of each prompt.

    Args:
        options: options of the command.
        loaded: the system that draws.
    """
    prompts = options.all_prompts
    scale, saved = guidance_scale(options, loaded), loaded.unclip.decoder.sampling.guidance_scale
    # The scale is traced, so that another one does not compile again. If it is off here and in the decoder, none is
    # given, and the unconditional branch is not run.
    off = scale in (None, 1.0) and saved in (None, 1.0)
    guidance = Guidance() if off else Guidance(decoder=jnp.float32(scale))
    return Job(
        command="draw",
        titles=prompts,
        originals=[],
        values=[{"prompt": prompt} for prompt in prompts],
        inputs=lambda titles, indices: loaded.tokenize([prompts[title] for title in titles]),
        program=lambda params, tokens, keys: generate_jit(loaded.unclip, params, tokens, keys, guidance=guidance),
    )


def lines_of(path: Path) -> list[str]:
    """Reads the lines of a text file in UTF-8, or in UTF-16 with a byte order mark; the mark is removed.

    Args:
        path: the file.

    Returns:
        The lines without their line ends.

    Raises:
        UserError: the file has another encoding; the message names the first such line and says what to do.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text = content.decode("utf-16")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:  # UTF-32-LE begins with the same two bytes
            raise UserError(f"{path} begins like UTF-16 and is not; save the file as UTF-8")
        return text.splitlines()
    if b"\0" in content:
        raise UserError(f"{path} holds NUL characters, as UTF-16 does; save the file as UTF-8")
    lines = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"{path}: line {number} is not UTF-8; save the file as UTF-8") from None
    return lines
