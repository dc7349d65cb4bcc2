"""A run whose number of workers follows the cluster: it grows or shrinks right after a checkpoint, not between two.

Ray Train restarts all workers to resize them, and asks for no checkpoint before it: at a moment of its own choosing it
would lose the steps since the last one, a whole `train.eval_every` of a large encoder. A lost node is another matter:
its workers are restarted at once.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision


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
