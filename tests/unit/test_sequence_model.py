"""The self-supervised model against torch's own transformer, with padding, and against values computed by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from uml_core.config import SequenceModelConfig
from uml_core.models.losses import token_losses
from uml_core.models.seeding import generator_of, initialise
from uml_core.models.sequence.kernels import FeedForward, effective_dropout, keep_mask
from uml_core.models.sequence.packing import masked_mean, pack
from uml_core.models.sequence.sequence_model import SequenceModel, TokenSpace
from uml_core.models.sequence.trunk import SharedTrunk, TrunkLayer

LENGTHS = np.array([3, 9, 1, 9, 6])


def config(**changes: object) -> SequenceModelConfig:
    small = {"width": 12, "layers": 2, "heads": 3, "feedforward": 20, "dropout": 0.0, "positions": "none"}
    return SequenceModelConfig.model_validate({**small, **changes})


def trunk(**changes: object) -> SharedTrunk:
    built = SharedTrunk(config(**changes))
    initialise(built, seed=1)
    return built.train()


def reference(ours: SharedTrunk) -> nn.TransformerEncoder:
    """Torch's encoder with the same weights."""
    layers = []
    for layer in ours.layers:
        assert isinstance(layer, TrunkLayer)
        theirs = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True)
        theirs.self_attn.load_state_dict(
            {
                "in_proj_weight": layer.attention_in.weight,
                "in_proj_bias": layer.attention_in.bias,
                "out_proj.weight": layer.attention_out.weight,
                "out_proj.bias": layer.attention_out.bias,
            }
        )
        theirs.linear1.load_state_dict(layer.feed_forward.expand.state_dict())
        theirs.linear2.load_state_dict(layer.feed_forward.contract.state_dict())
        theirs.norm1.load_state_dict(layer.attention_norm.state_dict())
        theirs.norm2.load_state_dict(layer.feed_forward_norm.state_dict())
        layers.append(theirs)
    encoder = nn.TransformerEncoder(layers[0], len(layers), enable_nested_tensor=False)
    encoder.layers = nn.ModuleList(layers)
    return encoder.train()


