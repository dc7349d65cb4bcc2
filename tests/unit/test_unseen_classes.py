"""Classes of which the target has no train row, or few: which rows are what, and how they are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import table
from tests.unit.test_training_data import build as build_default
from tune_spaces import load_space
from uml_core.config import parse_experiment
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import InputError
from uml_core.evaluation.classification import evaluate_test
from uml_core.evaluation.outcome import (
    area_under_seen_unseen_curve,
    evaluated_run,
    group_accuracies,
    measure_outcome,
)
from uml_core.sweeps.space import trials_of
from uml_core.training.run import TrainingRun

UNION = {"data.classes": "union"}
# Of d there are pictures to test on alone, of e none; m comes after a by its letter, and has no train row.
LABELS = [*"ccccaaaa", *"ca", *"cad", *"mdd"]
SPLITS = ["train"] * 8 + ["val"] * 2 + ["val"] * 3 + ["test"] * 3
TARGET = table(np.arange(32).reshape(16, 2), LABELS, SPLITS)
NAMES = table(np.arange(15).reshape(5, 3), [*"acdem"])


def build(changes: dict[str, Any] | None = None, **tables: Any) -> TrainingData:
    return build_default({**UNION, **(changes or {})}, **{"target": TARGET, "names": NAMES, **tables})


def test_the_targets_classes_keep_their_codes_and_those_of_other_corpora_follow() -> None:
    data = build()
    assert data.classes == ("a", "c", "d", "e", "m")
    assert np.bincount(data.train["target"].labels).tolist() == [4, 4]
    assert np.bincount(data.train["names"].labels).tolist() == [1, 1, 1, 1, 1]
    assert data.dropped == {"names": {}}
    assert any("target: no rows for 3 of 5 classes: d, e, m" in line for line in data.warnings())


@pytest.mark.parametrize("shots", [None, 1])
def test_unseen_rows_of_val_and_test_are_all_tested_and_none_validates(shots: int | None) -> None:
    data = build({"data.shots": shots, "data.val_shots": "same"})
    assert set(data.val.labels) == {0, 1}
    assert len(data.val) == (4 if shots is None else 2)
    assert data.test is not None
    assert sorted(data.classes[code] for code in data.test.labels) == ["d", "d", "d", "m"]
    assert data.test.rows.tolist() == [12, 13, 14, 15]


def test_validation_comes_off_train_where_val_has_unseen_classes_alone() -> None:
    splits = ["train"] * 8 + ["val"] * 2
    data = build(target=table(np.zeros((10, 2)), [*"aaaaccccdd"], splits))
    assert set(data.val.labels) == {0, 1}
    assert data.test is not None
    assert data.test.rows.tolist() == [8, 9]


@pytest.mark.parametrize("control", ["shuffled_labels", "noise"])
def test_a_control_has_the_same_classes_and_rows(control: str) -> None:
    data, plain = build({"corpora.names.control": control}), build()
    assert data.classes == plain.classes
    assert data.test is not None
    assert plain.test is not None
    assert data.test.rows.tolist() == plain.test.rows.tolist()


def test_an_unrelated_corpus_adds_no_class() -> None:
    seen = table(TARGET.embeddings[:10], LABELS[:10], SPLITS[:10])
    assert build({"corpora.names.control": "unrelated"}, target=seen).classes == ("a", "c")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data.classes": "target"}, "in val without any train row: d; .*or set data.classes=union"),
        ({}, "in test without any train row of its own or of an auxiliary corpus: m"),
        ({"objective": "self_supervised"}, "which needs data.classes=target"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        build(changes, names=table(np.zeros((4, 3)), [*"acde"]))


def test_a_subset_file_may_leave_classes_out_that_another_corpus_has() -> None:
    target = table(np.zeros((9, 2)), [*"aaaccceee"], ["train", "train", "test"] * 3)
    tables, given = {"target": target, "names": NAMES}, {"train": np.array([0, 6]), "val": np.array([1, 4, 7])}
    data = build_training_data(_experiment(), tables, given)
    assert data.classes == ("a", "c", "e", "d", "m"), "codes are the corpus's, whichever rows are drawn"
    assert data.val.labels.tolist() == [0, 2]
    assert data.test is not None
    assert data.test.rows.tolist() == [2, 4, 5, 8]
    with pytest.raises(InputError, match=r"no train row for 1 of the target's classes"):
        build_training_data(_experiment().override({"data.classes": "target"}), tables, given)


def _experiment(**settings: Any) -> Any:
    corpora = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in ("target", "names")}
    tree = {"name": "x", "store": "store", "target": "target", "corpora": corpora}
    return parse_experiment({**tree, **settings}).override(UNION)


PROBABILITIES = np.array([[0.6, 0.1, 0.3], [0.2, 0.1, 0.7], [0.3, 0.6, 0.1], [0.5, 0.1, 0.4], [0.1, 0.1, 0.8]])
TRUE = np.array([0, 0, 1, 2, 2])


def test_seen_and_unseen_accuracy_are_means_over_classes() -> None:
    found = group_accuracies(PROBABILITIES, TRUE, np.array([3, 3, 0]))
    # Seen: (1/2 + 1) / 2; unseen: 1/2. The curve goes (0, 1), (1/2, 1), (1/2, 3/4), (1, 3/4), (1, 1/2), (1, 0).
    expected = {"seen_accuracy": 0.75, "unseen_accuracy": 0.5, "harmonic_mean": 0.6, "ausuc": 0.875}
    assert found == pytest.approx(expected)


def test_the_curve_does_not_know_the_bias_between_the_two_kinds() -> None:
    rng = np.random.default_rng(0)
    logits, labels, is_seen = rng.normal(size=(200, 9)), rng.integers(0, 9, size=200), np.arange(9) < 6
    areas = [
        area_under_seen_unseen_curve(np.exp(logits + bias * ~is_seen), labels, is_seen) for bias in (0.0, 3.0, -20.0)
    ]
    assert areas == pytest.approx([areas[0]] * 3)
    curve = [  # at every bias between two margins
        (float(np.mean([(predicted == code)[labels == code].mean() for code in kind])))
        for bias in np.linspace(-8, 8, 4001)
        for predicted in [(logits + bias * ~is_seen).argmax(axis=1)]
        for kind in (np.flatnonzero(~is_seen), np.flatnonzero(is_seen))
    ]
    assert areas[0] == pytest.approx(np.trapezoid(curve[1::2], curve[::2]), abs=1e-3)


@pytest.mark.parametrize(
    ("train_rows", "expected"),
    [
        ([21, 20, 4], {"head_accuracy": 0.5, "medium_accuracy": 1.0, "tail_accuracy": 0.5}),
        ([5, 4, 1], {"medium_accuracy": 0.5, "tail_accuracy": 0.75}),
        ([4, 4, 4], {}),
    ],
)
def test_long_tails_are_measured_by_the_train_rows_of_a_class(
    train_rows: list[int], expected: dict[str, float]
) -> None:
    assert group_accuracies(PROBABILITIES, TRUE, np.array(train_rows)) == pytest.approx(expected)


def test_long_tailed_targets_with_empty_classes_train_and_are_measured() -> None:
    rng = np.random.default_rng(0)
    latents, rows = rng.normal(size=(6, 8)), [25, 12, 3, 1, 0, 0]
    splits = [[*["train"] * count, *["val"] * min(count, 2), *["test"] * 4] for count in rows[:5]]
    codes = np.repeat(np.arange(5), [len(each) for each in splits])
    embeddings = latents[codes] + 0.3 * rng.normal(size=(len(codes), 8))
    tables = {
        "target": table(embeddings, [f"c{code}" for code in codes], [split for each in splits for split in each]),
        "names": table(latents, [f"c{code}" for code in range(6)]),
    }
    experiment = _experiment(model={"head": "prior"})
    run = TrainingRun(experiment, build_training_data(experiment, tables))
    for _ in run.evaluations():
        pass
    groups = measure_outcome(run).test_groups
    assert set(groups) == {
        *("seen_accuracy", "unseen_accuracy", "harmonic_mean", "ausuc"),
        *("head_accuracy", "medium_accuracy", "tail_accuracy"),
    }
    measured = dict(evaluate_test(evaluated_run(run)))
    assert {f"test/{name}": value for name, value in groups.items()}.items() <= measured.items()
    recalls = {name.removeprefix("test/class_accuracy/") for name in measured if "class_accuracy" in name}
    assert recalls == {"c0", "c1", "c2", "c3", "c4"}, "c5 has no test row"


def test_all_arms_of_a_sweep_have_the_same_classes_and_test_rows() -> None:
    space = load_space("controls", _experiment())
    found = set()
    for spec in trials_of(space, _experiment()):
        data = build_training_data(spec.experiment, {"target": TARGET, "names": NAMES})
        assert data.test is not None
        found.add((spec.experiment.seed, data.classes, tuple(data.test.rows)))
    assert len(found) == len({seed for seed, *_ in found})
    probe = next(spec for spec in trials_of(space, _experiment()) if spec.arm == "linear_probe").experiment
    run = TrainingRun(probe, build_training_data(probe, {"target": TARGET, "names": NAMES}))
    assert run.model.shared_width == 2, "without a projection, as without other corpora"
    assert set(probe.active_auxiliaries) == set()
