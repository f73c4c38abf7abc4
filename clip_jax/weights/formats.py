"""Recognises the format of a checkpoint by the names of its arrays."""

from clip_jax.errors import UserError
from clip_jax.weights import big_vision, chinese_clip, eva, huggingface, openai, stable_diffusion
from clip_jax.weights.prefixes import prefixes, under, without_inner_wrappers
from clip_jax.weights.rules import Checkpoint, Entry, Format, some

FORMATS: dict[str, Format] = {
    table.name: table
    for table in (openai.FORMAT, huggingface.FORMAT, eva.FORMAT, chinese_clip.FORMAT, big_vision.FORMAT)
}


def recognise(checkpoint: Checkpoint, part: str | None, where: str) -> tuple[Format, dict[str, Entry]]:
    """The format of a checkpoint, and its arrays by the names in the table of that format.

    Args:
        checkpoint: the arrays by their names.
        where: how an error names the checkpoint.
        part: which model to take of a file with several: the name of a text encoder of Stable Diffusion
            ("text_encoder_2"), or the prefix of the model's names ("ema").

    Raises:
        UserError: the format is not known; the checkpoint holds several models and `part` names none of them; or
            `part` is given for a checkpoint of one model.
    """
    names = without_inner_wrappers(checkpoint, where)
    models = prefixes(names)
    prefix = _choose(models, part, where)
    found = under(names, prefix, models)
    if place := stable_diffusion.place_of(prefix):
        table, found = place_format(found, where)
        return stable_diffusion.encoder(table, place.activation, place.part), found
    table, found = place_format(found, where)
    if table is huggingface.FORMAT and stable_diffusion.is_encoder(found):
        return table._replace(infer=lambda checkpoint: stable_diffusion.infer_alone(checkpoint, where)), found
    return table, found


def place_format(found: dict[str, Entry], where: str) -> tuple[Format, dict[str, Entry]]:
    """The format of a model whose names have no wrapper's prefix, and its arrays by the names in the format's table.

    Raises:
        UserError: the format is not known, or the image tower is timm's.
    """
    if any(name.startswith(("params/img/", "params/txt/", "img/", "txt/")) for name in found):
        return big_vision.FORMAT, big_vision.unrolled(found)
    if any(name.startswith("bert.") for name in found):
        return chinese_clip.FORMAT, found
    if any(".trunk." in name for name in found):
        raise UserError(
            f"{where} has an image tower of timm (visual.trunk.*), which is not supported: take the original"
        )
    found = {name.removeprefix("text.") if name.startswith("text.") else name: entry for name, entry in found.items()}
    if any(name.startswith("visual.blocks.") for name in found):
        return eva.FORMAT, found
    if any(name.startswith(("visual.", "transformer.resblocks.")) for name in found):
        return openai.FORMAT, found
    found = _with_prefix(found)
    if any(name.startswith(("text_model.", "vision_model.")) for name in found):
        return huggingface.FORMAT, found
    raise UserError(f"{where} is of no known format: it holds {some(sorted(found), 4)}; a CLIP's weights are needed")


def _choose(models: list[str], part: str | None, where: str) -> str:
    """The prefix of the model to read; "" where no names have one."""
    labels = {prefix: _label(prefix) for prefix in models}
    chosen = [prefix for prefix in models if part is None or part in (labels[prefix], prefix, prefix.rstrip("./"))]
    if len(chosen) == 1:
        return chosen[0]
    if len(models) > 1:
        choices = " or ".join(f'part="{label}"' for label in dict.fromkeys(labels.values()))
        raise UserError(f"{where} holds {len(models)} models, part is {part!r}: choose {choices}")
    if part is not None:
        only = f" ({labels[models[0]]})" if models and labels[models[0]] else ""
        raise UserError(f"{where} is one model{only}: part={part!r} is for files that hold several, leave it out")
    return ""


def _label(prefix: str) -> str:
    place = stable_diffusion.place_of(prefix)
    return place.part if place else prefix.rstrip("./")


def _with_prefix(found: dict[str, Entry]) -> dict[str, Entry]:
    """Puts back the prefix of a tower (`text_model.`, `vision_model.`) that transformers 5 leaves out."""
    for first, prefix in (
        ("embeddings.token_embedding", "text_model."),
        ("embeddings.patch_embedding", "vision_model."),
    ):
        if f"{first}.weight" in found:
            return {name if name.startswith(prefix) else prefix + name: entry for name, entry in found.items()}
    return found
