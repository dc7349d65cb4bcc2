"""What the stamps are: their classes, which are photographs and which drawings, their words and sounds, and the splits.

In: the folder of the package's stamps. Out: `Stamp`s of the classes below, and splits of the photographs.
A stamp is DIR/NAME.png (or NAME.svg), NAME.txt, NAME.ogg or .wav (the noise it makes) and NAME_desc_LANGUAGE.ogg (the
words of NAME.txt, spoken).

**Families.** Photographs with the same English description, and those whose names differ in a number only
(stoplight_01_red, stoplight_02_yellow; flower1, flower2), are one family and stay in one split. Mirrored copies
(NAME_mirror.png) are never used.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

# Folders, and single stamps that lie beside other mammals.
HOOFED = ["bovines", "camel", "deer", "equines", "giraffe", "hippopotamus", "rhino_black"]
HOOFED += ["pig", "pig_golden", "pig_golden2", "wildboar"]
# The longest prefix decides; folders that are not named have too few photographs, or are clip art (clothes, seasonal,
# town, people) or signs to write with (symbols).
CLASSES = {
    "animals/birds": "birds",
    "animals/fish": "sea-life",
    "animals/shellfish": "sea-life",
    "animals/insects": "insects",
    "animals/mammals": "mammals",
    "animals/marsupials": "mammals",
    **{f"animals/mammals/{name}": "hoofed" for name in HOOFED},
    "food/fruit": "fruit",
    "food/nuts": "fruit",
    "food/vegetables": "vegetables",
    "food/spices": "vegetables",
    "hobbies/music": "instruments",
    "household": "household",
    "household/tools": "tools",
    "plants": "plants",
    "plants/flowers": "flowers",
    "space": "space",
    "sports": "sports",
    "town/roadsigns": "road-signs",
    "vehicles": "vehicles",
    "vehicles/locomotive/cartoon/trainSign": "road-signs",
    "military/vehicles": "vehicles",
}
LEFT_OUT = {"toys"}  # folders: a teddy bear is no mammal
DRAWN = {"animals/mammals/hedgehog"}  # a drawing that neither its folder (cartoon) nor its file (.svg) tells
TEST_SHARE, VAL_SHARE, MIN_HELD_OUT = 0.3, 0.15, 2
MIN_PHOTOS = 8  # of a class: 4 train, 2 val, 2 test

ENGLISH = "en"
# Tamil was written in a font encoding (TSCII) and taken for Latin-1: the lines are UTF-8, but no Tamil.
MISENCODED_LANGUAGES = {"ta"}
TRANSLATION = re.compile(r"([A-Za-z]{2,3}(?:_[A-Z]{2})?(?:@[a-z]+)?)\.utf8=(.*)")
SPOKEN = r"(?P<spoken>_desc(?:_(?P<language>[A-Za-z]{2,3}(?:_[A-Z]{2})?))?)?"
SOUND = re.compile(rf"(?P<stem>.+?){SPOKEN}(?:\.ogg)?\.(?:ogg|wav)")
MIRRORED = re.compile(r"_(mirror|flip)$")


@dataclass(frozen=True)
class Sound:
    """A sound file; `language` is that of a spoken description, None for the noise the thing makes."""

    path: Path
    language: str | None


@dataclass(frozen=True)
class Stamp:
    """One stamp: `key` is DIR/NAME, `descriptions` maps a language to its sentence."""

    key: str
    label: str
    picture: Path
    is_drawing: bool
    descriptions: dict[str, str] = field(default_factory=dict)
    sounds: tuple[Sound, ...] = ()

    @property
    def words(self) -> set[str]:
        """The descriptions in every language, in the form in which two are compared."""
        return {comparable(text) for text in self.descriptions.values()}


@dataclass(frozen=True)
class Catalog:
    """Stamps of the classes with enough photographs, and the photographs of each class that has too few."""

    stamps: tuple[Stamp, ...]
    dropped: dict[str, int]
    unreadable_lines: int  # of .txt files: not UTF-8


SplitStamps = dict[str, list[Stamp]]  # train, val, test, drawings


def read_catalog(folder: Path, *, min_photos: int = MIN_PHOTOS) -> Catalog:
    """Read the stamps of every class with at least `min_photos` photographs, sorted by key."""
    sounds = _sounds_by_key(folder)
    stamps, unreadable = [], 0
    for key, pictures in sorted(_pictures_by_key(folder).items()):
        label = class_of(key)
        if label is None:
            continue
        drawn = ".svg" in pictures or "cartoon" in PurePosixPath(key).parts or key in DRAWN
        descriptions, bad_lines = read_descriptions(folder / f"{key}.txt")
        unreadable += bad_lines
        picture = pictures.get(".svg") or pictures[".png"]
        stamps.append(Stamp(key, label, picture, drawn, descriptions, tuple(sounds.get(key, ()))))
    photos = Counter(stamp.label for stamp in stamps if not stamp.is_drawing)
    dropped = {label: photos[label] for label in sorted({s.label for s in stamps}) if photos[label] < min_photos}
    return Catalog(tuple(stamp for stamp in stamps if stamp.label not in dropped), dropped, unreadable)


def class_of(key: str) -> str | None:
    """The class of DIR/NAME, by the longest prefix in CLASSES; None where no class takes it."""
    path = PurePosixPath(key)
    if LEFT_OUT & set(path.parts):
        return None
    return next((CLASSES[str(place)] for place in (path, *path.parents) if str(place) in CLASSES), None)


def read_descriptions(file: Path) -> tuple[dict[str, str], int]:
    """The sentences by language, {language: sentence}, of a .txt file, and the number of its lines that are not UTF-8.

    The first line is English, every other one `LANGUAGE.utf8=SENTENCE`. A missing file has no descriptions.
    """
    lines = file.read_bytes().splitlines() if file.is_file() else []
    descriptions, bad_lines = {}, 0
    for index, line in enumerate(lines):
        try:
            text = unicodedata.normalize("NFC", line.decode("utf-8-sig")).strip()
        except UnicodeDecodeError:
            bad_lines += 1
            continue
        translation = TRANSLATION.fullmatch(text)
        language, sentence = translation.groups() if translation else (ENGLISH if index == 0 else None, text)
        if language is not None and language not in MISENCODED_LANGUAGES and sentence.strip():
            descriptions[language] = sentence.strip()
    return descriptions, bad_lines


def comparable(text: str) -> str:
    """A sentence without case, punctuation and spacing: equal for two that say the same."""
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())


def split_stamps(stamps: Sequence[Stamp], *, seed: int) -> SplitStamps:
    """Split the photographs of every class by whole families: 30 % test, 15 % val (at least 2 each), the rest train.

    Drawings are a split of their own: a shifted test set.
    """
    splits: SplitStamps = {"train": [], "val": [], "test": [], "drawings": [s for s in stamps if s.is_drawing]}
    photos: dict[str, list[Stamp]] = defaultdict(list)
    for stamp in stamps:
        if not stamp.is_drawing:
            photos[stamp.label].append(stamp)
    for label, members in sorted(photos.items()):
        room = {
            "test": max(MIN_HELD_OUT, round(TEST_SHARE * len(members))),
            "val": max(MIN_HELD_OUT, round(VAL_SHARE * len(members))),
        }
        families = photo_families(members)
        random.Random(f"{seed}/{label}").shuffle(families)
        for family in families:
            split = next((name for name, left in room.items() if left >= len(family)), "train")
            splits[split] += family
            if split in room:
                room[split] -= len(family)
    return splits


def photo_families(photos: Sequence[Stamp]) -> list[list[Stamp]]:
    """Group photographs of one class by equal English description or names that differ in a number only."""
    family_of: dict[str, list[Stamp]] = {}  # sign → the family that has it
    for photo in photos:
        signs = {"name " + family_name(photo.key), "text " + comparable(photo.descriptions.get(ENGLISH, photo.key))}
        families = {id(family_of[sign]): family_of[sign] for sign in sorted(signs) if sign in family_of}
        merged = [stamp for family in families.values() for stamp in family] + [photo]
        family_of |= dict.fromkeys(signs, merged)
        family_of |= {sign: merged for sign, family in family_of.items() if id(family) in families}
    unique = {id(family): family for family in family_of.values()}
    return sorted((sorted(family, key=lambda stamp: stamp.key) for family in unique.values()), key=lambda f: f[0].key)


def family_name(key: str) -> str:
    """A stamp's name up to its first number, in lower case; the whole name where it begins with one."""
    name = PurePosixPath(key).name.lower()
    return re.split(r"\d", name)[0].strip("-_ ") or name


