"""Ray ends with its session, whatever was given up in it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import ray
from ray.exceptions import RaySystemError

from tests.ray.conftest import running


@pytest.mark.usefixtures("ray_cluster")
def test_a_stream_that_is_given_up_ends_before_ray_and_starts_no_other() -> None:
    def slow(batch: Any) -> Any:
        time.sleep(0.3)
        return batch

    ray.data.DataContext.get_current().enable_progress_bars = False
    numbers = ray.data.range(40, override_num_blocks=40).map_batches(slow, batch_size=1).iter_rows()
    given_up = iter(numbers)
    next(given_up)
    loops = [thread for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor-")]
    assert loops
    running.close()  # the session
    assert not any(loop.is_alive() for loop in loops)
    assert not ray.is_initialized()
    with pytest.raises(RaySystemError):
        ray.get_actor("any")
    assert not ray.is_initialized()
