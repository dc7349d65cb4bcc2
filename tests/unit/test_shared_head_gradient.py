"""The closed-form gradient is autograd's, for any mixture of corpora, widths and batch sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uml_core.gradients.autograd import AutogradGradient
from uml_core.gradients.batch import Batch
from uml_core.gradients.closed_form import SharedHeadGradient
from uml_core.models.shared_head import SharedHeadModel

CLASSES, SHARED_WIDTH = 4, 5
WIDTHS = {"photos": 7, "captions": 5, "sounds": 3}  # captions need no projection
LOSS_WEIGHT = {"photos": 1.0, "captions": 0.3, "sounds": 2.0}


def model_of(*, learnable_scale: bool, seed: int = 0) -> SharedHeadModel:
    torch.manual_seed(seed)
    model = SharedHeadModel(
        WIDTHS, shared_width=SHARED_WIDTH, num_classes=CLASSES, learnable_scale=learnable_scale, scale=1.7
    )
    return model.double()


def batch_of(sizes: dict[str, int], *, seed: int = 0) -> Batch:
    """A batch of the given rows of each corpus; a corpus of 0 rows is left out, as the feed does."""
    generator = torch.Generator().manual_seed(seed)
    present = {corpus: count for corpus, count in sizes.items() if count}
    return Batch(
        {
            name: torch.randn(count, WIDTHS[name], generator=generator, dtype=torch.float64)
            for name, count in present.items()
        },
        {name: torch.randint(CLASSES, (count,), generator=generator) for name, count in present.items()},
        present,
    )


def gradients_of(model: SharedHeadModel) -> dict[str, torch.Tensor | None]:
    return {
        name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in model.named_parameters()
    }


@settings(deadline=None, max_examples=40)
@given(
    batches=st.lists(
        st.fixed_dictionaries({name: st.integers(0, 6) for name in WIDTHS}).filter(lambda sizes: any(sizes.values())),
        min_size=1,
        max_size=4,
    ),
    learnable_scale=st.booleans(),
)
def test_the_closed_form_is_autograds_gradient(batches: list[dict[str, int]], learnable_scale: bool) -> None:
    ours, reference = (model_of(learnable_scale=learnable_scale) for _ in range(2))
    closed_form, autograd = SharedHeadGradient(ours, LOSS_WEIGHT), AutogradGradient(reference, LOSS_WEIGHT)
    for seed, sizes in enumerate(batches):  # one after another: a corpus that is gone must not keep its gradient
        batch = batch_of(sizes, seed=seed)
        assert closed_form(batch).losses == pytest.approx(autograd(batch).losses)
        expected = gradients_of(reference)
        for name, gradient in gradients_of(ours).items():
            if expected[name] is None:
                assert gradient is None, name
            else:
                # autograd's losses are taken in float32, whatever the model's dtype
                torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


def test_shares_of_ranks_add_up_to_the_joined_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's buffer before the sum: together they are the gradient and the losses of the whole batch."""
    whole = batch_of({"photos": 5, "captions": 3, "sounds": 2})
    shares = {"photos": [slice(0, 2), slice(2, 5)], "captions": [slice(0, 3), slice(3, 3)], "sounds": [slice(0, 1)] * 2}
    shares["sounds"][1] = slice(1, 2)
    buffers: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: buffers.append(flat.clone()))
    for rank in range(2):
        share = Batch(
            {name: value[shares[name][rank]] for name, value in whole.embeddings.items()},
            {name: value[shares[name][rank]] for name, value in whole.labels.items()},
            whole.global_counts,
        )
        SharedHeadGradient(model_of(learnable_scale=True), LOSS_WEIGHT, world_size=2)(share)
    SharedHeadGradient(model_of(learnable_scale=True), LOSS_WEIGHT, world_size=2)(whole)
    torch.testing.assert_close(buffers[0] + buffers[1], buffers[2])


def test_an_infinite_loss_is_the_guilty_corpuss_alone() -> None:
    model = model_of(learnable_scale=True)
    with torch.no_grad():
        model.scales["sounds"].fill_(float("nan"))
    losses = SharedHeadGradient(model, LOSS_WEIGHT)(batch_of({"photos": 2, "sounds": 2})).losses
    assert [corpus for corpus, loss in losses.items() if loss != loss] == ["sounds"]


def test_new_weights_reach_the_batches_to_come_and_those_of_a_size_seen_before() -> None:
    ours, reference = (model_of(learnable_scale=True) for _ in range(2))
    closed_form, autograd = SharedHeadGradient(ours, LOSS_WEIGHT), AutogradGradient(reference, LOSS_WEIGHT)
    batch = batch_of({"photos": 4, "captions": 3, "sounds": 2})
    for weights in (LOSS_WEIGHT, {"photos": 1.0, "captions": 0.0, "sounds": 0.7}):
        closed_form.reweight(weights)
        autograd.reweight(weights)
        assert closed_form(batch).losses == pytest.approx(autograd(batch).losses)
        for name, gradient in gradients_of(reference).items():
            torch.testing.assert_close(gradients_of(ours)[name], gradient, rtol=1e-5, atol=1e-6)


def smoothed(batch: Batch) -> Batch:
    return replace(batch, label_smoothing=0.2)


def test_label_smoothing_is_autograds() -> None:
    ours, reference = (model_of(learnable_scale=True) for _ in range(2))
    batch = batch_of({"photos": 4, "captions": 3, "sounds": 2})
    closed_form = SharedHeadGradient(ours, LOSS_WEIGHT, label_smoothing=0.2)
    assert closed_form(batch).losses == pytest.approx(AutogradGradient(reference, LOSS_WEIGHT)(smoothed(batch)).losses)
    for name, gradient in gradients_of(reference).items():
        torch.testing.assert_close(gradients_of(ours)[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", ["head.weight", "projections.sounds.weight"])
def test_autograd_tells_a_gradient_that_overflows(poison: str) -> None:
    """All logits are zero, so the losses are finite; the gradient at the head, or at the projections, is not."""
    model = model_of(learnable_scale=False).float()
    batch = batch_of({"photos": 3, "sounds": 2})
    batch = replace(batch, embeddings={name: value.float() for name, value in batch.embeddings.items()})
    assert AutogradGradient(model, LOSS_WEIGHT)(batch).gradient_is_finite
    with torch.no_grad():
        if poison == "head.weight":
            model.head.weight.zero_()
            model.projections["sounds"].weight.fill_(3e38)
            batch.embeddings["sounds"].fill_(1.0)
        else:
            model.head.weight.copy_(torch.linspace(-1e38, 1e38, CLASSES)[:, None].expand(-1, SHARED_WIDTH))
            for corpus in ("photos", "sounds"):
                model.projections[corpus].weight.zero_()
                batch.embeddings[corpus].fill_(1e6)
    result = AutogradGradient(model, LOSS_WEIGHT)(batch)
    assert not result.gradient_is_finite
