"""Heads that are solved go the way of those that are trained: validated, saved, measured, used, exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from tests.unit.test_training import TABLES, run_of
from tune_spaces import load_space
from uml_core.analysis.registry import explain
from uml_core.analysis.shared_space import TrainedRun
from uml_core.classifier import UnpairedClassifier
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluated_run
from uml_core.evaluation.registry import chosen_evaluators, measure
from uml_core.models.closed_form import solved_head
from uml_core.models.closed_form.prior_model import unit_rows
from uml_core.models.shared_head import build_model
from uml_core.serving.export import export_head
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.sweeps.space import Group
from uml_core.training import supervised
from uml_core.training.run import TrainingRun

HEADS = ("ridge", "discriminant", "logistic", "prior")


def solved(head: str, *, alike: bool = False) -> TrainingRun:
    """A run that is over; `alike` has the target's rows differ little in length."""
    experiment = run_of().experiment.override({"model.head": head})
    drawn = TABLES["target"].embeddings
    lengths = np.random.default_rng(0).uniform(2.7, 3.3, size=(len(drawn), 1)) / np.linalg.norm(drawn, axis=1)[:, None]
    target = replace(TABLES["target"], embeddings=(drawn * lengths).astype(np.float32))
    run = TrainingRun(experiment, build_training_data(experiment, {**TABLES, "target": target} if alike else TABLES))
    (evaluation,) = run.evaluations()
    assert evaluation.step == 0
    return run


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_a_solved_head_is_used_as_it_was_measured(head: str, alike: bool, tmp_path: Path) -> None:
    run = solved(head, alike=alike)
    assert run.best is not None
    assert run.best.val_accuracy > 0.9
    again = TrainingRun(run.experiment, run.data)
    again.load_result(run.result_state())
    again.load_best()
    rows = again.data.val.gathered()
    with torch.no_grad():
        logits_NC = again.model.logits("target", torch.from_numpy(rows)).numpy()
    again.objective.predictor().save(tmp_path / "predictor")
    predictor = TargetPredictor.load(tmp_path / "predictor")
    assert predictor.normalize == alike
    np.testing.assert_allclose(predictor.classify(rows).logits, logits_NC, rtol=1e-4, atol=1e-5)
    export_head(predictor, tmp_path / "exported")
    weights = load_file(tmp_path / "exported" / "head.safetensors")
    judged = unit_rows(rows) if alike else rows
    by_hand = judged @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(by_hand, logits_NC, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "exported" / "head.onnx"))
    np.testing.assert_allclose(session.run(["logits"], {"embedding": rows})[0], logits_NC, rtol=1e-4, atol=1e-5)
    probabilities_NC = again.objective.classifier()(again.objective.features("target", again.data.val))
    np.testing.assert_allclose(probabilities_NC, torch.softmax(torch.from_numpy(logits_NC), 1), rtol=1e-4, atol=1e-6)


def test_a_solved_prior_is_that_of_the_classifier() -> None:
    """Both decide by one rule whether rows are brought to unit length."""
    run = solved("prior", alike=True)
    assert isinstance(run.data, TrainingData)
    rows, names = run.data.train["target"], run.data.train["names"]
    model = UnpairedClassifier().fit(rows.gathered(), rows.labels, {"names": (names.gathered(), names.labels)})
    given = run.data.val.gathered()
    with torch.no_grad():
        ours = torch.softmax(run.model.logits("target", torch.from_numpy(given)), dim=1).numpy()
    np.testing.assert_allclose(ours, model.predict_proba(given), atol=1e-4)


def test_a_solved_head_is_the_same_at_every_seed_and_has_no_auxiliary_weights() -> None:
    one, other = (run.best for run in (solved("prior"), solved("prior")))
    assert one is not None
    assert other is not None
    assert set(one.weights) == {"scales.target", "head.weight", "head.bias"}
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_an_average_of_weights_over_steps_does_not_touch_it() -> None:
    experiment = run_of().experiment.override({"model.head": "ridge", "optim.ema_decay": 0.9})
    run = TrainingRun(experiment, build_training_data(experiment, TABLES))
    assert [evaluation.val_accuracy for evaluation in run.evaluations()] == [1.0]


def test_evaluators_measure_it_and_analyses_refuse_it() -> None:
    run = solved("prior")
    found = measure(evaluated_run(run), chosen_evaluators(()))
    assert found.metrics["test/accuracy"] > 0.9
    assert not any(name.startswith("probe/zero_shot") for name in found.metrics)
    with pytest.raises(InputError, match=r"model.head is prior: --analyses"):
        explain(TrainedRun(run.experiment, run.model, run.data), ["margins"])
    trained = TrainedRun(run.experiment, run.model, run.data, probabilities=evaluated_run(run).probabilities)
    assert list(explain(trained, ["mistakes", "labels"])) == ["mistakes", "labels"]


def test_before_it_is_solved_it_is_the_same_in_every_process() -> None:
    starts = [build_model(solved("prior").experiment, solved("prior").data).head.weight for _ in range(2)]
    torch.testing.assert_close(*starts, rtol=0, atol=0)


def test_a_target_that_is_read_from_a_file_is_refused_by_a_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solved_head, "is_mapped", lambda embeddings: True)
    with pytest.raises(InputError, match=r"takes all rows at once, and target does not fit into feed.memory_gib 4;"):
        solved("logistic")
    solved("prior")


def test_it_steps_over_no_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(supervised, "EmbeddingFeed", lambda *given, **named: made.append(given))
    solved("prior")
    assert not made


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("change", [{"train.twin": True}, {"train.workers": 2}, {"train.gradient_cosine": True}])
def test_a_sweep_leaves_out_what_a_solved_head_cannot_do(head: str, change: dict[str, object]) -> None:
    experiment = run_of().experiment.override(change)
    arm = next(arm for arm in load_space("controls", experiment).arms if arm.name == head)
    trial = Group(arm, {}, 0).spec(experiment, {}).experiment
    assert (trial.model.head, trial.train.workers, trial.train.twin) == (head, "auto", False)


@pytest.mark.parametrize(
    ("change", "need"),
    [
        ({"train.workers": 2}, "train.workers=1"),
        ({"train.twin": True}, "train.twin=false"),
    ],
)
def test_what_a_solved_head_cannot_do_is_refused(change: dict[str, object], need: str) -> None:
    with pytest.raises(InputError, match=f"model.head is prior, which needs {need}.*or set model.head=paper"):
        run_of().experiment.override({"model.head": "prior", **change})
