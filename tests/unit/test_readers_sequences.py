"""Token sequences from the user's files and from MultiBench's pickles, and pickles that must not be loaded."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uml_core.config import CorpusConfig, EncoderConfig
from uml_core.corpora.ready.adopt import ReadyRows, ready_identity, stream_ready
from uml_core.corpora.ready.multibench import affect_label
from uml_core.encoders import build_encoder
from uml_core.errors import InputError
from uml_core.files.safe_pickle import UnsafePickleError, load_arrays

RNG = np.random.default_rng(0)


def read(path: Path, **settings: Any) -> ReadyRows:
    """Read a corpus in small chunks and join them."""
    config = CorpusConfig.model_validate({"modality": "sequence", "format": "tokens", "path": str(path), **settings})
    chunks = list(stream_ready("x", config, chunk_rows=2))
    return ReadyRows(
        tuple(row for chunk in chunks for row in chunk.rows),
        tuple(tokens for chunk in chunks for tokens in chunk.values),
        tuple(row for chunk in chunks for row in chunk.rejected),
        chunks[-1].dim,
        chunks[-1].vocabulary,
    )


def reasons(found: ReadyRows) -> dict[str, str]:
    return {row.id: row.fault or "" for row in found.rejected}


def test_parquet_lists_of_vectors(tmp_path: Path) -> None:
    tokens = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]], [[7.0]], None, [[1.0, float("nan")]], [], [[1.0, 2.0], [3.0]]]
    columns = {"tokens": tokens, "label": list("aabbabb"), "split": ["train"] * 6 + ["test"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    assert [each.tolist() for each in found.values] == tokens[:2]
    assert [(row.label, row.split) for row in found.rows] == [("a", "train"), ("a", "train")]
    assert (found.dim, found.vocabulary) == (2, None)
    assert reasons(found) == {
        "row-2": "tokens of width 1, the others have 2",
        "row-3": "no tokens",
        "row-4": "tokens with NaN or infinity",
        "row-5": "no tokens",
        "row-6": "no tokens",
    }


def test_parquet_lists_of_numbers_are_one_feature_and_of_whole_numbers_discrete(tmp_path: Path) -> None:
    pq.write_table(pa.table({"tokens": [[0.5, 1.5], [2.5]]}), tmp_path / "series.parquet")
    pq.write_table(pa.table({"tokens": [[3, 1], [8], [-2]], "id": ["a", "b", "c"]}), tmp_path / "words.parquet")
    series, words = read(tmp_path / "series.parquet"), read(tmp_path / "words.parquet")
    assert [each.tolist() for each in series.values] == [[[0.5], [1.5]], [[2.5]]]
    assert (series.dim, series.vocabulary) == (1, None)
    assert [each.tolist() for each in words.values] == [[[3.0], [1.0]], [[8.0]]]
    assert (words.dim, words.vocabulary) == (1, 9)
    assert "whole numbers from 0" in reasons(words)["c"]


def test_arrays_end_in_padding_and_have_names_beside_them(tmp_path: Path) -> None:
    values = RNG.normal(size=(3, 4, 2)).astype(np.float32)
    values[1, 2:] = np.nan
    values[2] = np.nan
    np.save(tmp_path / "x.npy", values)
    (tmp_path / "x.csv").write_text("id,label,split\na,k,train\nb,k,test\nc,k,test\n")
    found = read(tmp_path)
    assert [len(each) for each in found.values] == [4, 2]
    assert np.array_equal(found.values[1], values[1, :2])
    assert [(row.id, row.label, row.split) for row in found.rows] == [("a", "k", "train"), ("b", "k", "test")]
    assert reasons(found) == {"c": "no tokens"}
    np.save(tmp_path / "ids.npy", np.array([[3, 0, -1], [2, 2, 2]]))
    ids = read(tmp_path / "ids.npy")
    assert ([each[:, 0].tolist() for each in ids.values], ids.vocabulary) == ([[3, 0], [2, 2, 2]], 4)


def test_a_table_of_moments_becomes_series(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "id,time,label,split,heart,breath\nb,2,ill,train,3,30\na,1,well,test,9,90\nb,1,ill,train,1,10\na,0,ill,test,8,80\n"
    )
    found = read(tmp_path / "x.csv")
    assert [(row.id, row.label) for row in found.rows] == [("b", "ill")]
    assert found.values[0].tolist() == [[1, 10], [3, 30]], "in the order of time"
    assert reasons(found) == {"a": "label changes within the series"}


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.parquet", lambda path: pq.write_table(pa.table({"embedding": [[1.0]]}), path), "needs a column tokens"),
        ("x.parquet", lambda path: pq.write_table(pa.table({"tokens": ["words"]}), path), "is not a list of vectors"),
        ("x.npy", lambda path: np.save(path, np.zeros((2, 2, 2, 2))), "expected (rows, tokens, width)"),
        ("x.npy", lambda path: path.write_bytes(b"\x93NUMPY"), "not readable as npy"),
        ("x.csv", lambda path: path.write_text("a,b\n1,2\n"), "a time series needs id"),
        ("x.csv", lambda path: path.write_text("id,b\n1,two\n"), "columns b hold words"),
        ("x.csv", lambda path: path.write_text(""), "not readable as csv"),
        ("x.parquet", lambda path: pq.write_table(pa.table({"tokens": [[float("nan")]]}), path), "no usable tokens"),
    ],
)
def test_files_that_hold_no_sequences_are_refused(tmp_path: Path, name: str, write: Any, message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert message in str(caught.value)


def write_affect(path: Path, labels: tuple[float, ...]) -> dict[str, Any]:
    """Write a file of MultiBench's affect layout: zeros padded in front, as its aligned files have them."""
    tree: dict[str, Any] = {}
    for split, rows in (("train", 4), ("valid", 2), ("test", 3)):
        part = {
            key: RNG.normal(size=(rows, 6, width)).astype(np.float32) for key, width in (("vision", 5), ("text", 3))
        }
        part["audio"] = RNG.normal(size=(rows, 6, 2))
        part["vision"][:, :2] = 0
        part["text"][:, :2] = 0
        part["labels"] = np.array([labels[index % len(labels)] for index in range(rows)]).reshape(rows, 1, 1)
        part["id"] = np.array([f"clip{index}" for index in range(rows)], dtype=object)
        tree[split] = part
    tree["train"]["vision"][0, 3, 0] = -np.inf
    tree["train"]["text"][3] = 0
    path.write_bytes(pickle.dumps(tree, protocol=4))
    return tree


