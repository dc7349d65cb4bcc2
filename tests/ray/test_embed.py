"""Embedding: rows neither lost nor doubled, damaged ones set apart, nothing computed twice.

Real encoders embed odd rows of every modality; a light one embeds where only the flow of rows is looked at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.command_line import Summary
from pipelines.embed import step as embed
from pipelines.embed import workers
from pipelines.embed.workers import Workers, set_encoder_threads
from pipelines.progress import StepProgress
from pipelines.stores import corpus_store
from tests.bad_rows import write_bad_rows
from tests.conftest import CLASSES, draw, picture_tree, write_picture_corpora
from tests.light_encoder import light
from tests.scraped import assert_exported
from uml_core.config import ClusterConfig, EmbedConfig, Experiment, parse_experiment
from uml_core.corpora.readers import rows_of
from uml_core.errors import InputError
from uml_core.tracking.reading import experiment_runs

# One actor beside one decode task, and another batch than `auto` takes.
ONE = {"embed.actors": 1, "embed.decoders": 1, "embed.batch_size": 3}

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Pictures for a light encoder."""
    tree = light(picture_tree(write_picture_corpora(tmp_path)))
    tree["embed"]["actors"] = 1  # by default so few rows are encoded without Ray
    del tree["corpora"]["names"]
    return parse_experiment(tree)


