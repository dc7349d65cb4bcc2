"""The tuxpaint example on made-up stamps: layout, unpairedness, repeatability, and what it says of bad input."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from examples.tuxpaint import fetch, prepare
from examples.tuxpaint.pictures import SIDE, square_png
from examples.tuxpaint.stamps import class_of, comparable, read_catalog, read_descriptions, split_stamps
from tests.corpus_rows import list_rows
from uml_core.config import CorpusConfig, load_experiment
from uml_core.encoders.audio.packaged_audio import decode_audio

NUM_PHOTOS = 10
FOLDERS = {"animals/birds": "birds", "food/fruit": "fruit"}
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="30pt" height="20pt"><rect width="30" height="20" fill="red"/></svg>'
)


def draw(file: Path, colour: tuple[int, ...] = (200, 30, 30, 255)) -> None:
    picture = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    picture.paste(colour, (10, 5, 30, 15))
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def write_stamp(folder: Path, name: str, english: str, *, seed: int = 0) -> None:
    """A photograph with three sentences, two spoken, and a noise; every file's content is its own."""
    draw(folder / f"{name}.png", (seed % 256, 60, 90, 255))
    (folder / f"{name}.txt").write_text(
        f"{english}\nfr.utf8=Le {english}\nde.utf8=\nta.utf8=´Õ ¿ðºò\n", encoding="utf-8"
    )
    for index, ending in enumerate(("_desc.ogg", "_desc_fr.ogg", ".wav")):
        samples = np.random.default_rng([seed, index]).normal(0, 0.1, 1600)
        soundfile.write(folder / f"{name}{ending}", samples, 16_000)


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stamps")
    for group, (place, label) in enumerate(FOLDERS.items()):
        folder = root / place
        folder.mkdir(parents=True)
        for index in range(NUM_PHOTOS):
            letter = "abcdefghijkl"[index]
            write_stamp(folder, f"{label}{letter}", f"A {label} {letter}.", seed=100 * group + index)
    birds = root / "animals/birds"
    write_stamp(birds, "pair1", "A first one.", seed=50)
    write_stamp(birds, "pair2", "A second one.", seed=51)
    draw(birds / "birdsa_mirror.png")
    write_stamp(birds / "cartoon", "drawn", "A BIRDS b", seed=60)  # says what a photograph says
    (birds / "vector.svg").write_text(SVG)
    write_stamp(root / "animals/mammals", "lonely", "A lonely mammal.", seed=70)
    write_stamp(root / "symbols", "letter", "The letter A.", seed=80)
    return root


