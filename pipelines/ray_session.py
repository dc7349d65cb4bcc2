"""Connecting to Ray, or starting a local one; what it has of CPUs and GPUs; and stopping it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import ray

from pipelines.progress import StepProgress, stage
from uml_core.errors import InputError

POLL_S = 1.0
TYPE_PREFIX = "accelerator_type:"  # of the custom resource that Ray gives a node by its GPUs
LOOP_ENDS_S = 30  # a round of Ray Data's loop, which may wait for an actor's start
_is_kept = threading.Event()  # whether the Ray that `ray_session` starts outlives it; a process has one


@contextlib.contextmanager
def ray_session(*, meanwhile: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Connect to the cluster of $RAY_ADDRESS (a job has it), else start a local one; a started one is stopped.

    `meanwhile` is called in a thread while Ray's processes start, which is mostly waiting.
    """
    if ray.is_initialized():
        meanwhile()
        yield
        return
    try:
        with stage("Ray", "starting Ray"), ThreadPoolExecutor(1) as background:
            called = background.submit(meanwhile)
            _start_ray()
        called.result()
        yield
    finally:
        if not _is_kept.is_set():
            stop_ray()


@contextlib.contextmanager
def ray_kept() -> Iterator[None]:
    """Let the Ray that the first step in need of one starts serve those after it; it is stopped in the end."""
    if ray.is_initialized() or _is_kept.is_set():  # whoever started it stops it
        yield
        return
    _is_kept.set()
    try:
        yield
    finally:
        _is_kept.clear()
        if ray.is_initialized():
            stop_ray()


def stop_ray() -> None:
    """Stop Ray, and before it Ray Data's loops: that of a stream that was given up would log a traceback."""
    with stage("Ray", "stopping Ray"):
        for thread in threading.enumerate():
            if thread.name.startswith("StreamingExecutor-"):
                loop: Any = thread
                with contextlib.suppress(Exception):  # of a cluster that is lost; what is raised already says so
                    loop.shutdown(force=False)
                loop.join(LOOP_ENDS_S)
        ray.shutdown()


@contextlib.contextmanager
def own_interrupts() -> Iterator[None]:
    """Restore what Ctrl-C does: fit() of Ray Train and of Ray Tune leaves its own handler behind.

    Tune's swallows the next Ctrl-C. Train's calls its controller, which has ended by then: an exception at best, and a
    segmentation fault in a process that has started Ray again since, as that of our tests.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _start_ray() -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # a report takes 0.1 s instead of 2 s
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING)
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process that no local node has use for
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked to be counted
        # A local cluster's token is nobody's business but ours.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        try:
            ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
        except Exception as error:  # of no class of its own
            if "timed out during startup" not in str(error):
                raise
            raise InputError(
                "Ray's processes did not start within 30 s: the machine has too much other work or too little memory; "
                "end some of it, and run the same line again"
            ) from None


def quieten_ray_data() -> None:
    """Our bar and our table say what Ray Data's bars and announcements say; its warnings stay."""
    import ray.data  # it takes a second

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # here, because importing ray.data sets the level anew
    for what_ends_a_stream in ("exceptions", "_internal.execution.streaming_executor_state"):  # is raised as well
        logging.getLogger(f"ray.data.{what_ends_a_stream}").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off


def share_of(nodes: str | None) -> dict[str, float]:
    """What a process asks of a custom resource, to run on nodes that have it."""
    return {} if nodes is None else {nodes: 0.001}


def await_resources(kind: Literal["CPU", "GPU"], count: int, *, wait_s: float, nodes: str | None = None) -> int:
    """How many CPUs or GPUs the cluster has, once there are so many or they were waited for in vain.

    Ray's autoscaler adds nodes for what is asked of it. What a cluster may grow to, it does not say: so it is asked.

    Args:
        kind: of a CPU or GPU each.
        count: so many of them.
        wait_s: seconds to wait; 0 asks for nothing.
        nodes: a custom resource that theirs have.
    """
    there = _there(kind, nodes)
    if there >= count or not wait_s:
        return there
    from ray.autoscaler.sdk import request_resources  # half a second that few steps need

    bundles = [{kind: 1, **share_of(nodes)}] * count
    ends = time.monotonic() + wait_s
    try:
        with StepProgress(f"waiting for {count} {kind}s, of which the cluster has {there}") as shown:
            while there < count and time.monotonic() < ends:
                request_resources(bundles=bundles)  # again: one of another job takes its place
                time.sleep(POLL_S)
                if (now := _there(kind, nodes)) != there:
                    there = now
                    shown.says(f"waiting for {count} {kind}s, of which the cluster has {there}")
    finally:
        request_resources(bundles=[])  # what runs then holds its nodes itself
    return there


def node_resources(nodes: str | None = None) -> list[dict[str, float]]:
    """What each living node has; of those with a custom resource, where one is named."""
    there: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [each for each in there if nodes is None or nodes in each]


def _there(kind: str, nodes: str | None = None) -> int:
    return int(sum(each.get(kind, 0) for each in node_resources(nodes)))


def num_cpus() -> int:  # of the cluster, at least 1
    return max(1, _there("CPU"))


def node_cpus(nodes: str | None = None) -> list[int]:
    """The CPUs of each node that has any; [1] where there is none."""
    found = [int(each.get("CPU", 0)) for each in node_resources(nodes)]
    return [count for count in found if count] or [1]


def num_gpus(nodes: str | None = None) -> int:
    return _there("GPU", nodes)


def gpu_types(nodes: str | None = None) -> Counter[str]:
    """GPUs by their type, as Ray names it; those whose type it does not know are left out."""
    found: Counter[str] = Counter()
    for each in node_resources(nodes):
        for name in each:
            if each.get("GPU") and name.startswith(TYPE_PREFIX):
                found[name.removeprefix(TYPE_PREFIX)] += int(each["GPU"])
    return found
