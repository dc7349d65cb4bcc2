"""What a lost controller of Ray Train had reserved for its workers is given back: Ray keeps it until the job ends.

Ray Train has an actor of its own that would give it back. It asks the dashboard whether the controller lives, and where
there is none, as on a local cluster, it waits for ever; so would the next workers that need these CPUs. Ray itself
knows which actor made a reservation, whether its workers had started or not, and whether that actor has died.
"""

from __future__ import annotations

import ray
from ray import ActorID, PlacementGroupID
from ray._private.state import state  # what `placement_group_table` reads, and shows without the actor
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup


def free_orphans(lost_actor: str | None = None) -> None:
    """Give back this job's reservations whose makers, actors, have died: an actor just lost, by its hex id, and others.

    The driver may learn of a loss before the table says so.
    """
    job = ray.get_runtime_context().get_job_id()
    for content in state._connect_and_get_accessor().get_placement_group_table():
        reservation = PlacementGroupTableData.FromString(content)
        if reservation.creator_job_id.hex() != job or reservation.state == PlacementGroupTableData.REMOVED:
            continue
        maker = ActorID(reservation.creator_actor_id)  # nil, and called dead: the driver made it
        if not maker.is_nil() and (reservation.creator_actor_dead or maker.hex() == lost_actor):
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(reservation.placement_group_id)))
