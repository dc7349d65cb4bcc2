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
    draw_world,
    exchange_of,
    linear_floors,
    measured_steps,
    modalities_of,
    second_corpus,
    train_arm,
)
from uml_core.theory.monte_carlo import Case, agreement, case_grid, noise_sweep_point, run_case, whitened_z


@pytest.mark.parametrize("trials", [1, 60, 2_000])
def test_simulated_covariances_agree_with_the_closed_forms(trials: int) -> None:
    found = agreement([run_case(case, trials) for case in case_grid()[::9]])
    assert found.entries > 100
    assert found.agrees
    assert 0.55 < found.within_one < 0.8  # 0.68 of a standard normal


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
    result = run_case(Case(4, 2, "half", "same half", 1.0, 32, seed=3), 100)
    assert result.estimable == 2
    assert np.isinf(run_case(Case(4, 2, "half", "full", 1.0, 32, seed=3), 100).x_alone)


def test_the_papers_formula_promises_too_much_and_unweighted_is_worse() -> None:
    result = run_case(Case(8, 4, "full", "full", 10.0, 8, seed=1), 4_000)
    assert result.empirical == pytest.approx(result.predicted, rel=0.1)
    assert result.paper < 0.9 * result.predicted
    assert result.unweighted > 2 * result.empirical
    assert result.predicted < result.x_alone


def test_noise_sweep_gives_the_papers_numbers() -> None:
    point = noise_sweep_point(10.0, 4_000, seed=0)
    assert point.x_alone[0] == pytest.approx(0.01)
    assert point.unweighted[0] == pytest.approx(25.0025)
    assert point.weighted[0] == pytest.approx(0.009999, rel=1e-6)
    for exact, simulated in (point.x_alone, point.unweighted, point.weighted):
        assert simulated == pytest.approx(exact, rel=0.1)


def test_one_y_replaces_as_many_x_as_the_exchange_rate_says() -> None:
    of_x, of_y = (modality.shared_information for modality in modalities_of(draw_world(0)))
    result, many = exchange_of(0), 1e6
    for axis, rate in zip(np.eye(10), result.by_direction, strict=True):
        replaced = many * (directional_variance(many * of_x, axis) / directional_variance(many * of_x + of_y, axis) - 1)
        assert rate == pytest.approx(replaced, rel=1e-3)
    assert result.x_only > 50 * result.half_and_half
    assert result.by_trace < min(result.by_direction)


def test_two_linear_layers_multiplied_first_are_the_same_function() -> None:
    torch.manual_seed(0)
    model, x_BM = SharedAutoencoder(("x", "y")), torch.randn(4, OBSERVED_DIM)
    hidden = torch.relu(model.encoder[0](model.inputs["y"](x_BM)))
    hidden = torch.relu(model.decoder[0](model.encoder[1](hidden)))
    expected = model.outputs["y"](model.decoder[1](hidden))
    torch.testing.assert_close(model({"x": x_BM, "y": x_BM})["y"], expected)


def test_arms_of_a_seed_start_from_the_same_shared_weights_and_share_them() -> None:
    torch.manual_seed(1)
    alone = SharedAutoencoder(("x",))
    torch.manual_seed(1)
    both = SharedAutoencoder(("x", "y"))
    torch.testing.assert_close(alone.encoder[0].weight, both.encoder[0].weight)
    torch.testing.assert_close(alone.inputs["x"].weight, both.inputs["x"].weight)
    both({"y": torch.randn(3, OBSERVED_DIM)})["y"].sum().backward()
    assert both.encoder[0].weight.grad is not None
    assert both.inputs["x"].weight.grad is None


def test_linear_floor_is_what_a_projection_errs_by_on_samples() -> None:
    world, generator = draw_world(2), torch.Generator().manual_seed(0)
    training = world.sample_x(20_000, generator, attenuated=True).double()
    validation = world.sample_x(20_000, generator, attenuated=False).double()
    for fitted_to, expected in (
        (training, linear_floors(2).attenuated),
        (validation, linear_floors(2).full_strength),
    ):
        basis = torch.linalg.eigh(fitted_to.T @ fitted_to)[1][:, -BOTTLENECK:]
        error = float((validation - validation @ basis @ basis.T).square().mean())
        assert error == pytest.approx(expected, rel=0.05)


def test_stand_ins_for_y_keep_its_spread_and_lose_its_structure() -> None:
    generator = torch.Generator().manual_seed(0)
    y_NM = draw_world(0).sample_y(2_000, generator)
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
    first, second = train_arm(joint, 0, 30), train_arm(joint, 0, 30)
    assert first.validation_error == second.validation_error
    assert first.steps == (30,)
    assert first.validation_error[-1] < 0.8 * train_arm(joint, 0, 1).validation_error[0]


@pytest.mark.parametrize("num_steps", [1, 100, 8_000, 11_000])
def test_measured_steps_end_at_the_last(num_steps: int) -> None:
    steps = measured_steps(num_steps)
    assert steps[-1] == num_steps
    assert list(steps) == sorted(set(steps))
