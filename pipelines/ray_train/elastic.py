"""Ray's trainer without what no run uses, and one whose workers follow the cluster: resized after a checkpoint."""

from __future__ import annotations

from typing import Any

from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer

# Ray has no public way to say when a run may be resized. Its own policy does so at any poll, and the steps since the
# last checkpoint are trained and logged twice.
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision


class LeanTrainer(TorchTrainer):
    """Starts no process for Ray Data's shards, which our workers do not read, and none that frees reservations.

    Of a controller that was lost, the driver frees them (`pipelines.ray_train.faults.free_orphans`). Both are processes
    that are started, and waited for, before the first step; Ray has no public way to leave them out.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in unused]


class ElasticTrainer(LeanTrainer):
    """Ranks whose number follows the cluster, right after a checkpoint."""

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        settings["scaling_policy"] = ResizeAfterReport(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)


def trainer_class(scaling: ScalingConfig) -> type[TorchTrainer]:
    return ElasticTrainer if scaling.elasticity_enabled else LeanTrainer


class ResizeAfterReport(ElasticScalingPolicy):  # type: ignore[misc]
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
