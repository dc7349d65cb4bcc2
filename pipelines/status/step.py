"""Where an experiment stands: what is embedded, running, finished or broken off, where, and the line to go on with.

In: an experiment, its store and its MLflow runs. Out: a table; nothing is changed.

    python -m pipelines.status examples/demo.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.command_line import Summary
from pipelines.inventory import StoredFolder, inventory
from pipelines.stores import corpus_fingerprints
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.tracking.reading import experiment_runs
from uml_core.tracking.records import PARENT_TAG, RunRecord
from uml_core.tracking.uri import check_has_runs

STEP_KINDS = ("sweep", "uml", "unimodal")  # of runs that a step began; their trials are counted


def run(experiment: Experiment, file: str = "EXPERIMENT.yaml") -> Summary:
    """Say where an experiment stands. Raises InputError where its store cannot be opened."""
    current = corpus_fingerprints(experiment)
    found = inventory(experiment.store, experiment.corpora)
    embedded = {corpus: _embedding(found, corpus, current[corpus]) for corpus in experiment.corpora}
    records, away = _records(experiment)
    begun = [folder for folder in found if folder.kind == "run" and not folder.is_finished]
    ours = {record.run_id for record in records}  # other experiments may use the store
    attempts = [folder for folder in begun if not ours or (folder.facts or {}).get("run_id") in {*ours, None}]
    lines = [f"{corpus:<20}{_corpus_line(folder)}" for corpus, folder in embedded.items()]
    lines += [f"{_step(folder):<20}{folder.state}{_run_line(folder, records)}" for folder in attempts]
    lines += [f"{record.kind:<20}{_record_line(record)}" for record in records if record.kind in STEP_KINDS]
    lines += [f"MLflow: {away}"] if away else []
    line = _next_line(experiment, file, embedded, attempts, records)
    states = {corpus: "missing" if folder is None else folder.state for corpus, folder in embedded.items()}
    running = {f"{folder.owner}/{folder.name}": folder.state for folder in attempts}
    return Summary("\n".join([*lines, f"go on with: {line}"]), {"corpora": states, "runs": running, "next": line})


def _embedding(found: Sequence[StoredFolder], corpus: str, fingerprint: str) -> StoredFolder | None:
    of_corpus = [folder for folder in found if folder.kind == "embeddings" and folder.owner == corpus]
    return next((folder for folder in of_corpus if folder.name == fingerprint), None)


def _records(experiment: Experiment) -> tuple[list[RunRecord], str]:
    """The experiment's runs in MLflow, the newest first; and why there are none."""
    try:
        check_has_runs(experiment.tracking.uri, lost="no runs yet")  # MLflow's client would make an empty database
        return experiment_runs(experiment.tracking.uri, experiment.name), ""
    except InputError as error:
        return [], str(error)


def _corpus_line(folder: StoredFolder | None) -> str:
    if folder is None:
        return "not embedded by this encoder and settings"
    if folder.facts is None:
        return folder.state
    rejected = folder.facts["rejected_rows"]
    rows = f"{folder.facts['rows']:,} rows" + (f", {rejected:,} rejected" if rejected else "")
    return f"embedded, {rows}" if folder.holder is None else f"embedded, {rows}; {folder.state}"


def _step(folder: StoredFolder) -> str:
    return folder.owner.rpartition("-")[0]


def _run_line(folder: StoredFolder, records: Sequence[RunRecord]) -> str:
    run_id = (folder.facts or {}).get("run_id")
    if run_id is None:
        return ""
    trials = sum(record.tags.get(PARENT_TAG) == run_id for record in records)
    return f", MLflow run {run_id}" + (f", {trials} trials ended" if trials else "")


def _record_line(record: RunRecord) -> str:
    verdict = record.tags.get("uml.verdict") or record.tags.get("uml.error", "")
    return f"{record.status.lower()}, MLflow run {record.run_id}" + (f": {verdict}" if verdict else "")


def _next_line(
    experiment: Experiment,
    file: str,
    embedded: dict[str, Any],
    attempts: Sequence[StoredFolder],
    records: Sequence[RunRecord],
) -> str:
    """The line that brings the experiment further: what is missing first, what was broken off next."""
    if any(folder is None or not folder.is_finished for folder in embedded.values()):
        return f"python -m pipelines.embed {file}"
    broken_off = [folder for folder in attempts if folder.holder is None]
    if broken_off:
        run_id = (broken_off[-1].facts or {}).get("run_id")
        spaces = [record.tags["uml.space"] for record in records if record.run_id == run_id and record.kind == "sweep"]
        line = [f"python -m pipelines.{_step(broken_off[-1])} {file}", *(f"--space {name}" for name in spaces)]
        is_of_this_line = broken_off[-1].owner == f"train-{experiment.config_hash}"
        return " ".join(line) + ("" if is_of_this_line else ", with the key=value settings that it had")
    if not any(record.kind == "sweep" for record in records):
        return f"python -m pipelines.tune {file} --space controls"
    return f"python -m pipelines.report {file}"
