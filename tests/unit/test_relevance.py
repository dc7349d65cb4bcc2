"""What an auxiliary corpus is worth: left-out rows, intervals against naive loops, words on known answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.conftest import table
from uml_core.analysis import relevance as module
from uml_core.analysis.relevance import Draw, Relevance, labelled_pool, redrawn, redundancy, relevance
from uml_core.config import parse_experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.models.closed_form.prior_baselines import logistic_head
from uml_core.models.closed_form.prior_verdict import Gain
from uml_core.store.corpus_table import CorpusTable

NUM_CLASSES, WIDTH = 24, 40
NAMES = [f"class-{code:02d}" for code in range(NUM_CLASSES)]


def corpora(*, family: str = "gram", seed: int = 0) -> dict[str, CorpusTable]:
    """A noisy target of width 40 and a clean auxiliary corpus of its class latents, or of others."""
    rng = np.random.default_rng(seed)
    latents, others = rng.normal(size=(2, NUM_CLASSES, 4))
    means = latents @ rng.normal(size=(4, WIDTH))
    told = {
        "gram": latents @ rng.normal(size=(4, 6)),
        "nothing": others @ rng.normal(size=(4, 6)),
        "aligned": means,
    }[family]
    splits = ["train"] * 6 + ["val"] * 6 + ["test"] * 2
    target = np.repeat(means, len(splits), axis=0)
    auxiliary = np.repeat(told, 15, axis=0)
    return {
        "target": table(
            target + 4.0 * rng.normal(size=target.shape), np.repeat(NAMES, len(splits)).tolist(), splits * NUM_CLASSES
        ),
        "auxiliary": table(auxiliary + 0.3 * rng.normal(size=auxiliary.shape), np.repeat(NAMES, 15).tolist()),
    }


def training_data(
    tables: dict[str, CorpusTable], *, shots: int | None = None, seed: int = 0, control: str = "none"
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


def found(tables: dict[str, CorpusTable], *, shots: int = 1, num_draws: int = 8, **changes: Any) -> Relevance:
    draws = []
    for seed in range(num_draws):
        data = training_data(tables, seed=seed, **changes)
        draws.append(Draw.from_data(redrawn(data, labelled_pool(data), shots=shots, seed=seed)))
    return relevance(draws, "auxiliary")


def test_shots_are_drawn_from_all_rows_but_test_and_the_others_are_left_out() -> None:
    tables = corpora()
    data = training_data(tables)
    pool = labelled_pool(data)
    assert set(tables["target"].split_codes[pool.rows]) == {
        tables["target"].split_names.index(name) for name in ("train", "val")
    }
    drawn = redrawn(data, pool, shots=2, seed=0)
    assert np.bincount(drawn.labelled.labels).tolist() == [2] * NUM_CLASSES
    assert sorted([*drawn.labelled.rows, *drawn.val.rows]) == sorted(pool.rows)
    labels = dict(zip(pool.rows.tolist(), pool.labels.tolist(), strict=True))
    assert [labels[row] for row in drawn.val.rows.tolist()] == drawn.val.labels.tolist()
    assert redrawn(data, pool, shots=2, seed=1).labelled.rows.tolist() != drawn.labelled.rows.tolist()


def test_a_class_with_few_rows_leaves_one_out_where_it_has_two() -> None:
    data = training_data(corpora())
    pool = LabelledRows(data.labelled.embeddings, np.arange(6), np.array([0, 0, 0, 1, 1, 2]))
    drawn = redrawn(data, pool, shots=4, seed=0)
    assert np.bincount(drawn.labelled.labels).tolist() == [2, 1, 1]
    assert np.bincount(drawn.val.labels).tolist() == [1, 1]


def test_logistic_regression_in_the_span_of_the_rows_is_that_of_all_columns() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 4)
    train, val = rng.normal(size=(12, 40)) + 2 * np.eye(3, 40)[labels], rng.normal(size=(5, 40))
    weight, bias = logistic_head(train, labels, 3)
    logits = module._logistic_logits(train, labels, 3, val)
    assert logits == pytest.approx(val @ weight + bias, abs=1e-3)


def test_the_interval_of_one_draw_is_students() -> None:
    differences = np.array([1.0, 0, 0, -1, 0, 1, 1, 0])
    gain = module._gain([differences], [np.arange(8)])
    low, high = stats.t.interval(0.95, 7, differences.mean(), stats.sem(differences))
    assert (gain.low, gain.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_of_several_draws_is_clustered_by_draw_and_by_row() -> None:
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.choice(30, 20, replace=False)) for _ in range(5)]
    per_row, per_draw = rng.normal(size=30), rng.normal(size=5)
    differences = [per_row[each] + per_draw[draw] for draw, each in enumerate(rows)]
    residuals = np.concatenate(differences) - np.concatenate(differences).mean()
    codes = np.concatenate(rows), np.repeat(np.arange(5), 20)

    def summed(same: np.ndarray, clusters: int) -> float:
        return float(residuals @ same @ residuals) * clusters / (clusters - 1) / 100**2

    same_row, same_draw = (np.equal.outer(each, each) for each in codes)
    num_rows = len(np.unique(codes[0]))
    variance = summed(same_row, num_rows) + summed(same_draw, 5) - summed(np.eye(100), 100)
    gain = module._gain(differences, rows)
    assert gain.high - gain.mean == pytest.approx(stats.t.ppf(0.975, 4) * variance**0.5)


def test_rows_to_settle_are_those_of_a_paired_test_with_80_percent_power() -> None:
    rng = np.random.default_rng(0)
    differences = rng.choice([-1.0, 0, 1], p=[0.1, 0.7, 0.2], size=4000)  # a gain of 10 points
    wanted = module._rows_to_settle([differences], [np.arange(4000)], 10)
    assert wanted is not None
    tried = rng.choice([-1.0, 0, 1], p=[0.1, 0.7, 0.2], size=(2000, 10 * wanted))
    errors = tried.std(axis=1, ddof=1) / np.sqrt(tried.shape[1])
    assert (tried.mean(axis=1) - 1.96 * errors > 0).mean() == pytest.approx(0.8, abs=0.06)
    same = np.zeros(9)
    assert module._rows_to_settle([same], [np.arange(9)], 10) == 10, "the interval of n equal rows is 1/n wide"


def test_class_similarities_help_and_controls_take_no_part() -> None:
    helps = found(corpora())
    assert helps.verdict[0] == "helps", helps
    assert (helps.takes_part, helps.aligned, helps.same_width) == (1.0, None, False)
    assert helps.gain.mean == pytest.approx(helps.accuracies["prior"] - helps.accuracies[helps.best_alternative])
    assert helps.alone[1] == max(helps.accuracies["ridge"], helps.accuracies["logistic"])
    for control in (
        found(corpora(family="nothing")),
        found(corpora(), control="shuffled_labels"),
        found(corpora(), control="noise"),
    ):
        assert control.verdict[0] != "helps", control
        assert control.takes_part < 0.5


def test_in_the_targets_space_zero_shot_is_what_to_try_first() -> None:
    aligned = found(corpora(family="aligned"))
    assert (aligned.same_width, aligned.aligned) == (True, True)
    assert aligned.best_alternative == "zero_shot"
    assert aligned.zero_shot_first
    assert aligned.worth.low > 0.1, "the corpus is worth much, and training on top of it next to nothing"
    assert abs(aligned.gain.mean) < 0.05


def test_test_rows_are_never_looked_at() -> None:
    tables = corpora()
    target = tables["target"]
    in_test = target.split_codes == target.split_names.index("test")
    spoiled = np.where(in_test[:, None], np.float32(np.nan), target.embeddings)
    assert found({**tables, "target": replace(target, embeddings=spoiled)}) == found(tables)


def test_too_few_common_classes_are_not_enough_evidence_and_own_ones_are_counted() -> None:
    tables = corpora()
    auxiliary = tables["auxiliary"]
    few = replace(auxiliary, label_codes=np.where(auxiliary.label_codes < 3, auxiliary.label_codes, -1))
    result = found({**tables, "auxiliary": few})
    assert (result.covered_classes, result.num_classes, result.own_classes) == (3, NUM_CLASSES, 0)
    assert result.verdict == ("not enough evidence", "3 common classes are too few to tell")
    assert result.settled_at is None, "no label settles it"
    others = replace(auxiliary, label_names=("x", "y", *auxiliary.label_names[2:]))
    result = found({**tables, "auxiliary": others})
    assert (result.covered_classes, result.own_classes) == (NUM_CLASSES - 2, 2)


def test_redundancy_is_one_for_the_same_and_about_zero_for_others() -> None:
    tables, others = corpora(), corpora(family="nothing", seed=5)
    data = training_data({**tables, "copy": tables["auxiliary"], "other": others["auxiliary"]})
    assert redundancy(data, "auxiliary", "copy") == pytest.approx(1.0)
    other = redundancy(data, "auxiliary", "other")
    assert other is not None
    assert abs(other) < 0.4


@pytest.mark.parametrize(
    ("gain", "worth", "takes_part", "word"),
    [
        ((0.05, 0.01, 0.09), (0.05, 0.01, 0.09), 1.0, "helps"),
        ((0.005, 0.001, 0.009), (0.005, 0.001, 0.009), 1.0, "neutral"),
        ((0.05, -0.01, 0.11), (0.05, -0.01, 0.11), 1.0, "not enough evidence"),
        ((-0.08, -0.12, -0.04), (-0.05, -0.08, -0.02), 1.0, "harms"),
        ((-0.08, -0.12, -0.04), (0.30, 0.25, 0.35), 1.0, "neutral"),
        ((-0.08, -0.12, 0.04), (0.0, 0.0, 0.0), 0.0, "neutral"),
    ],
)
def test_words(gain: tuple[float, ...], worth: tuple[float, ...], takes_part: float, word: str) -> None:
    result = Relevance(
        corpus="names",
        rows=10,
        covered_classes=8,
        num_classes=8,
        own_classes=0,
        same_width=False,
        aligned=None,
        accuracies={"ridge": 0.5, "prior": 0.5 + gain[0]},
        best_alternative="ridge",
        gain=Gain(*gain),
        worth=Gain(*worth),
        takes_part=takes_part,
        left_out_rows=80,
        settled_at=12,
    )
    assert result.verdict[0] == word
    assert ("12 labelled rows a class" in result.verdict[1]) == (word == "not enough evidence")