def padded(rows_RH: Tensor, lengths: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(S, T, H) with zeros as padding, and where padding is (S, T)."""
    values = nn.utils.rnn.pad_sequence(list(rows_RH.split(lengths.tolist())), batch_first=True)
    return values, torch.arange(values.shape[1])[None] >= torch.from_numpy(lengths)[:, None]


@pytest.mark.parametrize("causal", [True, False])
def test_the_trunk_equals_torchs_encoder_with_padding_masks(causal: bool) -> None:
    ours = trunk()
    theirs = reference(ours)
    rows = torch.randn(int(LENGTHS.sum()), 12)
    mine, other = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    values, is_padding = padded(other, LENGTHS)
    triangle = nn.Transformer.generate_square_subsequent_mask(values.shape[1]).isinf() if causal else None
    expected = theirs(values, mask=triangle, src_key_padding_mask=is_padding)[~is_padding]
    given_rows = ours(mine, pack(LENGTHS, causal=causal), torch.Generator())
    assert torch.allclose(given_rows, expected, atol=2e-6)
    weights = torch.randn_like(expected)
    (given_rows * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(mine.grad, other.grad, atol=1e-5)
    first, same = ours.layers[0], theirs.layers[0]
    for own, others in (
        (first.attention_in.weight, same.self_attn.in_proj_weight),
        (first.feed_forward.expand.weight, same.linear1.weight),
        (first.feed_forward.expand.bias, same.linear1.bias),
        (first.feed_forward.contract.weight, same.linear2.weight),
        (first.feed_forward.contract.bias, same.linear2.bias),
        (first.attention_norm.weight, same.norm1.weight),
    ):
        assert torch.allclose(own.grad, others.grad, atol=3e-5)


def test_the_loss_curve_is_that_of_torchs_encoder_with_padding_masks() -> None:
    """Twenty steps of next-token prediction: one pass without padding, and without each sequence's last token."""
    ours = trunk()
    theirs = reference(ours)
    lengths = np.array([2, 7, 5, 7, 4, 3])
    tokens = torch.randn(int(lengths.sum()), 12)
    values, is_padding = padded(tokens, lengths)
    triangle = nn.Transformer.generate_square_subsequent_mask(values.shape[1]).isinf()
    scored = ~is_padding[:, 1:]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    places = torch.from_numpy(
        np.concatenate([start + np.arange(n - 1) for start, n in zip(starts, lengths, strict=True)])
    )
    curves: list[list[float]] = []
    for model in (ours, theirs):
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        curve = []
        for _ in range(20):
            if model is ours:
                predicted = ours(tokens[places], pack(lengths - 1, causal=True), torch.Generator())
                loss = token_losses({"x": predicted}, {"x": tokens[places + 1]}, {"x": len(places)})["x"]
            else:
                out = theirs(values, mask=triangle, src_key_padding_mask=is_padding)
                loss = nn.functional.mse_loss(out[:, :-1][scored], values[:, 1:][scored])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert curves[0][-1] < 0.9 * curves[0][0]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_packing_holds_every_row_once_and_pads_little(lengths: list[int]) -> None:
    packing = pack(np.array(lengths), causal=False)
    held = packing.padded_from[packing.row_to_padded]
    assert held.tolist() == list(range(sum(lengths)))
    assert packing.positions.tolist() == [place for length in lengths for place in range(length)]
    assert packing.sequences.tolist() == [index for index, length in enumerate(lengths) for _ in range(length)]
    assert sum(block.num_sequences for block in packing.blocks) == len(lengths)
    assert len(packing.padded_from) <= 1.25 * sum(lengths)
    hidden = sum(int(block.bias.isinf().sum()) for block in packing.blocks)
    assert hidden == len(packing.padded_from) - sum(lengths)


def test_masked_mean_by_hand() -> None:
    rows = torch.tensor([[1.0], [3.0], [10.0]])
    assert masked_mean(rows, pack(np.array([2, 1]), causal=True)).tolist() == [[2.0], [10.0]]


@pytest.mark.parametrize("task", ["next_token", "masked_token"])
@pytest.mark.parametrize("positions", ["none", "learnable", "sinusoidal", "rotary"])
def test_a_sequence_is_the_same_alone_and_in_a_batch(positions: str, task: str) -> None:
    model = SequenceModel({"x": TokenSpace(4)}, config(positions=positions, task=task)).eval()
    initialise(model, seed=0)
    tokens = torch.randn(int(LENGTHS.sum()), 4)
    together = model.features("x", tokens, LENGTHS)
    alone = [model.features("x", part, np.array([len(part)])) for part in tokens.split(LENGTHS.tolist())]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    shuffled = model.features("x", tokens[:3].flip(0), np.array([3]))
    is_blind = positions == "none" and task == "masked_token"
    assert torch.allclose(shuffled, together[:1], atol=1e-5) == is_blind, "order counts, but for attention without it"


def test_rotary_attention_sees_distances_alone() -> None:
    model = trunk(positions="rotary", layers=1)
    rows, packing = torch.randn(6, 12), pack(np.array([6]), causal=False)
    shifted = pack(np.array([6]), causal=False)
    shifted.positions.add_(5)
    generator = torch.Generator()
    assert torch.allclose(model(rows, packing, generator), model(rows, shifted, generator), atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_blocked_feed_forward_equals_the_plain_one(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uml_core.models.sequence.kernels.BLOCK_FLOATS", 64)  # blocks of 4 rows, and one of 3
    layer = FeedForward(6, 16, dropout).train()
    values, weights = torch.randn(11, 6), torch.randn(11, 6)
    mine, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    output = layer(mine, generator_of(3))
    (output * weights).sum().backward()
    gradients = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    generator = generator_of(3)
    shape = torch.device("cpu")
    masks = [keep_mask((rows, 16), dropout, generator=generator, device=shape) for rows in (4, 4, 3)]
    keep = torch.cat(masks).float() / (1 - dropout) if dropout else torch.ones(11, 16)
    expected = layer.contract(torch.relu(layer.expand(other)) * keep)
    (expected * weights).sum().backward()
    assert torch.allclose(output, expected, atol=1e-6)
    assert torch.allclose(mine.grad, other.grad, atol=1e-5)
    for given_gradient, parameter in zip(gradients, layer.parameters(), strict=True):
        assert torch.allclose(given_gradient, parameter.grad, atol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_share_it_says_and_every_unit_alike(p: float) -> None:
    mask = keep_mask((4000, 96), p, generator=generator_of(0), device=torch.device("cpu"))
    assert set(mask.unique().tolist()) == {0, 1}
    dropped, spread = 1 - effective_dropout(p), np.sqrt(p * (1 - p) / 4000)
    assert abs(effective_dropout(p) - p) <= 1 / 512
    assert mask.float().mean().item() == pytest.approx(dropped, abs=5 * spread / np.sqrt(96))
    assert mask.float().mean(dim=0).numpy() == pytest.approx(dropped, abs=5 * spread)


def test_dropout_too_small_to_draw_drops_nothing() -> None:
    assert effective_dropout(0.001) == 0
    assert keep_mask((100,), 0.001, generator=generator_of(0), device=torch.device("cpu")).min() == 1


def test_dropout_in_training_alone_and_the_same_for_the_same_generator() -> None:
    model = trunk(dropout=0.3)
    rows, packing = torch.randn(int(LENGTHS.sum()), 12), pack(LENGTHS, causal=True)
    first, again, other = (model(rows, packing, generator_of(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    model.eval()
    assert torch.equal(model(rows, packing, generator_of(0)), model(rows, packing, generator_of(1)))


def test_dropout_keeps_the_expected_gradient_of_attention() -> None:
    """The gradient under dropout is the derivative of the output under the same masks: by finite differences."""
    model = trunk(dropout=0.3, layers=1)
    packing = pack(np.array([4, 2]), causal=True)
    torch.manual_seed(0)
    rows, direction, weights = torch.randn(3, 6, 12)

    def value(at: Tensor) -> Tensor:
        return (model(at, packing, generator_of(5)) * weights).sum()

    at = rows.clone().requires_grad_()
    value(at).backward()
    step = 1e-3  # float32: smaller ones drown in rounding, larger ones cross kinks of the ReLU
    with torch.no_grad():
        slope = (value(rows + step * direction) - value(rows - step * direction)) / (2 * step)
    assert (at.grad * direction).sum().item() == pytest.approx(slope.item(), rel=0.02)


def test_losses_by_hand() -> None:
    predictions = {"x": torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "y": torch.tensor([[0.0, 0.0]])}
    targets = {"x": torch.tensor([[0.0, 0.0], [0.0, 3.0]]), "y": torch.tensor([1])}
    losses = token_losses(predictions, targets, {"x": 2, "y": 1})
    assert losses["x"].item() == pytest.approx((1 + 4 + 9) / 4)
    assert losses["y"].item() == pytest.approx(np.log(2))
    shared = token_losses(predictions, targets, {"x": 8, "y": 4}, world_size=2)
    assert shared["x"].item() == pytest.approx(2 * (1 + 4 + 9) / 16)
