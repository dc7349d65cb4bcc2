"""Relevance of an auxiliary corpus: closed forms against scikit-learn and naive loops, verdicts on known answers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from tests.conftest import table
from uml_core.analysis.class_geometry import MAP_RIDGE, ClassGeometry, ClassMeans, NullTest, orders_of
from uml_core.analysis.relevance import (
    Draw,
    PredictedGain,
    Relevance,
    class_similarity,
    redundancy,
    relevance,
    ridge_head,
)
from uml_core.config import parse_experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.store.corpus_table import CorpusTable

NUM_CLASSES = 24
NAMES = [f"class-{code:02d}" for code in range(NUM_CLASSES)]


def corpora(*, related: bool = True, width: int = 6, noise: float = 0.3, seed: int = 0) -> dict[str, CorpusTable]:
    """A noisy target of width 40 and a clean auxiliary corpus of the same class latents, or of others."""
    rng = np.random.default_rng(seed)
    latents, others = rng.normal(size=(2, NUM_CLASSES, 4))
    splits = ["train"] * 4 + ["val"] * 6 + ["test"] * 2
    codes = np.repeat(np.arange(NUM_CLASSES), len(splits))
    target = latents[codes] @ rng.normal(size=(4, 40)) + 4.0 * rng.normal(size=(len(codes), 40))
    own = np.repeat(np.arange(NUM_CLASSES), 15)
    told = (latents if related else others)[own] @ rng.normal(size=(4, width))
    auxiliary = told + noise * rng.normal(size=(len(own), width))
    return {
        "target": table(target, [NAMES[code] for code in codes], splits * NUM_CLASSES),
        "auxiliary": table(auxiliary, [NAMES[code] for code in own]),
    }


def training_data(
    tables: dict[str, CorpusTable], *, shots: int = 2, seed: int = 0, control: str = "none"
) -> TrainingData:
    ready = {"modality": "vector", "format": "embeddings", "path": "x"}
    extra = {name: {**ready, "control": control} for name in tables if name != "target"}
    tree: dict[str, Any] = {
        "name": "x",
        "store": "store",
        "target": "target",
        "corpora": {"target": ready, **extra},
        "data": {"shots": shots, "split_seed": seed},
    }
    return build_training_data(parse_experiment(tree), tables)


def found(tables: dict[str, CorpusTable], **changes: Any) -> Relevance:
    draws = [Draw.from_data(training_data(tables, seed=seed, **changes)) for seed in range(4)]
    return relevance(draws, "auxiliary", permutations=99)


def test_null_test_counts_the_permutations_that_reach_the_value() -> None:
    test = NullTest.from_values(np.array([3.0, 1.0, 3.0, 5.0, 2.0]))
    assert (test.value, test.null, test.p_value) == (3.0, 2.75, 3 / 5)
    assert test.excess == 0.25


@given(st.integers(1, 8), st.integers(0, 20))
def test_orders_start_with_the_classes_own_and_are_permutations(num_classes: int, permutations: int) -> None:
    orders = orders_of(num_classes, permutations)
    assert len(orders) == permutations + 1
    assert orders[0].tolist() == list(range(num_classes))
    assert all(sorted(order) == list(range(num_classes)) for order in orders)


def test_class_similarity_by_hand() -> None:
    rows = LabelledRows(np.array([[2, 0], [4, 0], [0, 5]], dtype=np.float32), np.arange(3), np.array([0, 0, 2]))
    # Unit means (1, 0) and (0, 1), less their mean: ±(½, −½); class 1 has no rows. Mean diagonal (½ + 0 + ½) / 3.
    expected = np.array([[1.5, 0, -1.5], [0, 0, 0], [-1.5, 0, 1.5]])
    assert class_similarity(ClassMeans.from_rows(rows, 3)) == pytest.approx(expected)


@pytest.mark.parametrize("num_rows", [5, 40], ids=["fewer rows than columns", "more"])
def test_ridge_head_is_weighted_ridge_regression_on_centred_indicators(num_rows: int) -> None:
    rng = np.random.default_rng(0)
    parts = []
    for weight in (1.0, 0.25):
        embeddings = rng.normal(size=(num_rows, 12)).astype(np.float32)
        labels = rng.integers(0, 3, size=num_rows)
        parts.append((LabelledRows(embeddings, np.arange(num_rows), labels), weight))
    mean = rng.normal(size=12)
    joined = np.vstack([rows.embeddings for rows, _ in parts]) - mean
    indicators = np.eye(3)[np.concatenate([rows.labels for rows, _ in parts])] - 1 / 3
    expected = Ridge(alpha=0.7, fit_intercept=False).fit(
        joined, indicators, sample_weight=np.repeat([1.0, 0.25], num_rows)
    )
    assert ridge_head(parts, 3, mean=mean, penalty=0.7) == pytest.approx(expected.coef_.T, abs=1e-5)


@pytest.mark.parametrize("width", [6, 40], ids=["projection", "same width"])
def test_an_order_of_classes_is_the_corpus_relabelled(width: int) -> None:
    tables = corpora(width=width)
    order = np.random.default_rng(3).permutation(NUM_CLASSES)
    draw = Draw.from_data(training_data(tables))
    auxiliary = draw.data.train["auxiliary"]
    position = np.argsort(order)  # the class whose place a class takes
    relabelled = LabelledRows(auxiliary.embeddings, auxiliary.rows, position[auxiliary.labels])
    own = np.arange(NUM_CLASSES)
    (permuted,) = draw.correct_with(auxiliary, ClassMeans.from_rows(auxiliary, NUM_CLASSES), [order])
    (direct,) = draw.correct_with(relabelled, ClassMeans.from_rows(relabelled, NUM_CLASSES), [own])
    assert permuted.tolist() == direct.tolist()
    (unpermuted,) = draw.correct_with(auxiliary, ClassMeans.from_rows(auxiliary, NUM_CLASSES), [own])
    assert permuted.tolist() != unpermuted.tolist()


def test_same_width_prediction_is_one_regression_on_both_corpora() -> None:
    draw = Draw.from_data(training_data(corpora(width=40)))
    target, auxiliary = draw.data.train["target"], draw.data.train["auxiliary"]
    rows = np.vstack([target.gathered(), auxiliary.gathered()]) - draw.mean
    labels = np.concatenate([target.labels, auxiliary.labels])
    weights = np.repeat([1.0, len(target) / len(auxiliary)], [len(target), len(auxiliary)])
    model = Ridge(alpha=draw.penalty, fit_intercept=False).fit(rows, np.eye(NUM_CLASSES)[labels], sample_weight=weights)
    expected = model.predict(draw.val).argmax(axis=1) == draw.val_labels
    own = [np.arange(NUM_CLASSES)]
    (correct,) = draw.correct_with(auxiliary, ClassMeans.from_rows(auxiliary, NUM_CLASSES), own)
    assert (correct == expected).mean() > 0.97, "centred indicators move a class's logits by a constant at most"


def geometry(tables: dict[str, CorpusTable], shots: int = 2) -> tuple[ClassGeometry, np.ndarray, np.ndarray]:
    """The geometry, and both corpora's class means computed with a loop."""
    data = training_data(tables, shots=shots)
    auxiliary = data.train["auxiliary"]
    seen = np.vstack([data.train["target"].gathered(), data.val.gathered()])
    labels = np.concatenate([data.train["target"].labels, data.val.labels])
    means = np.array([seen[labels == code].mean(axis=0) for code in range(NUM_CLASSES)])
    others = np.array([auxiliary.gathered()[auxiliary.labels == code].mean(axis=0) for code in range(NUM_CLASSES)])
    return (
        ClassGeometry.from_data(data, ClassMeans.from_rows(auxiliary, NUM_CLASSES)),
        means,
        others / np.linalg.norm(others, axis=1, keepdims=True),
    )