@pytest.fixture(scope="module")
def corpora(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("corpora")
    assert run(output, stamps) == 0
    return output


def run(output: Path, stamps: Path | None = None, *more: str) -> int:
    given = [] if stamps is None else ["--stamps", str(stamps)]
    return prepare.main(["--output", str(output), *given, "--languages", "fr", *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def texts(corpora: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (corpora / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_it_runs_as_a_file_from_anywhere(tmp_path: Path) -> None:
    line = [sys.executable, str(Path(prepare.__file__).resolve()), "--output", "out", "--stamps", "nowhere"]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "--stamps nowhere is no folder; give the path of usr/share/tuxpaint/stamps\n"


def test_layout_and_counts(corpora: Path) -> None:
    summary = json.loads((corpora / "corpora.json").read_text())["summary"]
    assert summary["classes"] == ["birds", "fruit"]
    assert summary["dropped_classes"] == {"mammals": 1}
    assert summary["photos"]["train"] == {"birds": 6, "fruit": 5}
    assert summary["photos"]["val"] == {"birds": 2, "fruit": 2}
    assert summary["photos"]["test"] == {"birds": 4, "fruit": 3}
    assert summary["photos"]["drawings"] == {"birds": 2, "fruit": 0}
    assert "GNU General Public License" in (corpora / "ATTRIBUTION.txt").read_text()


def test_the_experiment_reads_what_is_written(corpora: Path) -> None:
    experiment = load_experiment("examples/tuxpaint/experiment.yaml")
    rows = {}
    for name, corpus in experiment.corpora.items():
        place = corpora / Path(corpus.path).relative_to("runs/tuxpaint/corpora")
        rows[name] = list_rows(name, CorpusConfig(**{**corpus.model_dump(), "path": str(place)}))
    assert {row.split for row in rows["photos"]} == {"train", "val", "test", "drawings"}
    assert {row.split for name in ("descriptions", "sounds") for row in rows[name]} == {"train"}
    assert {row.label for name in rows for row in rows[name]} == {"birds", "fruit"}
    for row in rows["sounds"]:
        assert len(decode_audio(row.read(), sample_rate=16_000, max_seconds=1)) >= 1600


def test_held_out_pictures_contribute_no_word_and_no_sound(stamps: Path, corpora: Path) -> None:
    splits = split_stamps(read_catalog(stamps).stamps, seed=0)
    held_out = [stamp for split in ("val", "test", "drawings") for stamp in splits[split]]
    said = {comparable(row["text"]) for name in ("descriptions", "translations") for row in texts(corpora, name)}
    assert said
    for stamp in held_out:
        assert not stamp.words & said
    written = {file.read_bytes() for file in (corpora / "sounds").rglob("sound-*")}
    assert not written & {sound.path.read_bytes() for stamp in held_out for sound in stamp.sounds}
    train_sounds = {s.path.read_bytes() for t in splits["train"] for s in t.sounds if "a birds b" not in t.words}
    assert written == train_sounds  # all three of each, but for the one whose words a drawing has


def test_nothing_links_a_row_to_a_picture(stamps: Path, corpora: Path) -> None:
    names = {file.name.split(".")[0].split("_")[0] for file in stamps.rglob("*.*")}
    rows = [row for name in ("descriptions", "translations") for row in texts(corpora, name)]
    ids = [row["id"] for row in rows]
    ids += [file.stem for file in [*(corpora / "photos").rglob("*.png"), *(corpora / "sounds").rglob("sound-*")]]
    assert len(set(ids)) == len(ids)
    assert not any(name in row_id for name in names for row_id in ids)
    assert all(set(row) == {"text", "label", "id"} for row in rows)


def test_families_stay_in_one_split_and_mirrors_are_left_out(stamps: Path) -> None:
    splits = split_stamps(read_catalog(stamps).stamps, seed=3)
    where = {stamp.key: split for split, members in splits.items() for stamp in members}
    assert where["animals/birds/pair1"] == where["animals/birds/pair2"]
    assert where["animals/birds/vector"] == where["animals/birds/cartoon/drawn"] == "drawings"
    assert not any("mirror" in key for key in where)


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("animals/mammals/cats/lion", "mammals"),
        ("animals/mammals/bovines/cow", "hoofed"),
        ("animals/mammals/pig", "hoofed"),
        ("animals/mammals/pigeon", "mammals"),
        ("animals/mammals/bears/toys/edward", None),
        ("symbols/alphabets/a", None),
    ],
)
def test_the_longest_prefix_gives_the_class(key: str, label: str | None) -> None:
    assert class_of(key) == label


def test_descriptions_are_utf8_and_other_lines_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "crow.txt"
    file.write_bytes(
        "\ufeffA crow.\r\nfr.utf8=Une corneille \nsr@latin.utf8=Vrana\n".encode() + b"de.utf8=Kr\xe4he\nta.utf8=x\n"
    )
    assert read_descriptions(file) == ({"en": "A crow.", "fr": "Une corneille", "sr@latin": "Vrana"}, 1)
    assert read_descriptions(tmp_path / "missing.txt") == ({}, 0)


def test_pictures_are_cut_to_what_is_visible_and_put_on_white(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "b.svg").write_text(SVG)
    for name, share in (("a.png", 0.88 * 0.44), ("b.svg", 0.88 * 0.88 * 2 / 3)):
        picture = np.asarray(Image.open(io.BytesIO(square_png(tmp_path / name))))
        assert picture.shape == (SIDE, SIDE, 3)
        assert (picture[0] == 255).all()
        assert (picture[:, 0] == 255).all()
        assert (picture[:, :, 2] < 128).mean() == pytest.approx(share, abs=0.02)


def test_a_second_run_does_nothing_and_after_an_interrupted_one_comes_the_same(
    stamps: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(corpora)
    monkeypatch.setattr(prepare, "read_catalog", None)  # a finished folder does not need it
    assert run(corpora, stamps) == 0
    assert contents(corpora) == before
    monkeypatch.undo()
    left = iter(range(1, 8))
    monkeypatch.setattr(prepare, "square_png", lambda file: square_png(file) if next(left, None) else stop())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stamps)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "out", stamps) == 0
    assert contents(tmp_path / "out") == before
    assert [place.name for place in tmp_path.iterdir()] == ["out"]


def stop() -> bytes:
    raise KeyboardInterrupt


def test_another_seed_rewrites_the_folder(stamps: Path, corpora: Path, tmp_path: Path) -> None:
    shutil.copytree(corpora, tmp_path / "copy")
    assert run(tmp_path / "copy", stamps, "--seed", "1") == 0
    assert run(tmp_path / "fresh", stamps, "--seed", "1") == 0
    assert contents(tmp_path / "copy") == contents(tmp_path / "fresh") != contents(corpora)


def write_deb(file: Path, stamps: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as tar:
        tar.add(stamps, arcname=f"./{fetch.STAMPS_IN_PACKAGE}")
        escape = tarfile.TarInfo(f"{fetch.STAMPS_IN_PACKAGE}/../../escaped.png")
        tar.addfile(escape, io.BytesIO())
    members = (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", archive.getvalue()))
    raw = b"!<arch>\n"
    for name, content in members:
        raw += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    file.write_bytes(raw)


def test_a_deb_gives_what_its_stamps_give(stamps: Path, corpora: Path, tmp_path: Path) -> None:
    deb = tmp_path / "made-up.deb"
    write_deb(deb, stamps)
    assert run(tmp_path / "out", None, "--deb", str(deb), "--cache", str(tmp_path / "cache")) == 0
    written = contents(tmp_path / "out")
    assert {k: v for k, v in written.items() if k != "corpora.json"} == {
        k: v for k, v in contents(corpora).items() if k != "corpora.json"
    }
    assert not list(tmp_path.rglob("escaped.png"))
    assert [place.name for place in (tmp_path / "cache").iterdir()] == [f"made-up-{deb.stat().st_size}"]


def test_without_apt_one_line_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    assert run(tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "apt-get is not on this machine" in line
    assert "--deb FILE" in line
    assert not (tmp_path / "out").exists()


def test_bad_input_exits_with_2_and_one_line_and_leaves_nothing(
    stamps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.deb"
    text.write_text("not a package")
    write_deb(tmp_path / "whole.deb", stamps)
    cut = tmp_path / "cut.deb"
    cut.write_bytes((tmp_path / "whole.deb").read_bytes()[:3000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "descriptions.jsonl").write_text("mine")
    out = tmp_path / "out"
    cases = [
        (out, tmp_path / "nowhere", [], "is no folder"),
        (out, tmp_path / "empty", [], "no class with 8 photographs"),
        (out, stamps, ["--min-photos", "2"], "at least 5"),
        (out, stamps, ["--min-photos", "99"], "the largest has 12"),
        (out, stamps, ["--languages", "en"], "not en"),
        (out, stamps, ["--deb", str(text)], "both given"),
        (out, None, ["--deb", str(tmp_path / "nowhere.deb")], "does not exist"),
        (out, None, ["--deb", str(text)], "is not a Debian package"),
        (out, None, ["--deb", str(cut)], "damaged package"),
        (tmp_path / "mine", stamps, [], "not written here"),
        (text, stamps, [], "is a file"),
    ]
    for output, folder, more, message in cases:
        assert run(output, folder, *more) == 2, message
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert message in line
    assert not out.exists()
    assert contents(tmp_path / "mine") == {"descriptions.jsonl": b"mine"}