def held_out_words(splits: SplitStamps) -> set[str]:
    """Every description, in every language, of the pictures that are tested or selected on."""
    return {words for split in ("val", "test", "drawings") for stamp in splits[split] for words in stamp.words}


def unpaired_texts(splits: SplitStamps, languages: Iterable[str], *, name: str, seed: int) -> list[dict[str, str]]:
    """Descriptions of train photographs, shuffled, with ids that say nothing but the corpus's name.

    Left out: a sentence that also describes a held-out picture, and one that describes two classes.
    """
    held_out = held_out_words(splits)
    wanted = tuple(languages)
    found: dict[str, tuple[str, set[str]]] = {}
    for stamp in splits["train"]:
        for language in wanted:
            text = stamp.descriptions.get(language, "")
            if comparable(text) and comparable(text) not in held_out:
                found.setdefault(comparable(text), (text, set()))[1].add(stamp.label)
    pairs = sorted((text, *labels) for text, labels in found.values() if len(labels) == 1)
    random.Random(f"{seed}/{name}").shuffle(pairs)
    return [{"text": text, "label": label, "id": f"{name}-{index:05d}"} for index, (text, label) in enumerate(pairs)]


def unpaired_sounds(splits: SplitStamps, *, seed: int) -> list[tuple[Stamp, Sound]]:
    """The sounds of train photographs, shuffled; none that says the words of a held-out picture."""
    held_out = held_out_words(splits)
    found = []
    for stamp in splits["train"]:
        english = stamp.descriptions.get(ENGLISH, "")
        for sound in stamp.sounds:
            said = stamp.descriptions.get(sound.language or ENGLISH, english)
            if comparable(said) not in held_out and comparable(english) not in held_out:
                found.append((stamp, sound))
    found.sort(key=lambda pair: str(pair[1].path))
    random.Random(f"{seed}/sounds").shuffle(found)
    return found


def _pictures_by_key(folder: Path) -> dict[str, dict[str, Path]]:
    pictures: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in folder.rglob("*"):
        if file.suffix in (".png", ".svg") and not MIRRORED.search(file.stem):
            pictures[file.relative_to(folder).with_suffix("").as_posix()][file.suffix] = file
    return pictures


def _sounds_by_key(folder: Path) -> dict[str, list[Sound]]:
    sounds: dict[str, list[Sound]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        match = SOUND.fullmatch(file.name) if file.suffix in (".ogg", ".wav") else None
        if match:
            language = (match["language"] or ENGLISH) if match["spoken"] else None
            key = (file.relative_to(folder).parent / match["stem"]).as_posix()
            sounds[key].append(Sound(file, language))
    return sounds
