"""Streaming from a file: the samples of training from memory, its blocks, its limit, its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.run_data import check_data, load_data
from pipelines.stores import corpus_fingerprints, corpus_stores
from tests.conftest import vector_tree, write_embeddings, write_vector_corpora
from uml_core.config import Experiment, FeedConfig, parse_experiment
from uml_core.corpora.ready.adopt import stream_ready
from uml_core.errors import InputError
from uml_core.evaluation.outcome import measure_outcome
from uml_core.feed.embeddings import EmbeddingFeed
from uml_core.feed.mixing import MixingPlan, Part
from uml_core.feed.read_ahead import FIRST_BLOCK_ROWS, RowReader
from uml_core.gradients.ranks import RankContext
from uml_core.store.corpus_store import CorpusStore
from uml_core.store.mapped_table import is_mapped, streamed_corpora
from uml_core.training.run import TrainingRun

STREAM = {"feed.keep": "stream"}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    directory = tmp_path_factory.mktemp("streaming")
    write_vector_corpora(directory)
    experiment = parse_experiment(vector_tree(directory))
    store(experiment)
    return experiment


def store(experiment: Experiment) -> None:
    """Write every corpus into the store, seven rows a part, as `pipelines.embed` adopts ready embeddings."""
    for name, target in corpus_stores(experiment, corpus_fingerprints(experiment)).items():
        (ready,) = stream_ready(name, experiment.corpora[name])
        for start in range(0, len(ready.rows), 7):
            part = slice(start, start + 7)
            target.write_part(ready.rows[part], ready.embeddings[part], [], dim=ready.dim)
        target.publish(target.footers(), {"dim": ready.dim})


def finished(experiment: Experiment) -> TrainingRun:
    run = TrainingRun(experiment, load_data(experiment))
    for _ in run.evaluations():
        pass
    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixing.schedule": "alternate", "mixing.batch_ratio.names": 0.3, "train.gradient_cosine": True},
        {"corpora.names.control": "shuffled_labels", "train.accumulate": 2, "data.shots": 2},
        {"corpora.names.control": "noise", "mixing.warm_start": {"corpus": "names", "steps": 7}},
        {"data.auxiliary_shots.names": "average", "model.normalize": True},
        {"data.auxiliary_shots.names": 3, "corpora.names.control": "unrelated"},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_the_model_is_the_one_trained_from_memory(experiment: Experiment, changes: dict[str, Any]) -> None:
    # 2e-6 GiB are some 40 rows of 12 numbers: blocks of a few steps, which begin and end within epochs.
    kept, streamed = (
        finished(experiment.override({**changes, **feed}))
        for feed in ({"feed.keep": "memory"}, {**STREAM, "feed.memory_gib": 2e-6})
    )
    assert not is_mapped(kept.data.train["target"].embeddings)
    assert is_mapped(streamed.data.train["target"].embeddings)
    first, second = measure_outcome(kept), measure_outcome(streamed)
    for name, value in kept.model.state_dict().items():
        assert torch.equal(value, streamed.model.state_dict()[name]), name
    assert (first.val_accuracy, first.test_accuracy) == (second.val_accuracy, second.test_accuracy)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**STREAM, "data.shots": 2, "data.auxiliary_shots.names": 3},
        {"corpora.names.control": "noise"},
        {"data.auxiliary_shots.names": "average"},
        {"corpora.names.control": "unrelated"},
        {"objective": "self_supervised", "corpora.names.control": "noise"},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_the_driver_selects_the_rows_that_are_trained_and_reads_no_embedding(
    experiment: Experiment, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, read_parquet = set[str](), CorpusStore._read_parquet

    def noted(store: CorpusStore, path: str, columns: list[str] | None = None) -> Any:
        read.update(columns or ["everything"])
        return read_parquet(store, path, columns)

    monkeypatch.setattr(CorpusStore, "_read_parquet", noted)
    settings = experiment.override(changes)
    checked = check_data(settings).data
    assert read == {"id", "label", "split"}
    loaded = load_data(settings)
    assert getattr(checked.labelled, "lots", None) is None or (checked.labelled.lots == loaded.labelled.lots).all()
    assert (checked.classes, checked.warnings()) == (loaded.classes, loaded.warnings())
    for ours, theirs in ((checked.labelled, loaded.labelled), (checked.val, loaded.val), (checked.test, loaded.test)):
        assert (ours.rows.tolist(), ours.labels.tolist()) == (theirs.rows.tolist(), theirs.labels.tolist())


class LateCopies:
    """`GpuCopies` without a GPU: what was copied is there once it is waited for, and is noted."""

    def __init__(self) -> None:
        self.started = 0
        self._late: list[tuple[torch.Tensor, torch.Tensor]] = []

    def pinned(self, num_rows: int, dim: int) -> torch.Tensor:
        return torch.empty(num_rows, dim)

    def start(self, tensor: torch.Tensor) -> torch.Tensor:
        self.started += 1
        self._late.append((torch.full_like(tensor, -7), tensor))
        return self._late[-1][0]

    def wait(self, *tensors: torch.Tensor) -> None:
        for copy, tensor in self._late:
            copy.copy_(tensor)
        self._late.clear()


def test_batches_for_a_gpu_are_copied_once_and_one_step_ahead(experiment: Experiment) -> None:
    changes = {"train.batch_size": 7, "train.max_steps": 40, "mixing.batch_ratio.names": 0.4}
    streamed = experiment.override({**changes, **STREAM, "feed.memory_gib": 1e-5})
    plan, data, ranks = (
        MixingPlan.from_experiment(streamed),
        load_data(streamed),
        RankContext(torch.device("cpu"), 1, 3),
    )
    expected, found = (EmbeddingFeed(streamed, data, plan, ranks) for _ in range(2))
    copies = {corpus: LateCopies() for corpus in plan.corpora}
    for corpus, source in found._sources.items():
        source._copies = copies[corpus]  # type: ignore[assignment, union-attr]
    for step in range(40):
        for index in range(2):
            theirs, ours = (feed.batch(step, plan.corpora, Part(index, 2)) for feed in (expected, found))
            assert theirs.embeddings.keys() == ours.embeddings.keys()
            for corpus in theirs.embeddings:
                assert torch.equal(theirs.embeddings[corpus], ours.embeddings[corpus])
                assert torch.equal(theirs.labels[corpus], ours.labels[corpus])
        ahead = [source._ahead for source in found._sources.values()]  # type: ignore[union-attr]
        assert step + 1 in ahead[0] or step + 1 not in found._sources["target"]._block.shifts  # type: ignore[union-attr]
    assert copies["target"].started == 2 * 40, "embeddings and labels of a step, once"


def test_every_rank_and_part_reads_its_share_and_any_step_can_be_the_first(experiment: Experiment) -> None:
    changes = {"train.batch_size": 7, "train.max_steps": 300, "mixing.batch_ratio.names": 0.4}
    kept, streamed = (experiment.override({**changes, **feed}) for feed in ({}, {**STREAM, "feed.memory_gib": 1e-5}))
    plan = MixingPlan.from_experiment(kept)
    whole = EmbeddingFeed(kept, load_data(kept), plan, RankContext(torch.device("cpu")))
    data = load_data(streamed)
    for rank in range(3):
        feed = EmbeddingFeed(streamed, data, plan, RankContext(torch.device("cpu"), rank, 3))
        for step in (250, 251, 3, 4, 5, 299, 0):
            for corpus in plan.corpora:
                shares = []
                for index in range(2):
                    batch = feed.batch(step, [corpus], Part(index, 2))
                    if corpus in batch.embeddings:
                        shares.append((batch.embeddings[corpus], batch.labels[corpus]))
                expected = whole.batch(step, [corpus], Part(rank, 3))
                if corpus not in expected.embeddings:
                    assert not shares
                    continue
                assert torch.equal(torch.cat([each[0] for each in shares]), expected.embeddings[corpus])
                assert torch.equal(torch.cat([each[1] for each in shares]), expected.labels[corpus])


def test_blocks_grow_to_half_the_memory_and_hold_whole_steps(experiment: Experiment) -> None:
    settings = experiment.override({**STREAM, "train.batch_size": 600, "train.max_steps": 60})
    feed = EmbeddingFeed(
        settings,
        load_data(settings),
        MixingPlan.from_experiment(settings),
        RankContext(torch.device("cpu")),
    )
    source = feed._sources["target"]
    sizes = {}
    for step in range(60):
        feed.batch(step, ["target"])
        sizes[min(source._block.shifts)] = len(source._block.shifts)
    assert list(sizes.values()) == [6, 13, 27, 14]  # 4096, 8192 and 16384 rows at most, and the rest of the run
    assert FIRST_BLOCK_ROWS == 4096
    assert len(source._block.rows_RD) == 48, "a row that is drawn often is read once"


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(1, 400))
def test_auto_keeps_what_fits(sizes: list[int], limit: int) -> None:
    named = {str(index): size for index, size in enumerate(sizes)}
    streamed = streamed_corpora(FeedConfig(memory_gib=limit / 2**30), named)
    kept = [size for name, size in named.items() if name not in streamed]
    assert bool(streamed) == (sum(sizes) > limit)
    assert sum(kept) <= (limit / 2 if streamed else limit)
    assert max([0, *kept]) <= min([named[name] for name in streamed], default=100)


def test_the_choice_is_told(experiment: Experiment) -> None:
    checked = check_data(experiment)
    assert checked.feeds == {"target": "memory", "names": "memory"}
    # 120 rows of 12 and 60 of 6 numbers are 5,760 and 1,440 bytes.
    some = experiment.override({"feed.memory_gib": 3000 / 2**30})
    checked = check_data(some)
    assert checked.feeds == {"target": "stream", "names": "memory"}
    assert "embeddings of target are read ahead from a file in " in checked.describe_feed(some)


def test_a_corpus_embedded_anew_is_written_anew(tmp_path: Path) -> None:
    write_vector_corpora(tmp_path)
    settings = parse_experiment(vector_tree(tmp_path)).override({**STREAM, "feed.cache": str(tmp_path / "cache")})
    store(settings)
    before = load_data(settings).train["names"]
    rows = {"label": ["class-0"] * 3, "split": ["train"] * 3, "embedding": np.eye(3, 6)}
    write_embeddings(tmp_path / "names.parquet", rows)
    store(settings)
    after = load_data(settings).train["names"]
    assert (len(before), len(after)) == (60, 3)
    assert sorted(map(tuple, after.gathered())) == sorted(map(tuple, np.eye(3, 6)))
    assert len(list((tmp_path / "cache" / "names").rglob("embeddings.npy"))) <= 2  # of two fingerprints at most
    assert not list((tmp_path / "cache").rglob("tmp-*"))


def test_a_disk_without_room_is_told(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("uml_core.store.mapped_table.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"streamed from a file of 0.0 GiB, and .* free; set feed.cache"):
        load_data(experiment.override({**STREAM, "feed.cache": str(tmp_path)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.name": "lbfgs", "model.learnable_scale": False}, "lbfgs needs feed.keep other than stream"),
        ({"objective": "self_supervised"}, "needs feed.keep other than stream"),
    ],
)
def test_what_cannot_be_streamed_is_refused(experiment: Experiment, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        experiment.override({**changes, **STREAM})


def test_a_solver_says_when_rows_do_not_fit(experiment: Experiment) -> None:
    changes = {"optim.name": "lbfgs", "model.learnable_scale": False, "mixing.loss_weight.names": 0}
    settings = experiment.override({**changes, "feed.memory_gib": 1e-6, "model.shared_width": 12})
    with pytest.raises(InputError, match=r"takes all rows at once, and target does not fit into feed.memory_gib 1e-06"):
        next(TrainingRun(settings, load_data(settings)).evaluations())


def test_rows_are_read_from_a_file_longer_than_a_request(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "table.npy", rng.standard_normal((5000, 3), dtype=np.float32))
    table = np.load(tmp_path / "table.npy", mmap_mode="r")
    rows = np.sort(rng.permutation(5000)[:2500])
    into = np.empty((2500, 3), dtype=np.float32)
    RowReader(table).read(rows, into)
    assert np.array_equal(into, table[rows])


def test_a_reader_closes_its_file(tmp_path: Path) -> None:
    np.zeros((4, 3), dtype=np.float32).tofile(tmp_path / "table")
    reader = RowReader(np.memmap(tmp_path / "table", np.float32, "r", shape=(4, 3)))
    descriptor = reader._file
    os.fstat(descriptor)
    del reader
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_an_error_of_the_reading_thread_reaches_training(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment.override({**STREAM, "feed.memory_gib": 2e-6})
    run = TrainingRun(settings, load_data(settings))
    read = RowReader.read
    calls = []

    def fails_at_the_third(self: RowReader, rows: Any, into: Any) -> None:
        calls.append(rows)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        read(self, rows, into)

    monkeypatch.setattr(RowReader, "read", fails_at_the_third)
    with pytest.raises(OSError, match="the disk is gone"):
        list(run.evaluations())