@dataclass(frozen=True)
class Embedded:
    """Plain and odd rows of every modality, embedded by the real encoders; left as they are by the tests."""

    experiment: Experiment
    summary: Summary
    reasons: dict[str, dict[str, str | None]]  # by corpus and row: words of why it is rejected, None: it is embedded


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Embedded:
    """Embed pictures by two actors, sentences and sounds, each one part, by one."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("embedded"))
    reasons = {
        "pictures": {f"train/{row}": why for row, why in write_bad_rows(directory / "pictures/train", "image").items()},
        "sentences": write_bad_rows(directory / "sentences", "text"),
        "sounds": write_bad_rows(directory / "sounds", "audio"),
    }
    for index in range(10):
        copy = directory / "pictures" / "train" / "stripes" / f"copy-{index}.png"
        shutil.copy(directory / "pictures" / "train" / "circle" / "0.png", copy)
    for label in CLASSES:
        (directory / "sentences" / label).mkdir()
        for index, sentence in enumerate((f"a {label}", f"the {label} shape", f"one more {label}")):
            (directory / "sentences" / label / f"{index}.txt").write_text(sentence, encoding="utf-8")
    modalities = {"pictures": "image", "sentences": "text", "sounds": "audio"}
    for corpus in modalities:
        files = [file for file in (directory / corpus).rglob("*") if file.is_file()]
        plain = dict.fromkeys(file.relative_to(directory / corpus).as_posix() for file in files)
        reasons[corpus] = {**plain, **reasons[corpus]}
    corpora = {
        corpus: {"modality": modality, "format": "folder", "path": str(directory / corpus)}
        for corpus, modality in modalities.items()
    }
    settings = {"actors": 2, "part_rows": 17, "max_rejected": 0.9}
    experiment = parse_experiment({**picture_tree(directory), "name": "odd", "corpora": corpora, "embed": settings})
    return Embedded(experiment, embed.run(experiment), reasons)


def embed_only(experiment: Experiment, corpus: str) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {}
    with StepProgress("listing") as shown:
        embed.embed_corpora(experiment, [corpus], shown, results)
    return results[corpus]


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


def rejected_of(experiment: Experiment, corpus: str) -> dict[str, str]:
    return {row.id: row.reason for row in corpus_store(experiment, corpus).rejected_rows()}


def files_in(pictures: Path) -> Counter[str]:
    return Counter(file.relative_to(pictures).as_posix() for file in pictures.rglob("*.png"))


def test_a_corpus_in_slices_holds_the_same_goes_on_and_refuses_an_id_in_two_of_them(tmp_path: Path) -> None:
    """One history of one store of 3 slices, beside the same rows in one."""
    pictures = tmp_path / "pictures"
    tree = light(picture_tree(write_picture_corpora(tmp_path)))
    tree["corpora"] = {"pictures": {"modality": "image", "format": "table", "path": f"{tmp_path}/*.jsonl"}}
    files = sorted(files_in(pictures))
    for piece in range(6):
        lines = [{"id": file, "path": f"pictures/{file}", "label": "a"} for file in files[piece::6]]
        (tmp_path / f"{piece}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "names.jsonl").unlink()
    (pictures / files[0]).write_bytes(b"not a picture")
    sliced = parse_experiment({**tree, "embed": {"slices": 3, "part_rows": 4, "actors": 2, "max_rejected": 0.1}})
    facts = embed_only(sliced, "pictures")
    assert (facts["rows"], facts["rejected_rows"], facts["new"]) == (len(files) - 1, 1, len(files))
    store = corpus_store(sliced, "pictures")
    assert {part.split("/")[0] for part in store.finished_manifest()["parts"]} > {"slice-0000"}
    assert not list(Path(store.directory).rglob("*tmp-*"))
    assert rejected_of(sliced, "pictures").keys() == {files[0]}

    whole = sliced.override({"store": str(tmp_path / "other"), "embed.slices": 1})
    embed_only(whole, "pictures")
    ours, theirs = store.load(), corpus_store(whole, "pictures").load()
    assert store.load_ids() == corpus_store(whole, "pictures").load_ids() == tuple(files[1:])
    assert np.array_equal(ours.embeddings, theirs.embeddings)

    assert embed_only(sliced.override({"embed.slices": "auto"}), "pictures")["up_to_date"], "it keeps its slices"
    lines = (tmp_path / "1.jsonl").read_text(encoding="utf-8").splitlines()
    new = {"id": "new", "path": f"pictures/{files[1]}", "label": "a"}
    (tmp_path / "1.jsonl").write_text("\n".join([*lines[1:], json.dumps(new)]), encoding="utf-8")
    facts = embed_only(sliced, "pictures")
    assert (facts["new"], facts["changed"], facts["removed"], facts["encoded_rows"]) == (1, 0, 1, 1)

    stored = store.load_ids()
    (tmp_path / "6.jsonl").write_text(json.dumps({"id": "6", "file": "6.png"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"6\.jsonl has columns file, id; a table needs a column") as refused:
        embed_only(sliced, "pictures")
    assert "Ray" not in str(refused.value)
    assert "UDF" not in str(refused.value)
    (tmp_path / "6.jsonl").unlink()
    (tmp_path / "1.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match="1 of 33 rows cannot be read"):
        embed_only(sliced.override({"embed.max_rejected": 0}), "pictures")
    assert store.load_ids() == stored, "readers see what they saw"
    first, second = sorted(store.finished_manifest()["parts"])[:2]
    for lost in (first, second):
        (Path(store.directory) / lost).unlink()
    assert not embed_only(sliced.override({"embed.part_rows": 64}), "pictures")["up_to_date"]
    assert store.load_ids() == tuple(files[1:])
    on_disk = {file.relative_to(store.directory).as_posix() for file in Path(store.directory).rglob("part-*")}
    assert on_disk == set(store.finished_manifest()["parts"])

    for piece in range(6):
        with (tmp_path / f"{piece}.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({**new, "id": "twice"}))
    with pytest.raises(InputError, match=r"corpora\.pictures: id 'twice' occurs again in another shard"):
        embed_only(sliced, "pictures")
    assert store.finished_manifest()["rows"] == len(files) - 1, "readers see what they saw"


def test_every_row_once_then_nothing_then_only_what_is_missing(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One history of one store, in half precision.

    1. Every row is embedded once, a damaged one is set apart.
    2. The same line again does nothing.
    3. After a kill only the lost part is embedded.
    4. A changed file is embedded again, a new one alone is added, a removed one goes.
    5. In full precision it is another store, and none is there.

    Each time the corpus is listed once.
    """
    listed: list[str] = []
    monkeypatch.setattr(embed, "rows_of", lambda given, corpus: listed.append(corpus) or rows_of(given, corpus))
    pictures = tmp_path / "pictures"
    (pictures / "train" / "circle" / "bad.png").write_bytes(b"not a picture")
    half = experiment.override({"embed.dtype": "float16", "embed.max_rejected": 0.1})
    facts = embed_only(half, "pictures")
    assert (facts["rows"], facts["rejected_rows"], facts["encoded_rows"]) == (33, 1, 33)
    assert facts["rows_per_split"] == {"dark": 6, "test": 9, "train": 12, "val": 6}
    assert stored_ids(half, "pictures") == files_in(pictures)
    assert rejected_of(half, "pictures") == {"train/circle/bad.png": "not a picture in a known format"}
    vectors = embedding_of(half, "pictures")
    assert corpus_store(half, "pictures").load().embeddings.dtype == np.float32

    before = times(half, "pictures")
    assert embed_only(half, "pictures")["up_to_date"]
    assert times(half, "pictures") == before
    assert listed == ["pictures"] * 2

    # As after a kill: no manifest, one part missing, one half-written temporary file.
    folder = Path(corpus_store(half, "pictures").directory)
    (folder / "manifest.json").unlink()
    lost = sorted(before)[0]
    (folder / lost).unlink()
    (folder / "tmp-half").write_bytes(b"PAR1")
    embed_only(half, "pictures")
    after = times(half, "pictures")
    assert {name for name in before if before[name] != after[name]} == {lost}
    assert stored_ids(half, "pictures") == files_in(pictures)
    same = embedding_of(half, "pictures")
    assert same.keys() == vectors.keys()
    assert all(np.array_equal(same[name], vectors[name]) for name in vectors)

    draw("stripes", np.random.default_rng(9)).save(pictures / "val" / "square" / "0.png")
    draw("circle", np.random.default_rng(8)).save(pictures / "train" / "circle" / "aa.png")
    (pictures / "dark" / "circle" / "0.png").unlink()
    facts = embed_only(half, "pictures")
    assert (facts["new"], facts["changed"], facts["removed"], facts["encoded_rows"]) == (1, 1, 1, 2)
    assert stored_ids(half, "pictures") == files_in(pictures)
    now = embedding_of(half, "pictures")
    assert {name for name in now if name in vectors and not np.array_equal(now[name], same[name])} == {
        "val/square/0.png"
    }
    assert listed == ["pictures"] * 4

    with pytest.raises(InputError, match="embedded by another encoder or setting"):
        corpus_store(half.override({"embed.dtype": "float32"}), "pictures").load()


