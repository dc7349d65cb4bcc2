"""Solved heads of corpora that do not fit in memory: added up over the store, and equal to those from memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import row_sums
from pipelines.row_sums import add_up_rows
from pipelines.run_data import check_data, load_data
from pipelines.stores import corpus_fingerprints, corpus_store, corpus_stores
from pipelines.subset_files import subset_of
from pipelines.train import step as train
from tests.conftest import vector_tree, write_embeddings
from uml_core.config import Experiment, parse_experiment
from uml_core.corpora.ready.adopt import stream_ready
from uml_core.data.row_statistics import KEPT_ROWS
from uml_core.errors import InputError
from uml_core.store.corpus_table import is_unread
from uml_core.store.counted_table import rest_of
from uml_core.store.sums_folder import TOTAL
from uml_core.tracking.reading import load_predictor
from uml_core.training.run import TrainingRun

pytestmark = pytest.mark.usefixtures("ray_cluster")
# 12,000 rows of the target: eight parts of one size, two a group.
CLASSES, UNSEEN, WIDTH, PART_ROWS, TRAIN_ROWS = 12, 2, 16, 1500, KEPT_ROWS + 1600
STREAM, MEMORY = {"model.head": "prior", "feed.keep": "stream"}, {"model.head": "prior", "feed.keep": "memory"}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A target of more rows than are kept, and names in its space, of two classes more."""
    directory, rng = tmp_path_factory.mktemp("sums"), np.random.default_rng(0)
    latents = rng.standard_normal((CLASSES + UNSEEN, WIDTH))
    for name, num_rows, num_classes, spread in (
        ("target", TRAIN_ROWS + 400, CLASSES, 1.5),
        ("names", 3000, CLASSES + UNSEEN, 0.5),
    ):
        codes = rng.integers(num_classes, size=num_rows)
        held_out = ["val"] * 200 + ["test"] * 200 if name == "target" else []
        rows = {
            "label": [f"class-{code:02d}" if name == "target" or row % 10 else None for row, code in enumerate(codes)],
            "split": rng.permutation(["train"] * (num_rows - len(held_out)) + held_out),
            "embedding": latents[codes] + spread * rng.standard_normal((num_rows, WIDTH)),
        }
        write_embeddings(directory / f"{name}.parquet", rows)
    experiment = parse_experiment(vector_tree(directory))
    for name, store in corpus_stores(experiment, corpus_fingerprints(experiment)).items():
        for ready in stream_ready(name, experiment.corpora[name], chunk_rows=PART_ROWS):
            store.write_part(ready.rows, ready.embeddings, [], dim=ready.dim)
        store.publish(store.footers(), {"dim": WIDTH})
    return experiment


@pytest.fixture(autouse=True)
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sums, "GROUP_ROWS", 2 * PART_ROWS)


def solved(experiment: Experiment, sums: dict[str, str] | None = None) -> TrainingRun:
    run = TrainingRun(experiment, load_data(experiment, sums=sums))
    assert len(list(run.evaluations())) == 1
    return run


