"""Write the tuxpaint corpora: photographs, and descriptions and sounds that nothing pairs with them.

In: Debian's package tuxpaint-stamps-default (GPL-2), fetched through apt, or given. Out, in one folder:

    photos/{train,val,test,drawings}/CLASS/FILE.png   drawings: the same classes drawn, a shifted test set
    descriptions.jsonl     text, label, id: what is said of train photographs, in English
    translations.jsonl     the same in nine other languages, a corpus of its own
    sounds/CLASS/FILE.ogg  the same spoken in a dozen languages, and the noises the things make
    ATTRIBUTION.txt        whose work this is; corpora.json: what was written, and that it is finished

    python examples/tuxpaint/prepare.py --output runs/tuxpaint/corpora
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

if __package__ in (None, ""):  # run as a file: the repository is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.tuxpaint.fetch import PACKAGE, STAMPS_IN_PACKAGE, download_package, unpack_stamps
from examples.tuxpaint.pictures import MARGIN, SIDE, square_png
from examples.tuxpaint.stamps import (
    ENGLISH,
    MIN_PHOTOS,
    MISENCODED_LANGUAGES,
    Catalog,
    SplitStamps,
    read_catalog,
    split_stamps,
    unpaired_sounds,
    unpaired_texts,
)
from uml_core.config import hash_of
from uml_core.errors import InputError, listing

MARKER = "corpora.json"
OUTPUTS = ("photos", "sounds", "descriptions.jsonl", "translations.jsonl", "ATTRIBUTION.txt")
LAYOUT = 1  # raise it when the same package and parameters are to be written differently
MIN_MIN_PHOTOS = 5  # 2 test, 2 val, 1 train
# Of the translations. A text encoder trained on English has word pieces for Latin script, and knows many of the words.
LANGUAGES = ("ca", "da", "de", "es", "fr", "it", "nl", "pt", "ro")
ATTRIBUTION = (
    "Tux Paint stamps, copyright 2002-2022 by Bill Kendrick <bill@newbreedsoftware.com> and contributors, "
    "GNU General Public License version 2 or later (Debian package tuxpaint-stamps-default)."
)
CHANGES = """

