"""Options of the loop against a hand-written one: weights, clipping, smoothing, parts, average; and divergence."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import finish
from tests.unit.test_training import TABLES, experiment, run_of
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluation_points
from uml_core.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from uml_core.training.run import TrainingRun


def test_a_scheduled_weight_is_the_hand_written_loop_and_is_logged() -> None:
    schedule = {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 10}
    run = run_of(**{"mixing.loss_weight.names": schedule, "train.max_steps": 20, "train.eval_every": 5})
    reference = run_of(**{"train.max_steps": 20})
    optimizer = build_optimizer(reference.model, reference.experiment.optim)
    for step in range(20):
        set_learning_rate(optimizer, learning_rate(step, run.experiment))
        optimizer.zero_grad()
        losses = reference.objective.batch(step, ("target", "names")).losses(reference.model, 1)
        (losses["target"] + max(0.0, 1 - step / 10) * losses["names"]).backward()
        optimizer.step()
    logged = [
        point.value
        for evaluation in run.evaluations()
        for point in evaluation_points(run, evaluation)
        if point.name == "mixing/loss_weight/names"
    ]
    assert logged == pytest.approx([0.5, 0.0, 0.0, 0.0])
    for name, value in reference.model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def hand_written(run: TrainingRun, steps: int, **settings: Any) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """Train a run's model by a plain loop over the run's own batches; returns it, and its weights after each step."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in run.model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in run.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
    )
    history = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, run.experiment)
        batch = run.objective.batch(step, ("target", "names"))
        optimizer.zero_grad()
        loss = torch.zeros(())
        for corpus, logits in run.model(batch.embeddings).items():
            smoothing = settings.get("label_smoothing", 0.0)
            loss = loss + nn.functional.cross_entropy(logits, batch.labels[corpus], label_smoothing=smoothing)
        loss.backward()
        if "clip_norm" in settings:
            norm = torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm()
            for parameter in run.model.parameters():
                parameter.grad *= min(1.0, settings["clip_norm"] / (norm.item() + 1e-6))
        optimizer.step()
        history.append({name: value.clone() for name, value in run.model.state_dict().items()})
    return run.model, history


def assert_same_weights(ours: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6)


SHORT = {"train.max_steps": 20, "optim.lr": 0.01, "optim.warmup_steps": 2}


@pytest.mark.parametrize(
    ("key", "value"), [("optim.clip_norm", 0.2), ("train.label_smoothing", 0.3)], ids=lambda item: str(item)
)
def test_clipping_and_smoothing_are_the_hand_written_loop(key: str, value: float) -> None:
    run = finish(run_of(**SHORT, **{key: value}))
    model, _ = hand_written(run_of(**SHORT), 20, **{key.split(".")[1]: value})
    plain, _ = hand_written(run_of(**SHORT), 20)
    assert_same_weights(run.model, model.state_dict())
    assert not torch.allclose(plain.head.weight, model.head.weight, rtol=1e-3, atol=1e-4), "it makes a difference"


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_parts_make_the_same_update(parts: int) -> None:
    run = finish(run_of(**SHORT, **{"train.accumulate": parts, "mixing.batch_ratio.names": 0.4}))
    whole = finish(run_of(**SHORT, **{"mixing.batch_ratio.names": 0.4}))
    batch = run.objective.batch(3, ("target", "names"))
    assert [len(part.labels["target"]) for part in batch.parts] == {2: [4, 4], 3: [2, 3, 3], 8: [1] * 8}[parts]
    assert_same_weights(run.model, whole.model.state_dict())
    assert run.progress.samples == whole.progress.samples


def test_more_parts_than_samples_are_refused() -> None:
    with pytest.raises(InputError, match=r"train.accumulate is 9 with train.batch_size 8 .*: lower train.accumulate"):
        experiment(**{"train.accumulate": 9})


