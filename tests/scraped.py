"""What Prometheus would find on the metrics endpoints of a running Ray's nodes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import ray
import requests
from prometheus_client.parser import text_string_to_metric_families

EXPORTED_S = 20.0


def assert_exported(expected: Mapping[tuple[str, ...], float], experiment: str, *labels: str) -> None:
    """Assert what the endpoints say of an experiment, summed over processes, once it is what is expected.

    `expected` is by a metric's name and the values of its `labels`; of others nothing is asked.
    """
    ends = time.monotonic() + EXPORTED_S
    while (found := _exported(expected, experiment, labels)) != expected and time.monotonic() < ends:
        time.sleep(0.2)
    assert dict(found) == dict(expected), found


def _exported(
    names: Mapping[tuple[str, ...], float], experiment: str, labels: tuple[str, ...]
) -> dict[tuple[str, ...], float]:
    found = Counter[tuple[str, ...]]()
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        page = requests.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=5)
        for family in text_string_to_metric_families(page.text):
            for sample in family.samples:
                if sample.labels.get("experiment") == experiment:
                    found[sample.name, *(sample.labels.get(label, "") for label in labels)] += sample.value
    return {name: round(value, 3) for name, value in found.items() if name in names}
