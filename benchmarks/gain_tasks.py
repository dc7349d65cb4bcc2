"""The tasks that `benchmarks.gain` makes itself: from pip packages, from Debian's Tux Paint, and by drawing numbers.

Out: a folder a task, in the form that `benchmarks.gain` reads. Nothing pairs the rows of two modalities: each has rows
of its own. Development: the prior head was made while its makers looked at these corpora, or at some drawn like them.
Confirming: they had not seen them.

Shape legend: N rows, D embedding width.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from tqdm import tqdm

from examples.tuxpaint.prepare import LANGUAGES, prepare
from uml_core.config import EncoderConfig
from uml_core.corpora.examples.known_answer import LinearGaussian, write_known_answer
from uml_core.corpora.examples.openmoji import write_openmoji
from uml_core.corpora.examples.openmoji_catalog import LANGUAGES as EMOJI_LANGUAGES
from uml_core.encoders.image.classifier_rows import classifier_rows
from uml_core.encoders.registry import build_encoder
from uml_core.errors import InputError, RowError

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.str_]
Modality = tuple[Floats, Sequence[str], Sequence[str]]  # rows (N, D), labels, splits
TEST_SHARE = 0.4  # of the rows of a class, where a made task has no splits of its own
TRAIN_ROWS = 16  # the largest number of shots
ENCODERS = {"image": "efficientnet_lite0", "text": "minilm_l6"}
GLYPHS = "αβγδεζηθικλμνξπρστυφχψω←↑→↓↔↕↖↗⇐⇑⇒∀∃∇∈∏∑√∞∧∨∩∪∫≈≠≤≥⊂⊃■□▲▼◆○★☎☯♀♠♥♪✓"
FONTS = ("Sans", "Sans-Bold", "Sans-Oblique", "Serif", "Serif-Bold", "Serif-Italic", "SansMono", "SansMono-Bold")
GLYPH_PICTURES = 32  # of a class, half of them train
DIGITS = (
    "zero: one closed oval loop with a hole in the middle",
    "one: a single vertical stroke",
    "two: a curve at the top, a diagonal down to the left, a flat line at the bottom",
    "three: two curves open to the left, one above the other",
    "four: an open angle at the top left, a long vertical stroke at the right, a bar across",
    "five: a flat bar at the top, a vertical stroke at the left, a round belly at the bottom right",
    "six: a stroke down the left that ends in a closed loop at the bottom",
    "seven: a flat bar at the top and a diagonal stroke down",
    "eight: two closed loops, one above the other",
    "nine: a closed loop at the top with a stroke down the right",
)
WINES = (
    "a wine rich in alcohol, proline and flavanoids, of the first grower",
    "a light wine with little alcohol and pale colour, of the second grower",
    "a wine of intense colour with much malic acid and few flavanoids, of the third grower",
)
TUMOURS = (
    "a malignant tumour: large, irregular cell nuclei with concave points",
    "a benign tumour: small, smooth and round cell nuclei",
)


def make_tasks(work: Path) -> list[Path]:
    """The folders of all made tasks, each made once; one whose data cannot be had is named on stderr."""
    folders = []
    for name, (use, target, make) in MADE.items():
        folder = work / "tasks" / name
        if not (folder / "task.json").exists():
            try:
                modalities = make(work)
            except InputError as error:
                print(f"left out: {name}: {error}", file=sys.stderr)
                continue
            for modality, rows in modalities.items():
                write_modality(folder, modality, *rows)
            (folder / "task.json").write_text(json.dumps({"use": use, "target": target}), encoding="utf-8")
        folders.append(folder)
    return folders


def write_modality(folder: Path, name: str, rows_ND: Floats, labels: Sequence[str], splits: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", np.ascontiguousarray(rows_ND, dtype=np.float32))
    pairs = zip(labels, splits, strict=True)
    lines = [json.dumps({"label": str(label), "split": split}, ensure_ascii=False) + "\n" for label, split in pairs]
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def encoded(modality: str, raw: Sequence[Any], labels: Sequence[str], splits: Sequence[str]) -> Modality:
    """Rows through the package's encoder of a modality; those it refuses are left out."""
    speech = "moonshine_tiny" if importlib.util.find_spec("moonshine_voice") else "logmel"
    config = EncoderConfig(source="package", name=ENCODERS.get(modality, speech))
    encoder = build_encoder(config, modality)
    encoder.load()
    decoded, kept = [], []
    for index, each in enumerate(tqdm(raw, desc=f"decoding {modality}", unit="rows", disable=None)):
        try:
            decoded.append(encoder.decode(each))
            kept.append(index)
        except RowError:
            continue
    blocks = [decoded[start : start + 256] for start in range(0, len(decoded), 256)]
    bar = tqdm(blocks, desc=f"encoding {modality}", unit="blocks", disable=None)
    rows_ND = np.concatenate([encoder.encode_all(block, encoder.cpu_batch_size) for block in bar])
    return rows_ND, [labels[index] for index in kept], [splits[index] for index in kept]