def test_odd_and_damaged_rows_of_every_modality(embedded: Embedded) -> None:
    """Each is embedded, or rejected with a reason a person understands, and none stops the others."""
    for corpus, reasons in embedded.reasons.items():
        rejected = rejected_of(embedded.experiment, corpus)
        assert rejected.keys() == {name for name, reason in reasons.items() if reason is not None}
        assert all((reasons[name] or "") in reason for name, reason in rejected.items()), rejected
        vectors = embedding_of(embedded.experiment, corpus)
        assert vectors.keys() == reasons.keys() - rejected.keys()
        assert all(np.isfinite(vector).all() for vector in vectors.values())
        assert stored_ids(embedded.experiment, corpus) == Counter(list(reasons))


def test_what_the_actors_did_is_on_rays_metrics_endpoint(embedded: Embedded) -> None:
    facts = embedded.summary.results["corpora"]
    expected = {("ray_uml_rows_total", corpus): each["rows"] for corpus, each in facts.items()}
    expected |= {("ray_uml_rejected_rows_total", corpus): each["rejected_rows"] for corpus, each in facts.items()}
    assert_exported(expected, embedded.experiment.name, "corpus")
    encoded = {("ray_uml_seconds_total", corpus, "encode"): facts[corpus]["stage_s"]["encode"] for corpus in facts}
    assert_exported(encoded, embedded.experiment.name, "corpus", "stage")


def test_identical_inputs_of_a_part_are_encoded_once(embedded: Embedded) -> None:
    facts = embedded.summary.results["corpora"]["pictures"]
    assert (facts["rows"], facts["encoded_rows"], facts["repeated_inputs"]) == (57, 49, 8), (
        "ten over two parts, and the original in a third"
    )
    vectors = embedding_of(embedded.experiment, "pictures")
    for index in range(10):
        assert np.array_equal(vectors[f"train/stripes/copy-{index}.png"], vectors["train/circle/0.png"])


def test_what_embed_did_is_in_the_manifest_and_in_mlflow(embedded: Embedded) -> None:
    experiment = embedded.experiment
    manifest = corpus_store(experiment, "pictures").read_manifest()
    assert manifest is not None
    assert sum(manifest["stage_share"].values()) == pytest.approx(1, abs=1e-3)
    assert manifest["stage_s"]["encode"] > 0
    line = r"pictures +57 +7 +\d+ +\d+ % +\d+ % +\d+ % +\d+ %  [\d.]+ s, 64 new"
    assert re.search(line, embedded.summary.text), embedded.summary.text
    (run,) = experiment_runs(experiment.tracking.uri, experiment.name)
    assert run.kind == "embed"
    assert run.metrics["embed/rows_per_s/pictures"] == manifest["rows_per_s"]
    assert run.metrics["embed/share/encode/sentences"] > 0
    again = embed.run(experiment).results["corpora"]
    assert all(facts["up_to_date"] for facts in again.values())
    assert len(experiment_runs(experiment.tracking.uri, experiment.name)) == 1, "nothing done, nothing logged"


