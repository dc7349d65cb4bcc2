"""A user's mistake that a worker of Ray Train finds, a damaged picture say: it ends the run at once, on all workers.

A rank that finds one alone raises it; the others wait for that rank, in a collective, for half an hour. Ray Train sees
the error and would start all of them again, to the same end. So its controller is told to give up, by an error of its
own, which the driver takes for what it is.

And a controller that is lost itself: what it had reserved for its workers is given back (`free_orphans`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray import ActorID, PlacementGroupID

# A killed Train controller keeps its workers' CPUs reserved, and the next run that needs them waits for ever: Ray's own
# cleaner asks a dashboard, which a local cluster lacks. `placement_group_table()` is public, and does not say who made
# a group.
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train import ControllerError, UserCallback
from ray.util.placement_group import PlacementGroup

from uml_core.errors import InputError, OutageError


class MistakeCallback(UserCallback):
    """Ends a run whose worker has raised InputError, from Train's controller."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise InputError where a worker has: an error of a callback is not retried."""
        for error in worker_exceptions.values():
            raised = getattr(error, "_base_exc", error)  # inside what holds it with its traceback
            if isinstance(raised, InputError):
                # Anew, without what holds it. An outage leaves the run unfinished: the same line goes on with it.
                raise (OutageError if isinstance(raised, OutageError) else InputError)(str(raised))


@contextlib.contextmanager
def mistakes_raised() -> Iterator[None]:
    """Raise InputError where Ray Train ends with the user's mistake; in the driver, around `fit`."""
    try:
        yield
    except ControllerError as error:
        if isinstance(error.controller_failure, InputError):
            raise error.controller_failure from None
        raise


def free_orphans(lost_actor: str) -> None:
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
