"""A bridge through the pipeline: embedded, trained with, refused where it leads nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.__main__ import main as uml
from pipelines.advise import step as advise
from pipelines.embed import step as embed
from pipelines.train import step as train
from tests.conftest import vector_tree, write_embeddings
from uml_core.config import Experiment, parse_experiment

pytestmark = pytest.mark.usefixtures("ray_cluster")
NUM_SEEN, NUM_UNSEEN, NUM_OTHERS, WIDTH, TEXT_WIDTH = 12, 6, 120, 40, 32


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A linear map leads from the texts' space to the target's; unseen classes are in test alone."""
    directory, rng = tmp_path_factory.mktemp("bridge"), np.random.default_rng(0)
    own, count = NUM_SEEN + NUM_UNSEEN, NUM_SEEN + NUM_UNSEEN + NUM_OTHERS
    texts = rng.normal(size=(count, TEXT_WIDTH))
    places = texts @ rng.normal(size=(TEXT_WIDTH, WIDTH)) + rng.normal(size=(count, WIDTH)) + 3.0
    seen, unseen = ["train"] * 4 + ["val"] * 2 + ["test"] * 8, ["test"] * 8
    splits = {"target": [seen] * NUM_SEEN + [unseen] * NUM_UNSEEN, "names": [["train"]] * count}
    splits["far"] = [[]] * own + [["train"] * 3] * NUM_OTHERS
    for name, (centres, spread) in {"target": (places, 2.0), "names": (texts, 0.1), "far": (places, 2.0)}.items():
        codes = np.repeat(np.arange(len(splits[name])), [len(each) for each in splits[name]])
        rows = {
            "label": [f"class-{code:03d}" for code in codes],
            "split": [split for each in splits[name] for split in each],
            "embedding": centres[codes] + spread * rng.normal(size=(len(codes), centres.shape[1])),
        }
        write_embeddings(directory / f"{name}.parquet", rows)
    tree: dict[str, Any] = vector_tree(directory, data={"classes": "union"}, model={"head": "prior"})
    tree["corpora"]["far"] = {**tree["corpora"]["target"], "path": str(directory / "far.parquet"), "role": "bridge"}
    experiment = parse_experiment(tree)
    embed.run(experiment)
    return experiment


def test_classes_without_a_picture_are_found_over_a_bridge(experiment: Experiment) -> None:
    over, shuffled = (
        train.run(changed).results
        for changed in (experiment, experiment.override({"corpora.far.control": "shuffled_labels"}))
    )
    assert over["classes"] == shuffled["classes"] == NUM_SEEN + NUM_UNSEEN
    groups, control = over["test_groups"], shuffled["test_groups"]
    assert groups["unseen_accuracy"] > control["unseen_accuracy"] + 0.1
    assert groups["seen_accuracy"] > control["seen_accuracy"] - 0.1
    advice = advise.run(experiment, num_draws=4)
    assert set(advice.results["corpora"]) == {"names"}, "a bridge is no auxiliary corpus"
    (found,) = advice.results["bridges"].values()
    misled = experiment.override({"corpora.far.control": "shuffled_labels"})
    (control,) = advise.run(misled, num_draws=4).results["bridges"].values()
    assert (found["takes_part"], control["takes_part"], control["verdict"]) == (1.0, 0.0, "neutral")
    assert (found["classes"], found["overlap"]) == (NUM_OTHERS, 0)
    assert found["worth"]["mean"] > control["worth"]["mean"] == 0
    assert "far (bridge, 120 classes, 0 of them named as the target's)  " in advice.text
    assert f"{NUM_UNSEEN} of the classes have no labelled row" in advice.text


def test_a_bridge_trains_nothing_and_a_mistake_is_one_line(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(experiment.to_yaml(), encoding="utf-8")
    assert uml(["train", str(file), "data.auxiliary_shots.far=1"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "data.auxiliary_shots names corpus 'far', which is a bridge (role: bridge)" in line
