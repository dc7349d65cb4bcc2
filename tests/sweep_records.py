"""Sweeps as `RunRecord`s, for tests of the verdict and the report: no MLflow."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

from tune_spaces import Space, available_spaces, load_space
from uml_core.config import parse_experiment
from uml_core.figures import drawing
from uml_core.reporting.page import Report, build_report
from uml_core.sweeps.space import space_as_json
from uml_core.tracking.records import RunRecord

# Test accuracy per arm; seeds are added by `values`.
GAIN = {
    **{"linear_probe": 0.60, "unimodal": 0.60, "unimodal_init": 0.63, "uml": 0.64, "uml_init": 0.68},
    **{"shuffled": 0.59, "shuffled_init": 0.61, "noise": 0.60, "noise_init": 0.60, "zero_shot": 0.40},
}
# What a seed adds to every arm, and what it adds to one arm only: small beside the differences above.
SEED_EFFECTS = (0.0, 0.05, -0.04, 0.02, -0.01)
_counter = itertools.count()


# What an experiment needs for a space that is not for any of them.
FOR_SPACE: dict[str, dict[str, Any]] = {
    "self_supervised": {"objective": "self_supervised"},
    "weight_transfer": {
        "encoders.image": {"source": "timm", "name": "vit_base_patch16_224", "weights": "random"},
        "model.backbone": "finetune",
        "model.transfer": {"source": "bert-base-uncased"},
    },
}


@functools.cache
def space_of(name: str, target: str, corpora: str, headline: str) -> Space | None:
    """A built-in space for these corpora whose headline that is; None for other names."""
    if name not in available_spaces():
        return None
    auxiliaries = [corpus for corpus in corpora.split(",") if corpus != target]
    names = {"modality": "text", "format": "table", "path": "names.jsonl"}
    photos = {"modality": "image", "format": "folder", "path": "photos"}
    tree = {
        "name": "pets",
        "store": "store",
        "target": target,
        "corpora": {target: photos, **dict.fromkeys(auxiliaries, names), "other": {**names, "control": "unrelated"}},
    }
    experiment = parse_experiment(tree).override(FOR_SPACE.get(name, {}))
    if name == "weight_transfer" and headline.endswith("_frozen"):
        experiment = experiment.override({"model.transfer.freeze_steps": "all"})
    if name not in (*FOR_SPACE, "modalities") and not headline.endswith("_init"):
        experiment = experiment.override({"model.head_init": "random"})
    return replace(load_space(name, experiment), headline=headline)


def record(kind: str, *, parent: str = "", status: str = "FINISHED", **parts: Mapping[str, object]) -> RunRecord:
    """One run; `parts` are tags, params, metrics."""
    number = next(_counter)
    tags = {"uml.kind": kind, **({"mlflow.parentRunId": parent} if parent else {}), **parts.get("tags", {})}
    return RunRecord(
        run_id=f"{number:032x}",
        name=f"run {number}",
        status=status,
        params={key: str(value) for key, value in parts.get("params", {}).items()},
        metrics={key: float(str(value)) for key, value in parts.get("metrics", {}).items()},
        tags={key: str(value) for key, value in tags.items()},
        start_time_ms=1_790_000_000_000 + 1000 * number,
        end_time_ms=1_790_000_000_000 + 1000 * number + 800,
    )


def parent_record(space: str = "controls", *, headline: str = "uml_init", **tags: str) -> RunRecord:
    """The run of a sweep, with the space of that name; its tags may be overridden, with _ for the dot after uml."""
    defaults = {
        "uml.space": space,
        "uml.question": "Do names help pictures?",
        "uml.baseline": "unimodal",
        "uml.headline": headline,
        "uml.target": "pictures",
        "uml.corpora": "pictures,names",
        "uml.config_hash": "0123456789ab",
        "uml.store_fingerprint": "pictures=aa,names=bb",
        "git.commit": "c0ffee",
    }
    given = {key.replace("_", ".", 1): value for key, value in tags.items()}
    tags = {**defaults, **given}
    parent = record("sweep", tags=tags, metrics={"perf/wall_s": 12.5})
    built = space_of(space, tags["uml.target"], tags["uml.corpora"], headline)
    return parent if built is None else replace(parent, space_json=space_as_json(built))


def trial(parent: RunRecord, arm: str, seed: int, test: float | None, **options: object) -> RunRecord:
    """One trial; `shots`, `selected`, `shift` (split -> accuracy), `params` and `error` may be given."""
    shift: Mapping[str, float] = options.get("shift", {})  # type: ignore[assignment]
    params: Mapping[str, object] = options.get("params", {})  # type: ignore[assignment]
    error, selected = str(options.get("error", "")), options.get("selected", True)
    metrics = {} if error else {"val/accuracy": options.get("val", test), "perf/train_s": 2.0}
    if selected and test is not None and not error:
        metrics |= {"test/accuracy": test, **{f"shift/{split}/accuracy": value for split, value in shift.items()}}
    return record(
        "trial",
        parent=parent.run_id,
        status="FAILED" if error else "FINISHED",
        tags={
            "uml.arm": arm,
            "uml.selected": str(bool(selected and not error)).lower(),
            **({"uml.error": error} if error else {}),
        },
        params={"seed": seed, "data.shots": options.get("shots"), **params},
        metrics=metrics,
    )


def values(arms: Mapping[str, float], seed: int) -> dict[str, float]:
    """Test accuracy of every arm for a seed: the seed's effect on all, and half a point up or down by arm."""
    own = {arm: 0.002 * ((7 * index + 3 * seed) % 5 - 2) for index, arm in enumerate(arms)}
    return {arm: mean + SEED_EFFECTS[seed % 5] + own[arm] for arm, mean in arms.items()}


def sweep_records(
    arms: Mapping[str, float], *, parent: RunRecord | None = None, seeds: int = 5, shots: Sequence[int | None] = (None,)
) -> list[RunRecord]:
    """A whole sweep: its parent, then a selected trial for every arm, condition and seed."""
    parent = parent or parent_record()
    trials = [
        trial(parent, arm, seed, test, shots=condition, shift={"sketch": test - 0.1})
        for condition in shots
        for seed in range(seeds)
        for arm, test in values(arms, seed).items()
    ]
    return [parent, *trials]


def report_in_words(records: Sequence[RunRecord], *, tracking_uri: str = "sqlite:////data/mlflow.db") -> Report:
    """A report whose figures are empty files, for tests of its words: to draw them takes most of a page's seconds."""
    with mock.patch.object(drawing, "svg_of", return_value=b""):
        return build_report("pets", records, tracking_uri=tracking_uri)
