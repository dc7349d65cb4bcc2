"""What the workers of Ray Train have reserved: noted by rank 0, given back where Train's controller dies and leaves it.

Ray Train has an actor of its own that would give it back. It asks the dashboard whether the controller lives, and where
there is none, as on a local cluster, it waits for ever; so would the next workers that need these CPUs.
"""

from __future__ import annotations

import ray
from ray import PlacementGroupID
from ray.experimental import internal_kv
from ray.util.placement_group import PlacementGroup

NAMESPACE = b"uml-workers"


def note_workers(key: str) -> None:
    """Note the reservation that this process, a worker, lives in, under the name of its run."""
    reservation = ray.util.get_current_placement_group()
    assert reservation is not None, "Ray Train reserves its workers' resources"
    internal_kv._internal_kv_put(key.encode(), reservation.id.binary(), namespace=NAMESPACE)


def free_workers(key: str) -> None:
    """Give back what a run's workers have reserved; the controller has died. Ray itself does when the job ends."""
    noted = internal_kv._internal_kv_get(key.encode(), namespace=NAMESPACE)
    if noted is not None:
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(noted)))
