"""Prompt templates of zero-shot classification, as Radford et al. 2021 published them, by data set: `TEMPLATES`.

`{}` stands for the name of the class. Data sets, templates and their spelling ("a embroidered {}.") are those of
github.com/openai/CLIP, data/prompts.md and notebooks/Prompt_Engineering_for_ImageNet.ipynb (MIT licence).
"""

from collections.abc import Iterable


def _fill(patterns: Iterable[str], **choices: str) -> tuple[str, ...]:
    """Fills `<word>`s of the patterns with all combinations of their "|"-separated choices, the last word slowest."""
    filled = tuple(patterns)
    for word, values in choices.items():
        filled = tuple(pattern.replace(f"<{word}>", value) for value in values.split("|") for pattern in filled)
    return tuple(dict.fromkeys(filled))


IMAGENET = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
    "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
    "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
    "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.",
    "the origami {}.", "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.",
    "a origami {}.", "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.",
    "a photo of the clean {}.", "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.",
    "a photo of a weird {}.", "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.",
    "a sketch of the {}.", "a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}.",
    "a jpeg corrupted photo of the {}.", "a good photo of a {}.", "a plushie {}.", "a photo of the nice {}.",
    "a photo of the small {}.", "a photo of the weird {}.", "the cartoon {}.", "art of the {}.",
    "a drawing of the {}.", "a photo of the large {}.", "a black and white photo of a {}.", "the plushie {}.",
    "a dark photo of a {}.", "itap of a {}.", "graffiti of the {}.", "a toy {}.",
    "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.", "a tattoo of the {}.",
)  # fmt: skip

# Seven of the 80, whose ensemble is about as accurate (the end of OpenAI's notebook).
IMAGENET_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

CIFAR = _fill(
    (
        "a photo of <a> {}.",
        *(f"a {kind} photo of <a> {{}}." for kind in ("blurry", "black and white", "low contrast", "high contrast")),
        *("a bad photo of <a> {}.", "a good photo of <a> {}.", "a photo of <a> small {}.", "a photo of <a> big {}."),
    ),
    a="a|the",
)
CALTECH = _fill(
    (
        *(f"a {kind} of <a> {{}}." for kind in ("photo", "painting", "sculpture", "sketch", "tattoo", "rendition")),
        *("a drawing of <a> {}.", "a doodle of <a> {}.", "art of <a> {}.", "graffiti of <a> {}."),
        *(f"<a> {kind} {{}}." for kind in ("plastic", "toy", "embroidered", "cartoon", "plushie", "origami")),
        "<a> {} in a video game.",
    ),
    a="a|the",
)
DOING = "using|doing|during|performing|practicing"
SHOWN = "photo|video|example|demonstration"

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("a photo of a {}.",),
    "imagenet": IMAGENET,
    "imagenet7": IMAGENET_7,
    "birdsnap": ("a photo of a {}, a type of bird.",),
    "caltech101": CALTECH,
    "cars": (
        *("a photo of a {}.", "a photo of the {}.", "a photo of my {}.", "i love my {}!", "a photo of my dirty {}."),
        *("a photo of my clean {}.", "a photo of my new {}.", "a photo of my old {}."),
    ),
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "clevr_counts": ("a photo of {} objects.",),
    "country211": (
        *("a photo i took in {}.", "a photo i took while visiting {}.", "a photo from my home country of {}."),
        *("a photo from my visit to {}.", "a photo showing the country of {}."),
    ),
    "dtd": _fill(("a photo of <a> {} <what>.",), what="texture|pattern|thing|object", a="a|the"),
    "eurosat": ("a centered satellite photo of {}.", *_fill(("a centered satellite photo of <a> {}.",), a="a|the")),
    "fer2013": (
        *(
            "a photo of a {} looking face.",
            "a photo of a face showing the emotion: {}.",
            "a photo of a face looking {}.",
        ),
        *("a face that looks {}.", "they look {}.", "look at how {} they are."),
    ),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft."),
    "food101": ("a photo of {}, a type of food.",),
    "gtsrb": _fill(('a <how> photo of a "{}" traffic sign.',), how="zoomed in|centered|close up"),
    "hateful_memes": ("a {}.",),
    "kinetics700": _fill(
        ("a <kind> of {}.", "a <kind> of a person {}.", "a <kind> of a person <doing> {}."), doing=DOING, kind=SHOWN
    ),
    "kitti": ("{}",),
    "mnist": ('a photo of the number: "{}".',),
    "oxford_flowers102": ("a photo of a {}, a type of flower.",),
    "oxford_iiit_pet": ("a photo of a {}, a type of pet.",),
    "patch_camelyon": ("this is a photo of {}",),
    "resisc45": _fill(
        ("<from> <kind> of <a>{}.",), **{"from": "satellite|aerial", "kind": "imagery|photo|view", "a": "|a |the "}
    ),
    "rendered_sst2": ("a {} review of a movie.",),
    "stl10": ("a photo of a {}.", "a photo of the {}."),
    "sun397": ("a photo of a {}.", "a photo of the {}."),
    "ucf101": _fill(
        ("a <kind> of <a> person {}.", "a <kind> of <a> person <doing> {}."), kind=SHOWN, a="a|the", doing=DOING
    ),
    "voc2007": ("a photo of a {}.",),
}
