"""Heads that are solved go the way of those that are trained: validated, saved, measured, used, exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from tests.unit.test_training import TABLES, run_of
from uml_core.data.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.serving.export import export_head
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.training.run import TrainingRun

HEADS = ("ridge", "logistic", "prior")


def solved(head: str) -> TrainingRun:
    experiment = run_of().experiment.override({"model.head": head})
    run = TrainingRun(experiment, build_training_data(experiment, TABLES))
    (evaluation,) = run.evaluations()
    assert evaluation.step == 0
    return run


@pytest.mark.parametrize("head", HEADS)
def test_a_solved_head_is_used_as_it_was_measured(head: str, tmp_path: Path) -> None:
    run = solved(head)
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
    np.testing.assert_allclose(predictor.classify(rows).logits, logits_NC, rtol=1e-4, atol=1e-5)
    export_head(predictor, tmp_path / "exported")
    weights = load_file(tmp_path / "exported" / "head.safetensors")
    np.testing.assert_allclose(rows @ weights["head.weight"].T + weights["head.bias"], logits_NC, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "exported" / "head.onnx"))
    np.testing.assert_allclose(session.run(["logits"], {"embedding": rows})[0], logits_NC, rtol=1e-4, atol=1e-5)
    probabilities_NC = again.objective.classifier()(rows)
    np.testing.assert_allclose(probabilities_NC, torch.softmax(torch.from_numpy(logits_NC), 1), rtol=1e-4, atol=1e-6)


def test_a_solved_head_is_the_same_at_every_seed_and_has_no_auxiliary_weights() -> None:
    one, other = (run.best for run in (solved("prior"), solved("prior")))
    assert one is not None
    assert other is not None
    assert set(one.weights) == {"scales.target", "head.weight", "head.bias"}
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


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
