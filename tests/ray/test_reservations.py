"""What an actor had reserved is given back when it is killed, also before anything runs there; what lives is left."""

from __future__ import annotations

import os
import signal
import time

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from pipelines.ray_train.faults import free_orphans


class Maker:
    """Reserves something for others to run in, as Train's controller does."""

    def reserve(self) -> str:
        self.reservation = placement_group([{"memory": 1}])
        ray.get(self.reservation.ready())
        return str(self.reservation.id.hex())

    def pid(self) -> int:
        return os.getpid()

    def wait(self) -> None:
        time.sleep(600)


def states(*reservations: str) -> list[str]:
    return [placement_group_table()[reservation]["state"] for reservation in reservations]


@pytest.mark.usefixtures("ray_cluster")
def test_reservations_of_killed_actors_alone_are_given_back() -> None:
    maker, other = (ray.remote(num_cpus=0)(Maker).remote() for _ in range(2))
    lost, living = ray.get([maker.reserve.remote(), other.reserve.remote()])
    ours = placement_group([{"memory": 1}])
    ray.get(ours.ready())
    free_orphans("")
    assert states(lost, living, ours.id.hex()) == ["CREATED"] * 3
    pid, waiting = ray.get(maker.pid.remote()), maker.wait.remote()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError) as error:
        ray.get(waiting)
    free_orphans(error.value.actor_id)
    assert states(lost, living, ours.id.hex()) == ["REMOVED", "CREATED", "CREATED"]
    ray.kill(other)
    ray.util.remove_placement_group(ours)
