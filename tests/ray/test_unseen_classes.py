"""Classes that the target has no picture of, through every step: named by another corpus, tested, predicted, shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.embed import step as embed
from pipelines.evaluate import step as evaluate
from pipelines.predict import step as predict
from pipelines.report import step as report
from pipelines.train import step as train
from pipelines.tune import step as tune
from pipelines.tune.folder import Assignment, SweepFolder, TrialResult
from tests.conftest import vector_tree, write_embeddings
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.tracking.reading import experiment_runs, presented_run
from uml_core.tracking.writing import start_run

pytestmark = pytest.mark.usefixtures("ray_cluster")
NUM_SEEN, NUM_UNSEEN, WIDTH = 18, 6, 24
WRITE = SweepFolder.write


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Pictures and names in one space, as an aligned pair of encoders gives them; unseen classes are in test alone."""
    directory, rng = tmp_path_factory.mktemp("unseen"), np.random.default_rng(0)
    latents = rng.normal(size=(NUM_SEEN + NUM_UNSEEN, WIDTH))
    seen, unseen = ["train"] * 4 + ["val"] * 3 + ["test"] * 6, ["val"] * 2 + ["test"] * 6
    splits = {"target": [seen] * NUM_SEEN + [unseen] * NUM_UNSEEN, "names": [["train"] * 2] * len(latents)}
    for name, spread in (("target", 1.2), ("names", 0.3)):
        codes = np.repeat(np.arange(len(latents)), [len(each) for each in splits[name]])
        rows = {
            "label": [f"class-{code:02d}" for code in codes],
            "split": [split for each in splits[name] for split in each],
            "embedding": latents[codes] + spread * rng.normal(size=(len(codes), WIDTH)),
        }
        write_embeddings(directory / f"{name}.parquet", rows)
    tree = vector_tree(directory, data={"classes": "union"}, tune={"max_concurrent_trials": 1})
    experiment = parse_experiment(tree)
    embed.run(experiment)
    return experiment


def test_a_trained_head_knows_classes_without_a_picture(experiment: Experiment, tmp_path: Path) -> None:
    results = train.run(experiment.override({"model.head": "prior"})).results
    groups = results["test_groups"]
    assert results["classes"] == NUM_SEEN + NUM_UNSEEN
    assert groups["seen_accuracy"] > 0.7
    assert groups["unseen_accuracy"] > 0.7
    runs = experiment_runs(experiment.tracking.uri, experiment.name)
    (run,) = (run for run in runs if run.run_id == results["run_id"])
    assert run.metrics["test/unseen_accuracy"] == pytest.approx(groups["unseen_accuracy"])
    start_run(experiment, name="twin", kind="unimodal", tags={}).finish()  # newer, and no model that was registered
    evaluated = evaluate.run(experiment)
    measured = evaluated.results
    assert evaluated.text.startswith(f"run {results['run_id']}: its model was registered last")
    assert {name: measured[f"test/{name}"] for name in groups} == pytest.approx(groups)
    with pytest.raises(InputError, match=r"model.head is prior: --analyses"):
        evaluate.run(experiment, results["run_id"], analyses=["margins"])
    inputs = [row for row in pq.read_table(experiment.corpora["target"].path).to_pylist() if row["label"] > "class-17"]
    write_embeddings(tmp_path / "new.parquet", {"embedding": [row["embedding"] for row in inputs]})
    output = tmp_path / "predictions.parquet"
    predict.run(results["model_uri"], str(tmp_path / "new.parquet"), str(output), experiment.tracking.uri)
    predicted = pq.read_table(output)["prediction"].to_pylist()
    right = [row["label"] == label for row, label in zip(inputs, predicted, strict=True)]
    assert np.mean(right) == pytest.approx(groups["unseen_accuracy"]), "pictures of unseen classes in val are tested"


def test_a_sweep_tells_names_from_shuffled_names(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In closed form: the driver solves all heads, without Ray, and goes on where a killed one stopped."""
    sweep = experiment.override({"name": "unseen-sweep", "data.shots": 2, "tune.seeds": 3})
    monkeypatch.setattr(tune, "ray_session", lambda: pytest.fail("no Ray is needed"))
    written = list[str]()

    def write(folder: SweepFolder, assignment: Assignment, result: TrialResult, **state: Any) -> TrialResult:
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(assignment.key)
        return WRITE(folder, assignment, result, **state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepFolder, "write", write)
        with pytest.raises(KeyboardInterrupt):
            tune.run(sweep, "closed_form")
    results = tune.run(sweep, "closed_form", resume=True).results
    assert results["trials"] == 6 * 3
    assert results["verdict"].startswith("Ship prior at 2 shots: ")
    assert " In closed form: " in results["verdict"]
    runs = experiment_runs(sweep.tracking.uri, sweep.name)
    trials = [run for run in runs if run.parent_run_id == results["run_id"]]
    unseen = {
        arm: [trial.metrics["test/unseen_accuracy"] for trial in trials if trial.arm == arm]
        for arm in ("ridge", "prior", "shuffled_prior")
    }
    assert min(unseen["prior"]) > 0.5
    assert max(unseen["shuffled_prior"] + unseen["ridge"]) <= 1 / NUM_UNSEEN
    assert len(trials) == results["trials"], "none is logged twice"
    assert len({trial.metrics["data/classes"] for trial in trials}) == 1
    assert {trial.metrics["data/train_rows/target"] for trial in trials} == {2 * NUM_SEEN}
    parent = next(run for run in runs if run.run_id == results["run_id"])
    assert presented_run(sweep.tracking.uri, sweep.name) == parent.tags["uml.best_trial"]
    names = ("prior", "shuffled_prior")
    prior, shuffled = (parent.metrics[f"sweep/2_shots/harmonic_mean/{name}"] for name in names)
    assert prior > 3 * shuffled
    page = Path(report.run(sweep, tmp_path / "report").results["report"]).read_text(encoding="utf-8")
    assert "Seen/unseen" in page
