"""Options that several commands share. A command's own dataclass, beside the command, inherits from one of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from image_text.errors import UserError


def shown(metavar: str, default: str, name: str | None = None) -> Any:
    """How `--help` writes an option that may be left out.

    Args:
        metavar: what stands for its value.
        default: what it is without.
        name: of the flag, where the field cannot be called so.
    """
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=f"(default: {default})")


def positional(metavar: str) -> Any:
    """An option without a flag that must be given."""
    return tyro.conf.arg(metavar=metavar)


Image = Annotated[Path, tyro.conf.Positional, positional("IMAGE")]
Prompt = Annotated[str, tyro.conf.Positional, positional("PROMPT")]


@dataclass(frozen=True, kw_only=True)
class System:
    """Which system draws, and where its pictures go."""

    run: Annotated[Path | None, shown("DIR", "the weights that come with the package")] = None
    """Run directory of train.py."""
    weights: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, shown("DIR|OWNER/NAME", "none")] = ()
    """Published weights instead of a run: a directory of Karlo or Kandinsky 2.2 in the layout of diffusers, or its name
    on the hub. Give it again for another directory: Kandinsky's prior, or a prior to take the place of the first's."""
    out: Path = Path("samples")
    """Directory for the PNGs and the contact sheet."""

    def check(self) -> None:
        """Raises UserError for options that cannot be, before anything is loaded."""
        if self.weights and self.run is not None:
            raise UserError("--weights: pictures are drawn from published weights or from a run; leave out --run")


@dataclass(frozen=True, kw_only=True)
class Drawing(System):
    """What every command that draws is told."""

    num: int = 4
    """Pictures; of each prompt where there are several."""
    seed: int = 0
    """0 to 4294967295. A picture depends on the seed and its index, not on what else is drawn beside it."""
    steps: Annotated[int | None, shown("INT", "as the decoder was saved")] = None
    """Denoising steps of the decoder."""
    guidance_scale: Annotated[float | None, shown("FLOAT", "as the decoder was saved")] = None
    """Guidance of the decoder: 1 is off, larger follows the prompt more closely."""
    chunk: int = 1
    """Pictures computed together: more are faster on a GPU or TPU, but rounding may then depend on the neighbours."""

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
        """The folder of the prior that is used, in a run directory; None where none is used."""
        return None

    def sampling(self) -> dict[str, Any]:
        """Fields of the decoder's `Sampling` that the command lets one choose; None is as it was saved."""
        return {"num_steps": self.steps}


@dataclass(frozen=True, kw_only=True)
class FromPrompt(Drawing):
    """A prompt is drawn, for which the prior is needed."""

    prior: Annotated[str, shown("NAME", "prior")] = "prior"
    """Which prior of the run directory: prior, ar_prior or one_step_prior."""

    def prior_folder(self) -> str | None:
        """See `Drawing.prior_folder`."""
        return self.prior


@dataclass(frozen=True, kw_only=True)
class Sampled(FromPrompt):
    """A prompt is drawn, by any sampler."""

    sampler: Annotated[str | None, shown("STR", "as the decoder was saved")] = None
    """Sampler of the decoder: ddpm, ddim, dpmpp_2m, or euler and heun on the grid of Karras et al."""

    def sampling(self) -> dict[str, Any]:
        """See `Drawing.sampling`."""
        return super().sampling() | {"sampler": self.sampler}


@dataclass(frozen=True, kw_only=True)
class FromPicture(Drawing):
    """A picture is inverted to its noise by DDIM and decoded again, without a prompt and so without a prior."""

    steps: int = 50
    """Steps of DDIM, on the way up to the picture's noise and down again."""
    guidance_scale: float = 1.0
    """Guidance of the decoder: 1 is off, as pictures are inverted."""


def check_share(name: str, value: float, *, zero: bool) -> None:
    """Raises UserError unless a number is in [0, 1], or in (0, 1] where `zero` is no value."""
    if zero and not 0 <= value <= 1:
        raise UserError(f"--{name}: {value} is not between 0 and 1")
    if not zero and not 0 < value <= 1:
        raise UserError(f"--{name}: {value} is not more than 0 and at most 1")