def openmoji(work: Path, *, languages: Sequence[str]) -> dict[str, Modality]:
    folder = work / f"openmoji-{len(languages)}"
    write_openmoji(folder, languages=languages)
    texts = [json.loads(line) for line in (folder / "names.jsonl").read_text(encoding="utf-8").splitlines()]
    labels = [text["label"] for text in texts]
    return {
        "images": encoded("image", *_files(folder / "pictures")),
        "text": encoded("text", [text["text"] for text in texts], labels, ["train"] * len(texts)),
        **_classifier(),
    }


@functools.lru_cache(maxsize=1)
def _classifier() -> dict[str, Modality]:
    """The image encoder's own classifier as a bridge, and the names of its classes."""
    config = EncoderConfig(source="package", name=ENCODERS["image"])
    found = classifier_rows(build_encoder(config, "image"))
    splits = ["train"] * len(found.names)
    texts = encoded("text", found.synonyms, found.names, splits)
    return {"bridge": (found.embeddings, found.names, splits), "bridge-text": texts}


def _files(folder: Path) -> tuple[list[bytes], list[str], list[str]]:
    """The content of FOLDER/SPLIT/CLASS/FILE with labels and splits, shifted test sets left out."""
    files = [file for split in ("train", "val", "test") for file in sorted((folder / split).glob("*/*"))]
    return [f.read_bytes() for f in files], [f.parent.name for f in files], [f.parent.parent.name for f in files]


def glyphs(work: Path) -> dict[str, Modality]:
    """Pictures of characters in several fonts, sizes, places and turns; the text is their names in Unicode."""
    rng = np.random.default_rng(0)
    names = [unicodedata.name(glyph).lower() for glyph in GLYPHS]
    pictures = [_glyph(glyph, rng) for glyph in GLYPHS for _ in range(GLYPH_PICTURES)]
    splits = (["train"] * TRAIN_ROWS + ["test"] * (GLYPH_PICTURES - TRAIN_ROWS)) * len(names)
    labels = [name for name in names for _ in range(GLYPH_PICTURES)]
    return {
        "images": encoded("image", pictures, labels, splits),
        "text": encoded("text", names, names, ["train"] * len(names)),
        **_classifier(),
    }


def _glyph(glyph: str, rng: np.random.Generator) -> bytes:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(folder / f"DejaVu{rng.choice(FONTS)}.ttf"), int(rng.integers(60, 150)))
    picture = Image.new("RGB", (224, 224), "white")
    place = (112 + int(rng.integers(-30, 31)), 112 + int(rng.integers(-30, 31)))
    ImageDraw.Draw(picture).text(place, glyph, fill="black", font=font, anchor="mm")
    buffer = io.BytesIO()
    picture.rotate(float(rng.uniform(-20, 20)), fillcolor="white").save(buffer, "png")
    return buffer.getvalue()


def bundled(load: Callable[[], Any], sentences: Sequence[str], work: Path) -> dict[str, Modality]:
    """Half of the features of scikit-learn's rows as the target, the other half, of other rows, beside a sentence."""
    rows = load()
    scaled_ND = (rows.data - rows.data.mean(axis=0)) / np.maximum(rows.data.std(axis=0), 1e-12)
    names = [sentence.partition(":")[0] for sentence in sentences]
    labels_N = np.array(names)[rows.target]
    order = np.random.default_rng(0).permutation(len(labels_N))
    own, other = np.sort(order[::2]), np.sort(order[1::2])
    half = scaled_ND.shape[1] // 2
    return {
        "images": (scaled_ND[own, :half], labels_N[own].tolist(), _splits(labels_N[own])),
        "half": (scaled_ND[other, half:], labels_N[other].tolist(), ["train"] * len(other)),
        "text": encoded("text", sentences, names, ["train"] * len(names)),
    }


