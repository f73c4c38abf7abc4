"""Dataclasses of the options that several commands share; the dataclass of each command inherits from one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from image_text.errors import UserError


def shown(metavar: str, default: str, name: str | None = None) -> Any:
    """Settings of an option for tyro: how `--help` shows its value and its default.

    Args:
        metavar: placeholder of the value, "DIR" for example.
        default: description of the default.
        name: name of the flag, where it differs from that of the field.
    """
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=f"(default: {default})")


def positional(metavar: str) -> Any:
    """Settings of a required positional argument for tyro, shown as `metavar`."""
    return tyro.conf.arg(metavar=metavar)


Image = Annotated[Path, tyro.conf.Positional, positional("IMAGE")]
Prompt = Annotated[str, tyro.conf.Positional, positional("PROMPT")]


@dataclass(frozen=True, kw_only=True)
class System:
    """Which system draws, and where its pictures go."""

    run: Annotated[Path | None, shown("DIR", "the weights that come with the package")] = None
    """Run directory written by train.py."""
    weights: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, shown("DIR|OWNER/NAME", "none")] = ()
    """Published weights (Karlo or Kandinsky 2.2) instead of a run: a directory in the layout of diffusers,
    or its OWNER/NAME on the Hugging Face hub.
    Give the option again for a second one: Kandinsky's prior, or a prior (ECLIPSE) that replaces that of the first."""
    out: Path = Path("samples")
    """Directory for the PNGs and the contact sheet, created if absent; other pictures in it are not overwritten."""

    def check(self) -> None:
        """Checks the options before anything is loaded.

        Raises:
            UserError: an option is out of range, or two options exclude each other.
        """
        if self.weights and self.run is not None:
            raise UserError("--weights: pictures are drawn from published weights or from a run; leave out --run")


@dataclass(frozen=True, kw_only=True)
class Drawing(System):
    """Options of every command that draws."""

    num: int = 4
    """Number of pictures; with several prompts, of each prompt."""
    seed: int = 0
    """Random seed, 0 to 4294967295. A picture depends on the seed and its own index, not on the other pictures."""
    steps: Annotated[int | None, shown("INT", "as the decoder was saved")] = None
    """Sampling steps of the decoder, from 1 to the length of its noise schedule."""
    guidance_scale: Annotated[float | None, shown("FLOAT", "as the decoder was saved")] = None
    """Guidance scale of the decoder, 0 to 100: 1 is off, larger values follow the prompt more closely."""
    chunk: int = 1
    """Batch size: pictures computed together. Larger is faster on a GPU or TPU.
    With more than 1 the rounding of a picture may depend on the others of its batch."""

    def check(self) -> None:
        """See `System.check`."""
        super().check()
        for name in ("num", "chunk", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}: {value} is less than 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed: {self.seed} is not between 0 and 4294967295")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= 100:
            raise UserError(f"--guidance-scale: {self.guidance_scale} is not between 0 and 100")

    def prior_folder(self) -> str | None:
        """Folder of the prior in a run directory; None for a command that uses no prior."""
        return None

    def sampling(self) -> dict[str, Any]:
        """Fields of the decoder's `Sampling` that the command sets, by name; None keeps the saved value."""
        return {"num_steps": self.steps}


@dataclass(frozen=True, kw_only=True)
class FromPrompt(Drawing):
    """Options of commands that draw a prompt, and so use a prior."""

    prior: Annotated[str, shown("NAME", "prior")] = "prior"
    """Prior to use, by its folder in the run directory: prior (diffusion), ar_prior or one_step_prior."""

    def prior_folder(self) -> str | None:
        """See `Drawing.prior_folder`."""
        return self.prior


@dataclass(frozen=True, kw_only=True)
class Sampled(FromPrompt):
    """Options of commands that draw a prompt by any sampler."""

    sampler: Annotated[str | None, shown("STR", "as the decoder was saved")] = None
    """Sampler of the decoder: ddpm, ddim, dpmpp_2m (DPM-Solver++), or euler or heun (timesteps of Karras et al.).
    Also ddpm_learned, for a decoder with a learned variance, and ddpm_analytic, for one with a measured x0 error."""

    def sampling(self) -> dict[str, Any]:
        """See `Drawing.sampling`."""
        return super().sampling() | {"sampler": self.sampler}


@dataclass(frozen=True, kw_only=True)
class FromPicture(Drawing):
    """Options of commands that invert a picture to its noise by DDIM and decode it again, without prompt and prior."""

    steps: int = 50
    """DDIM steps of the decoder, for the inversion of a picture to noise and for the decoding from it."""
    guidance_scale: float = 1.0
    """Guidance scale of the decoder, 0 to 100: 1 is off, as in the inversion, and reconstructs a picture best."""


def check_share(name: str, value: float, *, zero: bool) -> None:
    """Checks an option that is a share.

    Args:
        name: name of the option, for the message.
        value: its value.
        zero: whether the range is [0, 1] instead of (0, 1].

    Raises:
        UserError: the value is out of range, or NaN.
    """
    if zero and not 0 <= value <= 1:
        raise UserError(f"--{name}: {value} is not between 0 and 1")
    if not zero and not 0 < value <= 1:
        raise UserError(f"--{name}: {value} is not more than 0 and at most 1")
