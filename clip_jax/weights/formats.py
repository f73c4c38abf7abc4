"""Which format a checkpoint is in, told from the names in it."""

from clip_jax.errors import UserError
from clip_jax.weights import big_vision, chinese_clip, eva, huggingface, openai, stable_diffusion
from clip_jax.weights.rules import Checkpoint, Entry, Format, some

FORMATS: dict[str, Format] = {
    table.name: table
    for table in (openai.FORMAT, huggingface.FORMAT, eva.FORMAT, chinese_clip.FORMAT, big_vision.FORMAT)
}
WRAPPERS = ("module.", "_orig_mod.")  # torch's data-parallel and compiled models


def recognise(checkpoint: Checkpoint, part: str | None, where: str) -> tuple[Format, dict[str, Entry]]:
    """The format of a checkpoint, and the checkpoint in the names of its table.

    Raises: UserError when it is none of them, or `part` is asked for where there are no parts.
    """
    found = dict(checkpoint)
    for wrapper in WRAPPERS:
        if found and all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): entry for name, entry in found.items()}
    inside = stable_diffusion.find(found, part, where)
    if inside:
        table, found = inside
        return table, _with_prefix(found)
    if part is not None:
        raise UserError(f"{where} is one model: part={part!r} is for Stable Diffusion's files, leave it out")
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


def _with_prefix(found: dict[str, Entry]) -> dict[str, Entry]:
    """Towers that transformers 5 wrote without the prefix they have in a whole model get it back."""
    for first, prefix in (
        ("embeddings.token_embedding", "text_model."),
        ("embeddings.patch_embedding", "vision_model."),
    ):
        if f"{first}.weight" in found:
            return {name if name.startswith(prefix) else prefix + name: entry for name, entry in found.items()}
    return found
