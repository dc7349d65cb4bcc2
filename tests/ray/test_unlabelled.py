"""An unlabelled pile through every step: it helps a head in closed form, beside its own control, never tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.advise import step as advise
from pipelines.embed import step as embed
from pipelines.report import step as report
from pipelines.train import step as train
from pipelines.tune import step as tune
from tests.conftest import vector_tree, write_embeddings
from uml_core.config import Experiment, parse_experiment
from uml_core.tracking.reading import experiment_runs

pytestmark = pytest.mark.usefixtures("ray_cluster")
NUM_CLASSES, WIDTH = 20, 30
SPACE = '''
"""What is the pile worth, and what are names worth beside it?"""
from tune_spaces import Space
from uml_core.sweeps.arms import standard_arms
def build(experiment):
    arms = standard_arms(experiment)
    chosen = [arms[name] for name in ("discriminant", "pile", "prior", "shuffled_prior")]
    return Space("pile?", tuple(chosen), "discriminant", "prior", (0, 1, 2), needs=("pile", "shuffled_prior"))
'''


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A pile with five rows that are tested; names in another space."""
    directory, rng = tmp_path_factory.mktemp("pile"), np.random.default_rng(0)
    means, stretch = rng.normal(size=(NUM_CLASSES, WIDTH)), np.exp(0.7 * rng.normal(size=WIDTH))
    splits = ["train"] * 3 + ["val"] * 2 + ["test"] * 10
    codes = np.repeat(np.arange(NUM_CLASSES), len(splits))
    target = means[codes] + stretch * rng.normal(size=(len(codes), WIDTH))
    names = [f"class-{code:02d}" for code in range(NUM_CLASSES)]
    write_embeddings(
        directory / "target.parquet",
        {"label": [names[code] for code in codes], "split": splits * NUM_CLASSES, "embedding": target},
    )
    write_embeddings(directory / "names.parquet", {"label": names, "embedding": means @ rng.normal(size=(WIDTH, 12))})
    piled = np.repeat(np.arange(NUM_CLASSES), 25)
    pile = means[piled] + stretch * rng.normal(size=(len(piled), WIDTH))
    write_embeddings(directory / "pile.parquet", {"embedding": np.concatenate([pile, target[-5:]])})
    tree = vector_tree(directory, tune={"max_concurrent_trials": 1})
    tree["corpora"]["pile"] = {
        "modality": "vector",
        "format": "embeddings",
        "path": str(directory / "pile.parquet"),
        "role": "unlabelled",
    }
    experiment = parse_experiment(tree)
    embed.run(experiment)
    return experiment


def test_a_solved_head_learns_from_it(experiment: Experiment) -> None:
    corpora = experiment.model_dump(mode="json")["corpora"]
    with_pile = experiment.override({"model.head": "discriminant"})
    alone = with_pile.override({"corpora": {name: corpora[name] for name in ("target", "names")}})
    assert train.run(with_pile).results["test_accuracy"] > train.run(alone).results["test_accuracy"] + 0.02
    advice = advise.run(experiment.override({"data.shots": 2}))
    (found,) = advice.results["piles"].values()
    assert found["verdict"] == "helps", advice.text
    assert found["takes_part"] > 0.5, advice.text
    assert found["worth"]["low"] > 0
    assert "pile" in advice.results["corpora"]["names"]["accuracies"], "names must be worth more than the pile alone"
    assert "pile (unlabelled pile, 500 rows)  helps: " in advice.text


def test_a_sweep_has_the_pile_alone_as_its_control(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heads take no step, and are Ray Tune's but for the first where the rest would take the driver too long."""
    monkeypatch.setattr(tune, "TELLING_S", 0.0)
    monkeypatch.setattr(tune, "RAY_PAYS_S", 0.0)
    sweep = experiment.override({"name": "pile-sweep"})
    (tmp_path / "space.py").write_text(SPACE, encoding="utf-8")
    results = tune.run(sweep, str(tmp_path / "space.py")).results
    trials = [run for run in experiment_runs(sweep.tracking.uri, sweep.name) if run.parent_run_id == results["run_id"]]
    accuracy = {
        arm: np.mean([trial.metrics["test/accuracy"] for trial in trials if trial.arm == arm])
        for arm in ("discriminant", "pile", "prior")
    }
    assert accuracy["pile"] > accuracy["discriminant"] + 0.02
    assert accuracy["prior"] > accuracy["discriminant"] + 0.02
    page = Path(report.run(sweep, tmp_path / "report").results["report"]).read_text(encoding="utf-8")
    assert "the target and its unlabelled pile alone" in page
