"""What every step shares: the command line, exit statuses, connecting to Ray, absolute places, progress.

    python -m pipelines.STEP EXPERIMENT.yaml [key=value ...] [--dry-run]

A step is a function from an experiment and its flags to a `Summary`. `step_main` does the rest: it prints the
summary and, as the last line, one JSON object; a user's mistake ends with one line on stderr and status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import auto_init_hook  # its switch is an environment variable, too late once Ray is imported
from ray._private.state import state  # what the autoscaler may add stands nowhere else

from uml_core.config import Experiment, TrackingConfig, load_experiment
from uml_core.errors import InputError

logger = logging.getLogger(__name__)

LOOP_ENDS_S = 30  # a round of Ray Data's loop, which may wait for an actor's start


@dataclass(frozen=True)
class Summary:
    """What a step ends with: a few lines for a person, and the key results as one JSON object."""

    text: str
    results: dict[str, Any]


Step = Callable[[Experiment, argparse.Namespace], Summary]


def experiment_parser(step: str, *, description: str) -> argparse.ArgumentParser:
    """Return the command line every step has; a step adds its own flags."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipelines.{step}",
        description=description,
        epilog=f"example: python -m pipelines.{step} examples/demo.yaml data.shots=4",
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that override the file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved experiment and stop")
    return parser


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a step that takes a logged model in place of an experiment file: --model, --tracking-uri."""
    parser.add_argument("--model", required=True, help="runs:/RUN_ID/model, models:/NAME@ALIAS, or a local folder")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", TrackingConfig().uri))


def step_main(parser: argparse.ArgumentParser, step: Step, argv: list[str] | None = None) -> int:
    """Run one step from the command line; returns the exit status (0 done, 2 the user's mistake)."""

    def body() -> Summary | None:
        arguments = parser.parse_intermixed_args(argv)
        experiment = absolute_places(load_experiment(arguments.experiment, arguments.overrides))
        if arguments.dry_run:
            print(experiment.to_yaml(), end="")
            return None
        return step(experiment, arguments)

    return guarded(body)


def guarded(body: Callable[[], Summary | None]) -> int:
    """Run a step's body under the exit-status contract: 0 done, 2 a user's mistake told in one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        summary = body()
    except InputError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if ray.is_initialized():
            _stop_ray()
    if summary is not None:
        print(summary.text)
        print(json.dumps(summary.results, ensure_ascii=False))
    return 0


def absolute_places(experiment: Experiment) -> Experiment:
    """Return the experiment with absolute places: workers and jobs do not share the driver's working directory.

    Relative paths start at $UML_ROOT, or at the working directory. Inside a Ray job the working directory is a
    temporary copy, so there a relative store or tracking place without $UML_ROOT is refused.
    """
    refuse = in_uploaded_copy() and "UML_ROOT" not in os.environ
    tracking = experiment.tracking
    places = {
        "store": experiment.store,
        "tracking.uri": tracking.uri,
        "tracking.artifacts": tracking.artifacts,
        **({"feed.cache": experiment.feed.cache} if experiment.feed.cache is not None else {}),
        **{
            f"corpora.{name}.{key}": place
            for name, corpus in experiment.corpora.items()
            for key, place in (("path", corpus.path), ("root", corpus.root))
            if place is not None
        },
        **{f"evaluation.class_maps.{name}": path for name, path in experiment.evaluation.class_maps.items()},
        **({} if experiment.data.subset is None else {"data.subset": experiment.data.subset}),
    }
    absolute = {key: absolute_place(value) for key, value in places.items()}
    for key in ("store", "tracking.uri", "tracking.artifacts"):
        if refuse and absolute[key] != places[key]:
            raise InputError(
                f"{key} is {places[key]}, relative to a Ray job's working directory, which is a temporary copy; "
                f"give an absolute place ({key}=...) or set UML_ROOT in the job's environment"
            )
    return experiment.override({key: value for key, value in absolute.items() if value != places[key]})


def in_uploaded_copy() -> bool:
    """Return whether the working directory is the copy that `ray job submit --working-dir` uploads."""
    return "runtime_resources" in Path.cwd().parts


def absolute_place(place: str) -> str:
    """Return a path or SQLite URI made absolute from $UML_ROOT or the working directory."""
    return _absolute(place, _root())


def _root() -> Path:
    return Path(os.environ.get("UML_ROOT") or Path.cwd())


def _absolute(place: str, root: Path) -> str:
    scheme, separator, rest = place.partition(":///")
    if separator and scheme == "sqlite":
        return place if rest.startswith("/") else f"sqlite:///{(root / rest).resolve()}"
    if "://" in place or place.startswith(("databricks", "/")):
        return place
    return str((root / place).resolve())


@contextlib.contextmanager
def ray_session(*, meanwhile: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Connect to the cluster of $RAY_ADDRESS (a job has it), else start a local one; a started one is stopped.

    `meanwhile` is called in a thread while Ray's processes start, which is mostly waiting.
    """
    if ray.is_initialized():
        meanwhile()
        yield
        return
    with ThreadPoolExecutor(1) as background:
        called = background.submit(meanwhile)
        _start_ray()
        called.result()
    try:
        yield
    finally:
        _stop_ray()


def _stop_ray() -> None:
    """Stop Ray, and before it Ray Data's loops: where a stream was given up, one may still run, and ask for Ray again.

    Unasked, Ray would start itself anew for it; when that fails, as beside a Ray that is being stopped, Ray ends the
    whole process a minute later, without a word.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor-"):
            loop: Any = thread
            with contextlib.suppress(Exception):  # of a cluster that is lost; what is raised already says so
                loop.shutdown(force=False)
            loop.join(LOOP_ENDS_S)
    ray.shutdown()


def _start_ray() -> None:
    auto_init_hook.enable_auto_connect = False  # nothing but this function starts a Ray
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
        ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)


def num_cpus() -> int:
    """Return the cluster's CPUs (at least 1)."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_gpus() -> int:
    """Return the cluster's GPUs."""
    return int(ray.cluster_resources().get("GPU", 0))


def most_resources(kind: str) -> int:
    """Return the cluster's CPUs or GPUs, or how many it may grow to, where an autoscaler has told Ray."""
    grown = state.get_max_resources_from_cluster_config() or {}
    return int(max(ray.cluster_resources().get(kind, 0), grown.get(kind, 0)))
