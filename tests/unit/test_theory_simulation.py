"""Monte Carlo, exchange rate and the Gaussian study: against closed forms, and whether they would notice a mistake."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uml_core.theory import directional_variance
from uml_core.theory.gaussian_study import (
    ARMS,
    BOTTLENECK,
    OBSERVED_DIM,
    SharedAutoencoder,
    World,
    one_sample_each,
    second_corpus,
    train_arm,
    world_facts,
)
from uml_core.theory.simulation import agreement, simulate_model, simulate_models, whitened_z


@pytest.mark.parametrize("trials", [1, 60])
def test_simulated_covariances_agree_with_the_closed_forms(trials: int) -> None:
    models = simulate_models(trials, seed=1)
    assert len(models) == 72
    assert agreement(models).agrees
    scores = np.abs([score for model in models for score in model.z_scores])
    assert len(scores) == agreement(models).entries == 1932
    assert 0.64 < np.mean(scores <= 1) < 0.73  # 0.68 of a standard normal


def test_a_wrong_covariance_is_noticed() -> None:
    errors = np.random.default_rng(0).standard_normal((4_000, 3))
    assert max(map(abs, whitened_z(errors, np.eye(3)))) < 4
    assert max(map(abs, whitened_z(errors, 1.3 * np.eye(3)))) > 5
    correlated = np.eye(3) + 0.2 * (np.ones((3, 3)) - np.eye(3))
    assert max(map(abs, whitened_z(errors, correlated))) > 5


def test_z_scores_of_a_hand_made_spread() -> None:
    # twice the variance over 200 trials: χ²_200 = 400, which is far out; half the variance lies on the other side
    ones = np.ones((200, 1))
    assert whitened_z(np.sqrt(2) * ones, np.eye(1))[0] > 7
    assert whitened_z(ones / np.sqrt(2), np.eye(1))[0] < -5
    assert abs(whitened_z(ones, np.eye(1))[0]) < 0.1


def test_only_what_can_be_estimated_is_compared() -> None:
    model = simulate_model((4, 2), ("half", "same half"), 1.0, 32, trials=100, seed=3)
    assert len(model.z_scores) == 2 * 3  # two of four directions


def test_the_papers_formula_promises_too_much_and_unweighted_is_worse() -> None:
    model = simulate_model((8, 4), ("full", "full"), 10.0, 8, trials=4_000, seed=1)
    assert model.over_corrected == pytest.approx(1, rel=0.1)
    assert model.over_paper > 1.1
    assert model.loss_unweighted > 2


def test_one_y_replaces_as_many_x_as_the_exchange_rate_says() -> None:
    of_x, of_y = (modality.shared_information for modality in one_sample_each(World(0)))
    facts, many = world_facts(0), 1e6
    for axis, rate in zip(np.eye(10), facts.rate_by_direction, strict=True):
        replaced = many * (directional_variance(many * of_x, axis) / directional_variance(many * of_x + of_y, axis) - 1)
        assert rate == pytest.approx(replaced, rel=1e-3)
    assert facts.gain_half_y > 50
    assert facts.rate_by_trace < min(facts.rate_by_direction)


def test_two_linear_layers_multiplied_first_are_the_same_function() -> None:
    torch.manual_seed(0)
    model, x_BM = SharedAutoencoder(("x", "y")), torch.randn(4, OBSERVED_DIM)
    hidden = torch.relu(model.enter(model.inputs["y"](x_BM)))
    expected = model.outputs["y"](model.leave(torch.relu(model.decode(model.encode(hidden)))))
    torch.testing.assert_close(model({"x": x_BM, "y": x_BM})["y"], expected)


def test_arms_of_a_seed_start_from_the_same_shared_weights_and_share_them() -> None:
    torch.manual_seed(1)
    alone = SharedAutoencoder(("x",))
    torch.manual_seed(1)
    both = SharedAutoencoder(("x", "y"))
    torch.testing.assert_close(alone.enter.weight, both.enter.weight)
    torch.testing.assert_close(alone.inputs["x"].weight, both.inputs["x"].weight)
    both({"y": torch.randn(3, OBSERVED_DIM)})["y"].sum().backward()
    assert both.enter.weight.grad is not None
    assert both.inputs["x"].weight.grad is None


def test_linear_floor_is_what_a_projection_errs_by_on_samples() -> None:
    world, generator = World(2), torch.Generator().manual_seed(0)
    training = world.sample_x(20_000, generator, attenuated=True).double()
    validation = world.sample_x(20_000, generator, attenuated=False).double()
    for fitted_to, expected in (
        (training, world_facts(2).floor_as_trained),
        (validation, world_facts(2).floor_as_validated),
    ):
        basis = torch.linalg.eigh(fitted_to.T @ fitted_to)[1][:, -BOTTLENECK:]
        error = float((validation - validation @ basis @ basis.T).square().mean())
        assert error == pytest.approx(expected, rel=0.05)


def test_stand_ins_for_y_keep_its_spread_and_lose_its_structure() -> None:
    generator = torch.Generator().manual_seed(0)
    y_NM = World(0).sample_y(2_000, generator)
    permuted, noise = second_corpus("permuted", y_NM, generator), second_corpus("noise", y_NM, generator)
    assert second_corpus("real", y_NM, generator) is y_NM
    torch.testing.assert_close(permuted.sort(dim=0).values, y_NM.sort(dim=0).values)
    assert noise.std() == pytest.approx(float(y_NM.std()), rel=0.02)

    def correlation(table: torch.Tensor) -> float:
        return float(torch.corrcoef(table.T).fill_diagonal_(0).abs().max())

    assert correlation(y_NM) > 0.6
    assert max(correlation(permuted), correlation(noise)) < 0.15


def test_training_lowers_the_error_and_repeats_exactly() -> None:
    joint = next(arm for arm in ARMS if arm.name == "X+Y")
    first, second = train_arm(joint, 0, 101), train_arm(joint, 0, 101)
    assert first == second
    assert list(first.errors) == [100, 101]
    assert first.errors[101] < 0.8 * train_arm(joint, 0, 1).errors[1]
