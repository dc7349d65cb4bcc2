"""What `benchmarks.kills` compares: a step that was hit against the one that was left alone."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.torch import load_file

from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.tracking.reading import download, experiment_runs


@dataclass
class Kill:
    """What was hit, when (s after its line began), and what came after."""

    round: int
    step: str
    what: str
    after_s: float
    came: str = ""


@dataclass
class Round:
    """One step of one experiment, from its first line to the checks."""

    number: int
    step: str
    experiment: Experiment
    folder: Path  # what is looked at
    place: str  # what the step writes into: the folder, or a URI
    kills: list[Kill] = field(default_factory=list)
    lines: int = 0  # how often it was started
    said: list[str] = field(default_factory=list)  # on stderr, at last
    results: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def name(self) -> str:
        return self.experiment.name


def differences(this: Round, alone: Mapping[str, Any] | None) -> Iterator[str]:
    """What is not as after the run that was left alone, and files that only a step at work may have."""
    if alone is not None:
        try:
            now = outcome(this)
        except (InputError, OSError, ValueError) as error:
            yield f"{type(error).__name__}: {error}"
            return
        for name in alone:
            if alone[name] != now[name]:
                pairs = zip(alone[name], now[name], strict=False) if isinstance(alone[name], list) else ()
                first = next((f": {theirs}, alone {ours}" for ours, theirs in pairs if ours != theirs), "")
                yield f"{name} differs{first[:300]}"
    hidden = [file.name for file in this.folder.rglob(".*") if file.name != ".validate_storage_marker"]  # Ray's
    left = (
        hidden
        + [file.name for file in this.folder.rglob("*tmp-*")]
        + [file.name for file in this.folder.rglob("lease*")]
    )
    if left:
        yield f"left behind: {sorted(left)[:5]}"


def outcome(this: Round) -> dict[str, Any]:
    """What a step's undisturbed run and one that was hit must have in common."""
    return OUTCOMES[this.step](this)


def embedded(this: Round) -> dict[str, Any]:
    """Each row of the store, once; the parts that its manifest names, and no other; one MLflow run."""
    (manifest,) = (this.folder / "store" / "pictures").glob("*/manifest.json")
    parts = sorted(json.loads(manifest.read_text())["parts"])
    rows = [row for name in parts for row in pq.read_table(manifest.parent / name).to_pylist()]
    rejected = pq.read_table(manifest.parent / "rejected.parquet")["id"].to_pylist()
    return {
        "the manifest": parts == sorted(file.name for file in manifest.parent.glob("part-*")),
        "the rows": sorted(Counter([row["id"] for row in rows] + rejected).items()),
        "an embedding": {row["id"]: np.asarray(row["embedding"]).tobytes() for row in rows},
        "MLflow's runs": [(run.kind, run.status) for run in experiment_runs(this.experiment.tracking.uri, this.name)],
    }


def trained(this: Round) -> dict[str, Any]:
    """The weights, to the bit, of one finished MLflow run, and one version of its model."""
    uri = this.experiment.tracking.uri
    with tempfile.TemporaryDirectory() as directory:
        file = download(uri, f"runs:/{this.results['run_id']}/weights/model.safetensors", Path(directory))
        weights = {name: value.numpy().tobytes() for name, value in load_file(file).items()}
    return {
        "a weight": weights,
        "MLflow's runs": [(run.kind, run.status) for run in experiment_runs(uri, this.name)],
        "the model's version": this.results["model"].partition("/")[2].partition("/")[2],
        "steps or samples": [this.results[name] for name in ("steps", "target_samples", "best_step", "test_accuracy")],
    }


def tuned(this: Round) -> dict[str, Any]:
    """Every trial once, with what it came to; the verdict."""
    runs = experiment_runs(this.experiment.tracking.uri, this.name)
    names = ("val/nll", "val/accuracy", "test/accuracy", "mixing/target_samples")
    trials = [run for run in runs if run.kind == "trial"]
    # A pack of which a lost process has left a part is another pack, equal to rounding.
    came_to = [(run.name, run.status, *(round(run.metrics.get(name, -1), 5) for name in names)) for run in trials]
    return {
        "MLflow's sweeps": [(run.kind, run.status) for run in runs if run.kind != "trial"],
        "a trial": sorted(came_to),  # their keys are of the store's place, too
        "the number of trials": [len(trials), len({run.tags["uml.trial"] for run in trials})],
        "the verdict": [this.results[name] for name in ("verdict", "trials", "failed")],
    }


def predicted(this: Round) -> dict[str, Any]:
    """The files of predictions and of unreadable inputs."""
    files = sorted(this.folder.glob("*.parquet"))
    return {"the predictions": [(file.name, pq.read_table(file).to_pylist()) for file in files]}


OUTCOMES = {"embed": embedded, "train": trained, "tune": tuned, "predict": predicted}