@pytest.mark.parametrize(
    ("dataset", "labels", "expected"),
    [
        ("mosi", (0.0, -0.4, 2.6), ["positive", "negative", "positive"]),
        ("mosei", (-3.0, 0.0, 1.0), ["negative", "positive", "positive"]),
        ("mustard", (-1, 1, -1), ["0", "1", "0"]),
        ("ur_funny", (0, 1, 1), ["0", "1", "1"]),
    ],
)
def test_affect_files(tmp_path: Path, dataset: str, labels: tuple[float, ...], expected: list[str]) -> None:
    tree = write_affect(tmp_path / "x.pkl", labels)
    found = {
        field: read(tmp_path / "x.pkl", format="multibench", dataset=dataset, field=field)
        for field in ("vision", "text")
    }
    vision = found["vision"]
    assert [row.split for row in vision.rows] == ["train"] * 3 + ["val"] * 2 + ["test"] * 3
    assert [row.label for row in vision.rows][:3] == expected
    assert [row.label for row in vision.rows][5:] == expected
    assert {len(tokens) for tokens in vision.values} == {4}, "padding in front is cut off"
    assert vision.values[0][1, 0] == 0, "infinite values become 0"
    assert np.array_equal(vision.values[4], tree["valid"]["vision"][1, 2:])
    assert (vision.dim, found["text"].dim) == (5, 3)
    for each in found.values():
        assert reasons(each) == {"train-3": "no text: MultiBench leaves the row out"}


def test_labels_beyond_the_rule_are_refused() -> None:
    assert affect_label("mustard", 2.0) == (None, "label 2.0 is none of -1, 0, 1")
    assert affect_label("mosi", float("nan")) == (None, "label is NaN")


