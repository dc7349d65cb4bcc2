"""What is passed over in a folder, of a corpus or of inputs for prediction: it is counted and named, never silent."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from uml_core.corpora.readers.base import ENDINGS, PACKAGES, SUFFIXES
from uml_core.errors import listing

logger = logging.getLogger(__name__)


@dataclass
class Census:
    """What was passed over while walking: files of other endings, and folders without a usable file."""

    modality: str
    other_endings: Counter[str] = field(default_factory=Counter)
    barren: list[str] = field(default_factory=list)

    def warn(self, setting: str) -> None:
        """Say it, of the corpus or inputs that a setting names."""
        known = listing(sorted(SUFFIXES[self.modality]), limit=12)
        if self.barren:
            logger.warning("%s: no %s file in %s", setting, self.modality, listing(self.barren))
        if self.other_endings:
            shown = listing(f"{ending or 'none'} ({count})" for ending, count in self.other_endings.most_common(9))
            packages = _packages(self.modality, self.other_endings)
            logger.warning("%s: files of other endings are left out: %s; known: %s%s", setting, shown, known, packages)


def no_file(location: str, modality: str, found: Iterable[str] = ()) -> str:
    known = listing(sorted(SUFFIXES[modality]), limit=12)
    return f"{location} holds no {modality} file; known endings are {known}{_packages(modality, found)}"


def _packages(modality: str, endings: Iterable[str]) -> str:
    """What to install for the endings that a package would read, in words."""
    found = [ending for ending in endings if ending in PACKAGES and ending in ENDINGS[modality].split()]
    return f"; for {listing(found)}: pip install {PACKAGES[found[0]]}" if found else ""
