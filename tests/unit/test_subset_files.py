"""Few-shot subsets as files: what is written is read again, nested; published index files; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import table
from uml_core.config import parse_experiment
from uml_core.data.subsets import read_subset, subset_text
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import InputError

CLASSES = ("bumpy", "woven", "zigzagged")
SPLITS = ["train"] * 8 + ["test"] * 2
LABELS = [name for name in CLASSES for _ in SPLITS]
IDS = tuple(f"{split}/{name}/{name}_{index:04}.jpg" for name in CLASSES for index, split in enumerate(SPLITS))
TABLE = table(np.arange(len(LABELS))[:, None] * np.ones(3), LABELS, SPLITS * len(CLASSES))


def data_of(path: Path | None = None, **changes: Any) -> TrainingData:
    corpora = {"target": {"modality": "vector", "format": "embeddings", "path": "x"}}
    tree = {"name": "x", "store": "s", "target": "target", "corpora": corpora}
    subset = {} if path is None else {"data.subset": str(path)}
    experiment = parse_experiment(tree).override({**subset, **changes})
    places = None if path is None else read_subset(str(path)).table_rows(IDS)
    return build_training_data(experiment, {"target": TABLE}, places)


def written(data: TrainingData, path: Path) -> Path:
    splits = {"train": data.labelled, "val": data.val, "test": data.test}
    named = {name: ([IDS[row] for row in rows.rows], rows.labels.tolist()) for name, rows in splits.items()}
    path.write_text(subset_text(data.classes, named, shots=4), encoding="utf-8")
    return path


def published(path: Path, rows: dict[str, list[str]]) -> Path:
    """Write an index file as cross_modal_adaptation does."""
    tree = {
        split: {
            "data": [{"impath": name, "label": 0, "classname": "x"} for name in names],
            "indices": list(range(len(names))),
        }
        for split, names in rows.items()
    }
    path.write_text(json.dumps(tree, indent=4), encoding="utf-8")
    return path


def test_a_written_subset_is_read_again_and_shots_within_it_are_nested(tmp_path: Path) -> None:
    drawn = data_of(**{"data.shots": 4, "data.split_seed": 3})
    path = written(drawn, tmp_path / "subset.json")
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert {name: len(ids) for name, ids in tree["train"].items()} == dict.fromkeys(CLASSES, 4)
    again = data_of(path)  # another seed, no shots: the file decides
    for split in ("labelled", "val", "test"):
        assert getattr(again, split).rows.tolist() == getattr(drawn, split).rows.tolist(), split
        assert getattr(again, split).labels.tolist() == getattr(drawn, split).labels.tolist()
    two, one = (set(data_of(path, **{"data.shots": shots}).labelled.rows.tolist()) for shots in (2, 1))
    assert one < two < set(drawn.labelled.rows.tolist())


def test_the_published_index_files_are_read_by_the_ends_of_their_paths(tmp_path: Path) -> None:
    rows = {
        "train": [f"./data/dtd/images/{name}/{name}_0002.jpg" for name in CLASSES],
        "val": [f"./data/dtd/images/{name}/{name}_0005.jpg" for name in CLASSES],
    }
    data = data_of(published(tmp_path / "shot_1-seed_1.json", rows))
    assert data.labelled.rows.tolist() == [2, 12, 22]
    assert data.val.rows.tolist() == [5, 15, 25]
    assert len(data.test) == 6, "test rows are the corpus's own"


def test_equal_file_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    path = published(tmp_path / "i.json", {"train": ["d/images/cat/1.jpg", "d/images/dog/1.jpg"]})
    assert read_subset(str(path)).table_rows(("train/dog/1.jpg", "train/cat/1.jpg", "x.jpg"))["train"].tolist() == [
        0,
        1,
    ]
    with pytest.raises(InputError, match=r"1 of its 2 rows of train are not in the store, first 'd/images/cat/1\.jpg'"):
        read_subset(str(path)).table_rows(("a/dog/1.jpg", "a/cat/1.jpg", "b/cat/1.jpg"))  # fits two equally well


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True), st.integers(0, 3))
def test_every_id_is_found_under_any_folder(names: list[str], depth: int) -> None:
    ids = tuple(f"train/{name}/{name}.png" for name in names)
    tree = {"train": [{"impath": "deep/" * depth + f"images/{name}/{name}.png"} for name in names]}
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(tree, file)
        file.flush()
        assert read_subset(file.name).table_rows(ids)["train"].tolist() == list(range(len(names)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is no JSON"),
        ("[1, 2]", "expected a subset.json of ours"),
        ('{"train": {"data": [{"path": "x"}]}}', "expected a subset.json of ours"),
        ('{"format": "uml-subset-1", "val": {"a": ["x"]}}', "expected a subset.json of ours"),
    ],
)
def test_files_that_are_no_subsets(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_subset(str(tmp_path / "s.json"))
    with pytest.raises(InputError, match="cannot be read"):
        read_subset(str(tmp_path / "none.json"))


def test_subsets_that_do_not_fit_the_corpus(tmp_path: Path) -> None:
    first = [f"train/{name}/{name}_0001.jpg" for name in CLASSES]
    for rows, message in (
        ([*first[:2]], "no train row for 1 of the target's classes"),
        ([*first, f"test/{CLASSES[0]}/{CLASSES[0]}_0008.jpg"], "1 rows it trains or validates on are of split test"),
        ([*first, first[0]], "names row 'train/bumpy/bumpy_0001.jpg' twice"),
        ([*first, "train/bumpy/bumpy_0999.jpg"], "1 of its 4 rows of train are not in the store"),
    ):
        with pytest.raises(InputError, match=message):
            data_of(published(tmp_path / "i.json", {"train": rows}))
