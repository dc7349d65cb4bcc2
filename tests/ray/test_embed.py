"""Embedding: rows neither lost nor doubled, damaged pictures set apart, nothing computed twice."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import embed
from pipelines.runtime import Summary
from pipelines.stored import corpus_store
from tests.bad_rows import write_bad_rows
from tests.conftest import draw, picture_tree, write_picture_corpora
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.tracking import experiment_runs

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    write_picture_corpora(tmp_path)
    return parse_experiment(picture_tree(tmp_path))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Experiment, Summary]:
    """Both corpora, embedded by two actors each, and what the step said; left as it is by the tests."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("embedded"))
    experiment = parse_experiment(picture_tree(directory)).override({"embed.actors": 2, "embed.batch_size": "auto"})
    return experiment, embed.run(experiment)


def embed_only(experiment: Experiment, corpus: str) -> dict[str, Any]:
    with contextlib.ExitStack() as session:
        return embed.embed_corpus(experiment, corpus, session)


def stored_ids(experiment: Experiment, corpus: str) -> Counter[str]:
    folder = Path(corpus_store(experiment, corpus).directory)
    parts = json.loads((folder / "manifest.json").read_text())["parts"]
    assert sorted(parts) == sorted(file.name for file in folder.glob("part-*"))
    ids = [row for name in parts for row in pq.read_table(folder / name)["id"].to_pylist()]
    return Counter(ids + pq.read_table(folder / "rejected.parquet")["id"].to_pylist())


def embedding_of(experiment: Experiment, corpus: str) -> dict[str, np.ndarray]:
    folder = Path(corpus_store(experiment, corpus).directory)
    table = pa.concat_tables(pq.read_table(file) for file in folder.glob("part-*"))
    return dict(zip(table["id"].to_pylist(), np.array(table["embedding"].to_pylist()), strict=True))


def times(experiment: Experiment, corpus: str) -> dict[str, int]:
    folder = Path(corpus_store(experiment, corpus).directory)
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*")}


def test_every_row_once_then_nothing_then_only_what_is_missing(experiment: Experiment, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "train" / "circle" / "bad.png").write_bytes(b"not a picture")
    experiment = experiment.override({"embed.max_rejected": 0.1})
    facts = embed_only(experiment, "pictures")
    assert (facts["rows"], facts["rejected_rows"]) == (33, 1)
    assert facts["rows_per_split"] == {"dark": 6, "test": 9, "train": 12, "val": 6}
    expected = {file.relative_to(pictures).as_posix() for file in pictures.rglob("*.png")}
    assert stored_ids(experiment, "pictures") == Counter(expected)
    rejected = corpus_store(experiment, "pictures").rejected_rows()
    assert [(row.id, row.reason) for row in rejected] == [("train/circle/bad.png", "not a picture in a known format")]

    before = times(experiment, "pictures")
    assert embed_only(experiment, "pictures")["up_to_date"]
    assert times(experiment, "pictures") == before

    # As after a kill: no manifest, one part missing, one half-written temporary file.
    folder = Path(corpus_store(experiment, "pictures").directory)
    vectors = embedding_of(experiment, "pictures")
    (folder / "manifest.json").unlink()
    lost = sorted(before)[0]
    (folder / lost).unlink()
    (folder / "tmp-half").write_bytes(b"PAR1")
    embed_only(experiment, "pictures")
    after = times(experiment, "pictures")
    assert {name for name in before if before[name] != after[name]} == {lost}
    assert stored_ids(experiment, "pictures") == Counter(expected)
    same = embedding_of(experiment, "pictures")
    assert same.keys() == vectors.keys()
    assert all(np.allclose(same[name], vectors[name], atol=1e-5) for name in vectors)

    # A changed file is embedded again and its old vector is gone; a new one alone is added; a removed one goes.
    draw("stripes", np.random.default_rng(9)).save(pictures / "val" / "square" / "0.png")
    draw("circle", np.random.default_rng(8)).save(pictures / "train" / "circle" / "aa.png")
    (pictures / "dark" / "circle" / "0.png").unlink()
    facts = embed_only(experiment, "pictures")
    assert (facts["new"], facts["changed"], facts["removed"], facts["encoded_rows"]) == (1, 1, 1, 2)
    now = {file.relative_to(pictures).as_posix() for file in pictures.rglob("*.png")}
    assert stored_ids(experiment, "pictures") == Counter(now)
    after = embedding_of(experiment, "pictures")
    assert {name for name in after if name in vectors and not np.array_equal(after[name], same[name])} == {
        "val/square/0.png"
    }


