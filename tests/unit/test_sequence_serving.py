"""The target model of a self-supervised run as it is used: what is saved, what is left behind, what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.sequence_corpora import sequence_experiment, wave_tables
from uml_core.data.sequence_data import SequenceRows, build_sequence_data
from uml_core.evaluation.outcome import evaluated_run
from uml_core.evaluation.registry import DEFAULT, chosen_evaluators, measure
from uml_core.serving.sequence_predictor import SequencePredictor
from uml_core.serving.target_predictor import load_predictor_folder
from uml_core.training.run import TrainingRun

TABLES = wave_tables()


@pytest.fixture(scope="module")
def run() -> TrainingRun:
    settings = sequence_experiment(**{"sequence_model.max_tokens": 9})
    run = TrainingRun(settings, build_sequence_data(settings, TABLES))
    for _ in run.evaluations():
        pass
    run.load_best()
    return run


def sequences_of(rows: SequenceRows) -> list[np.ndarray]:
    return [
        rows.table.tokens[start : start + length]
        for start, length in zip(rows.starts, rows.table.lengths[rows.rows], strict=True)
    ]


def test_what_is_loaded_predicts_as_the_run_does(run: TrainingRun, tmp_path: Path) -> None:
    run.objective.predictor().save(tmp_path)
    predictor = load_predictor_folder(tmp_path)
    assert isinstance(predictor, SequencePredictor)
    assert not [name for name in predictor.weights if "other" in name or "letters" in name or "outputs" in name]
    tests = run.data.test
    predictions = predictor.classify(sequences_of(tests))
    codes = [run.data.classes.index(name) for name in predictions.classes]
    accuracy = evaluated_run(run).accuracy("test")
    assert np.mean(np.array(codes) == tests.labels) == pytest.approx(accuracy), "cut to max_tokens, standardised alike"
    listed = predictor.classify_ready([tokens.tolist() for tokens in sequences_of(tests)])
    assert listed.probabilities == pytest.approx(predictions.probabilities, abs=1e-6)
    assert predictor.classify([]).classes == []
    assert predictor.classify_ready([predictor.input_example()]).classes[0] in run.data.classes
    assert (predictor.input_column, predictor.build_encoder()) == ("tokens", None)


def test_evaluation_measures_what_training_and_raw_tokens_give(run: TrainingRun) -> None:
    evaluated = evaluated_run(run)
    metrics = measure(evaluated, chosen_evaluators(DEFAULT)).metrics
    probe = run.objective.fit_probe()
    features = run.objective.features("target", run.data.test)
    assert metrics["test/accuracy"] == pytest.approx(probe.score(features, run.data.test.labels)[0])
    recalls = [metrics[f"test/class_accuracy/{name}"] for name in run.data.classes]
    assert np.mean(recalls) == pytest.approx(metrics["test/balanced_accuracy"])
    assert metrics["probe/raw/test_accuracy"] < 0.9, "classes are frequencies, which the mean token hardly shows"


def test_discrete_tokens_are_classified_from_lists_of_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    letters = TABLES["letters"]
    codes = np.arange(len(letters.lengths)) % 2
    tokens = letters.tokens.copy()
    for start, length, code in zip(letters.starts, letters.lengths, codes, strict=True):
        tokens[start : start + length, 0] = rng.integers(0, 2, size=length) + 3 * code
    splits = (np.arange(len(codes)) // 2 % 2).astype(np.int64)
    table = type(letters)(tokens, letters.starts, letters.lengths, 5, codes, ("low", "high"), splits, ("train", "val"))
    settings = sequence_experiment(
        **{"corpora": {"letters": {"modality": "sequence", "format": "tokens", "path": "x"}}, "target": "letters"}
    )
    run = TrainingRun(settings, build_sequence_data(settings, {"letters": table}))
    for _ in run.evaluations():
        pass
    predictor = run.objective.predictor()
    assert predictor.classify_ready([[3, 4, 4], [0, 1], [1]]).classes == ["high", "low", "low"]