@pytest.mark.parametrize(
    ("changes", "added", "counted"),
    [
        ({}, {"target", "names"}, {"target", "names"}),
        ({"data.classes": "union", "model.normalize": True}, {"target", "names"}, {"target", "names"}),
        ({"data.shots": 2, "corpora.names.control": "unrelated"}, {"names"}, {"names"}),
        ({"corpora.names.control": "shuffled_labels", "data.shots": 20}, {"names"}, set()),
        ({"corpora.names.control": "noise", "data.shots": 910}, {"target"}, set()),
        ({"data.auxiliary_shots.names": "average"}, {"target"}, {"target"}),
        ({"corpora.names.missing_labels": "agree"}, {"target"}, {"target"}),
        ({"model.head": "ridge"}, {"target"}, {"target", "names"}),
    ],
    ids=lambda value: ",".join(sorted(value)) or "plain",
)
def test_the_head_is_the_one_from_memory(
    experiment: Experiment, changes: dict[str, Any], added: set[str], counted: set[str]
) -> None:
    streamed, resident = experiment.override(STREAM | changes), experiment.override(MEMORY | changes)
    checked = check_data(streamed)
    assert {name for name, rows in checked.data.train.items() if rows.counts is not None} == counted
    assert checked.data.warnings() == check_data(resident).data.warnings()
    sums = add_up_rows(streamed, checked)
    assert sums.keys() == added
    ours, expected = solved(streamed, sums), solved(resident)
    if "names" in added:
        assert is_unread(ours.data.train["names"].embeddings), "no file of it is written"
    for name, value in expected.model.head.state_dict().items():
        np.testing.assert_allclose(ours.model.head.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    assert add_up_rows(resident, check_data(resident)) == {}


def test_a_subset_of_all_rows_names_none_of_them(experiment: Experiment, tmp_path: Path) -> None:
    streamed, file = experiment.override(STREAM), tmp_path / "subset.json"
    checked, store = check_data(streamed), corpus_store(streamed, "target")
    text = subset_of(streamed, checked.data, rest_of(store).load_ids())
    tree = json.loads(text)
    assert sum(tree["train"].values()) == TRAIN_ROWS
    assert len(text) < 10_000, "of 400 ids"
    file.write_text(text)
    given = {"data.subset": str(file), "data.split_seed": 7}
    expected, again = load_data(experiment), load_data(experiment.override(given))
    for ours, theirs in ((again.labelled, expected.labelled), (again.val, expected.val), (again.test, expected.test)):
        assert (ours.rows.tolist(), ours.labels.tolist()) == (theirs.rows.tolist(), theirs.labels.tolist())
    counted = check_data(streamed.override(given)).data
    for ours, theirs in ((counted.labelled, checked.data.labelled), (counted.val, checked.data.val)):
        assert (ours.rows.tolist(), ours.labels.tolist()) == (theirs.rows.tolist(), theirs.labels.tolist())
    file.write_text(
        text.replace(f'"train": {{\n  "class-00": {tree["train"]["class-00"]}', '"train": {\n  "class-00": 3')
    )
    with pytest.raises(
        InputError, match=r"takes all rows of split train, \d+ of class-00 \(3\), .*, and the store has"
    ):
        check_data(streamed.override(given | {"data.subset": str(file.rename(tmp_path / "other.json"))}))


def test_train_goes_all_the_way(experiment: Experiment, tmp_path: Path) -> None:
    results = [train.run(experiment.override(feed)).results for feed in (STREAM, MEMORY)]
    assert results[0]["feed"] == {"target": "stream", "names": "stream"}
    ours, expected = (
        load_predictor(experiment.tracking.uri, each["model_uri"], tmp_path / each["run_id"]).head_weights
        for each in results
    )
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-6)
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    assert results[0]["train_rows"] == results[1]["train_rows"]
    assert results[0]["train_rows"]["target"] == TRAIN_ROWS


@contextlib.contextmanager
def poisoned(parts: Iterable[Path]) -> Iterator[None]:
    """Let parts hold NaN for a while."""
    kept = {part: part.read_bytes() for part in parts}
    for part in kept:
        table = pq.read_table(part)
        nothing = pa.FixedSizeListArray.from_arrays(pa.array(np.full(len(table) * WIDTH, np.float32(np.nan))), WIDTH)
        pq.write_table(table.set_column(table.schema.get_field_index("embedding"), "embedding", nothing), part)
    try:
        yield
    finally:
        for part, content in kept.items():
            part.write_bytes(content)


def test_a_pass_that_ended_on_its_way_reads_no_row_again(experiment: Experiment) -> None:
    settings = experiment.override(STREAM | {"model.head": "ridge", "model.normalize": True, "data.shots": 900})
    folder = Path(corpus_store(settings, "target").directory)
    parts = [folder / name for name in corpus_store(settings, "target").finished_manifest()["parts"]]
    with poisoned(parts[-1:]), pytest.raises(InputError, match="embeddings with NaN or infinity"):
        add_up_rows(settings, check_data(settings))
    (begun,) = (each for each in (folder / "sums").iterdir() if each.is_dir() and not (each / TOTAL).exists())
    done = sorted(begun.iterdir())
    assert len(done) == -(-len(parts) // 2) - 1, "all groups but that of the last part"
    numbers = [int(each.stem.removeprefix("group-")) for each in done]
    with poisoned(part for number in numbers for part in parts[2 * number : 2 * number + 2]):
        sums = add_up_rows(settings, check_data(settings))
    assert sums == {"target": begun.name}
    assert [each.name for each in begun.iterdir()] == [TOTAL]
    expected = solved(settings.override({"feed.keep": "memory"})).model.head.weight
    torch.testing.assert_close(solved(settings, sums).model.head.weight, expected, rtol=1e-6, atol=1e-6)
    with poisoned(parts):
        assert add_up_rows(settings, check_data(settings)) == sums, "the total is there"


def test_a_solver_over_all_rows_is_refused(experiment: Experiment) -> None:
    settings = experiment.override(STREAM | {"model.head": "logistic"})
    with pytest.raises(InputError, match=r"takes all rows at once, and target does not fit into feed.memory_gib 4"):
        train.run(settings)
    assert add_up_rows(settings.override({"model.head": "paper"}), check_data(settings)) == {}
