"""Evaluators: metrics against hand-computed values, probes, plug-ins, shifted sets with some of the classes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from tests.conftest import table
from tests.sequence_corpora import sequence_experiment, wave_tables
from uml_core.config import parse_experiment
from uml_core.data.sequence_data import build_sequence_data
from uml_core.data.subsets import read_subset
from uml_core.data.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.evaluation.classification import (
    at_temperature,
    classification_metrics,
    confusion_figure,
    evaluate_shift,
    evaluate_test,
    expected_calibration_error,
    fitted_temperature,
    subset_accuracy,
)
from uml_core.evaluation.outcome import evaluated_run, measure_outcome
from uml_core.evaluation.probes import evaluate_zero_shot, neighbour_votes
from uml_core.evaluation.registry import DEFAULT, EVALUATORS, chosen_evaluators, measure
from uml_core.evaluation.run import EvaluatedRun
from uml_core.figures.drawing import svg_of
from uml_core.models.linear_probe import LinearProbe
from uml_core.training.run import TrainingRun

CLASSES = 7
RNG = np.random.default_rng(0)
LATENTS = RNG.normal(size=(CLASSES, 5))
SPLITS = ["train"] * 4 + ["val"] * 3 + ["test"] * 6 + ["dark"] * 2
LABELS = [f"class-{code}" for code in range(CLASSES) for _ in SPLITS]
ROWS = np.repeat(LATENTS, len(SPLITS), axis=0) + 0.5 * RNG.normal(size=(len(LABELS), 5))
TABLES = {
    "target": table(ROWS @ RNG.normal(size=(5, 9)), LABELS, SPLITS * CLASSES),
    "names": table(np.repeat(LATENTS, 3, axis=0) @ RNG.normal(size=(5, 6)), np.repeat(sorted(set(LABELS)), 3).tolist()),
}


def settings(**changes: Any) -> Any:
    paths = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in TABLES}
    tree = {"name": "x", "store": "store", "target": "target", "corpora": paths, "optim": {"lr": 0.01}}
    return parse_experiment({**tree, "train": {"max_steps": 60, "eval_every": 30, "batch_size": 8}}).override(changes)


@pytest.fixture(scope="module")
def trained() -> TrainingRun:
    run = TrainingRun(settings(), build_training_data(settings(), TABLES))
    for _ in run.evaluations():
        pass
    return run


@pytest.fixture(scope="module")
def evaluated(trained: TrainingRun) -> EvaluatedRun:
    return evaluated_run(trained)


def test_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    probabilities, labels = rng.dirichlet(np.ones(8), size=60), rng.integers(0, 7, size=60)  # class 7 has no row
    predicted = probabilities.argmax(axis=1)
    found = classification_metrics(probabilities, labels)
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    recalls = [(predicted[labels == code] == code).mean() for code in range(7)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found["nll"] == pytest.approx(-np.log(probabilities[np.arange(60), labels]).mean())
    assert found["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5, labels=range(8)))


def test_calibration_error_by_hand() -> None:
    # Three rows in bin (.6, .667], two of them right; one row in (.933, 1], wrong.
    confidences, right = [0.62, 0.64, 0.66, 0.95], [True, True, False, False]
    probabilities = np.array([[value, 1 - value] for value in confidences])
    labels = np.array([0 if hit else 1 for hit in right])
    expected = 3 / 4 * abs(2 / 3 - 0.64) + 1 / 4 * abs(0 - 0.95)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0


def test_a_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(2)
    true = at_temperature(rng.dirichlet(np.ones(5), size=4000), 1.0)
    labels = np.array([rng.choice(5, p=row) for row in true])
    sharpened = at_temperature(true, 1 / 3)  # as a head that was trained too long
    temperature = fitted_temperature(sharpened, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    mended = at_temperature(sharpened, temperature)
    assert expected_calibration_error(mended, labels) < expected_calibration_error(sharpened, labels) / 3
    assert (mended.argmax(axis=1) == sharpened.argmax(axis=1)).all()


def test_the_default_evaluators_agree_with_what_training_measured(
    trained: TrainingRun, evaluated: EvaluatedRun
) -> None:
    found = measure(evaluated, chosen_evaluators(()))
    outcome = measure_outcome(trained)
    assert found.metrics["test/accuracy"] == pytest.approx(outcome.test_accuracy)
    assert found.metrics["shift/dark/accuracy"] == pytest.approx(outcome.shift_accuracy["dark"])
    recalls = [found.metrics[f"test/class_accuracy/{name}"] for name in evaluated.classes]
    assert np.mean(recalls) == pytest.approx(found.metrics["test/balanced_accuracy"])
    assert found.metrics["probe/untrained/test_accuracy"] < found.metrics["test/accuracy"]
    assert found.metrics["probe/zero_shot/names/test_accuracy"] > 2 / CLASSES, "training has aligned the two spaces"
    lines = found.files["test/classes.csv"].decode().splitlines()
    assert lines[0].startswith("class,train_rows,test_rows,recall")
    assert lines[1].startswith("class-0,4,6,")
    confusion = [line.split(",")[1:] for line in found.files["test/confusion.csv"].decode().splitlines()[1:]]
    assert np.trace(np.array(confusion, dtype=float)) / 42 == pytest.approx(found.metrics["test/accuracy"])
    assert found.files["test/confusion.svg"].startswith(b"<?xml")


def test_one_suite_serves_self_supervised_runs() -> None:
    experiment = sequence_experiment()
    run = TrainingRun(experiment, build_sequence_data(experiment, wave_tables()))
    for _ in run.evaluations():
        pass
    found = measure(evaluated_run(run), chosen_evaluators(()))
    assert found.metrics["test/accuracy"] == pytest.approx(measure_outcome(run).test_accuracy)
    assert {"probe/linear/test_accuracy", "probe/raw/test_accuracy", "probe/knn/test_accuracy"} <= set(found.metrics)
    assert not [name for name in found.metrics if "zero_shot" in name], "auxiliary sequences have no labels"


def test_a_set_with_some_classes_is_predicted_among_them(trained: TrainingRun) -> None:
    probabilities, labels = np.array([[0.5, 0.2, 0.3], [0.1, 0.5, 0.4]]), np.array([2, 2])
    assert subset_accuracy(probabilities, labels, np.array([1, 2])) == 0.5  # class 0 is no longer in the way
    codes = np.flatnonzero(
        [not (split == "dark" and int(label[-1]) > 2) for label, split in zip(LABELS, SPLITS * 7, strict=True)]
    )
    kept = {
        **TABLES,
        "target": table(
            TABLES["target"].embeddings[codes], *([values[code] for code in codes] for values in (LABELS, SPLITS * 7))
        ),
    }
    run = TrainingRun(settings(), build_training_data(settings(), kept))
    run.load_result(trained.result_state())
    found = dict(evaluate_shift(evaluated_run(run)))
    assert found["shift/dark/classes"] == 3
    assert found["shift/dark/subset_accuracy"] >= found["shift/dark/accuracy"]
    assert found["shift/dark/test_subset_accuracy"] <= 1


def test_a_shifted_corpus_with_names_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"n01": "class-1", "n02": "class-2"}', encoding="utf-8")
    theirs = [{"class-1": "n01", "class-2": "n02"}.get(label, "n99") for label in LABELS]
    tables = {**TABLES, "sketch": table(TABLES["target"].embeddings, theirs)}
    vectors = {"modality": "vector", "format": "embeddings", "path": "p", "role": "shifted"}
    changes = {"corpora.sketch": vectors, "evaluation.class_maps": {"sketch": str(tmp_path / "names.json")}}
    experiment = settings(**changes)
    assert experiment.auxiliaries == ("names",)
    data = build_training_data(experiment, tables)
    rows = data.shifted["sketch"]
    assert {data.classes[code] for code in rows.labels} == {"class-1", "class-2"}
    assert len(rows) == 2 * len(SPLITS)
    assert data.dropped["sketch"] == {"n99": 5 * len(SPLITS)}
    assert "sketch: 75 rows of classes the target lacks were dropped" in " ".join(data.warnings())
    assert "sketch" not in data.train
    run = TrainingRun(experiment, data)
    for _ in run.evaluations():
        pass
    assert "shift/sketch/subset_accuracy" in dict(evaluate_shift(evaluated_run(run)))

    (tmp_path / "names.json").write_text('{"n01": "class-11"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"evaluation\.class_maps\.sketch.*'class-11'.*did you mean 'class-1'"):
        build_training_data(experiment, tables)
    with pytest.raises(InputError, match=r"mixing\.loss_weight names corpus 'sketch', which is a shifted test set"):
        settings(**changes, **{"mixing.loss_weight": {"sketch": 1}})


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_the_probe_takes_the_penalty_and_the_scaling_that_validate_best(spread: float) -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(3), 8)
    means = rng.normal(size=(3, 40))
    means[:, :4] *= spread  # such that scaled alone, features without a say get one
    train, val = (((means[labels] + 2 * rng.normal(size=(24, 40))).astype(np.float32), labels) for _ in range(2))
    probe, strength = LinearProbe.fit_validated(train, val, 3)
    scores = {
        (each, alike): LinearProbe.fit(*train, 3, strength=each, one_scale=alike).score(*val)
        for each in (0.01, 0.1, 1.0, 10.0, 100.0)
        for alike in (False, True)
    }
    best = max(scores, key=lambda each: (scores[each][0], -scores[each][1]))
    assert (scores[best], best[0]) == (probe.score(*val), strength)
    assert best[1] or spread == 1.0


def test_neighbours_vote_by_cosine() -> None:
    rng = np.random.default_rng(4)
    features, labels = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 4, size=40)
    queries = rng.normal(size=(30, 6)).astype(np.float32)
    found = neighbour_votes((features, labels), queries, (1, 5, 1000))
    assert set(found) == {1, 5}, "no more neighbours than train rows"
    theirs = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(features, labels).predict(queries)
    assert found[1].tolist() == theirs.tolist()
    train = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32), np.array([1, 0, 2])
    tie = neighbour_votes(train, np.array([[1, 0.01]], dtype=np.float32), (2,))
    assert tie[2].tolist() == [1], "the nearer voter decides"


def test_zero_shot_scores_rows_of_the_auxiliary_classes_only(trained: TrainingRun) -> None:
    few = {**TABLES, "names": table(TABLES["names"].embeddings[:6], ["class-0"] * 3 + ["class-1"] * 3)}
    run = TrainingRun(settings(), build_training_data(settings(), few))
    run.load_result(trained.result_state())
    found = dict(evaluate_zero_shot(evaluated_run(run)))
    assert 0 <= found["probe/zero_shot/names/test_accuracy"] <= 1
    means = [
        run.objective.features("names", run.data.train["names"])[labels].mean(axis=0)
        for labels in (slice(3), slice(3, 6))
    ]
    unit = np.stack([mean / np.linalg.norm(mean) for mean in means])
    rows = run.data.test.labels < 2
    hits = (run.objective.features("target", run.data.test)[rows] @ unit.T).argmax(axis=1) == run.data.test.labels[rows]
    assert found["probe/zero_shot/names/test_accuracy"] == pytest.approx(hits.mean())


def test_every_evaluator_says_what_must_not_be_compared() -> None:
    for name, evaluator in chosen_evaluators(tuple(EVALUATORS)).items():
        assert "ompar" in (evaluator.__doc__ or ""), name


def test_names_of_evaluators() -> None:
    assert tuple(chosen_evaluators(())) == DEFAULT
    assert next(iter(chosen_evaluators(("corruptions", "default")))) == "corruptions"
    with pytest.raises(InputError, match=r"names 'knn_prob' .did you mean 'knn_probe'."):
        chosen_evaluators(("knn_prob",))
    with pytest.raises(InputError, match="importing nowhere fails"):
        chosen_evaluators(("nowhere:evaluate",))
    with pytest.raises(InputError, match=r"the file mine\.py does not exist"):
        chosen_evaluators(("mine.py:evaluate",))


def test_an_evaluator_of_ones_own(tmp_path: Path, evaluated: EvaluatedRun) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def confidence(run):\n"
        "    yield 'mine/confidence', run.probabilities('test').max(axis=1).mean()\n"
        "    yield 'mine/rows.txt', str(len(run.labels('test')))\n"
        "def thief(run):\n    yield 'test/accuracy', 1.0\n"
        "def wrong(run):\n    yield 'mine/x', [1, 2]\n"
        "def nothing(run):\n    return None\n"
        "def outside(run):\n    yield '../x', 1.0\n",
        encoding="utf-8",
    )
    found = measure(evaluated, chosen_evaluators((f"{file}:confidence",)))
    assert found.metrics["mine/confidence"] == pytest.approx(evaluated.probabilities("test").max(axis=1).mean())
    assert found.files == {"mine/rows.txt": b"42"}
    for name, message in (
        ("thief", "which evaluator test has yielded"),
        ("wrong", "expected a name and a number"),
        ("nothing", "returns a NoneType"),
        ("outside", "leads to no other folder"),
    ):
        with pytest.raises(InputError, match=message):
            measure(evaluated, chosen_evaluators(("test", f"{file}:{name}")))
    with pytest.raises(InputError, match="did you mean 'thief'"):
        chosen_evaluators((f"{file}:theif",))


def test_without_a_test_split_only_shift_is_measured() -> None:
    codes = [index for index, split in enumerate(SPLITS * CLASSES) if split != "test"]
    kept = {
        **TABLES,
        "target": table(
            TABLES["target"].embeddings[codes],
            *([values[code] for code in codes] for values in (LABELS, SPLITS * CLASSES)),
        ),
    }
    run = TrainingRun(settings(**{"train.max_steps": 0}), build_training_data(settings(), kept))
    list(run.evaluations())
    assert list(evaluate_test(evaluated_run(run))) == []
    assert set(measure(evaluated_run(run), {"shift": evaluate_shift}).metrics) == {"shift/dark/accuracy"}


@pytest.mark.parametrize("count", [2, 101])
def test_the_confusion_figure_can_be_drawn(count: int) -> None:
    counts = np.eye(count, dtype=np.int64) * 3
    counts[0, 1] = 2
    figure = confusion_figure(counts, [f"class {code}" for code in range(count)])
    assert svg_of(figure).startswith(b"<?xml")
    assert math.isclose(figure.axes[0].images[0].get_array()[0, 1], 0.4)


def test_the_few_shot_protocol_is_nested_and_its_files_are_read_again(trained: TrainingRun, tmp_path: Path) -> None:
    ids = tuple(f"row-{place}" for place in range(len(LABELS)))
    asked = settings(**{"evaluation.shots": [1, 2, 4, 8], "evaluation.seeds": 2})
    run = EvaluatedRun(asked, trained.data, trained.objective, ids=lambda corpus: ids)
    found = measure(run, chosen_evaluators(("few_shot_probe",)))
    means = {shots: found.metrics.get(f"probe/few_shot/{shots}/test_accuracy") for shots in (1, 2, 4, 8)}
    assert means[8] is None, "a class has four train rows"
    assert means[4] > means[1] - 0.1
    assert found.metrics["probe/few_shot/2/test_accuracy_std"] >= 0
    drawn = {}
    for shots in (1, 2):
        file = tmp_path / f"{shots}.json"
        file.write_bytes(found.files[f"probe/few_shot/shots-{shots}-seed-1.json"])
        places = read_subset(str(file)).table_rows(ids)
        data = build_training_data(settings(), TABLES, places)
        assert np.bincount(data.labelled.labels).tolist() == [shots] * CLASSES
        drawn[shots] = set(places["train"].tolist())
    assert drawn[1] < drawn[2]
    rows = found.files["probe/few_shot/accuracy.csv"].decode().splitlines()
    # Four shots are all the train rows, and three all of validation: a second seed would draw the same.
    assert len(rows) == 1 + 2 + 2 + 1
    assert "probe/few_shot/4/test_accuracy_std" not in found.metrics
    four = EvaluatedRun(settings(**{"evaluation.shots": [9]}), trained.data, trained.objective, ids=lambda corpus: ids)
    with pytest.raises(InputError, match="a class has 4 train rows"):
        measure(four, chosen_evaluators(("few_shot_probe",)))
