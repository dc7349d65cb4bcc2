"""Heads and sequence models trained on a GPU: as on the CPU, alone or in a pack, resumed, and when they diverge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import finish
from tests.gpu.device import DEVICE, NEEDS_GPU, in_files, on_device, saved_and_loaded, share_apart, weights_of
from tests.sequence_corpora import sequence_experiment, wave_tables
from tests.unit.test_packed import GRID
from tests.unit.test_training import TABLES, experiment, run_of
from uml_core.data.sequence_data import build_sequence_data
from uml_core.data.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.evaluation.outcome import measure_outcome
from uml_core.training.packs import train_together
from uml_core.training.run import TrainingRun

pytestmark = NEEDS_GPU

FLOAT32 = {"train.precision": "float32"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixing.schedule": "alternate", "train.label_smoothing": 0.1, "mixing.batch_ratio.names": 0.3},
        {"train.accumulate": 2, "optim.clip_norm": 0.5, "optim.ema_decay": 0.9},
        {"mixing.loss_weight.names": {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 30}},
        {"train.gradient_cosine": True, "model.normalize": True},
    ],
    ids=["plain", "alternate", "accumulated", "scheduled", "cosine"],
)
def test_a_head_is_trained_as_on_the_cpu(changes: dict[str, Any]) -> None:
    """In float32, which a GPU computes without TF32: weights agree to 1e-3 after 60 steps."""
    on_cpu = run_of(**changes, **FLOAT32)
    expected, found = list(on_cpu.evaluations()), list((run := on_device(on_cpu)).evaluations())
    assert next(run.model.parameters()).device.type == DEVICE
    for theirs, ours in zip(expected, found, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3, abs=1e-5)
        assert ours.val_nll == pytest.approx(theirs.val_nll, rel=1e-3)
        assert ours.gradient_cosine == pytest.approx(theirs.gradient_cosine, abs=1e-2)
    for name, value in on_cpu.model.state_dict().items():
        torch.testing.assert_close(weights_of(run)[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert run.progress.samples == on_cpu.progress.samples
    assert measure_outcome(run).test_accuracy == pytest.approx(measure_outcome(on_cpu).test_accuracy, abs=0.07)


@pytest.mark.parametrize(
    "changes", [{}, {"train.accumulate": 2, "mixing.batch_ratio.names": 0.3}], ids=["plain", "parts"]
)
def test_rows_read_ahead_and_copied_from_pinned_memory_are_those_in_memory(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = run_of(**changes, **FLOAT32, **{"feed.memory_gib": 1e-6})
    kept, streamed = on_device(run), TrainingRun(run.experiment, in_files(run.data, tmp_path), device=DEVICE)
    finish(kept), finish(streamed)
    for name, value in weights_of(kept).items():
        torch.testing.assert_close(weights_of(streamed)[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_solver_ends_where_it_does_on_the_cpu() -> None:
    changes: dict[str, Any] = {"optim.name": "lbfgs", "model.learnable_scale": False, "mixing.loss_weight.names": 0.0}
    changes |= {"model.init_corpus": "target", "model.head_init": "random"}  # one width: the problem is convex
    on_cpu = finish(run_of(**changes, **FLOAT32, **{"train.max_steps": 20}))
    found = finish(on_device(on_cpu))
    assert on_cpu.best is not None
    assert found.best is not None
    assert found.best.val_nll == pytest.approx(on_cpu.best.val_nll, rel=1e-2)


def test_bfloat16_is_what_auto_means_and_learns() -> None:
    evaluations = list(on_device(run_of(**{"optim.lr": 1e-2})).evaluations())
    losses = [evaluation.losses["target"] for evaluation in evaluations]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.8 * losses[0]
    in_float32 = list(on_device(run_of(**{"optim.lr": 1e-2}, **FLOAT32)).evaluations())
    assert losses != [evaluation.losses["target"] for evaluation in in_float32], "another arithmetic"
    assert losses == pytest.approx([evaluation.losses["target"] for evaluation in in_float32], rel=0.05)


@pytest.mark.parametrize(
    "common",
    [
        {},
        {"mixing.schedule": "alternate", "train.label_smoothing": 0.1},
        {"train.eval_every": 3, "train.patience": 1, "optim.warmup_steps": 0, "data.shots": 1},
        {"mixing.loss_weight.names": {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 30}},
    ],
    ids=["plain", "alternate", "patience", "scheduled"],
)
def test_a_pack_trains_as_its_heads_do_alone(common: dict[str, Any]) -> None:
    """To 1e-3 of weights and losses after 60 steps; runs that end by patience leave the pack at the same step."""
    scheduled = isinstance(common.get("mixing.loss_weight.names"), Mapping)
    changes = [{**change, **common} if scheduled else {**common, **change} for change in GRID]
    runs = [on_device(run_of(**change, **FLOAT32)) for change in changes]
    losses: dict[int, list[dict[str, float]]] = {id(run): [] for run in runs}
    failures = train_together(runs, lambda run, evaluation: losses[id(run)].append(evaluation.losses))
    assert failures == [None] * len(runs)
    for run, change in zip(runs, changes, strict=True):
        alone = on_device(run_of(**change, **FLOAT32))
        expected = [evaluation.losses for evaluation in alone.evaluations()]
        assert losses[id(run)] == [pytest.approx(each, rel=1e-3, abs=1e-5) for each in expected]
        assert run.progress.step == alone.progress.step
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_head_is_the_uninterrupted_one(precision: str) -> None:
    """To 1 % of how far the weights move after the interruption, on average: a GPU's sums have no fixed order."""
    changes = {"train.precision": precision, "optim.ema_decay": 0.9, "optim.lr": 1e-2}
    whole, first, second = (on_device(run_of(**changes)) for _ in range(3))
    finish(whole)
    next(first.evaluations())
    start = weights_of(first)
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    finish(second)
    assert second.progress.samples == whole.progress.samples
    assert share_apart(weights_of(second), weights_of(whole), start) < 0.01
    assert whole.best is not None
    assert second.best is not None
    assert second.best.val_nll == pytest.approx(whole.best.val_nll, rel=1e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bad_row_is_told_with_its_step_as_on_the_cpu(precision: str) -> None:
    settings = experiment(**{"train.precision": precision})
    data = build_training_data(settings, TABLES)
    bad = np.array(data.train["names"].embeddings)
    bad[data.train["names"].rows[4]] = np.nan
    data = replace(data, train={**data.train, "names": replace(data.train["names"], embeddings=bad)})
    with pytest.raises(InputError) as on_cpu:
        finish(TrainingRun(settings, data))
    with pytest.raises(InputError) as on_gpu:
        finish(TrainingRun(settings, data, device=DEVICE))
    assert str(on_gpu.value) == str(on_cpu.value)
    assert "the loss of names is not finite at step" in str(on_gpu.value)


def test_a_head_that_diverges_leaves_its_pack_and_is_told_as_alone() -> None:
    changes = [{"optim.lr": 1e-2}, {"optim.lr": 1e30, "optim.warmup_steps": 0}, {"optim.lr": 1e-3}]
    failures = train_together([on_device(run_of(**change, **FLOAT32)) for change in changes], lambda run, _: None)
    with pytest.raises(InputError) as alone:
        finish(on_device(run_of(**changes[1], **FLOAT32)))
    assert [failures[0], failures[2]] == [None, None]
    assert str(failures[1]) == str(alone.value)
    assert "at step" in str(failures[1])


@pytest.mark.parametrize("task", ["next_token", "masked_token"])
def test_a_sequence_model_is_trained_as_on_the_cpu_and_learns_with_dropout(task: str) -> None:
    """Without dropout, whose masks are the device's own; losses agree to 1e-3 in float32."""

    def run_on(device: str, **changes: Any) -> TrainingRun:
        settings = sequence_experiment(**{"sequence_model.task": task, **changes})
        return TrainingRun(settings, build_sequence_data(settings, wave_tables()), device=device)

    plain = {"sequence_model.dropout": 0.0, **FLOAT32}
    expected, found = (list(run_on(device, **plain).evaluations()) for device in ("cpu", DEVICE))
    for theirs, ours in zip(expected, found, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3)
    losses = [evaluation.losses["target"] for evaluation in run_on(DEVICE).evaluations()]  # bfloat16
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
