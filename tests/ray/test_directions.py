"""Each corpus as the target in turn, on real sweeps: the table, and going on after a finished target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.directions import step as directions
from pipelines.embed import step as embed
from tests.conftest import vector_tree, write_embeddings, write_vector_corpora
from uml_core.config import parse_experiment
from uml_core.errors import InputError
from uml_core.tracking.reading import experiment_runs

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_two_of_three_corpora_as_the_target(tmp_path: Path) -> None:
    write_vector_corpora(tmp_path)
    labels = [f"class-{code}" for code in range(6) for _ in range(5)]
    embeddings = np.random.default_rng(0).normal(size=(30, 5))
    write_embeddings(tmp_path / "sounds.parquet", {"label": labels, "split": ["train"] * 30, "embedding": embeddings})
    tree = vector_tree(tmp_path)
    tree["corpora"]["sounds"] = {**tree["corpora"]["names"], "path": str(tmp_path / "sounds.parquet")}
    few = {"tune.seeds": 1, "tune.max_concurrent_trials": 1, "train.max_steps": 10}
    experiment = parse_experiment(tree).override({**few, "model.head_init": "random"})
    embed.run(experiment)
    with pytest.raises(InputError, match=r"corpora\.names has no test split.*data\.test_fraction=0\.2"):
        directions.run(experiment, ["target", "names"])

    experiment = experiment.override({"data.test_fraction": 0.2})
    results = directions.run(experiment, ["target", "names"]).results
    assert results["targets"] == ["names", "target"], "the experiment's own target is the last"
    found = {(row["target"], *row["beside"]) for row in results["rows"]}
    others = {"target": ("names", "sounds"), "names": ("sounds", "target")}
    assert found == {
        (target, *beside) for target, (one, other) in others.items() for beside in ((), (one,), (other,), (one, other))
    }
    again = directions.run(experiment, ["target", "names"], resume=True)
    assert again.text.count("its finished sweep is kept") == 2
    assert again.results == results
    sweeps = [record for record in experiment_runs(experiment.tracking.uri, "vectors") if record.kind == "sweep"]
    assert len(sweeps) == 2
