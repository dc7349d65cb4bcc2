"""A user's mistake that a worker of Ray Train finds, a damaged picture say: it ends the run at once, on all workers.

A rank that finds one alone raises it; the others wait for that rank, in a collective, for half an hour. Ray Train sees
the error and would start all of them again, to the same end. So its controller is told to give up, by an error of its
own, which the driver takes for what it is.

Workers that lose each other, in a collective that times out say, are begun again; when that has not helped, the driver
says so in one line.

And a controller that is lost itself: what it had reserved for its workers is given back (`free_orphans`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray import ActorID, PlacementGroupID

# A killed Train controller keeps its workers' CPUs reserved, and the next run that needs them waits for ever: Ray's own
# cleaner asks a dashboard, which a local cluster lacks. `placement_group_table()` is public, and does not say who made
# a group.
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.exceptions import RayActorError
from ray.train import ControllerError, UserCallback, WorkerGroupError
from ray.util.placement_group import PlacementGroup

from uml_core.errors import InputError, OutageError, listing
from uml_core.files.outages import outage_of

# What torch says of a collective that ends badly, of NCCL and of gloo; and where in torch it was called.
NCCL_TIMEOUT = re.compile(r"OpType=(\w+).*?Timeout\(ms\)=(\d+)")
GLOO_TIMEOUT = re.compile(r"Timed out waiting (\d+)ms for \w+ operation")
LEFT_ALONE = re.compile(
    r"gloo/.*Connection (?:closed|reset) by peer|NCCL communicator was aborted|ncclRemoteError|ncclSystemError"
)
IN_TORCH = re.compile(r'distributed_c10d\.py", line \d+, in (\w+)')


class MistakeCallback(UserCallback):
    """Ends a run whose worker has raised InputError, from Train's controller."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise InputError where a worker has: an error of a callback is not retried."""
        for error in worker_exceptions.values():
            raised = getattr(error, "_base_exc", error)  # inside what holds it with its traceback
            if isinstance(raised, InputError):
                # Anew, without what holds it. An outage leaves the run unfinished: the same line goes on with it.
                raise (OutageError if isinstance(raised, OutageError) else InputError)(str(raised))
            if (outage := outage_of(error)) is not None:  # which was waited for: the next attempt would be as long
                raise outage


@contextlib.contextmanager
def mistakes_raised() -> Iterator[None]:
    """Raise InputError where Ray Train ends with the user's mistake, OutageError where workers lose each other.

    In the driver, around `fit`.
    """
    try:
        yield
    except WorkerGroupError as error:
        if line := lost_in_collective(error.worker_failures):
            raise OutageError(line) from None
        raise
    except ControllerError as error:
        if isinstance(error.controller_failure, InputError):
            raise error.controller_failure from None
        raise


def lost_in_collective(failures: Mapping[int, Exception]) -> str | None:
    """One line where workers, by rank, have waited for each other in vain; None where one has an error of its own."""
    waits = {rank: _wait(error) for rank, error in failures.items()}
    died = [rank for rank, error in failures.items() if isinstance(error, RayActorError)]
    if not any(waits.values()) or any(wait is None and rank not in died for rank, wait in waits.items()):
        return None
    # Who has waited longest says the most; one whose peer is gone has just been told.
    rank, wait = max(((rank, wait) for rank, wait in waits.items() if wait), key=lambda each: each[1])
    how = f"waited {wait[0]:.0f} s" if wait[0] else "lost its connection"
    lost = f"; workers that died: {listing(map(str, died))}" if died else ""
    return (
        f"worker {rank} {how} in {wait[1]} for the others, again after each new start{lost}; see that all nodes reach "
        "each other (NCCL_SOCKET_IFNAME names the network, NCCL_DEBUG=INFO says what is tried) and what the other "
        "workers' logs end with; the same line goes on from the last checkpoint"
    )


def _wait(error: Exception) -> tuple[float, str] | None:
    """Seconds (0: unknown) and collective in which a worker's error says that it was left alone; None: of no such."""
    text = str(getattr(error, "_base_exc", error))
    called = IN_TORCH.findall(getattr(error, "_traceback_str", ""))
    if nccl := NCCL_TIMEOUT.search(text):
        return int(nccl[2]) / 1000, nccl[1].lower()
    collective = called[-1] if called else "a collective"
    if gloo := GLOO_TIMEOUT.search(text):
        return int(gloo[1]) / 1000, collective
    return (0.0, collective) if LEFT_ALONE.search(text) else None


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
