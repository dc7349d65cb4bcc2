"""Published prompts for class names, by name: `{class}` stands for the class.

The sets are those of the CLIP paper (Radford et al., arXiv 2103.00020, section 3.1.4 and its published prompts):
one sentence for every data set, the prompts of single data sets, and the seven that together do best on ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping

PLACEHOLDER = "{class}"

_TEXTURE_NOUNS = ("texture", "pattern", "thing", "object")

TEMPLATE_SETS: Mapping[str, tuple[str, ...]] = {
    "single": ("a photo of a {class}.",),
    "imagenet_7": (
        "itap of a {class}.",
        "a bad photo of the {class}.",
        "a origami {class}.",
        "a photo of the large {class}.",
        "a {class} in a video game.",
        "art of the {class}.",
        "a photo of the small {class}.",
    ),
    "oxford_pets": ("a photo of a {class}, a type of pet.",),
    "flowers102": ("a photo of a {class}, a type of flower.",),
    "food101": ("a photo of {class}, a type of food.",),
    "fgvc_aircraft": ("a photo of a {class}, a type of aircraft.", "a photo of the {class}, a type of aircraft."),
    "stanford_cars": (
        *(f"a photo of {article} {{class}}." for article in ("a", "the", "my")),
        "i love my {class}!",
        *(f"a photo of my {adjective} {{class}}." for adjective in ("dirty", "clean", "new", "old")),
    ),
    "sun397": ("a photo of a {class}.", "a photo of the {class}."),
    "dtd": tuple(f"a photo of {article} {{class}} {noun}." for article in ("a", "the") for noun in _TEXTURE_NOUNS),
    "eurosat": (
        "a centered satellite photo of {class}.",
        "a centered satellite photo of a {class}.",
        "a centered satellite photo of the {class}.",
    ),
}


def templates_of(templates: tuple[str, ...], template_set: str | None) -> tuple[str, ...]:
    """A corpus's own templates, else the published set it names, else "a photo of a {class}."."""
    return templates or TEMPLATE_SETS[template_set or "single"]


def filled(template: str, name: str) -> str:
    """The sentence of a template about a readable class name."""
    return template.replace(PLACEHOLDER, name)


def readable(label: str) -> str:
    """A class name as it stands in a sentence: underscores become spaces."""
    return " ".join(label.replace("_", " ").split())
