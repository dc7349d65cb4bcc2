"""The OpenMoji corpora: what is left out, what may not stand in two splits, and that writing is repeatable."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.corpus_rows import list_rows
from uml_core.config import CorpusConfig
from uml_core.corpora.examples import openmoji
from uml_core.corpora.examples.openmoji import ATTRIBUTION, main, write_openmoji
from uml_core.corpora.examples.openmoji_catalog import (
    LANGUAGES,
    Catalog,
    Family,
    emoji_names,
    family_key,
    read_catalog,
    split_families,
)
from uml_core.corpora.examples.openmoji_pictures import colour_svg, ink, is_empty, render, same_drawing, sketch_svg
from uml_core.errors import InputError

MIN_MEMBERS = 48  # two classes only: mammals and vehicles
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return read_catalog(MIN_MEMBERS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openmoji") / "corpora"
    write_openmoji(folder, min_members=MIN_MEMBERS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def codes_of(corpora: Path, split: str) -> set[str]:
    return {file.stem for file in (corpora / "pictures" / split).glob("*/*.png")}


def texts_of(corpora: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (corpora / "names.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("variants", "key"),
    [
        (["1F469-200D-2695-FE0F", "1F468-200D-2695-FE0F", "1F9D1-200D-2695-FE0F"], "1F9D1-200D-2695"),
        (["1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-200D-2642-FE0F-200D-27A1-FE0F"], "1F3C3"),
        (["1F468-200D-1F9B0", "1F469-200D-1F9B3", "1F9D1"], "1F9D1"),
        (["1F434"], "1F434"),
    ],
)
def test_variants_have_one_family_key(variants: list[str], key: str) -> None:
    assert {family_key(code) for code in variants} == {key}


def test_no_skin_tones_and_every_emoji_in_one_family(catalog: Catalog) -> None:
    members = [code for families in catalog.classes.values() for family in families for code in family.members]
    members += [code for codes in catalog.others.values() for code in codes]
    assert len(set(members)) == len(members)
    assert not any(SKIN_TONES & set(code.split("-")) for code in members)


def test_flags_are_never_a_class(catalog: Catalog) -> None:
    assert sorted(catalog.classes) == ["animal-mammal", "transport-ground"]
    assert "country-flag" in catalog.others


def test_recoloured_drawings_are_one_drawing() -> None:
    assert same_drawing(ink("1F499"), ink("2764-FE0F"))  # blue and red heart
    assert not same_drawing(ink("1F550"), ink("1F551"))  # one and two o'clock
    assert not same_drawing(ink("1F434"), ink("1F42E"))


@pytest.mark.parametrize(
    ("members", "sizes"), [(14, (6, 4, 4)), (24, (16, 4, 4)), (30, (16, 4, 10)), (65, (45, 4, 16))]
)
def test_split_sizes(members: int, sizes: tuple[int, int, int]) -> None:
    families = tuple(Family(str(index), (str(index),)) for index in range(members))
    splits = split_families(Catalog({"class": families}, {}), seed=0)
    chosen = {name: {family.code for family in splits[name]["class"]} for name in ("train", "val", "test")}
    assert tuple(map(len, chosen.values())) == sizes
    assert set.union(*chosen.values()) == {family.code for family in families}


def test_no_family_straddles_splits(written: Path, catalog: Catalog) -> None:
    family_of = {
        code: family.code for chosen in catalog.classes.values() for family in chosen for code in family.members
    }
    families = {split: {family_of[code] for code in codes_of(written, split)} for split in ("train", "val", "test")}
    assert sum(map(len, families.values())) == len(set.union(*families.values())) == len(set(family_of.values()))
    assert codes_of(written, "sketch") <= codes_of(written, "test")


def test_no_text_names_a_held_out_picture(written: Path, catalog: Catalog) -> None:
    held_out = codes_of(written, "val") | codes_of(written, "test")
    families = [family for chosen in catalog.classes.values() for family in chosen if family.code in held_out]
    forbidden = {name.casefold() for f in families for code in f.members for name in emoji_names(code, ("en",))}
    texts = texts_of(written)
    assert len(families) == len(held_out)
    assert not forbidden & {row["text"].casefold() for row in texts}
    assert {row["label"] for row in texts} == set(catalog.classes)


def test_texts_are_unpaired(written: Path) -> None:
    texts = texts_of(written)
    assert [row["id"] for row in texts] == [f"text-{index:05d}" for index in range(len(texts))]
    assert len({row["text"] for row in texts}) == len(texts)
    labels = [row["label"] for row in texts]
    changes = sum(first != second for first, second in pairwise(labels))
    assert changes > len(labels) / 4  # sorted by class it would be 1


def test_names_come_in_many_languages_without_codes() -> None:
    names = emoji_names("1F34E", LANGUAGES)
    assert {"red apple", "roter apfel", "赤リンゴ", "красное яблоко"} <= set(names)
    assert emoji_names("1F34E", ("en",)) == ["red apple", "apple"]
    assert "cat2" not in emoji_names("1F408", ("en",))


def test_sketches_are_lines_without_colour(written: Path) -> None:
    for file in sorted((written / "pictures" / "sketch").glob("*/*.png")):
        pixels = np.asarray(Image.open(file).convert("RGB"), dtype=int)
        assert pixels.shape == (224, 224, 3)
        assert pixels.max(axis=2).max() == 255
        assert (pixels.max(axis=2) - pixels.min(axis=2)).max() <= 2  # grey: no colour anywhere


def test_an_emoji_without_lines_has_an_empty_sketch() -> None:
    assert is_empty(render(sketch_svg("1F195")))  # NEW is drawn in the colour group alone
    assert not is_empty(render(colour_svg("1F195")))


def test_readers_read_what_was_written(written: Path, catalog: Catalog) -> None:
    folder = written
    pictures = list_rows("p", CorpusConfig(modality="image", format="folder", path=str(folder / "pictures")))
    assert {row.split for row in pictures} == {"train", "val", "test", "sketch"}
    assert not any(row.fault for row in pictures)
    names = list_rows("n", CorpusConfig(modality="text", format="table", path=str(folder / "names.jsonl")))
    assert len(names) == len(texts_of(written))
    unrelated = list_rows("u", CorpusConfig(modality="text", format="descriptors", path=str(folder / "unrelated.json")))
    assert not {row.label for row in unrelated} & set(catalog.classes)
    assert ATTRIBUTION in (folder / "ATTRIBUTION.txt").read_text()
    assert "CC BY-SA 4.0" in ATTRIBUTION


def test_second_call_draws_nothing(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmoji, "render", _refuse)
    monkeypatch.setattr(openmoji, "read_catalog", _refuse)
    before = {file: file.stat().st_mtime_ns for file in written.rglob("*")}
    write_openmoji(written, min_members=MIN_MEMBERS)
    assert {file: file.stat().st_mtime_ns for file in written.rglob("*")} == before


def _refuse(*arguments: object) -> bytes:
    raise AssertionError("a finished folder must not be written again")


def _stop_after(pictures: int) -> Callable[[str], bytes]:
    left = iter(range(pictures))

    def draw(svg: str) -> bytes:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return render(svg)

    return draw


def test_an_interrupted_run_leaves_no_half_folder(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openmoji, "render", _stop_after(40))
    with pytest.raises(KeyboardInterrupt):
        write_openmoji(tmp_path / "corpora", min_members=MIN_MEMBERS)
    assert not (tmp_path / "corpora").exists()
    monkeypatch.setattr(openmoji, "render", render)
    write_openmoji(tmp_path / "corpora", min_members=MIN_MEMBERS)
    assert contents(tmp_path / "corpora") == contents(written)
    assert [file.name for file in tmp_path.iterdir()] == ["corpora"]


def test_other_arguments_rewrite_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    monkeypatch.setattr(openmoji, "render", lambda svg: blank.getvalue())  # the drawing is not what is tested
    folder = tmp_path / "corpora"
    write_openmoji(folder, min_members=MIN_MEMBERS)
    before = codes_of(folder, "test")
    write_openmoji(folder, min_members=MIN_MEMBERS, seed=1)
    assert codes_of(folder, "test") != before
    assert len(codes_of(folder, "test")) == len(before)
    assert not (folder / "pictures" / "sketch").exists(), "one colour: left out"


def test_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="not written by this command"):
        write_openmoji(tmp_path)
    assert contents(tmp_path) == {"pictures/mine.png": b"mine"}


def test_a_foreign_folder_exits_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert main(["--output", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
