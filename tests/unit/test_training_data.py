"""Splits, few-shot subsets, controls and what is dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import table
from uml_core.config import Experiment, parse_experiment
from uml_core.data.subsets import split_off, take_shots
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import InputError
from uml_core.store.corpus_table import CorpusTable, unread

LABELS = [label for label in "abc" for _ in range(10)]
TARGET = table(np.arange(60).reshape(30, 2), LABELS)
NAMES = table(np.arange(36).reshape(12, 3), [*"aabbccddd", "a", None, "c"])


def experiment(**changes: Any) -> Experiment:
    corpora = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in ("target", "names")}
    tree = {"name": "x", "store": "store", "target": "target", "corpora": corpora}
    return parse_experiment(tree).override(changes)


def build(changes: dict[str, Any] | None = None, **tables: CorpusTable) -> TrainingData:
    return build_training_data(experiment(**(changes or {})), {"target": TARGET, "names": NAMES, **tables})


def test_labels_are_brought_together_by_case_spaces_and_a_map() -> None:
    spelled = table(np.zeros((8, 3)), [" A", "B ", "tabby", "A", "a", "moth", None, "c"])
    changes = {"data.labels": {"normalise": "strip_casefold", "map": {"TABBY": "C"}}}
    data = build(changes, names=spelled, target=table(TARGET.embeddings, [label.upper() for label in LABELS]))
    assert data.classes == ("a", "b", "c")
    assert data.train["names"].rows.tolist() == [0, 1, 2, 3, 4, 7]
    assert data.train["names"].labels.tolist() == [0, 1, 2, 0, 0, 2]
    with pytest.raises(InputError, match=r"labels.map has 'tabbi', a label of no corpus .did you mean 'tabby'"):
        build({"data.labels.map": {"tabby": "c", "tabbi": "c"}}, names=spelled)
    hint = "names: 2 rows match 'a', 1 rows match 'b' after strip and casefold: data.labels.normalise=strip_casefold"
    without = build(names=table(np.zeros((4, 3)), ["A", " a", "B ", "c"])).warnings()
    assert any(line.startswith(hint) for line in without)
    assert not any("strip and casefold" in line for line in build().warnings())
    both = build(target=table(TARGET.embeddings, [*["C"] * 5, *LABELS[5:]])).warnings()
    assert any("classes 'C', 'c' are the same after strip and casefold" in line for line in both)


def test_names_of_a_hierarchy_are_classes_of_their_own() -> None:
    below = table(TARGET.embeddings, [f"top|{label}" for label in LABELS])
    assert build(target=below, names=below).classes == ("top|a", "top|b", "top|c")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 5))
def test_shots_are_stratified_and_nested(codes: list[int], shots: int, seed: int) -> None:
    labels = np.array(codes)
    rows = np.arange(len(labels))
    small, large = (take_shots(labels, rows, shots=count, seed=seed) for count in (shots, 2 * shots))
    assert set(small) <= set(large)
    for code in np.unique(labels):
        assert (labels[small] == code).sum() == min(shots, (labels == code).sum())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 0.9), st.integers(0, 5))
def test_split_off_keeps_every_class_and_loses_no_row(codes: list[int], fraction: float, seed: int) -> None:
    labels = np.array(codes)
    kept, taken = split_off(labels, np.arange(len(labels)), fraction=fraction, seed=seed)
    assert sorted([*kept, *taken]) == list(range(len(labels)))
    assert set(labels[kept]) == set(labels)
    if fraction == 0:
        assert not len(taken)


def test_validation_is_split_off_train_and_shots_limit_both() -> None:
    data = build()
    assert (len(data.train["target"]), len(data.val)) == (24, 6)
    assert data.test is None
    data = build({"data.shots": 1, "data.test_fraction": 0.3})
    assert (len(data.train["target"]), len(data.val), len(data.test or [])) == (3, 3, 9)
    data = build({"data.shots": 6, "data.val_fraction": 0.4})
    assert (len(data.train["target"]), len(data.val)) == (18, 12), "validation has min(4, shots) per class"


def test_a_val_split_of_the_users_own_is_used_whole_and_can_be_cut() -> None:
    given = table(
        np.arange(60).reshape(30, 2), LABELS, splits=["train"] * 4 + ["val"] * 6 + [*["train"] * 4, *["val"] * 6] * 2
    )
    for shots, changes, train, val in (
        (1, {}, 3, 18),
        (1, {"data.val_shots": "same"}, 3, 3),
        (4, {"data.val_shots": "same"}, 12, 12),
        (1, {"data.val_shots": 2}, 3, 6),
        (None, {"data.val_shots": "same"}, 12, 18),
        (None, {"data.val_shots": 5}, 12, 15),
    ):
        data = build({"data.shots": shots, **changes}, target=given)
        assert (len(data.train["target"]), len(data.val)) == (train, val), changes
    assert len(build({"data.shots": 1, "data.val_shots": "all"}).val) == 6, "of what is taken off train"


def test_classes_that_nothing_selects_or_measures_are_named() -> None:
    splits = [*["train"] * 8, "val", "test"] * 2 + ["train"] * 9 + ["test"]
    lines = build(target=table(np.zeros((30, 2)), LABELS, splits)).warnings()
    assert lines[-1] == "target: no validation rows for 1 of its classes: c"


def test_splits_do_not_overlap_and_seed_moves_them() -> None:
    data = build({"data.test_fraction": 0.3})
    assert data.test is not None
    rows = [*data.train["target"].rows, *data.val.rows, *data.test.rows]
    assert sorted(rows) == list(range(30))
    other = build({"data.test_fraction": 0.3, "data.split_seed": 1})
    assert other.val.rows.tolist() != data.val.rows.tolist()


def test_foreign_classes_are_dropped_and_counted() -> None:
    data = build()
    assert len(data.train["names"]) == 8
    assert data.dropped == {"names": {"d": 3, "": 1}}
    assert any("4 rows of classes the target lacks" in line for line in data.warnings())


def test_auxiliary_shots_are_nested_stratified_and_the_corpus_own() -> None:
    plain = build().train["names"]
    sizes = {}
    kept: set[int] = set()
    for shots in (1, 2, 3, 9):
        rows = build({"data.auxiliary_shots.names": shots}).train["names"]
        sizes[shots] = np.bincount(rows.labels).tolist()
        assert kept <= set(rows.rows)
        assert (
            dict(zip(rows.rows, rows.labels, strict=True)).items()
            <= dict(zip(plain.rows, plain.labels, strict=True)).items()
        )
        kept = set(rows.rows)
    assert sizes == {1: [1, 1, 1], 2: [2, 2, 2], 3: [3, 2, 3], 9: [3, 2, 3]}
    many = table(np.zeros((300, 3)), [*"abc"] * 100)
    picked = {
        seed: build({"data.auxiliary_shots.names": 5, "data.split_seed": seed}, names=many).train["names"].rows.tolist()
        for seed in (0, 1)
    }
    assert picked[0] != picked[1]
    # A corpus in the target's own order must not give the partners of the target's shots.
    twin = build({"data.auxiliary_shots.names": 4, "data.shots": 4, "data.val_fraction": 0.1}, names=TARGET)
    assert twin.train["names"].rows.tolist() != twin.train["target"].rows.tolist()


def test_controls_keep_the_rows_of_auxiliary_shots() -> None:
    shots = {"data.auxiliary_shots.names": 2}
    plain = build(shots).train["names"]
    shuffled = build({**shots, "corpora.names.control": "shuffled_labels"}).train["names"]
    assert shuffled.rows.tolist() == plain.rows.tolist()
    assert len(build({**shots, "corpora.names.control": "noise"}).train["names"]) == len(plain) == 6
    foreign = table(np.zeros((40, 3)), [*"wwwwxxxxyyyyzzzz"] + [*"uuuuvvvv"] * 3)
    unrelated = build({**shots, "corpora.names.control": "unrelated"}, names=foreign).train["names"]
    assert np.bincount(unrelated.labels).max() == 2


def test_no_ids_reach_training() -> None:
    data = build()
    assert not any("id" in name for name in vars(data.train["names"]))
    assert data.train["names"].gathered().tolist()[0] == [0.0, 1.0, 2.0]


def test_shuffled_labels_keep_rows_and_class_counts() -> None:
    plain, shuffled = build(), build({"corpora.names.control": "shuffled_labels"})
    assert shuffled.train["names"].rows.tolist() == plain.train["names"].rows.tolist()
    assert sorted(shuffled.train["names"].labels) == sorted(plain.train["names"].labels)
    assert shuffled.train["names"].labels.tolist() != plain.train["names"].labels.tolist()


def test_noise_keeps_labels_and_scale() -> None:
    many = table(np.random.default_rng(0).normal(3, 2, size=(600, 4)), [*"abc"] * 200)
    noise = build({"corpora.names.control": "noise"}, names=many).train["names"]
    assert noise.labels.tolist() == build(names=many).train["names"].labels.tolist()
    assert noise.gathered().mean() == pytest.approx(3, abs=0.2)
    assert noise.gathered().std() == pytest.approx(2, abs=0.2)
    assert not np.allclose(noise.gathered(), many.embeddings)


def test_unrelated_hands_whole_foreign_classes_to_target_classes() -> None:
    foreign = table(np.zeros((8, 3)), [*"wwxxyyzz"])
    rows = build({"corpora.names.control": "unrelated"}, names=foreign).train["names"]
    pairs = {
        (foreign.label_names[foreign.label_codes[row]], code) for row, code in zip(rows.rows, rows.labels, strict=True)
    }
    assert len(pairs) == 4, "a foreign class goes to one target class as a whole"
    assert {code for _, code in pairs} == {0, 1, 2}


@pytest.mark.parametrize(
    ("tables", "part"),
    [
        ({"target": table(np.zeros((4, 2)), [*"aabb"], ["test"] * 4)}, "no labelled train rows"),
        ({"target": table(np.zeros((3, 2)), [*"aab"], ["train", "train", "test"])}, "without any train row: b"),
        ({"target": table(np.zeros((2, 2)), [*"ab"])}, "no validation rows"),
        ({"names": table(np.zeros((2, 3)), [*"yz"])}, "shares no class with the target"),
        ({"names": table(np.zeros((2, 3)), [*"Az"])}, "remove the corpus; 1 rows match 'a' after strip and casefold"),
        (
            {"names": table(np.zeros((3, 3)), ["a|b", "b", "c|d"])},
            r"has labels that hold several classes: 'a\|b', 'c\|d'; a row has one: .*data.labels.map=\{'a\|b': a\}",
        ),
    ],
)
def test_data_that_cannot_be_trained_on(tables: dict[str, CorpusTable], part: str) -> None:
    with pytest.raises(InputError, match=part):
        build(**tables)


def test_spaces_of_equal_width_are_not_silently_taken_as_one() -> None:
    same_width = table(np.arange(24).reshape(12, 2), [*"aabbccddd", "a", None, "c"])
    narrow, wide = build(names=same_width), build()
    assert (narrow.unprojected, wide.unprojected) == (("names",), ())
    assert any("set model.shared_width to another width" in line for line in narrow.warnings())
    assert build({"model.shared_width": 3}, names=same_width).unprojected == ()
    assert build({"mixing.loss_weight.names": 0}, names=same_width).unprojected == ()


def test_rows_without_a_label_take_the_class_they_agree_with() -> None:
    # Six classes around a common mean; row 6 lies by c, 7 is the mean, 8 lies between a and b, 9 is no train row.
    classes, eye = list("abcdez"), np.eye(6, dtype=np.float32) + 5
    between, near_c = eye[:2].mean(axis=0), eye[2] + [0.1, 0, 0.3, 0, 0, 0.2]
    rows = np.stack([*eye, near_c, eye.mean(axis=0), between, eye[0], eye[5]])
    splits = [*["train"] * 9, "test", "train"]
    names = table(rows, [*classes, *[None] * 5], splits)
    agree = {"corpora.names.missing_labels": "agree"}
    data, plain = build(agree, names=names), build(names=names)
    found = dict(zip(data.train["names"].rows.tolist(), data.train["names"].labels.tolist(), strict=True))
    assert found == {0: 0, 1: 1, 2: 2, 6: 2}, "of the target's classes a, b, c; row 10 agrees with z"
    assert plain.train["names"].rows.tolist() == [0, 1, 2]
    line = "names: 2 of 4 rows without a label were given a class by agreement with labelled ones, 2 agree with none"
    assert any(each.startswith(line) for each in data.warnings())
    assert (plain.dropped["names"][""], data.dropped["names"]["z"]) == (4, 2)
    assert "" not in data.dropped["names"]
    shuffled = build(agree | {"corpora.names.control": "shuffled_labels"}, names=names).train["names"]
    assert (shuffled.rows.tolist(), sorted(shuffled.labels.tolist())) == ([0, 1, 2, 6], [0, 1, 2, 2])
    noise = build(agree | {"corpora.names.control": "noise"}, names=names).train["names"]
    assert noise.labels.tolist() == [0, 1, 2, 2]
    assert not np.allclose(noise.gathered(), rows[[0, 1, 2, 6]])
    driver = build(agree, names=replace(names, embeddings=unread(len(rows), 6)))
    assert driver.train["names"].rows.tolist() == [0, 1, 2], "what agrees is known to who reads the embeddings"
    assert not any("no label" in each or "without a label" in each for each in driver.warnings())
    with pytest.raises(
        InputError, match=r"names.missing_labels is agree, which needs .* 5 classes.*it has a, b, c, d$"
    ):
        build(agree)
    with pytest.raises(InputError, match=r"target.missing_labels is set on the target; it is for auxiliary corpora"):
        experiment(**{"corpora.target.missing_labels": "agree"})


def test_an_unlabelled_pile_has_no_labels_and_no_held_out_row() -> None:
    pile = {"corpora.pile": {"modality": "vector", "format": "embeddings", "path": "pile", "role": "unlabelled"}}
    rows = np.concatenate([TARGET.embeddings[:10], np.ones((4, 2))])
    data = build({**pile, "data.test_fraction": 0.3}, pile=table(rows, ["a", *[None] * 13]))
    assert data.test is not None
    held_out = {tuple(row) for part in (data.val, data.test) for row in part.gathered()}
    kept = {tuple(row) for row in data.unlabelled["pile"].gathered()}
    assert not kept & held_out
    assert kept == {tuple(row) for row in rows} - held_out
    assert set(data.unlabelled["pile"].labels) == {-1}
    assert list(data.train) == ["target", "names"]
    assert data.repeated["pile"] > 0
    assert f"pile: {data.repeated['pile']} unlabelled rows left out, which are rows of validation or test" in (
        data.warnings()
    )
    with pytest.raises(InputError, match=r"corpora.pile is an unlabelled pile 3 wide, and the target is 2 wide"):
        build(pile, pile=NAMES)
