"""Which models a checkpoint holds, told from what remains of the names when what wrappers put before them is left out.

A training script wraps the model in others (data parallel, compiled, FSDP, a LightningModule), and each puts a word
before the names; so do dicts in dicts. No list of such words is tried: a model is where a name that only a CLIP has
ends a name of the checkpoint, and its prefix is what comes before. What lies outside the prefix is not the model's (a
loss, a classifier); what lies inside must all find its place.
"""

import re
from collections.abc import Iterable

from clip_jax.errors import UserError
from clip_jax.weights.rules import Checkpoint, Entry, some

# Names of which a tower has exactly one each; the longest that fits counts. Towers of transformers 5 that stand alone
# begin with `embeddings.`.
ANCHORS = sorted(
    (
        "visual.conv1.weight",
        "visual.patch_embed.proj.weight",
        "visual.trunk.patch_embed.proj.weight",
        "token_embedding.weight",
        "text.token_embedding.weight",
        "bert.embeddings.word_embeddings.weight",
        "text_model.embeddings.word_embeddings.weight",
        "text_model.embeddings.token_embedding.weight",
        "vision_model.embeddings.patch_embedding.weight",
        "embeddings.token_embedding.weight",
        "embeddings.patch_embedding.weight",
        "img/embedding/kernel",
        "txt/Embed_0/embedding",
    ),
    key=len,
    reverse=True,
)
# Modules that put their names inside those of others, and that no CLIP has: FSDP, checkpointing, compilation.
INSIDE = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|module)\.")
MOMENTS = re.compile(r"(^|[./])(opt|optim|optimizer|opt_state|optimizer_state\w*|exp_avg\w*|mu|nu)[./]")


def without_inner_wrappers(checkpoint: Checkpoint, where: str) -> dict[str, Entry]:
    """The same arrays without the names of wrappers inside theirs (`visual._orig_mod.conv1.weight`).

    Raises:
        UserError: two arrays then have the same name.
    """
    found: dict[str, Entry] = {}
    twice = []
    for name, entry in checkpoint.items():
        clean = INSIDE.sub("", name)
        if clean in found:
            twice.append(clean)
        found[clean] = entry
    if twice:
        raise UserError(f"{where} holds {some(twice, 2)} twice, once inside a wrapper: save the model without it")
    return found


def prefixes(names: Iterable[str], anchors: Iterable[str] = ANCHORS) -> list[str]:
    """What comes before the names of each model in a checkpoint, in their order; [""] for a plain one, [] for none.

    `anchors` are names of which each model has one, the longer ones first.
    """
    found: dict[str, None] = {}
    for name in names:
        for anchor in anchors:
            if name.endswith(anchor) and (len(name) == len(anchor) or name[-len(anchor) - 1] in "./"):
                prefix = name[: len(name) - len(anchor)]
                if not MOMENTS.search(prefix):
                    found[prefix] = None
                break
    return list(found)


def under(checkpoint: Checkpoint, prefix: str, others: Iterable[str]) -> dict[str, Entry]:
    """The arrays whose names begin with `prefix`, without it; those of the `others` inside it are left out."""
    longer = tuple(other for other in others if other != prefix and other.startswith(prefix))
    return {
        name.removeprefix(prefix): entry
        for name, entry in checkpoint.items()
        if name.startswith(prefix) and not (longer and name.startswith(longer))
    }