def test_alignments_are_cka_under_each_order() -> None:
    found_geometry, means, others = geometry(corpora())

    def cka(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))

    expected = [cka(means, others[order]) for order in orders_of(NUM_CLASSES, 5)]
    assert found_geometry.alignments(5) == pytest.approx(expected, rel=1e-4)


def test_agreement_leaves_each_class_out_of_the_map() -> None:
    found_geometry, means, others = geometry(corpora())
    centred = others - others.mean(axis=0)
    alpha = MAP_RIDGE * (centred**2).sum() / NUM_CLASSES
    mapped, alone = 0.0, 0.0
    for code in range(NUM_CLASSES):
        # The closed form keeps the centre of all classes; a constant column stands for the intercept, unpenalised.
        rest = np.arange(NUM_CLASSES) != code
        design = np.hstack([centred[rest], np.ones((NUM_CLASSES - 1, 1))])
        penalty = np.diag([alpha] * centred.shape[1] + [0.0])
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ means[rest])
        mapped += ((means[code] - np.append(centred[code], 1.0) @ weights) ** 2).sum()
        alone += ((means[code] - means[rest].mean(axis=0)) ** 2).sum()
    assert found_geometry.agreements(0)[0] == pytest.approx(1 - mapped / alone, rel=1e-4)