def test_mimic_has_a_test_split_of_its_own(tmp_path: Path) -> None:
    codes = np.zeros((40, 20))
    codes[::2, 7] = 1
    series, static = RNG.normal(size=(40, 24, 12)), RNG.normal(size=(40, 5))
    series[3, 0] = np.nan
    tree = {"ep_tdata": series, "adm_features_final": static, "y_icd9": codes}
    (tmp_path / "im.pk").write_bytes(pickle.dumps(tree))
    found = {
        field: read(tmp_path / "im.pk", format="multibench", dataset="mimic", field=field)
        for field in ("series", "static")
    }
    splits = {
        split: {row.id for row in found["series"].rows if row.split == split} for split in ("train", "val", "test")
    }
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 32, "val": 4, "test": 4}
    assert not splits["val"] & splits["test"]
    assert {tokens.shape for tokens in found["series"].values} == {(24, 12)}
    assert {tokens.shape for tokens in found["static"].values} == {(1, 5)}
    for row, tokens in zip(found["static"].rows, found["static"].values, strict=True):
        index = int(row.id.removeprefix("admission-"))
        assert row.label == str(int(codes[index, 7]))
        assert tokens[0] == pytest.approx(static[index])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_and_plain_containers_of_every_protocol_are_loaded(protocol: int) -> None:
    tree = {
        "numbers": RNG.normal(size=(2, 3)),
        "half": np.arange(4, dtype=np.float16),
        "column": np.asfortranarray(RNG.normal(size=(3, 2))),
        "names": np.array(["a", "bc"]),
        "ragged": np.array([np.zeros((2, 1)), np.ones((3, 1))], dtype=object),
        "plain": [1, 2.5, ("x", b"y", None, True)],
        "scalar": np.float64(1.5),
    }
    loaded = load_arrays(io.BytesIO(pickle.dumps(tree, protocol=protocol)))
    for key in ("numbers", "half", "column", "names"):
        assert np.array_equal(loaded[key], tree[key])
        assert loaded[key].dtype == tree[key].dtype
    assert [each.shape for each in loaded["ragged"]] == [(2, 1), (3, 1)]
    assert (loaded["plain"], loaded["scalar"]) == (tree["plain"], 1.5)


class Malicious:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("wrapped", [lambda bad: bad, lambda bad: {"train": [bad]}, lambda bad: np.array([bad, 1])])
def test_a_pickle_runs_no_code(tmp_path: Path, wrapped: Any) -> None:
    place, file = tmp_path / "made", tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(wrapped(Malicious(place))))
    with pytest.raises(InputError, match=r"asks for posix.mkdir, which is neither an array nor a plain container"):
        read(file, format="multibench", dataset="mosi", field="vision")
    assert not place.exists()
    pickle.loads(file.read_bytes())
    assert place.exists(), "the pickle does what the test says it does"


# Names that pickles have been known to reach code through, each as the stack program that calls it with "x".
GADGETS = [
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"cbuiltins\ngetattr\n(S'x'\nS'upper'\ntR.",
    b"cnumpy\nload\n(S'x'\ntR.",
    b"cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.",
    b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    b"cnumpy\nndarray\n(I1000\ntR.",
    b"cnumpy\ndtype\n(c__main__\nX\ntR.",
    b"cnumpy.core.multiarray\n_reconstruct\n(S'x'\n(I0\ntS'b'\ntR.",
    b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'x'\ntR.",
    b"Pexternal\n.",
]


@pytest.mark.parametrize("program", GADGETS)
def test_known_ways_to_code_are_refused(program: bytes) -> None:
    with pytest.raises(ValueError, match=r"not loaded|damaged"):
        load_arrays(io.BytesIO(program))


def test_other_containers_and_damaged_pickles_are_refused() -> None:
    with pytest.raises(UnsafePickleError, match="OrderedDict"):
        load_arrays(io.BytesIO(pickle.dumps(OrderedDict(a=1))))
    whole = pickle.dumps({"x": np.arange(100)})
    for length in range(0, len(whole) - 1, 7):
        with pytest.raises(ValueError):  # noqa: PT011 - any of our two kinds
            load_arrays(io.BytesIO(whole[:length]))


def test_another_field_or_file_is_another_store_folder(tmp_path: Path) -> None:
    write_affect(tmp_path / "x.pkl", (1.0,))
    base = {"modality": "sequence", "format": "multibench", "path": str(tmp_path / "x.pkl"), "dataset": "mosi"}
    identities = [
        ready_identity("x", CorpusConfig.model_validate({**base, "field": field})) for field in ("vision", "text")
    ]
    assert identities[0] != identities[1]


def test_bytes_are_tokens_of_text() -> None:
    config = EncoderConfig(source="package", name="bytes", pooling="tokens", max_length=4)
    encoder = build_encoder(config, "text")
    rows = [encoder.decode(text) for text in ("ab", "é€x")]
    assert [each[:, 0].tolist() for each in encoder.encode_all(rows, 8)] == [[97, 98], [195, 169, 226, 130]]
    assert (encoder.dim, encoder.vocabulary) == (1, 256)
    with pytest.raises(InputError, match="pooling: tokens"):
        build_encoder(EncoderConfig(source="package", name="bytes"), "text")
