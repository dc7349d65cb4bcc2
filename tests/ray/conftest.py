"""A small local Ray for each test module, stopped after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipelines.runtime import ray_session

FOLDER = Path(__file__).parent
# Files that take long start first, so that all processes end together.
LONGEST_FIRST = (
    *("test_train", "test_tune_encoders", "test_tune", "test_embed", "test_end_to_end", "test_fine_tuning"),
    *("test_embed_faults", "test_self_supervised", "test_tracking_servers"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by how long they take; each keeps its tests together, and in their order."""
    places = {f"{name}.py": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)) if item.path.parent == FOLDER else -1)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Start Ray as the steps do, and stop it after the module's tests."""
    with ray_session():
        yield
    assert not ray.is_initialized()
