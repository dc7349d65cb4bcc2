"""Self-supervised training: data, tasks, probe, resuming, curricula, ranks, and what it must refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.conftest import finish
from tests.sequence_corpora import sequence_experiment, sequence_table, wave_tables, waves
from uml_core.data.sequence_data import build_sequence_data, token_positions
from uml_core.errors import InputError
from uml_core.evaluation.outcome import measure_outcome
from uml_core.feed.mixing import MixingPlan
from uml_core.feed.sequences import SequenceFeed, hidden_tokens, masked_token, next_token, num_targets
from uml_core.gradients.ranks import RankContext
from uml_core.models.linear_probe import LinearProbe
from uml_core.training import self_supervised
from uml_core.training.run import TrainingRun
from uml_core.training.self_supervised import sequence_features

TABLES = wave_tables()


def run_of(**changes: Any) -> TrainingRun:
    settings = sequence_experiment(**changes)
    return TrainingRun(settings, build_sequence_data(settings, TABLES))


def test_next_token_leaves_the_last_token_out_and_reconstructs_single_ones() -> None:
    task = next_token(np.array([0, 3, 10]), np.array([3, 1, 2]))
    assert task.input_lengths.tolist() == [2, 1, 1]
    assert task.input_indices.tolist() == [0, 1, 3, 10]
    assert task.target_indices.tolist() == [1, 2, 3, 11]
    assert num_targets(np.array([3, 1, 2]), None) == 4


def test_masked_token_scores_hidden_and_single_tokens_alone() -> None:
    hidden = np.array([False, True, False, False, True, False])
    task = masked_token(np.array([0, 3, 10]), np.array([3, 1, 2]), hidden)
    assert task.input_indices.tolist() == [0, 1, 2, 3, 10, 11]
    assert task.target_indices.tolist() == [1, 3, 10]
    assert task.scored is not None
    assert task.scored.tolist() == [1, 3, 4]
    assert num_targets(np.array([3, 1, 2]), hidden) == 3


def test_every_sequence_hides_a_token_and_single_ones_none() -> None:
    lengths = np.array([5, 1, 2, 40, 1])
    hidden = hidden_tokens(lengths, 0.15, seed=0, step=3, corpus="x")
    per_sequence = np.add.reduceat(hidden, np.concatenate([[0], np.cumsum(lengths)[:-1]]))
    assert (per_sequence[lengths > 1] >= 1).all()
    assert (per_sequence[lengths == 1] == 0).all()
    assert (hidden == hidden_tokens(lengths, 0.15, seed=0, step=3, corpus="x")).all()
    assert (hidden != hidden_tokens(lengths, 0.15, seed=0, step=4, corpus="x")).any()


def test_training_rows_need_no_label_and_no_held_out_row_is_among_them() -> None:
    sequences, labels, splits = waves(4, seed=1, splits=("train",) * 10 + ("test",) * 2)
    unlabelled: list[str | None] = [None if index % 12 == 0 else label for index, label in enumerate(labels)]
    tables = {**TABLES, "target": sequence_table(sequences, unlabelled, splits)}
    data = build_sequence_data(sequence_experiment(**{"data.shots": 2}), tables)
    assert len(data.labelled) == 2 * 3
    assert data.test is not None
    trained, held = set(data.train["target"].rows.tolist()), {*data.val.rows.tolist(), *data.test.rows.tolist()}
    assert not trained & held
    assert sum(unlabelled[row] is None for row in trained) == 3, "rows without a label take part"
    assert set(data.labelled.rows.tolist()) <= trained
    assert len(trained) == 30 - 3 * 2, "a fifth of each class's labelled rows (two of nine) is held out for validation"
    assert len(data.train["other"]) == 27


def test_long_sequences_are_cut_and_told() -> None:
    data = build_sequence_data(sequence_experiment(**{"sequence_model.max_tokens": 5}), TABLES)
    assert data.train["target"].lengths.max() == 5
    assert any("other: " in line and "max_tokens" in line for line in data.warnings())


def test_statistics_are_of_the_train_tokens() -> None:
    data = build_sequence_data(sequence_experiment(), TABLES)
    rows = data.train["target"]
    mean, deviation = rows.statistics()
    tokens = rows.table.tokens[token_positions(rows.starts, rows.lengths)]
    assert mean == pytest.approx(tokens.mean(axis=0), abs=1e-4)
    assert deviation == pytest.approx(tokens.std(axis=0), abs=1e-4)
    constant = replace(rows.table, tokens=np.full_like(rows.table.tokens, 7.0))
    assert replace(rows, table=constant).statistics()[1].tolist() == [1.0] * 4


def test_noise_keeps_mean_and_deviation_and_discrete_noise_the_tokens() -> None:
    changes = {"corpora.other.control": "noise", "corpora.letters.control": "noise"}
    data = build_sequence_data(sequence_experiment(**changes), TABLES)
    noise, tokens = data.train["other"].table.tokens, TABLES["other"].tokens
    assert noise.mean(axis=0) == pytest.approx(tokens.mean(axis=0), abs=0.25)
    assert noise.std(axis=0) == pytest.approx(tokens.std(axis=0), rel=0.2)
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.2 < np.corrcoef(tokens[:-1, 0], tokens[1:, 0])[0, 1]
    letters = data.train["letters"].table.tokens[:, 0]
    assert sorted(letters) == sorted(TABLES["letters"].tokens[:, 0])
    with pytest.raises(InputError, match="reads no auxiliary labels"):
        build_sequence_data(sequence_experiment(**{"corpora.other.control": "shuffled_labels"}), TABLES)


@pytest.mark.parametrize("task", ["next_token", "masked_token"])
def test_training_learns_from_every_corpus_and_resuming_changes_nothing(task: str) -> None:
    changes = {"sequence_model.task": task, "mixing.batch_ratio.letters": 0.5}
    whole = run_of(**changes)
    evaluations = list(whole.evaluations())
    for corpus in ("target", "other", "letters", "vectors"):
        assert evaluations[-1].losses[corpus] < evaluations[0].losses[corpus]
    first = run_of(**changes)
    next(first.evaluations())
    state = first.state_dict()
    second = run_of(**changes)
    second.load_state_dict(state)
    finish(second)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_the_best_probe_by_validation_is_what_is_measured() -> None:
    run = finish(run_of(**{"train.max_steps": 60}))
    outcome = measure_outcome(run)
    assert run.best is not None
    assert outcome.val_accuracy == run.best.val_accuracy
    assert run.objective.validate() == pytest.approx((run.best.val_accuracy, run.best.val_nll))
    assert outcome.test_accuracy is not None
    assert outcome.test_accuracy > 0.6, "three frequencies are easy"
    assert run.model.training


def test_the_twin_trains_as_many_parameters_on_as_many_target_samples() -> None:
    settings = sequence_experiment()
    data = build_sequence_data(settings, TABLES)
    ours = measure_outcome(finish(TrainingRun(settings, data)))
    twin = measure_outcome(finish(TrainingRun(settings.unimodal_twin(), data)))
    assert ours.target_samples == twin.target_samples == 20 * 6
    assert ours.trained_parameters == twin.trained_parameters
    assert twin.observed_ratio == {"other": 0.0, "letters": 0.0, "vectors": 0.0}


@pytest.mark.parametrize("corpus", ["target", "other"])
def test_both_curricula_train_one_corpus_alone_first(corpus: str) -> None:
    run = run_of(**{"mixing.warm_start": {"corpus": corpus, "steps": 10}})
    evaluations = run.evaluations()
    assert set(next(evaluations).losses) == {corpus}
    assert set(next(evaluations).losses) == {"target", "other", "letters", "vectors"}


@pytest.mark.parametrize("task", ["next_token", "masked_token"])
def test_losses_of_ranks_average_to_the_joined_batch(task: str) -> None:
    settings = sequence_experiment(**{"sequence_model.task": task, "sequence_model.dropout": 0.0})
    data = build_sequence_data(settings, TABLES)
    model = TrainingRun(settings, data).model.eval()
    plan, cpu = MixingPlan.from_experiment(settings), torch.device("cpu")
    joined = SequenceFeed(data, plan, model, seed=0, ranks=RankContext(cpu)).batch(3, plan.corpora)
    assert joined is not None
    expected = joined.losses(model, 1)
    shares = [
        SequenceFeed(data, plan, model, seed=0, ranks=RankContext(cpu, rank, 8)).batch(3, plan.corpora)
        for rank in range(8)
    ]
    assert min(share.weight for share in shares if share is not None) == 0, "six sequences for eight ranks"
    losses = [share.losses(model, 8) for share in shares if share is not None]
    for corpus, loss in expected.items():
        mean = sum(each[corpus].item() for each in losses if corpus in each) / 8
        assert mean == pytest.approx(loss.item(), rel=1e-5), corpus


def test_a_hidden_token_is_not_seen() -> None:
    settings = sequence_experiment(**{"sequence_model.task": "masked_token"})
    run = TrainingRun(settings, build_sequence_data(settings, TABLES))
    batch = run.objective.batch(0, ("target",))
    model = run.model.eval()
    before = model(batch.inputs)["target"]
    tokens = batch.inputs.tokens["target"]
    tokens[batch.inputs.hidden["target"][:, 0]] += 100
    assert torch.equal(model(batch.inputs)["target"], before)
    tokens += 1
    assert not torch.equal(model(batch.inputs)["target"], before)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_probe_is_scikit_learns_on_standardised_features(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), 20)
    features = (rng.normal(size=(len(labels), 4)) + labels[:, None]).astype(np.float32) * 3 + 1
    probe = LinearProbe.fit(features, labels, num_classes)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    expected = LogisticRegression(max_iter=1000).fit(scaled, labels).predict_proba(scaled)
    assert probe.probabilities(features) == pytest.approx(expected, abs=1e-3)
    # Every second of the classes has rows; and far from them all, where fitted logits may all be below 0.
    apart = LinearProbe.fit(features, 2 * labels + 1, 2 * num_classes + 1)
    assert apart.probabilities(features)[:, 1::2] == pytest.approx(expected, abs=1e-3)
    assert set(apart.probabilities(np.concatenate([9 * features, -9 * features])).argmax(axis=1) % 2) == {1}
    lone = LinearProbe.fit(features, np.ones_like(labels), num_classes)
    assert lone.probabilities(features)[:, 1].min() == 1


def test_features_do_not_depend_on_how_the_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    rows = run.data.labelled
    whole = sequence_features(run.model, "target", rows)
    monkeypatch.setattr(self_supervised, "ROWS_AT_ONCE", 30)
    assert sequence_features(run.model, "target", rows) == pytest.approx(whole, abs=1e-5)
    assert run.model.training


def test_raw_features_by_hand() -> None:
    data = build_sequence_data(sequence_experiment(), TABLES)
    rows = data.train["letters"]
    first = TABLES["letters"].tokens[: TABLES["letters"].lengths[0], 0]
    assert rows.raw_features()[0].tolist() == pytest.approx([(first == letter).mean() for letter in range(5)])
    target = data.val
    start, length = target.starts[0], target.lengths[0]
    assert target.raw_features()[0] == pytest.approx(target.table.tokens[start : start + length].mean(axis=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.gradient_cosine": True}, "train.gradient_cosine"),
        ({"train.workers": 9}, "needs train.batch_size of at least train.workers"),
        ({"data.auxiliary_shots": {"other": 2}}, "reads no auxiliary labels"),
        ({"sequence_model.heads": 3}, "multiple of the heads"),
        ({"sequence_model.width": 6, "sequence_model.positions": "rotary"}, "even width per head"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sequence_experiment(**changes)
