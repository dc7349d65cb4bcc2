"""Embedding: rows neither lost nor doubled, damaged pictures set apart, nothing computed twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import embed
from pipelines.embed import corpus_store
from tests.conftest import draw, picture_tree, write_picture_corpora
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    write_picture_corpora(tmp_path)
    return parse_experiment(picture_tree(tmp_path))


def stored_ids(experiment: Experiment, corpus: str) -> Counter[str]:
    folder = Path(corpus_store(experiment, corpus).directory)
    parts = json.loads((folder / "manifest.json").read_text())["parts"]
    ids = [row for key in parts for row in pq.read_table(folder / f"part-{key}.parquet")["id"].to_pylist()]
    return Counter(ids + pq.read_table(folder / "rejected.parquet")["id"].to_pylist())


def times(experiment: Experiment, corpus: str) -> dict[str, int]:
    folder = Path(corpus_store(experiment, corpus).directory)
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*")}


def test_every_row_once_then_nothing_then_only_what_is_missing(experiment: Experiment, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "train" / "circle" / "bad.png").write_bytes(b"not a picture")
    experiment = experiment.override({"embed.max_rejected": 0.1})
    results = embed.run(experiment).results["corpora"]
    assert (results["pictures"]["rows"], results["pictures"]["rejected_rows"]) == (33, 1)
    assert results["pictures"]["rows_per_split"] == {"dark": 6, "test": 9, "train": 12, "val": 6}
    expected = {file.relative_to(pictures).as_posix() for file in pictures.rglob("*.png")}
    assert stored_ids(experiment, "pictures") == Counter(expected)
    rejected = corpus_store(experiment, "pictures").rejected_rows()
    assert [(row.id, row.reason) for row in rejected] == [("train/circle/bad.png", "not a picture in a known format")]

    before = times(experiment, "pictures")
    assert embed.run(experiment).results["corpora"]["pictures"]["up_to_date"]
    assert times(experiment, "pictures") == before

    # As after a kill: no manifest, one part missing, one half-written temporary file.
    folder = Path(corpus_store(experiment, "pictures").directory)
    vectors = corpus_store(experiment, "pictures").load().embeddings
    (folder / "manifest.json").unlink()
    lost = sorted(before)[0]
    (folder / lost).unlink()
    (folder / "tmp-half").write_bytes(b"PAR1")
    embed.run(experiment)
    after = times(experiment, "pictures")
    assert {name for name in before if before[name] != after[name]} == {lost}
    assert stored_ids(experiment, "pictures") == Counter(expected)
    assert np.allclose(corpus_store(experiment, "pictures").load().embeddings, vectors, atol=1e-5)

    # A changed file is embedded again, and its old vector is gone.
    draw("stripes", np.random.default_rng(9)).save(pictures / "val" / "square" / "0.png")
    embed.run(experiment)
    assert stored_ids(experiment, "pictures") == Counter(expected)
    assert not np.allclose(corpus_store(experiment, "pictures").load().embeddings, vectors, atol=1e-5)


def test_actors_and_batches_do_not_change_the_vectors(experiment: Experiment, tmp_path: Path) -> None:
    embed.run(experiment)
    other = experiment.override({"store": str(tmp_path / "other"), "embed.actors": 2, "embed.batch_size": 3})
    embed.run(other)
    for corpus in experiment.corpora:
        first, second = corpus_store(experiment, corpus).load(), corpus_store(other, corpus).load()
        assert np.allclose(first.embeddings, second.embeddings, atol=1e-4)
        assert first.label_codes.tolist() == second.label_codes.tolist()


def test_half_precision_is_another_store(experiment: Experiment) -> None:
    half = experiment.override({"embed.dtype": "float16"})
    embed.run(half)
    assert corpus_store(half, "names").load().embeddings.dtype == np.float32
    with pytest.raises(InputError, match="embedded by another encoder or setting"):
        corpus_store(experiment, "names").load()


def test_too_many_unreadable_rows_fail_and_finish_nothing(experiment: Experiment, tmp_path: Path) -> None:
    for file in (tmp_path / "pictures" / "train" / "circle").glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"4 of 33 rows cannot be read .12.1%.*empty file .0 bytes.*raise the limit"):
        embed.run(experiment)
    assert corpus_store(experiment, "pictures").read_manifest() is None
