"""Each corpus as the target in turn, with every subset of the others beside it: one sweep a target, one table.

In: an embedded experiment with three corpora or more that have labels. Out: a sweep of space modalities for each
target, all in one MLflow experiment, and the table of all directions.

    python -m pipelines.directions examples/tuxpaint/experiment.yaml data.test_fraction=0.2
    python -m pipelines.directions examples/tuxpaint/experiment.yaml --targets photos,sounds

A corpus without a test split gets one from `data.test_fraction`. The experiment's own target comes last, so that
models:/EXPERIMENT@best is a model of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipelines.command_line import Summary
from pipelines.ray_session import ray_session
from pipelines.run_data import build_data
from pipelines.stores import store_tables
from pipelines.timings import timed
from pipelines.tune import step as tune
from uml_core.config import Experiment
from uml_core.errors import InputError, listing, nearest
from uml_core.figures.words import percent, points
from uml_core.reporting.collect import Condition, SweepResults, latest_sweeps
from uml_core.reporting.space_rows import subset_rows
from uml_core.tracking.reading import experiment_runs, with_spaces
from uml_core.tracking.writing import open_experiment

SPACE = "modalities"


def run(
    experiment: Experiment, targets: Sequence[str] = (), *, max_trials: int | None = None, resume: bool = False
) -> Summary:
    """Sweep around each target and put the results into one table."""
    experiments = {target: with_target(experiment, target) for target in chosen_targets(experiment, targets)}
    _check_test_rows(experiment, experiments)
    finished = _finished(experiment) if resume else set()
    lines = []
    with ray_session():
        for target, turned in experiments.items():
            if turned.config_hash in finished:
                lines.append(f"{target}: its finished sweep is kept")
                continue
            summary = tune.run(turned, SPACE, max_trials=max_trials)
            lines.append(f"{target}: {summary.results['verdict']}")
    uri = experiment.tracking.uri
    sweeps = latest_sweeps(with_spaces(uri, experiment_runs(uri, experiment.name)))
    rows = table_rows([sweep for (space, target), sweep in sweeps.items() if space == SPACE and target in experiments])
    head = "test accuracy in percent (paired difference to the target alone, in points), mean over seeds"
    return Summary("\n".join([*lines, head, table_text(rows)]), {"targets": list(experiments), "rows": rows})


def chosen_targets(experiment: Experiment, names: Sequence[str] = ()) -> list[str]:
    """The corpora that are to be the target in turn, the experiment's own last.

    By default every corpus that is no control and no shifted test set. The experiment's own target is last, so that
    models:/EXPERIMENT@best is in the end a model of it.

    Raises:
        InputError: a name is no such corpus, or fewer than three corpora take part.
    """
    corpora = experiment.corpora
    known = [name for name, corpus in corpora.items() if (corpus.control, corpus.role) == ("none", "train")]
    for name in names:
        if name not in known:
            raise InputError(
                f"--targets names '{name}'{nearest(name, known)}; corpora that can be one: {listing(known)}"
            )
    if len(known) < 3:
        raise InputError(
            f"directions compares all subsets of two auxiliary corpora or more around each target, and experiment "
            f"{experiment.name} has {len(known)} corpora that are no controls; add one, or use space controls"
        )
    return sorted(dict.fromkeys(names or known), key=lambda name: name == experiment.target)


def with_target(experiment: Experiment, target: str) -> Experiment:
    """The experiment with another target; what was set for it as an auxiliary corpus no longer applies.

    A tune space cannot hold both: its arms are subsets of the auxiliary corpora, and those differ with the target.
    """
    if target == experiment.target:
        return experiment
    settings = experiment.model_dump(mode="json")
    changes: dict[str, Any] = {"target": target, "data.subset": None}  # a subset names rows of the old target
    for section, key in (("mixing", "loss_weight"), ("mixing", "batch_ratio"), ("data", "auxiliary_shots")):
        values = settings[section][key]
        changes[f"{section}.{key}"] = {name: value for name, value in values.items() if name != target}
    if target in experiment.agreeing:
        changes[f"corpora.{target}.missing_labels"] = "drop"
    if experiment.model.init_corpus == target:
        changes["model.init_corpus"] = None
    return experiment.override(changes)


def table_rows(sweeps: Sequence[SweepResults]) -> list[dict[str, Any]]:
    """One row for every target and subset of the others, by shots and then by the size of the subset."""
    found = [
        (row.condition, sorted(row.facts.corpora or ()), sweep.target, row)
        for sweep in sweeps
        for row in subset_rows(sweep)
    ]
    found.sort(key=lambda each: (each[0].order, len(each[1]), each[1], each[3].facts.initialised, each[2]))
    return [
        {
            "target": target,
            "beside": beside,
            "head_init": row.facts.initialised,
            "shots": condition.shots,
            "test_accuracy": row.test.mean,
            "seeds": row.test.count,
            **({} if row.difference is None else {"difference": row.difference.mean}),
        }
        for condition, beside, target, row in found
        if row.test is not None
    ]


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text: what takes part beside the target, and a column for each target."""
    many = len({row["shots"] for row in rows}) > 1
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        head = " + ".join(row["beside"]) or "the target alone"
        head += ", head from class means" if row["head_init"] else ""
        head += f" {Condition(row['shots']).words}" if many else ""
        difference = f" ({points(row['difference'])})" if "difference" in row else ""
        cells.setdefault(head, {})[row["target"]] = percent(row["test_accuracy"]) + difference
    table = pd.DataFrame.from_dict(cells, orient="index").sort_index(axis=1)
    return table.rename_axis(columns="beside the target").to_string(na_rep="–")


@timed("read")
def _check_test_rows(experiment: Experiment, experiments: dict[str, Experiment]) -> None:
    """Let a target that cannot be one surface before the first sweep starts."""
    tables = store_tables(experiment)
    for target, turned in experiments.items():
        if build_data(turned, tables).test is None:
            raise InputError(
                f"corpora.{target} has no test split, so it cannot be measured as a target; "
                "set data.test_fraction=0.2, or name others with --targets"
            )


def _finished(experiment: Experiment) -> set[str]:
    open_experiment(experiment.tracking, experiment.name)
    return {
        record.tags.get("uml.config_hash", "")
        for record in experiment_runs(experiment.tracking.uri, experiment.name)
        if record.tags.get("uml.space") == SPACE and record.status == "FINISHED"
    }