def test_identical_inputs_are_encoded_once_and_half_precision_is_another_store(
    experiment: Experiment, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    original = pictures / "train" / "circle" / "0.png"
    for index in range(10):  # over several parts of 8 rows
        shutil.copy(original, pictures / "train" / "stripes" / f"copy-{index}.png")
    half = experiment.override({"embed.actors": 2, "embed.dtype": "float16"})
    facts = embed_only(half, "pictures")
    assert (facts["rows"], facts["encoded_rows"], facts["repeated_inputs"]) == (43, 33, 10)
    vectors = embedding_of(half, "pictures")
    for index in range(10):
        assert np.array_equal(vectors[f"train/stripes/copy-{index}.png"], vectors["train/circle/0.png"])
    assert corpus_store(half, "pictures").load().embeddings.dtype == np.float32
    with pytest.raises(InputError, match="embedded by another encoder or setting"):
        corpus_store(experiment, "pictures").load()


def test_what_embed_did_is_in_the_manifest_and_in_mlflow(embedded: tuple[Experiment, Summary]) -> None:
    experiment, summary = embedded
    manifest = corpus_store(experiment, "pictures").read_manifest()
    assert manifest is not None
    assert sum(manifest["stage_share"].values()) == pytest.approx(1, abs=1e-3)
    assert manifest["stage_s"]["encode"] > 0
    assert re.search(r"pictures +33 +0 +\d+ +\d+ % +\d+ % +\d+ % +\d+ %  [\d.]+ s, 33 new", summary.text)
    (run,) = experiment_runs(experiment.tracking.uri, experiment.name)
    assert run.kind == "embed"
    assert run.metrics["embed/rows_per_s/pictures"] == manifest["rows_per_s"]
    assert run.metrics["embed/share/encode/names"] > 0
    again = embed.run(experiment).results["corpora"]
    assert all(facts["up_to_date"] for facts in again.values())
    assert len(experiment_runs(experiment.tracking.uri, experiment.name)) == 1, "nothing done, nothing logged"


def test_odd_and_damaged_rows_of_every_modality(tmp_path: Path) -> None:
    """Each is embedded, or rejected with a reason a person understands, and none stops the others."""
    expected = {modality: write_bad_rows(tmp_path / modality, modality) for modality in ("image", "audio", "text")}
    corpora = {name: {"modality": name, "format": "folder", "path": str(tmp_path / name)} for name in expected}
    tree = {**picture_tree(tmp_path), "target": "image", "corpora": corpora}
    tree["embed"] = {"max_rejected": 0.9, "actors": 1}
    experiment = parse_experiment(tree)
    embed.run(experiment)
    for modality, reasons in expected.items():
        rejected = {row.id: row.reason for row in corpus_store(experiment, modality).rejected_rows()}
        assert rejected.keys() == {name for name, reason in reasons.items() if reason is not None}
        assert all((reasons[name] or "") in reason for name, reason in rejected.items()), rejected
        vectors = embedding_of(experiment, modality)
        assert vectors.keys() == reasons.keys() - rejected.keys()
        assert all(np.isfinite(vector).all() for vector in vectors.values())


def test_tokens_are_stored_as_sequences(experiment: Experiment) -> None:
    tokens = experiment.override({"encoders.text.pooling": "tokens", "embed.dtype": "float16"})
    embed_only(tokens, "names")
    store = corpus_store(tokens, "names")
    manifest = store.read_manifest()
    assert manifest is not None
    table = pq.read_table(Path(store.directory) / manifest["parts"][0])
    assert table.schema.field("tokens").type == pa.list_(pa.list_(pa.float16(), manifest["dim"]))
    assert min(len(sequence) for sequence in table["tokens"].to_pylist()) >= 3
    with pytest.raises(InputError, match="sequences of tokens"):
        store.load()


def test_actors_decoders_and_batches_do_not_change_the_vectors(
    embedded: tuple[Experiment, Summary], tmp_path: Path
) -> None:
    experiment, _ = embedded
    one = {"embed.actors": 1, "embed.decoders": 1, "embed.batch_size": 3}
    other = experiment.override({"store": str(tmp_path / "other"), **one})
    for corpus in experiment.corpora:
        embed_only(other, corpus)
        first, second = embedding_of(experiment, corpus), embedding_of(other, corpus)
        assert first.keys() == second.keys()
        assert all(np.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_too_many_unreadable_rows_fail_and_finish_nothing(experiment: Experiment, tmp_path: Path) -> None:
    for file in (tmp_path / "pictures" / "train" / "circle").glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"[2-4] of 33 rows cannot be read .*empty file .0 bytes.*raise the limit"):
        embed.run(experiment)
    assert corpus_store(experiment, "pictures").read_manifest() is None
