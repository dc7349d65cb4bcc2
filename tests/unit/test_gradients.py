"""Gradient agreement on the shared head: hand-computed directions, no trace in training, the same on several ranks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed

from tests.conftest import finish
from tests.unit.test_training import experiment, run_of
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluation_points
from uml_core.gradients.autograd import gradient_cosines
from uml_core.gradients.batch import Batch
from uml_core.models.shared_head import SharedHeadModel


def two_class_model() -> SharedHeadModel:
    """A head of zeros: every logit is 0, so a row e of class 0 has gradient (−½e, +½e), of class 1 (+½e, −½e)."""
    model = SharedHeadModel({"x": 2, "y": 2}, shared_width=2, num_classes=2, learnable_scale=True, scale=1.0)
    torch.nn.init.zeros_(model.head.weight)
    return model


def batch(y_embedding: list[float], y_label: int) -> Batch:
    return Batch(
        {"x": torch.tensor([[1.0, 0.0]]), "y": torch.tensor([y_embedding])},
        {"x": torch.tensor([0]), "y": torch.tensor([y_label])},
        {"x": 1, "y": 1},
    )


@pytest.mark.parametrize(
    ("embedding", "label", "cosine"),
    [
        ([5.0, 0.0], 0, 1.0),
        ([5.0, 0.0], 1, -1.0),
        ([0.0, 2.0], 0, 0.0),
        ([1.0, 1.0], 0, math.sqrt(0.5)),
    ],
)
def test_cosines_by_hand(embedding: list[float], label: int, cosine: float) -> None:
    assert gradient_cosines(two_class_model(), batch(embedding, label), "x") == {"y": pytest.approx(cosine, abs=1e-6)}


def test_a_batch_without_the_target_gives_nothing() -> None:
    both = batch([1.0, 0.0], 0)
    alone = Batch({"y": both.embeddings["y"]}, {"y": both.labels["y"]}, {"y": 1})
    assert gradient_cosines(two_class_model(), alone, "x") == {}


def test_it_is_logged_at_every_evaluation_and_changes_nothing() -> None:
    plain, watched = finish(run_of()), run_of(**{"train.gradient_cosine": True})
    evaluations = list(watched.evaluations())
    assert [list(evaluation.gradient_cosine) for evaluation in evaluations] == [["names"]] * 3
    names = {point.name for point in evaluation_points(watched, evaluations[0])}
    assert "analysis/gradient_cosine/names" in names
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, watched.model.state_dict()[name]), name
    assert not experiment().train.gradient_cosine


def test_it_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed although switched off")

    monkeypatch.setattr("uml_core.training.run.gradient_cosines", fail)
    run = run_of()
    assert [evaluation.gradient_cosine for evaluation in run.evaluations()] == [{}] * 3


def test_a_corpus_that_is_switched_off_or_warms_up_alone_has_no_cosine() -> None:
    off = run_of(**{"train.gradient_cosine": True, "mixing.loss_weight.names": 0.0})
    assert [evaluation.gradient_cosine for evaluation in off.evaluations()] == [{}] * 3
    warm = {"mixing.warm_start": {"corpus": "names", "steps": 30}, "train.gradient_cosine": True}
    assert [list(evaluation.gradient_cosine) for evaluation in run_of(**warm).evaluations()] == [
        [],
        ["names"],
        ["names"],
    ]


def test_batches_in_parts_are_refused() -> None:
    with pytest.raises(InputError, match=r"gradient_cosine is true with train.accumulate 2; .* train.accumulate=1"):
        experiment(**{"train.gradient_cosine": True, "train.accumulate": 2})


def test_ranks_agree_on_the_joined_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's gradients, summed as all_reduce sums them, point where those of the joined batch do."""
    torch.manual_seed(0)
    model = SharedHeadModel({"x": 4, "y": 3}, shared_width=3, num_classes=3, learnable_scale=True, scale=1.0)
    embeddings = {"x": torch.randn(6, 4), "y": torch.randn(5, 3)}
    labels = {"x": torch.tensor([0, 1, 2, 0, 1, 2]), "y": torch.tensor([0, 0, 1, 2, 2])}
    counts = {"x": 6, "y": 5}
    joined = gradient_cosines(model, Batch(embeddings, labels, counts), "x")["y"]
    shares = [
        Batch({c: e[part] for c, e in embeddings.items()}, {c: label[part] for c, label in labels.items()}, counts)
        for part in (slice(0, 2), slice(2, None))
    ]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: seen.append(tensor.clone()))
    for share in shares:
        gradient_cosines(model, share, "x", world_size=2)
    first, second = seen[0] + seen[2], seen[1] + seen[3]
    assert torch.cosine_similarity(first, second, dim=0).item() == pytest.approx(joined, abs=1e-6)
