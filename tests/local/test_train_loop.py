"""What a worker of Ray Train reports, without Ray: how often, and of a run that diverges."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.train
import ray.train.torch
import torch

from pipelines.ray_train.checkpoints import ReportPace, check
from pipelines.run_data import divergence_message
from pipelines.train import loop, worker
from pipelines.train.bar import TrainingState
from tests.unit.test_training import TABLES, experiment
from uml_core.corpora.rows import Row
from uml_core.data.training_data import build_training_data
from uml_core.gradients.batch import NonFiniteError
from uml_core.store.corpus_store import CorpusStore
from uml_core.tracking.records import MetricPoint
from uml_core.training.run import Evaluation, TrainingRun


class Worker:
    """The only worker of a run, without Ray."""

    def get_world_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 1

    get_local_world_size = get_world_size


def write_stores(directory: Path) -> dict[str, str]:
    """Write stores of the tables' ids, the last ones first; returns their fingerprints."""
    facts = {"encoder": {}, "dim": 1, "dtype": "float32", "wall_s": 1.0, "rows_per_s": 1.0, "stage_s": {}}
    for corpus, rows in TABLES.items():
        store = CorpusStore(str(directory), corpus, "f" * 12)
        listed = [Row(f"{corpus}-{index:02}", "a", "train", text="x") for index in range(len(rows.embeddings))]
        for part in (listed[20:], listed[:20]):
            store.write_part(part[::-1], np.zeros((len(part), 1), dtype=np.float32), [], dim=1)
        store.publish(store.footers(), facts)
    return dict.fromkeys(TABLES, "f" * 12)


def test_reports_take_at_most_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation every second; a report takes 0.05 s at first, and 0.5 s later: 5, then 50 s go by, and the end."""
    now, reported, shown = [0.0], [], []
    clock = partial(now.__getitem__, 0)

    def evaluated(run: TrainingRun, evaluation: Evaluation) -> list[MetricPoint]:
        now[0] += 1.0
        return []

    def report(points: list[MetricPoint], state: TrainingState) -> None:
        reported.append((state.step, points[-1].name, points[-1].value))
        now[0] += 0.05 if len(reported) < 3 else 0.5

    settings = experiment(**{"train.max_steps": 80, "train.eval_every": 1, "train.patience": 100})
    settings = settings.override({"train.report_every_s": 3})
    monkeypatch.setattr(loop, "ReportPace", SimpleNamespace(start=lambda train: ReportPace(3, 0.01, clock)))
    monkeypatch.setattr(loop, "evaluation_points", evaluated)
    loop.train_and_report(TrainingRun(settings, build_training_data(settings, TABLES)), 0.0, report, shown.append)
    assert len(shown) == 80, "the bar moves with every evaluation"
    assert [step for step, _, _ in reported] == [3, 8, 13, 63, 80]
    assert {name for _, name, _ in reported} == {"perf/report_share"}
    assert [share for *_, share in reported] == pytest.approx([0, 0.05 / 8.05, 0.1 / 13.1, 0.6 / 63.6, 1.1 / 81.1])
    assert ReportPace.start(settings.train).is_due() is False


def test_divergence_before_the_first_checkpoint_is_reported_with_one_and_without_a_good_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train keeps the metrics of a report only where it has a checkpoint; there is no good one to name."""
    reports: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint) -> None:
        reports.append(metrics)
        with checkpoint.as_directory() as directory:
            assert check(Path(directory)) == 0, "whole"

    monkeypatch.setattr(ray.train, "get_context", Worker)
    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "load_data", lambda settings, *_: build_training_data(settings, TABLES))
    changes = {"optim.lr": 1e30, "optim.warmup_steps": 0, "model.scale_init": 1e30, "store": str(tmp_path / "store")}
    diverging, fingerprints = experiment(**changes), write_stores(tmp_path / "store")
    config = {"experiment": diverging.model_dump(mode="json"), "run_dir": str(tmp_path / "run")}
    config |= {"fingerprints": fingerprints, "sums": {}}
    threads = torch.get_num_threads()
    try:
        worker.train_loop_per_worker({**config, "started_at": 0.0})
    finally:
        torch.set_num_threads(threads)
    (metrics,) = reports
    assert metrics.keys() == {"input_error"}
    assert re.search(
        r"is not finite at step .*: in that batch: target(,? target-\d\d){5} and 3 more", metrics["input_error"]
    )


def test_ids_stand_for_rows_that_are_the_corpus_s_own(tmp_path: Path) -> None:
    fingerprints, rows = write_stores(tmp_path), {"target": [7, 0, 40], "names": [9, 2]}
    error = NonFiniteError((), ("target", "names"), 3, rows)
    plain = experiment(store=str(tmp_path))
    for changes, names in (
        ({}, "names-09, names-02"),
        ({"corpora.names.control": "shuffled_labels"}, "names-09, names-02"),
        ({"corpora.names.control": "noise"}, "rows 9, 2 of what is in its place, counted from 0"),
        ({"data.auxiliary_shots": {"names": "average"}}, "rows 9, 2 of what is in its place, counted from 0"),
    ):
        message = divergence_message(error, plain.override(changes), fingerprints)
        assert message.startswith("the gradient of target, names is not finite at step 3; lower optim.lr")
        assert message.endswith(f"in that batch: target target-07, target-00, target-40; names {names}")
