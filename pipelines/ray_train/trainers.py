"""Ray Train's trainers as our runs use them: without two processes that take seconds of a start to import Train.

Our workers read their data themselves, so Train's actor for datasets would hold none. Its actor that gives back what
lost workers had reserved asks a dashboard, which a local cluster lacks; `pipelines.ray_train.faults` gives it back.
"""

from __future__ import annotations

from typing import Any

from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)


class _Lean:
    """Leaves out the callbacks that start the unused actors."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, UNUSED)]


class PlainTrainer(_Lean, DataParallelTrainer):
    """Workers without torch's process group; Train's controller then imports no torch."""


class RanksTrainer(_Lean, TorchTrainer):
    """Workers that are ranks of torch's process group, or that use a GPU."""


class ElasticTrainer(RanksTrainer):
    """Ranks whose number follows the cluster, right after a checkpoint."""

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        settings["scaling_policy"] = ResizeAfterReport(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)


def trainer_of(scaling: ScalingConfig) -> type[DataParallelTrainer]:
    """Return the trainer with torch's process group where there are ranks or GPUs; one worker on a CPU needs none."""
    if scaling.elasticity_enabled:
        return ElasticTrainer
    return PlainTrainer if scaling.num_workers == 1 and not scaling.use_gpu else RanksTrainer


class ResizeAfterReport(ElasticScalingPolicy):  # type: ignore[misc]  # Ray's own room: it has no public way in
    """Resizes a running group only where all of its workers have just reported a step that the run goes on from."""

    def __init__(self, scaling_config: Any) -> None:
        super().__init__(scaling_config)
        self._reported: set[int] = set()  # ranks: what one has reported counts when the others have, too

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Begin or begin again, with the workers there is room for."""
        self._reported.clear()
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Resize where the cluster has changed, if the workers' checkpoint has come with this poll."""
        statuses = worker_group_status.worker_statuses
        reports = {rank: status.training_report for rank, status in statuses.items() if status.training_report}
        self._reported |= {rank for rank, report in reports.items() if not report.metrics.get("finished", True)}
        if len(self._reported) < len(statuses):
            self._maybe_send_resource_request()  # the autoscaler forgets what nobody asks for
            return NoopDecision()
        self._reported.clear()
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