def test_actors_decoders_and_batches_do_not_change_the_vectors(embedded: Embedded, tmp_path: Path) -> None:
    other = embedded.experiment.override({"store": str(tmp_path / "other"), **ONE})
    embed_only(other, "pictures")
    first, second = embedding_of(embedded.experiment, "pictures"), embedding_of(other, "pictures")
    assert first.keys() == second.keys()
    assert all(np.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert rejected_of(other, "pictures") == rejected_of(embedded.experiment, "pictures")


@pytest.mark.parametrize(
    ("nodes", "gpus", "settings", "expected"),  # actors, decoders, threads, CPUs of one, and how many they may become
    [
        ([2], 0, {}, (2, 0, 1, 1, 9)),
        ([16], 0, {}, (4, 0, 4, 4, 9)),
        ([4, 4], 0, {}, (8, 0, 1, 1, 9)),
        ([7, 14], 0, {}, (3, 0, 7, 7, 9)),
        ([2], 0, {"actors": 1}, (1, 0, 2, 0.5, None)),
        ([2], 0, {"decoders": 1}, (2, 1, 1, 0.5, None)),
        ([8, 8], 2, {}, (2, None, 8, 0.5, 9)),
        ([8], 1, {"actors": 1}, (1, 7, 8, 0.5, None)),
    ],
)
def test_an_actor_has_whole_cpus_of_a_node_or_a_gpu_and_grows_by_what_joins(
    nodes: list[int], gpus: int, settings: dict[str, int], expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "node_cpus", lambda _: nodes)
    monkeypatch.setattr(workers, "num_gpus", lambda _: gpus)
    found = Workers.from_settings(EmbedConfig(**settings), num_parts=9, cluster=ClusterConfig())
    assert (found.actors, found.decoders, found.threads, found.cpus, found.most) == expected


@pytest.mark.parametrize(("threads", "local", "given"), [(4, 2, "2"), (2, 4, "2")])
def test_an_actor_takes_its_share_as_far_as_its_machine_has_it(
    threads: int, local: int, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: local)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # this process is no actor
    set_encoder_threads(Workers(1, 0, "cpu", threads))
    assert os.environ["OMP_NUM_THREADS"] == given


def test_tokens_are_stored_as_sequences_whose_mean_is_the_embedding(embedded: Embedded) -> None:
    """Decoded by a task and in batches of three, long texts and short: MiniLM's embedding is the mean of its tokens."""
    tokens = {"encoders.text.pooling": "tokens", "embed.dtype": "float16"}
    sequences = embedded.experiment.override({**ONE, **tokens})
    embed_only(sequences, "sentences")
    store = corpus_store(sequences, "sentences")
    manifest = store.read_manifest()
    assert manifest is not None
    (part,) = manifest["parts"]
    table = pq.read_table(Path(store.directory) / part)
    assert table.schema.field("tokens").type == pa.list_(pa.list_(pa.float16(), manifest["dim"]))
    vectors = embedding_of(embedded.experiment, "sentences")
    assert sorted(vectors) == sorted(table["id"].to_pylist())
    for row, sequence in zip(table["id"].to_pylist(), table["tokens"].to_pylist(), strict=True):
        assert len(sequence) >= 3
        mean = np.mean(np.array(sequence, dtype=np.float32), axis=0)
        assert np.allclose(mean / np.linalg.norm(mean), vectors[row], atol=2e-4), row  # float16
    with pytest.raises(InputError, match="sequences of tokens"):
        store.load()
    assert rejected_of(sequences, "sentences") == rejected_of(embedded.experiment, "sentences")


def test_too_many_unreadable_rows_fail_and_finish_nothing(experiment: Experiment, tmp_path: Path) -> None:
    for file in (tmp_path / "pictures" / "train" / "circle").glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"[2-4] of 33 rows cannot be read .*empty file .0 bytes.*raise the limit"):
        embed.run(experiment)
    assert corpus_store(experiment, "pictures").read_manifest() is None
