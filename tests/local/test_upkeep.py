"""`status` and `gc`: where an experiment stands, and what its store no longer needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.embed import step as embed
from pipelines.gc import __main__ as gc_command
from pipelines.gc import step as gc
from pipelines.inventory import inventory
from pipelines.ray_train.attempts import LEASE_FILE, open_attempt
from pipelines.status import __main__ as status_command
from pipelines.status import step as status
from pipelines.stores import corpus_fingerprint
from tests.conftest import vector_tree, write_vector_corpora
from uml_core.config import Experiment, parse_experiment
from uml_core.corpora.rows import Row
from uml_core.errors import InputError
from uml_core.store.corpus_store import CorpusStore
from uml_core.tracking.reading import experiment_runs
from uml_core.tracking.writing import open_experiment, start_run


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Ready embeddings in the store, none of which needs Ray."""
    write_vector_corpora(tmp_path)
    given = parse_experiment(vector_tree(tmp_path))
    embed.run(given)
    return given


def add_embeddings(experiment: Experiment, fingerprint: str, *, finished: bool) -> Path:
    """What another encoder has left of the target."""
    store = CorpusStore(experiment.store, experiment.target, fingerprint)
    with store.writing(lambda: None):
        store.write_part([Row("a", "x", "train")], np.ones((1, 4), dtype=np.float32), [], dim=4)
        if finished:
            store.publish(store.footers(), {"dim": 4})
    return Path(store.directory)


def add_run(experiment: Experiment, key: str, *, finished: bool) -> Path:
    with open_attempt(experiment, "tune", key) as attempt:
        attempt.begin("none")
        if finished:
            attempt.finish()
        return Path(attempt.directory)


def test_gc_lists_and_deletes_what_is_finished_and_unused(experiment: Experiment) -> None:
    old, run = add_embeddings(experiment, "old", finished=True), add_run(experiment, "a", finished=True)
    broken, torn = add_run(experiment, "b", finished=False), add_embeddings(experiment, "torn", finished=False)
    current = {Path(folder.path) for folder in inventory(experiment.store, experiment.corpora)} - {
        old,
        run,
        broken,
        torn,
    }
    assert len(current) == len(experiment.corpora)

    listed = gc.run(experiment)
    assert set(listed.results["folders"]) == {str(old), str(run)}
    assert "2 unfinished folders are kept" in listed.text
    assert old.exists(), "nothing goes without --delete"
    assert listed.results["bytes"] > 0

    gc.run(experiment, delete_them=True)
    assert not old.exists()
    assert not run.exists()
    assert broken.exists()
    assert torn.exists()
    gc.run(experiment, delete_them=True, unfinished=True)
    assert not broken.exists()
    assert not torn.exists()
    assert {Path(folder.path) for folder in inventory(experiment.store, experiment.corpora)} == current
    embedded = embed.run(experiment).results["corpora"]
    assert all(facts["up_to_date"] for facts in embedded.values())


def test_gc_keeps_what_a_host_with_a_gpu_has_embedded(tmp_path: Path) -> None:
    names = {"modality": "text", "format": "table", "path": str(tmp_path / "names.jsonl")}
    tree = {"name": "x", "store": str(tmp_path / "store"), "target": "names", "corpora": {"names": names}}
    experiment = parse_experiment(tree)  # precision auto: float32 here, bfloat16 there
    there = corpus_fingerprint(experiment.override({"embed.precision": "bfloat16"}), "names")
    assert there != corpus_fingerprint(experiment, "names")
    folder = add_embeddings(experiment, there, finished=True)
    assert gc.run(experiment, delete_them=True).results["folders"] == []
    assert folder.exists()


def test_gc_leaves_what_is_being_written(experiment: Experiment) -> None:
    with open_attempt(experiment, "tune", "a") as attempt:
        attempt.begin("none")
        assert gc.run(experiment, delete_them=True, unfinished=True).results["folders"] == []
        assert Path(attempt.directory, LEASE_FILE).exists()


def test_status_says_what_is_there_and_the_line_to_go_on_with(experiment: Experiment, tmp_path: Path) -> None:
    said = status.run(experiment, "pets.yaml")
    assert said.results["corpora"] == dict.fromkeys(experiment.corpora, "finished")
    assert said.results["next"] == "python -m pipelines.tune pets.yaml --space controls"
    (tmp_path / "elsewhere").mkdir()
    nowhere = experiment.override({"tracking.uri": f"sqlite:///{tmp_path}/elsewhere/mlflow.db"})
    assert "does not exist" in status.run(nowhere).text
    assert not list((tmp_path / "elsewhere").iterdir()), "nothing is changed"

    open_experiment(experiment.tracking, experiment.name)
    sweep = start_run(experiment, name="few_shot", kind="sweep", tags={"uml.space": "few_shot"})
    with open_attempt(experiment, "tune", "a") as attempt:
        attempt.begin(sweep.run_id)
        running = status.run(experiment)
        assert running.results["runs"]["tune-a/1"].startswith("running (process ")
        assert sweep.run_id in running.text
    broken_off = status.run(experiment, "pets.yaml")
    assert broken_off.results["runs"] == {"tune-a/1": "unfinished"}
    assert broken_off.results["next"] == (
        "python -m pipelines.tune pets.yaml --space few_shot, with the key=value settings that it had"
    )

    manifest = next((tmp_path / "store" / experiment.target).glob("*/manifest.json"))
    manifest.unlink()
    missing = status.run(experiment, "pets.yaml")
    assert missing.results["corpora"][experiment.target] == "unfinished"
    assert missing.results["next"] == "python -m pipelines.embed pets.yaml"


def test_what_was_embedded_is_logged_where_a_later_corpus_fails(vector_experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "names.parquet").unlink()
    with pytest.raises(InputError, match=r"names\.parquet"):
        embed.run(vector_experiment)
    (run,) = experiment_runs(vector_experiment.tracking.uri, vector_experiment.name)
    assert run.kind == "embed"
    assert "embed/rows/target" in run.metrics


def test_the_commands(experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(experiment.to_yaml(), encoding="utf-8")
    old = add_embeddings(experiment, "old", finished=True)
    assert gc_command.main([str(file), "--delete"]) == 0
    assert not old.exists()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["deleted"]
    given = [str(file), "data.shots=2", "optim.name=adamw", f"tracking.uri={experiment.tracking.uri}"]
    assert status_command.main(given) == 0
    assert f"go on with: python -m pipelines.tune {' '.join(given[:3])} --space controls\n" in capsys.readouterr().out
    with open_attempt(experiment.override({"data.shots": 2})) as attempt:
        attempt.begin(start_run(experiment, name="uml", kind="uml", tags={}).run_id)
    assert status_command.main(given) == 0
    assert f"go on with: python -m pipelines.train {' '.join(given[:3])}\n" in capsys.readouterr().out
    assert status_command.main([str(file)]) == 0
    assert f"pipelines.train {file}, with the key=value settings that it had\n" in capsys.readouterr().out
