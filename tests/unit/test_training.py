"""The training step and loop: hand-computed losses, shared gradients, resuming, early stopping, matched arms."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import finish, table
from uml_core.config import Experiment, parse_experiment
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.evaluation.outcome import measure_outcome
from uml_core.models.losses import corpus_losses, weighted_sum
from uml_core.models.shared_head import build_model, class_prototypes, folded_target_head
from uml_core.store.corpus_table import CorpusTable
from uml_core.training.optimizer import learning_rate
from uml_core.training.run import TrainingRun
from uml_core.training.supervised import evaluate_head

RNG = np.random.default_rng(0)
LATENT = RNG.normal(size=(4, 3))
LABELS = [label for label in "abcd" for _ in range(12)]
CODES = np.repeat(np.arange(4), 12)
TABLES = {
    "target": table(
        LATENT[CODES] @ RNG.normal(size=(3, 10)) + 0.3 * RNG.normal(size=(48, 10)),
        LABELS,
        (["train"] * 6 + ["val"] * 2 + ["test"] * 4) * 4,
    ),
    "names": table(LATENT[CODES] @ RNG.normal(size=(3, 5)) + 0.3 * RNG.normal(size=(48, 5)), LABELS),
}


def experiment(**changes: Any) -> Experiment:
    corpora = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in TABLES}
    train = {"max_steps": 60, "eval_every": 20, "batch_size": 8}
    tree = {"name": "x", "store": "store", "target": "target", "corpora": corpora, "train": train}
    return parse_experiment(tree).override(changes)


def run_of(**changes: Any) -> TrainingRun:
    settings = experiment(**changes)
    return TrainingRun(settings, build_training_data(settings, TABLES))


def test_losses_by_hand() -> None:
    logits = {"x": torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), "y": torch.tensor([[0.0, math.log(4)]])}
    labels = {"x": torch.tensor([0, 0]), "y": torch.tensor([0])}
    losses = corpus_losses(logits, labels, {"x": 2, "y": 1})
    assert losses["x"].item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert losses["y"].item() == pytest.approx(math.log(5))
    total = weighted_sum(losses, {"x": 1.0, "y": 0.5})
    assert total.item() == pytest.approx(losses["x"].item() + 0.5 * math.log(5))


def test_losses_of_ranks_average_to_the_joined_batch() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    joined = corpus_losses({"x": logits}, {"x": labels}, {"x": 5})["x"]
    shares = [
        corpus_losses({"x": logits[part]}, {"x": labels[part]}, {"x": 5}, world_size=3)["x"]
        for part in (slice(0, 2), slice(2, 5), slice(5, 5))
    ]
    assert torch.stack(shares).mean().item() == pytest.approx(joined.item())


def test_the_head_gets_gradient_from_every_corpus() -> None:
    settings = experiment()
    data = build_training_data(settings, TABLES)
    model = build_model(settings, data)
    for corpus in ("target", "names"):
        model.zero_grad()
        embeddings = torch.from_numpy(data.train[corpus].gathered())
        nn.functional.cross_entropy(
            model.logits(corpus, embeddings), torch.from_numpy(data.train[corpus].labels)
        ).backward()
        assert model.head.weight.grad is not None
        assert model.head.weight.grad.abs().sum() > 0


def test_zero_shot_head_holds_unit_class_means_and_only_widths_that_differ_are_projected() -> None:
    settings = experiment()
    data = build_training_data(settings, TABLES)
    model = build_model(settings, data)
    rows = data.train["names"]
    means = np.stack([rows.gathered()[rows.labels == code].mean(axis=0) for code in range(4)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.allclose(model.head.weight.detach().numpy(), expected, atol=1e-6)
    assert isinstance(model.projections["names"], nn.Identity)
    assert model.projections["target"].weight.shape == (5, 10)
    assert class_prototypes(rows, 6, False)[5].abs().sum() == 0


def test_arms_start_equal_in_everything_they_share() -> None:
    states = {}
    for name, changes in {"text": {}, "random": {"model.head_init": "random"}, "twin": {}}.items():
        settings = experiment(**changes)
        settings = settings.unimodal_twin() if name == "twin" else settings
        states[name] = build_model(settings, build_training_data(settings, TABLES)).state_dict()
    for name in ("random", "twin"):
        assert torch.equal(states[name]["projections.target.weight"], states["text"]["projections.target.weight"])
    assert torch.equal(states["random"]["head.weight"], states["twin"]["head.weight"])
    assert not torch.equal(states["random"]["head.weight"], states["text"]["head.weight"])


def test_seeds_start_apart() -> None:
    first, second = (run_of(seed=seed, **{"model.head_init": "random"}).model.state_dict() for seed in (0, 1))
    for name in ("head.weight", "projections.target.weight"):
        assert not torch.equal(first[name], second[name]), name


def test_twin_sees_the_same_number_of_target_samples_and_parameters() -> None:
    settings = experiment()
    data = build_training_data(settings, TABLES)
    ours = measure_outcome(finish(TrainingRun(settings, data)))
    twin = measure_outcome(finish(TrainingRun(settings.unimodal_twin(), data)))
    assert ours.target_samples == twin.target_samples == 60 * 8
    assert ours.trained_parameters == twin.trained_parameters == 5 * 10 + 4 * 5
    assert (ours.observed_ratio, twin.observed_ratio) == ({"names": 1.0}, {"names": 0.0})


@pytest.mark.parametrize("changes", [{}, {"train.gradient_cosine": True}, {"mixing.schedule": "alternate"}])
def test_the_twin_of_a_warm_start_has_the_same_target_batches_at_the_same_rates(changes: dict[str, Any]) -> None:
    ours = run_of(**{"mixing.warm_start": {"corpus": "names", "steps": 30}, **changes})
    twin = TrainingRun(ours.experiment.unimodal_twin(), ours.data)
    start = twin.model.head.weight.detach().clone()
    assert len(list(zip(ours.evaluations(), twin.evaluations(), strict=True))) == 3
    assert ours.progress.samples["target"] == twin.progress.samples["target"] == 30 * 8
    for step in (30, 59):
        assert ours.objective.batch_rows(step, "target") == twin.objective.batch_rows(step, "target")
    assert twin.objective.batch_rows(29, "target") == []
    assert not torch.equal(twin.model.head.weight, start)
    idle = TrainingRun(twin.experiment.override({"train.max_steps": 31, "train.eval_every": 30}), ours.data)
    next(idle.evaluations())
    assert torch.equal(idle.model.head.weight, start), "nothing is trained while the other one warms up"


def test_a_zero_weight_corpus_leaves_no_trace() -> None:
    alone = finish(run_of(**{"mixing.loss_weight.names": 0.0}))
    ratio = finish(run_of(**{"mixing.batch_ratio.names": 0.0}))
    assert torch.equal(alone.model.head.weight, ratio.model.head.weight)


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_training_learns_and_resuming_changes_nothing(schedule: str) -> None:
    changes = {"mixing.schedule": schedule, "mixing.batch_ratio.names": 0.3, "optim.lr": 0.03}
    whole = finish(run_of(**changes))
    first = run_of(**changes)
    next(first.evaluations())
    state = first.state_dict()
    second = run_of(**changes)
    second.load_state_dict(state)
    finish(second)
    assert second.progress.step == whole.progress.step == 60
    assert second.progress.samples == whole.progress.samples
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert whole.best is not None
    assert second.best is not None
    assert whole.best.val_accuracy == second.best.val_accuracy > 0.5


def test_corpora_of_other_sizes_and_fractional_ratios_give_exactly_their_samples() -> None:
    """Each floor(steps · batch · ratio), whatever its size; each of its rows as often as any other, or once more."""
    sizes = {"few": 5, "some": 17, "many": 48}
    tables = {"target": TABLES["target"], **{name: cut(TABLES["names"], size) for name, size in sizes.items()}}
    ratios = {"few": 0.3, "some": 1 / 7, "many": 2.55}
    corpora = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in tables}
    settings = experiment(**{"corpora": corpora, "mixing.batch_ratio": ratios, "train.max_steps": 53})
    for schedule in ("joint", "alternate"):
        chosen = settings.override({"mixing.schedule": schedule})
        run = finish(TrainingRun(chosen, build_training_data(chosen, tables)))
        samples = {"target": 53 * 8, "few": 127, "some": 60, "many": 1081}
        assert run.progress.samples == samples
        for name, count in samples.items():
            rows = Counter(row for step in range(53) for row in run.objective.batch_rows(step, name))
            assert sum(rows.values()) == count
            assert len(rows) == sizes.get(name, 24)
            assert max(rows.values()) - min(rows.values()) <= 1, "every epoch has every row once"


def cut(whole: CorpusTable, size: int) -> CorpusTable:
    """Rows spread over a table and its classes."""
    kept = np.linspace(0, len(LABELS) - 1, size).round().astype(int)
    return table(whole.embeddings[kept], [LABELS[index] for index in kept])


def test_best_model_is_what_is_measured() -> None:
    run = finish(run_of())
    assert run.best is not None
    outcome = measure_outcome(run)
    embeddings, labels = torch.from_numpy(run.data.val.gathered()), torch.from_numpy(run.data.val.labels)
    accuracy, nll = evaluate_head(run.model, "target", embeddings, labels)
    assert (accuracy, nll) == pytest.approx((run.best.val_accuracy, run.best.val_nll))
    assert outcome.val_accuracy == run.best.val_accuracy
    assert outcome.test_accuracy is not None


def test_patience_ends_a_run_that_no_longer_improves() -> None:
    run = finish(run_of(**{"train.patience": 2, "train.max_steps": 4000, "optim.lr": 0.05}))
    assert run.progress.step < 4000
    assert run.best is not None
    assert run.best.step == run.progress.step - 2 * 20


@pytest.mark.parametrize("corpus", ["names", "target"])
def test_patience_begins_after_a_warm_start(corpus: str) -> None:
    warm = {"mixing.warm_start": {"corpus": corpus, "steps": 400}, "optim.lr": 0.05}
    run = finish(run_of(**warm, **{"train.max_steps": 800, "train.patience": 3}))
    assert run.progress.step > 400, "as audited: ended at 80, with no target sample"
    assert run.progress.samples["target"]
    assert run.progress.samples["names"]
    assert run.best is not None
    assert run.progress.step in (800, max(run.best.step, 400) + 3 * 20)


def test_zero_steps_evaluates_the_untrained_model() -> None:
    run = run_of(**{"train.max_steps": 0})
    evaluations = list(run.evaluations())
    assert [evaluation.step for evaluation in evaluations] == [0]
    assert measure_outcome(run).steps == 0


def test_training_mode_is_restored_after_evaluation() -> None:
    run = run_of()
    next(run.evaluations())
    assert run.model.training


def test_learning_rate_schedule() -> None:
    settings = experiment(**{"train.max_steps": 150, "optim.warmup_steps": 50})
    rates = [learning_rate(step, settings) for step in (0, 25, 50, 100, 150)]
    assert rates == pytest.approx([1e-5, (1e-5 + 1e-3) / 2, 1e-3, 5e-4, 0])
    constant = settings.override({"optim.schedule": "constant"})
    assert learning_rate(149, constant) == 1e-3
    low = constant.override({"optim.lr": 1e-6})
    assert {learning_rate(step, low) for step in (0, 25, 50)} == {1e-6}, "a warm-up does not go down"


def test_folded_head_gives_the_models_logits() -> None:
    run = finish(run_of())
    embeddings = torch.from_numpy(run.data.val.gathered())
    folded = folded_target_head(run.model, "target")["head.weight"]
    with torch.no_grad():
        assert torch.allclose(embeddings @ folded.T, run.model.logits("target", embeddings), atol=1e-5)


def test_normalised_embeddings_have_unit_length() -> None:
    data: TrainingData = run_of().data
    scaled = dict(TABLES)
    scaled["target"] = table(TABLES["target"].embeddings * 7, LABELS, (["train"] * 6 + ["val"] * 2 + ["test"] * 4) * 4)
    settings = experiment(**{"model.normalize": True})
    first = finish(TrainingRun(settings, build_training_data(settings, TABLES)))
    second = finish(TrainingRun(settings, build_training_data(settings, scaled)))
    assert torch.allclose(first.model.head.weight, second.model.head.weight, atol=1e-3)
    assert data.target == "target"
