"""A small local Ray, which the test files of one process share: a start costs eight seconds of CPU."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipelines.ray_session import ray_session

FOLDER = Path(__file__).parent
CTRL_C = signal.getsignal(signal.SIGINT)
# A Ray head with its dashboard is too slow to answer beside other clusters: its file runs beside the tests without Ray.
# Then the one that has a Ray of its own comes, before there is a shared one that it would have to stop; then those that
# take long, so that all processes end together.
BEFORE_OTHER_LAYERS = ("test_jobs",)
IN_ORDER = (
    *(
        "test_elastic",
        "test_demand",
        "test_tune_encoders",
        "test_train",
        "test_end_to_end",
        "test_fine_tuning",
        "test_embed",
    ),
    "test_first_hour",
    *("test_tune", "test_embed_faults", "test_self_supervised", "test_tracking_servers", "test_directions"),
)
LAST = ("test_runtime",)  # it ends the shared Ray


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files as above; each keeps its tests together, and in their order."""
    last = len(IN_ORDER)
    places = {name: place for place, name in enumerate(IN_ORDER)} | dict.fromkeys(BEFORE_OTHER_LAYERS, -2)
    places |= dict.fromkeys(LAST, last + 1)
    items.sort(key=lambda item: places.get(item.path.stem, last) if item.path.parent == FOLDER else -1)


running = contextlib.ExitStack()  # the shared Ray


@pytest.fixture(scope="module")
def ray_cluster() -> None:
    """A running Ray, started as the steps start it; the next file finds it running."""
    if not ray.is_initialized():  # a step's command line, called as a user calls it, stops what runs
        running.close()
        os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112 - Ray's name; 10 s is long to wait for
        running.enter_context(ray_session())


@pytest.fixture(scope="module")
def no_ray() -> None:
    """No shared Ray: for files that start one of their own."""
    running.close()


def joining() -> dict[str, str]:
    """The environment of a process that joins the shared Ray, as a step joins a cluster."""
    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def pytest_sessionfinish() -> None:
    """Leave no process behind."""
    running.close()


@pytest.fixture(autouse=True)
def _interrupts_are_our_own() -> Iterator[None]:
    """Ctrl-C does after every test what it did at the start: Ray's handlers outlive what they end."""
    yield
    assert signal.getsignal(signal.SIGINT) is CTRL_C
