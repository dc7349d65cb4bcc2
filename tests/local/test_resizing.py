"""When a run with train.min_workers is resized: right after a checkpoint of all its workers, at no other time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision

from pipelines.ray_train.elastic import ElasticTrainer, ResizeAfterReport, trainer_class

RESIZE = ResizeDecision(num_workers=3, resources_per_worker={"CPU": 1})


def test_what_the_trainer_leaves_out_is_what_ray_would_start() -> None:
    kept, all_of_rays = (
        {type(each) for each in kind(print, scaling_config=ScalingConfig())._create_default_callbacks()}
        for kind in (trainer_class(ScalingConfig()), TorchTrainer)
    )
    assert all_of_rays - kept == {DatasetsCallback, PlacementGroupCleanerCallback}


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> ResizeAfterReport:
    """The policy on a cluster with room for one more worker."""
    monkeypatch.setattr(ElasticScalingPolicy, "_maybe_send_resource_request", lambda self: None)
    for kind in ("running", "non_running"):
        monkeypatch.setattr(ElasticScalingPolicy, f"make_decision_for_{kind}_worker_group", lambda *_: RESIZE)
    return ResizeAfterReport(ScalingConfig(num_workers=(1, 3)))


def polled(policy: ResizeAfterReport, *metrics: dict[str, Any] | None) -> object:
    """Return what is decided after a poll in which each worker has reported these metrics, or nothing."""
    reports = [None if each is None else SimpleNamespace(metrics=each) for each in metrics]
    statuses = {rank: SimpleNamespace(training_report=report) for rank, report in enumerate(reports)}
    return policy.make_decision_for_running_worker_group(None, SimpleNamespace(worker_statuses=statuses))


def test_a_run_is_resized_once_all_workers_have_reported(policy: ResizeAfterReport) -> None:
    goes_on = {"finished": False}
    assert polled(policy, None, None) == NoopDecision()
    assert polled(policy, goes_on, None) == NoopDecision()
    assert polled(policy, None, goes_on) == RESIZE
    assert polled(policy, None, None) == NoopDecision()
    assert polled(policy, goes_on, goes_on) == RESIZE


@pytest.mark.parametrize("metrics", [{"finished": True}, {"input_error": "a wrong file"}, {"points": []}])
def test_a_run_is_not_resized_for_its_last_report(policy: ResizeAfterReport, metrics: dict[str, Any]) -> None:
    assert polled(policy, metrics) == NoopDecision()


def test_what_lost_workers_reported_does_not_count_for_the_next(policy: ResizeAfterReport) -> None:
    goes_on = {"finished": False}
    assert polled(policy, goes_on, None) == NoopDecision()
    assert policy.make_decision_for_non_running_worker_group() == RESIZE
    assert polled(policy, None, goes_on) == NoopDecision()


def test_only_a_number_of_workers_that_may_change_takes_the_policy() -> None:
    assert trainer_class(ScalingConfig(num_workers=(1, 3))) is ElasticTrainer
    assert trainer_class(ScalingConfig(num_workers=3)) is not ElasticTrainer