def test_information_gain_by_hand_and_its_limits() -> None:
    # Summed squared deviations 8 over 3 classes: left-one-out prior 8 · (3/2)² / 3 = 6, less the error 4 · ½ of means.
    base = ClassGeometry(np.diag([4.0, 2.0, 2.0]), np.eye(3), within=4.0, mean_inverse_count=0.5, shots=2.0)
    assert base.information_gain(0.5) == pytest.approx(0.5 * math.log((1 / (4 - 3) + 2 / 4) / (1 / 4 + 2 / 4)))
    assert base.information_gain(0.0) == 0.0
    assert base.information_gain(-0.3) == 0.0, "a map that misleads tells nothing"
    more_shots = [replace(base, shots=shots).information_gain(0.5) for shots in (1.0, 4.0, 16.0, 1e9)]
    assert more_shots == sorted(more_shots, reverse=True)
    assert more_shots[-1] == pytest.approx(0.0, abs=1e-6), "with all the shots nothing is left to tell"


def test_a_related_corpus_is_likely_to_help_and_its_controls_are_not() -> None:
    related = found(corpora())
    assert related.verdict[0] == "likely", related
    assert related.gain.test.p_value == 0.01
    assert related.alignment is not None
    assert related.alignment.p_value == 0.01
    assert related.information_gain is not None
    assert related.information_gain > 0.1
    for control in (found(corpora(related=False)), found(corpora(), control="shuffled_labels")):
        assert control.verdict[0] != "likely", control
        assert control.gain.mean < related.gain.mean


def test_test_rows_are_never_looked_at() -> None:
    tables = corpora()
    target = tables["target"]
    in_test = target.split_codes == target.split_names.index("test")
    spoiled = np.where(in_test[:, None], np.float32(np.nan), target.embeddings)
    assert found({**tables, "target": replace(target, embeddings=spoiled)}) == found(tables)


def test_too_few_common_classes_are_unclear() -> None:
    tables = corpora()
    auxiliary = tables["auxiliary"]
    few = replace(auxiliary, label_codes=np.where(auxiliary.label_codes < 3, auxiliary.label_codes, -1))
    result = found({**tables, "auxiliary": few})
    assert (result.covered_classes, result.alignment, result.information_gain) == (3, None, None)
    assert result.verdict == ("unclear", "3 common classes are too few to tell")


def test_redundancy_is_one_for_the_same_and_about_zero_for_others() -> None:
    tables, others = corpora(), corpora(related=False, seed=5)
    data = training_data({**tables, "copy": tables["auxiliary"], "other": others["auxiliary"]})
    assert redundancy(data, "auxiliary", "copy") == pytest.approx(1.0)
    other = redundancy(data, "auxiliary", "other")
    assert other is not None
    assert abs(other) < 0.4


@pytest.mark.parametrize(
    ("mean", "low", "p_value", "word"),
    [
        (0.1, 0.02, 0.01, "likely"),
        (0.1, -0.02, 0.01, "unclear"),
        (0.1, 0.02, 0.2, "unclear"),
        (0.0, 0.0, 1.0, "unlikely"),
    ],
)
def test_verdict_words(mean: float, low: float, p_value: float, word: str) -> None:
    gain = PredictedGain(0.5, mean, low, 2 * mean - low, NullTest(mean, 0.0, p_value))
    aligned = NullTest(0.5, 0.4, 0.01)
    assert Relevance("names", 10, 8, 8, False, gain, aligned, aligned, 0.1, 0.1).verdict[0] == word
