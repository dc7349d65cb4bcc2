"""What a worker of Ray Train reports of a run that ends before its first checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray.train
import ray.train.torch
import torch

from pipelines import train_loop
from pipelines.checkpoints import check
from tests.unit.test_training import TABLES, experiment


class Worker:
    """The only worker of a run, without Ray."""

    def get_world_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 1

    get_local_world_size = get_world_size


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
    monkeypatch.setattr(train_loop, "training_tables", lambda *_: TABLES)
    monkeypatch.setattr(train_loop, "note_workers", lambda _: None)
    diverging = experiment(**{"optim.lr": 1e30, "optim.warmup_steps": 0, "model.scale_init": 1e30})
    config = {"experiment": diverging.model_dump(mode="json"), "fingerprints": {}, "run_dir": str(tmp_path)}
    threads = torch.get_num_threads()
    try:
        train_loop.train_loop_per_worker({**config, "started_at": 0.0})
    finally:
        torch.set_num_threads(threads)
    (metrics,) = reports
    assert metrics.keys() == {"input_error"}
    assert "is not finite at step" in metrics["input_error"]
