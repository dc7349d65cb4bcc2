"""Runs trained in one pack are the runs trained alone: weights, evaluations, ends, failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.conftest import finish
from tests.unit.test_training import TABLES, experiment, run_of
from uml_core.config import Experiment
from uml_core.data.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.training.packs import pack_label, shapes_of, train_together
from uml_core.training.run import Evaluation, TrainingRun

GRID: list[dict[str, Any]] = [
    {"optim.lr": 1e-2},
    {"optim.lr": 1e-3, "optim.weight_decay": 0.3},
    {"optim.lr": 1e-2, "mixing.loss_weight.names": 0.2, "model.scale_init": 2.0},
    {"optim.lr": 0.2, "optim.schedule": "constant", "seed": 3},
    {"optim.lr": 1e-2, "seed": 3, "corpora.names.control": "shuffled_labels", "model.head_init": "random"},
]


def together(changes: list[dict[str, Any]]) -> tuple[list[TrainingRun], list[list[Evaluation]]]:
    """Train runs in one pack; those of one split share their data, as in a sweep."""
    data: dict[str, Any] = {}
    runs = []
    for change in changes:
        settings = experiment(**change)
        key = str(change.get("corpora.names.control"))
        data.setdefault(key, build_training_data(settings, TABLES))
        runs.append(TrainingRun(settings, data[key]))
    seen: dict[int, list[Evaluation]] = {id(run): [] for run in runs}
    failures = train_together(runs, lambda run, evaluation: seen[id(run)].append(evaluation))
    assert failures == [None] * len(runs)
    return runs, [seen[id(run)] for run in runs]


@pytest.mark.parametrize(
    "common",
    [
        {},
        {"mixing.batch_ratio.names": 0.1},
        {"mixing.schedule": "alternate", "train.label_smoothing": 0.1},
        {"mixing.warm_start": {"corpus": "names", "steps": 7}, "model.learnable_scale": False},
        {"model.shared_width": 6, "model.normalize": True},
        {"train.eval_every": 3, "train.patience": 1, "optim.warmup_steps": 0, "data.shots": 1},
        {"mixing.loss_weight.names": {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 30}},
        {
            "mixing.loss_weight.names": {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 30},
            "mixing.schedule": "alternate",
        },
    ],
    ids=lambda common: ",".join(common),
)
def test_a_pack_trains_as_its_runs_do_alone(common: dict[str, Any]) -> None:
    scheduled = isinstance(common.get("mixing.loss_weight.names"), Mapping)
    changes = [{**change, **common} if scheduled else {**common, **change} for change in GRID]
    runs, seen = together(changes)
    ends = set()
    for run, evaluations, change in zip(runs, seen, changes, strict=True):
        alone = run_of(**change)
        expected = list(alone.evaluations())
        assert [evaluation.step for evaluation in evaluations] == [evaluation.step for evaluation in expected]
        for ours, theirs in zip(evaluations, expected, strict=True):
            assert ours.losses == pytest.approx(theirs.losses, rel=1e-4, abs=1e-6)
            assert (ours.val_accuracy, ours.val_nll) == pytest.approx((theirs.val_accuracy, theirs.val_nll), rel=1e-3)
        assert run.progress.samples == alone.progress.samples
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)
        ends.add(run.progress.step)
    if "train.patience" in common:
        assert len(ends) > 1, "some run must leave the pack before another"


def test_a_pack_takes_constant_weights_and_schedules_of_its_runs() -> None:
    falling = {"mixing.loss_weight.names": {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 30}}
    changes: list[dict[str, Any]] = [{}, falling, {"mixing.loss_weight.names": 0.3}]
    assert len({pack_label(experiment(**change)) for change in changes}) == 1
    for run, change in zip(together(changes)[0], changes, strict=True):
        expected = finish(run_of(**change)).model.state_dict()
        torch.testing.assert_close(run.model.state_dict()["head.weight"], expected["head.weight"], rtol=1e-3, atol=1e-5)


def test_a_pack_waits_as_its_runs_do_where_the_corpus_of_a_warm_start_takes_no_part() -> None:
    idle = {"mixing.warm_start": {"corpus": "names", "steps": 30}, "mixing.loss_weight.names": 0.0, "train.patience": 1}
    changes: list[dict[str, Any]] = [idle, {**idle, "optim.lr": 1e-2}]
    for run, change in zip(together(changes)[0], changes, strict=True):
        expected = finish(run_of(**change))
        assert run.progress.samples == expected.progress.samples == {"target": 30 * 8}
        ours, theirs = (each.model.state_dict()["head.weight"] for each in (run, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    changes = [{"optim.lr": 1e-2}, {"optim.lr": 1e30, "optim.warmup_steps": 0}, {"optim.lr": 1e-3}]
    settings = [experiment(**change) for change in changes]
    runs = [TrainingRun(each, build_training_data(each, TABLES)) for each in settings]
    failures = train_together(runs, lambda run, evaluation: None)
    with pytest.raises(InputError) as alone:
        finish(run_of(**changes[1]))
    assert [failures[0], failures[2]] == [None, None]
    assert str(failures[1]) == str(alone.value)
    for index in (0, 2):
        expected = finish(run_of(**changes[index])).best
        found = runs[index].best
        assert expected is not None
        assert found is not None
        assert found.step == expected.step
        torch.testing.assert_close(found.weights["head.weight"], expected.weights["head.weight"], rtol=1e-3, atol=1e-5)


def test_only_runs_of_equal_shapes_share_a_label() -> None:
    base = pack_label(experiment())
    assert base is not None
    assert {pack_label(experiment(**change)) for change in GRID} == {base}
    for change in (
        {"mixing.loss_weight.names": 0.0},
        {"mixing.batch_ratio.names": 2.0},
        {"train.batch_size": 16},
        {"model.shared_width": 7},
        {"train.patience": 3},
    ):
        assert pack_label(experiment(**change)) not in (base, None), change
    falling = {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 30}
    for setting, same in ({"mixing.schedule": "alternate"}, False), ({}, True):
        labels = {pack_label(experiment(**{**setting, "mixing.loss_weight.names": each})) for each in (1.0, falling)}
        assert (len(labels) == 1) is same, "in turn, a corpus of weight 0 has no update"


@pytest.mark.parametrize(
    "change",
    [
        {"optim.clip_norm": 1.0},
        {"optim.ema_decay": 0.9},
        {"train.accumulate": 2},
        {"train.precision": "bfloat16"},
        {"train.gradient_cosine": True},
        {"optim.name": "lbfgs", "model.learnable_scale": False},
        {"objective": "self_supervised"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_closed_form_does_not_cover_trains_alone(change: dict[str, Any]) -> None:
    assert pack_label(experiment(**change)) is None


def test_bfloat16_on_a_gpu_trains_alone() -> None:
    assert pack_label(experiment(), device="cuda") is None
    assert pack_label(experiment(**{"train.precision": "float32"}), device="cuda") is not None


def test_shapes_tell_apart_what_only_the_data_know() -> None:
    def shapes(settings: Experiment, width: int) -> tuple[object, ...]:
        tables = {**TABLES, "names": TABLES["names"]}
        data = build_training_data(settings, tables)
        return shapes_of(TrainingRun(settings.override({"model.shared_width": width}), data))

    assert shapes(experiment(), 6) != shapes(experiment(), 7)
    assert shapes(experiment(), 6) == shapes(experiment(seed=5), 6)