def test_the_average_of_the_weights_is_what_is_evaluated_and_resumed() -> None:
    changes = {**SHORT, "optim.ema_decay": 0.6, "train.eval_every": 10}
    run, reference = run_of(**changes), run_of(**SHORT)
    start = {name: value.clone() for name, value in reference.model.state_dict().items()}
    _, history = hand_written(reference, 20)
    average = start
    for step, weights in enumerate(history):
        decay = min(0.6, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    state = None
    for evaluation in run.evaluations():
        state = run.state_dict() if evaluation.step == 10 else state
    assert_same_weights(run.model, history[-1])
    assert run.best is not None
    if run.best.step == 20:
        for name, value in average.items():
            torch.testing.assert_close(run.best.weights[name], value, rtol=1e-4, atol=1e-6)
    reference.model.load_state_dict(average)
    assert evaluation.val_nll == pytest.approx(reference.objective.validate()[1], abs=1e-5)
    interrupted = run_of(**changes)
    first = interrupted.evaluations()
    next(first)
    resumed = run_of(**changes)
    resumed.load_state_dict(copy.deepcopy(interrupted.state_dict()))
    finish(resumed)
    assert resumed.best is not None
    assert (resumed.best.step, resumed.best.val_nll) == (run.best.step, run.best.val_nll)
    for name, value in run.best.weights.items():
        assert torch.equal(resumed.best.weights[name], value)


def overflowing(**changes: Any) -> TrainingRun:
    """A run whose logits are zero, and whose gradient at the target's projection is infinite."""
    run = run_of(**{"train.batch_size": 4, "mixing.loss_weight.names": 0.0, **changes})
    with torch.no_grad():
        run.model.head.weight.copy_(torch.linspace(-1.5e38, 1.5e38, 4)[:, None].expand(-1, 5))
        run.model.projections["target"].weight.zero_()
        run.model.scales["target"].fill_(32.0)
    return run


@pytest.mark.parametrize("max_steps", [1, 5], ids=["at the evaluation", "by the next loss"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gradient_that_overflows_names_its_step_and_rows_and_is_never_saved(max_steps: int, precision: str) -> None:
    run = overflowing(**{"train.max_steps": max_steps, "train.precision": precision})
    rows = ", ".join(map(str, run.objective.batch_rows(0, "target")))
    with pytest.raises(InputError, match=rf"the gradient of target is not finite at step 0; .* order: target {rows}$"):
        finish(run)
    assert run.best is None


def test_a_diverging_loss_names_the_rows_of_its_batch() -> None:
    run = run_of(**{"train.batch_size": 4})
    with torch.no_grad():
        run.model.scales["names"].fill_(math.nan)
    rows = run.objective.batch_rows(0, "names")
    assert [TABLES["names"].label_names[code] for code in TABLES["names"].label_codes[rows]] == [
        "abcd"[code] for code in run.objective.batch(0, ("names",)).labels["names"]
    ]
    with pytest.raises(InputError, match=rf"order: names {', '.join(map(str, rows))}$"):
        finish(run)


def test_diverging_loss_stops_before_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    with torch.no_grad():
        run.model.scales["names"].fill_(math.nan)
    before = run.model.head.weight.detach().clone()
    with pytest.raises(InputError, match="loss of names is not finite at step 0"):
        finish(run)
    assert torch.equal(run.model.head.weight, before)


def test_the_optimiser_is_torchs_adamw_bit_for_bit_also_where_gradients_are_missing_and_after_a_resume() -> None:
    torch.manual_seed(0)
    ours = nn.ParameterDict({"matrix": nn.Parameter(torch.randn(5, 3)), "scale": nn.Parameter(torch.ones(()))})
    theirs = copy.deepcopy(ours)
    settings = experiment(**{"optim.weight_decay": 0.1}).optim
    optimizer = build_optimizer(ours, settings)
    groups = [{"params": [theirs["matrix"]], "weight_decay": 0.1}, {"params": [theirs["scale"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    for step in range(6):
        set_learning_rate(optimizer, 0.1 / (1 + step))
        for group in reference.param_groups:
            group["lr"] = 0.1 / (1 + step)
        for name, value in ours.items():
            is_missing = (name, step) in {("scale", 0), ("matrix", 2)}
            value.grad = None if is_missing else torch.randn_like(value)
            theirs[name].grad = None if value.grad is None else value.grad.clone()
        if step == 4:
            resumed = build_optimizer(ours, settings)
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer = resumed
        optimizer.step()
        reference.step()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name])