def _splits(labels_N: Labels) -> list[str]:
    """Train and test rows of every class, by lot."""
    rng, splits_N = np.random.default_rng(0), np.full(len(labels_N), "train", dtype=object)
    for label in np.unique(labels_N):
        rows = rng.permutation(np.flatnonzero(labels_N == label))
        splits_N[rows[: max(1, round(TEST_SHARE * len(rows)))]] = "test"
    return splits_N.tolist()


@functools.lru_cache(maxsize=1)
def _tuxpaint(work: Path) -> dict[str, Modality]:
    parameters = {"seed": 0, "min_photos": 8, "languages": list(LANGUAGES)}
    folder = work / "tuxpaint" / "corpora"
    prepare(folder, cache=work / "tuxpaint" / "package", parameters=parameters)
    texts = [json.loads(line) for line in (folder / "descriptions.jsonl").read_text(encoding="utf-8").splitlines()]
    sounds = sorted((folder / "sounds").glob("*/*"))
    names = {"text": [text["label"] for text in texts], "sounds": [file.parent.name for file in sounds]}
    splits = {name: _splits(np.array(labels)) for name, labels in names.items()}
    return {
        "images": encoded("image", *_files(folder / "photos")),
        "text": encoded("text", [text["text"] for text in texts], names["text"], splits["text"]),
        "sounds": encoded("audio", [file.read_bytes() for file in sounds], names["sounds"], splits["sounds"]),
    }


def _photos(work: Path) -> dict[str, Modality]:
    return {**_tuxpaint(work), **_classifier()}


def aligned(work: Path) -> dict[str, Modality]:
    """Drawn: text of the same width whose classes lie where the target's do, as of a two-tower encoder."""
    rng = np.random.default_rng(7)
    shared_CD, own_CD = rng.standard_normal((50, 96)), rng.standard_normal((50, 96))
    gap_D, labels = 2 * rng.standard_normal(96), [f"class-{code:02d}" for code in range(50)]
    rows_ND = np.repeat(0.5 * shared_CD + 0.7 * own_CD, 46, axis=0) + gap_D
    splits = (["train"] * TRAIN_ROWS + ["test"] * 30) * 50
    return {
        "images": (rows_ND + 2.0 * rng.standard_normal(rows_ND.shape), np.repeat(labels, 46).tolist(), splits),
        "text": (shared_CD + rng.standard_normal(96) + 0.3 * rng.standard_normal((50, 96)), labels, ["train"] * 50),
    }


def drawn(work: Path, *, shared: bool) -> dict[str, Modality]:
    """Drawn, of another width: the auxiliary classes are those of the target, or others under the same names."""
    folder = work / f"known-answer-{shared}"
    write_known_answer(folder, LinearGaussian(num_classes=50), shared=shared, seed=3)
    target, other = (pq.read_table(folder / f"{name}.parquet") for name in ("target", "auxiliary"))
    rows_of_class = target.num_rows // 50
    splits = (["train"] * TRAIN_ROWS + ["test"] * (rows_of_class - TRAIN_ROWS)) * 50
    return {
        "images": (np.array(target["embedding"].to_pylist()), target["label"].to_pylist(), splits),
        "text": (np.array(other["embedding"].to_pylist()), other["label"].to_pylist(), ["train"] * other.num_rows),
    }


# name: (use, target, what makes it)
MADE: dict[str, tuple[str, str, Callable[[Path], dict[str, Modality]]]] = {
    "openmoji": ("development", "images", functools.partial(openmoji, languages=EMOJI_LANGUAGES)),
    "openmoji-english": ("development", "images", functools.partial(openmoji, languages=("en",))),
    "drawn-aligned": ("development", "images", aligned),
    "drawn-shared": ("development", "images", functools.partial(drawn, shared=True)),
    "drawn-nothing-helps": ("development", "images", functools.partial(drawn, shared=False)),
    "glyphs": ("confirming", "images", glyphs),
    "digits": ("confirming", "images", functools.partial(bundled, load_digits, DIGITS)),
    "wine": ("confirming", "images", functools.partial(bundled, load_wine, WINES)),
    "tumours": ("confirming", "images", functools.partial(bundled, load_breast_cancer, TUMOURS)),
    "tuxpaint-photos": ("confirming", "images", _photos),
    "tuxpaint-descriptions": ("confirming", "text", _tuxpaint),
    "tuxpaint-sounds": ("confirming", "sounds", _tuxpaint),
}
