"""A small local Ray for each test module, stopped after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from pipelines.runtime import ray_session


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Start Ray as the steps do, and stop it after the module's tests."""
    with ray_session():
        yield
    assert not ray.is_initialized()
