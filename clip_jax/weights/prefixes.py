"""Finds the models in a checkpoint by the prefixes that wrappers put before the parameter names.

Wrappers of training scripts (data parallel, `torch.compile`, FSDP, a LightningModule) and nested dicts add prefixes.
There is no list of known prefixes: where a name ends with one that only a CLIP has (an anchor), the text before the
anchor is the prefix of a model. Arrays without the prefix are not part of the model (a loss, a classifier); arrays with
it must all be named by a rule.
"""

import re
from collections.abc import Iterable

from clip_jax.errors import UserError
from clip_jax.weights.rules import Checkpoint, Entry, some

# Anchors: each tower has exactly one of these names. The longest match counts. Single towers of transformers 5 begin
# with `embeddings.`.
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
# Wrappers that add a component inside a name: FSDP, gradient checkpointing, `torch.compile`. No CLIP has these names.
INSIDE = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|module)\.")
# Prefixes of optimizer states, which hold arrays (Adam's moments) under the names of the parameters.
MOMENTS = re.compile(r"(^|[./])(opt|optim|optimizer|opt_state|optimizer_state\w*|exp_avg\w*|mu|nu)[./]")


def without_inner_wrappers(checkpoint: Checkpoint, where: str) -> dict[str, Entry]:
    """The checkpoint without wrappers inside its names: `visual._orig_mod.conv1.weight` -> `visual.conv1.weight`.

    Raises:
        UserError: two arrays then have the same name.
    """
    entries: dict[str, Entry] = {}
    twice = []
    for name, entry in checkpoint.items():
        clean = INSIDE.sub("", name)
        if clean in entries:
            twice.append(clean)
        entries[clean] = entry
    if twice:
        raise UserError(f"{where} holds {some(twice, 2)} twice, once inside a wrapper: save the model without it")
    return entries


def prefixes(names: Iterable[str], anchors: Iterable[str] = ANCHORS) -> list[str]:
    """The prefixes of the models in a checkpoint, in the order of its names.

    Args:
        names: the names of its arrays.
        anchors: names of which each tower has one, the longer ones first.

    Returns:
        [""] for one model without a prefix; [] where no name ends with an anchor.
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
    """The arrays of the model with a prefix, by their names without the prefix.

    Args:
        checkpoint: the arrays of all models.
        prefix: the prefix of the model.
        others: the prefixes of all models; arrays of one that is nested in this model are left out.
    """
    longer = tuple(other for other in others if other != prefix and other.startswith(prefix))
    return {
        name.removeprefix(prefix): entry
        for name, entry in checkpoint.items()
        if name.startswith(prefix) and not (longer and name.startswith(longer))
    }