Changes: pictures cut to what is visible, put on white squares, drawings rendered; files renamed.
Sounds and descriptions are as they were. Whoever passes these files on does so under the same licence:
see /usr/share/doc/tuxpaint-stamps-default/copyright in the package.
"""

Summary = dict[str, Any]


def prepare(
    output_dir: Path,
    *,
    deb: Path | None = None,
    stamps: Path | None = None,
    cache: Path | None = None,
    parameters: dict[str, Any],
) -> Summary:
    """Write the corpora; the same package and parameters give the same files, byte for byte.

    A finished folder is left as it is, and nothing is fetched for it; one of other parameters is written anew. All is
    written beside it first: what is cut off leaves the folder alone.

    Args:
        output_dir: a new folder, or one this function wrote.
        deb: the package as a file; None fetches it through apt.
        stamps: the package's unpacked folder of stamps, in place of `deb`.
        cache: where the package is kept and unpacked; None is the folder `package` beside `output_dir`.
        parameters: seed, min_photos and languages.

    Returns:
        What was written: classes, counts per split and class, texts, sounds, classes dropped.

    Raises:
        InputError: an argument is not allowed, the package cannot be had, or the folder holds something else.
    """
    _check(deb, stamps, parameters)
    packages = {name: version(name) for name in ("pillow", "resvg-py")}
    source = _source(deb, stamps)
    fingerprint = hash_of(
        {"layout": LAYOUT, "side": SIDE, "margin": MARGIN, "packages": packages, "source": source, **parameters}
    )
    state = _read_state(output_dir)
    is_finished = state.get("summary") and all((output_dir / name).exists() for name in OUTPUTS)
    if is_finished and state["fingerprint"] == fingerprint:
        return dict(state["summary"])
    folder = stamps or _fetch(deb, cache or output_dir.parent / "package")
    catalog = read_catalog(folder, min_photos=parameters["min_photos"])
    if not catalog.stamps:
        most = max(catalog.dropped.values(), default=0)
        raise InputError(
            f"{folder} has no class with {parameters['min_photos']} photographs (the largest has {most}); "
            f"give the folder {STAMPS_IN_PACKAGE} of {PACKAGE}, or a smaller --min-photos"
        )
    unfinished = output_dir.resolve().with_name(f".{output_dir.resolve().name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "sounds").mkdir(parents=True)
    summary = _write_all(unfinished, catalog, parameters)
    state = {"fingerprint": fingerprint, "summary": summary}
    (unfinished / MARKER).write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / MARKER).unlink(missing_ok=True)
    for name in (*OUTPUTS, MARKER):  # the marker last: where it is, all else is
        if (output_dir / name).is_dir():
            shutil.rmtree(output_dir / name)
        (unfinished / name).replace(output_dir / name)
    unfinished.rmdir()
    return summary


def _check(deb: Path | None, stamps: Path | None, parameters: dict[str, Any]) -> None:
    if deb is not None and stamps is not None:
        raise InputError("--deb and --stamps are both given; give one of them")
    if deb is not None and not deb.is_file():
        raise InputError(f"--deb {deb} does not exist; give the path of a {PACKAGE}_*.deb")
    if stamps is not None and not stamps.is_dir():
        raise InputError(f"--stamps {stamps} is no folder; give the path of {STAMPS_IN_PACKAGE}")
    if parameters["min_photos"] < MIN_MIN_PHOTOS:
        raise InputError(
            f"--min-photos is {parameters['min_photos']}; expected at least {MIN_MIN_PHOTOS}: every split needs some"
        )
    unknown = [language for language in parameters["languages"] if language in {ENGLISH, *MISENCODED_LANGUAGES}]
    if unknown or not parameters["languages"]:
        raise InputError(
            f"--languages is '{' '.join(parameters['languages'])}'; give languages of the package's .txt files, "
            f"such as fr de pt_BR, not {ENGLISH} (it has its own file) or {listing(MISENCODED_LANGUAGES)} (misencoded)"
        )


def _source(deb: Path | None, stamps: Path | None) -> str:
    """What tells one package from another: its file's name and size, or its files' names and sizes."""
    if stamps is not None:
        files = sorted(file for file in stamps.rglob("*") if file.is_file())
        return hash_of([[file.relative_to(stamps).as_posix(), file.stat().st_size] for file in files])
    return "apt" if deb is None else f"{deb.name} {deb.stat().st_size}"


def _fetch(deb: Path | None, cache: Path) -> Path:
    package = deb or download_package(cache)
    return unpack_stamps(package, cache / f"{package.stem}-{package.stat().st_size}")


def _write_all(output_dir: Path, catalog: Catalog, parameters: dict[str, Any]) -> Summary:
    seed = parameters["seed"]
    splits = split_stamps(catalog.stamps, seed=seed)
    _write_photos(output_dir / "photos", splits, seed)
    languages = {"descriptions": [ENGLISH], "translations": parameters["languages"]}
    texts = {name: unpaired_texts(splits, chosen, name=name, seed=seed) for name, chosen in languages.items()}
    for name, rows in texts.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (output_dir / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    sounds = unpaired_sounds(splits, seed=seed)
    for index, (stamp, sound) in enumerate(sounds):
        target = output_dir / "sounds" / stamp.label / f"sound-{index:05d}{sound.path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sound.path, target)
    (output_dir / "ATTRIBUTION.txt").write_text(ATTRIBUTION + CHANGES, encoding="utf-8")
    classes = sorted({stamp.label for stamp in catalog.stamps})
    return {
        "classes": classes,
        "photos": {split: _by_class(classes, [s.label for s in members]) for split, members in splits.items()},
        **{name: _by_class(classes, [row["label"] for row in rows]) for name, rows in texts.items()},
        "sounds": _by_class(classes, [stamp.label for stamp, _ in sounds]),
        "spoken": dict(sorted(Counter(sound.language or "noise" for _, sound in sounds).items())),
        "dropped_classes": catalog.dropped,
        "unreadable_lines": catalog.unreadable_lines,
        "attribution": ATTRIBUTION,
    }


def _by_class(classes: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    counts = Counter(labels)
    return {label: counts[label] for label in classes}


def _write_photos(folder: Path, splits: SplitStamps, seed: int) -> None:
    """Write every picture under a number that says nothing of its stamp."""
    jobs = [(split, stamp) for split, members in splits.items() for stamp in members]
    jobs.sort(key=lambda job: job[1].key)
    random.Random(f"{seed}/photos").shuffle(jobs)
    for index, (split, stamp) in enumerate(tqdm(jobs, desc="pictures", unit="pictures", disable=None)):
        file = folder / split / stamp.label / f"picture-{index:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.write_bytes(square_png(stamp.picture))
        except (OSError, ValueError) as error:
            raise InputError(f"{stamp.picture} cannot be read: {error}; fetch the package again") from None


def _read_state(output_dir: Path) -> dict[str, Any]:
    """What an earlier call noted in the marker, {} for a new folder. Refuses a folder written by others."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output {output_dir} is a file; give the path of a folder")
    marker = output_dir / MARKER
    taken = [name for name in OUTPUTS if (output_dir / name).exists()]
    if not marker.exists():
        if taken:
            raise InputError(f"--output {output_dir} holds {listing(taken)} not written here; give a new folder")
        return {}
    try:
        state = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        state = None
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise InputError(f"{marker} was not written by this command, or is damaged; give a new folder")
    return state


def _table(summary: Summary) -> str:
    columns = {**summary["photos"], **{name: summary[name] for name in ("descriptions", "translations", "sounds")}}
    lines = [f"{'class':<12}" + "".join(f"{name:>14}" for name in columns)]
    for label in summary["classes"]:
        lines.append(f"{label:<12}" + "".join(f"{counts[label]:>14}" for counts in columns.values()))
    lines.append(f"{'all':<12}" + "".join(f"{sum(counts.values()):>14}" for counts in columns.values()))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the corpora from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Write the tuxpaint corpora. "
        "Example: python examples/tuxpaint/prepare.py --output runs/tuxpaint/corpora"
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder, or one written by this command")
    parser.add_argument("--deb", type=Path, help=f"a {PACKAGE}_*.deb, for machines without apt")
    parser.add_argument("--stamps", type=Path, help=f"the unpacked (or installed) folder {STAMPS_IN_PACKAGE}")
    parser.add_argument("--cache", type=Path, help="where the package is kept (default: package, beside the output)")
    parser.add_argument("--seed", type=int, default=0, help="draws the splits (default 0)")
    parser.add_argument("--min-photos", type=int, default=MIN_PHOTOS, help=f"of a class (default {MIN_PHOTOS})")
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES), help="of the translations")
    given = parser.parse_args(arguments)
    parameters = {"seed": given.seed, "min_photos": given.min_photos, "languages": given.languages}
    try:
        summary = prepare(given.output, deb=given.deb, stamps=given.stamps, cache=given.cache, parameters=parameters)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(_table(summary))
    print(f"written to {given.output}\n{ATTRIBUTION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
