"""Informations, Schur complements, directions and exchange rates against closed form and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uml_core.theory import (
    LinearGaussianModel,
    Modality,
    directional_variance,
    exchange_rate,
    is_strict_reduction,
    outperforming_direction,
    schur_information,
)
from uml_core.theory.information import Floats, in_range, pseudo_inverse

RNG = np.random.default_rng(0)
AC, AX = RNG.normal(size=(5, 3, 2)), RNG.normal(size=(5, 3, 4))
BOTH = np.concatenate([AC, AX], axis=-1)
MATRICES = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def information(rng: np.random.Generator, dim: int = 3) -> Floats:
    """Draw an information of any rank from whole numbers: ties and kernels are common."""
    rank = int(rng.integers(0, dim + 1))
    design = rng.integers(-2, 3, size=(rank, dim)).astype(float)
    return design.T @ design


def test_fisher_information_is_the_sum_over_samples() -> None:
    modality = Modality(AC, AX, noise_std=0.3)
    np.testing.assert_allclose(modality.information, sum(design.T @ design for design in BOTH) / 0.3**2)
    np.testing.assert_array_equal(modality.shared_block, modality.information[:2, :2])
    with pytest.raises(ValueError, match="noise_std is 0"):
        Modality(AC, noise_std=0)


def test_schur_complement_is_the_inverse_of_the_shared_block_of_the_inverse() -> None:
    full = Modality(AC, AX, noise_std=0.3).information
    np.testing.assert_allclose(schur_information(full, 2), np.linalg.inv(np.linalg.inv(full)[:2, :2]))
    np.testing.assert_allclose(schur_information(full, 6), full)
    with pytest.raises(ValueError, match="expected 1 to 6"):
        schur_information(full, 7)


def test_schur_complement_vanishes_where_the_nuisance_explains_everything() -> None:
    full = Modality(AC[0], np.eye(3)).information
    assert not schur_information(full, 2).any()
    assert np.linalg.eigvalsh(full[:2, :2])[0] > 0


def test_schur_complement_survives_a_singular_nuisance_block() -> None:
    doubled = np.concatenate([AX[..., :1], AX[..., :1]], axis=-1)  # the same nuisance parameter twice
    np.testing.assert_allclose(Modality(AC, doubled).shared_information, Modality(AC, AX[..., :1]).shared_information)


def test_directional_variance() -> None:
    matrix = np.diag([4.0, 0.0])
    assert directional_variance(matrix, [1, 0]) == 0.25
    assert directional_variance(matrix, [2, 0]) == 1.0
    assert directional_variance(matrix, [0, 1]) == math.inf
    assert directional_variance(matrix, [1, 1]) == math.inf
    for direction, part in (([0, 0], "zero"), ([1, 0, 0], "shape")):
        with pytest.raises(ValueError, match=part):
            directional_variance(matrix, direction)
    with pytest.raises(ValueError, match="eigenvalue"):
        directional_variance(np.diag([1.0, -1.0]), [1, 0])
    with pytest.raises(ValueError, match="symmetric"):
        directional_variance([[1.0, 1.0], [0.0, 1.0]], [1, 0])


def test_corollary_3_is_decided_by_what_y_sees_of_the_kernel() -> None:
    blind, first = np.diag([1.0, 0.0]), [1.0, 0.0]
    assert not is_strict_reduction(blind, np.ones((2, 2)), first)
    assert is_strict_reduction(blind, np.eye(2), first)
    assert is_strict_reduction(blind, np.eye(2), [0.0, 1.0])  # from infinite to finite
    assert not is_strict_reduction(blind, np.zeros((2, 2)), [0.0, 1.0])  # stays infinite


def test_outperforming_direction_lies_outside_what_x_sees() -> None:
    direction = outperforming_direction(np.diag([1.0, 0.0]), np.ones((2, 2)))
    assert direction is not None
    np.testing.assert_allclose(direction, [0.0, 1.0])
    assert outperforming_direction(np.eye(2), np.eye(2)) is None
    assert outperforming_direction(np.zeros((2, 2)), np.zeros((2, 2))) is None


@pytest.mark.parametrize(("direction", "rate"), [(None, 5 / 5), ([1, 0], 1 / 4), ([0, 1], 4.0)])
def test_exchange_rate_by_trace_and_by_direction(direction: list[float] | None, rate: float) -> None:
    assert exchange_rate(np.diag([4.0, 1.0]), np.diag([1.0, 4.0]), direction) == pytest.approx(rate)


def test_an_exchange_rate_needs_an_x_that_sees_everything() -> None:
    with pytest.raises(ValueError, match="information_x is singular"):
        exchange_rate(np.diag([1.0, 0.0]), np.eye(2), [0, 1])


def test_a_slight_reduction_counts_and_rounding_does_not() -> None:
    assert is_strict_reduction(np.eye(2), np.diag([1.0, 1e-6]), [0.0, 1.0])
    same = np.outer([2.0, 2.0, -2.0], [2.0, 2.0, -2.0])  # Y sees nothing of X's kernel but rounding
    assert is_strict_reduction(same, same, [-1.0, -1.0, 1.0])


@given(MATRICES)
@settings(max_examples=100, deadline=None)
def test_a_strict_reduction_is_one_in_numbers(rng: np.random.Generator) -> None:
    matrix_x, matrix_y = information(rng), information(rng)
    direction = matrix_x @ rng.normal(size=3)
    if matrix_x.any():
        alone, joint = directional_variance(matrix_x, direction), directional_variance(matrix_x + matrix_y, direction)
        assert joint <= alone * (1 + 1e-8)
        assert is_strict_reduction(matrix_x, matrix_y, direction) == (joint < alone * (1 - 1e-8))


@given(MATRICES, st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_y_beats_x_in_the_outperforming_direction_whatever_the_numbers(
    rng: np.random.Generator, num_x: int, num_more: int
) -> None:
    matrix_x, matrix_y = information(rng), information(rng)
    direction = outperforming_direction(matrix_x, matrix_y)
    if direction is None:
        assert np.linalg.matrix_rank(matrix_x + matrix_y) == np.linalg.matrix_rank(matrix_x)
    else:
        with_y = directional_variance(num_x * matrix_x + num_more * matrix_y, direction)
        assert with_y < directional_variance((num_x + num_more) * matrix_x, direction)


@given(MATRICES)
@settings(max_examples=50, deadline=None)
def test_the_exchange_rate_is_a_ratio_of_slopes(rng: np.random.Generator) -> None:
    matrix_x, matrix_y = information(rng) + np.eye(3), information(rng)
    direction, little = rng.normal(size=3), 1e-5
    alone = directional_variance(matrix_x, direction)
    gain_y = alone - directional_variance(matrix_x + little * matrix_y, direction)
    gain_x = alone - directional_variance((1 + little) * matrix_x, direction)
    assert exchange_rate(matrix_x, matrix_y, direction) == pytest.approx(gain_y / gain_x, rel=1e-2, abs=1e-4)


@given(MATRICES)
@settings(max_examples=50, deadline=None)
def test_pseudo_inverse_meets_the_definition(rng: np.random.Generator) -> None:
    matrix = information(rng, dim=4)
    inverse = pseudo_inverse(matrix)
    np.testing.assert_allclose(matrix @ inverse @ matrix, matrix, atol=1e-9)
    np.testing.assert_allclose(inverse @ matrix @ inverse, inverse, atol=1e-9)
    assert all(in_range(matrix, column) for column in matrix.T if column.any())


def test_weighted_least_squares_reaches_the_schur_complement_and_unweighted_does_not() -> None:
    x = Modality(AC, AX, noise_std=0.5)
    y = Modality(RNG.normal(size=(4, 3, 2)), RNG.normal(size=(4, 3, 1)), noise_std=5.0)
    model = LinearGaussianModel(x, y)
    weighted, unweighted = (model.covariance(model.estimator(weighted=each)) for each in (True, False))
    expected = np.linalg.inv(x.shared_information + y.shared_information)
    np.testing.assert_allclose(weighted, expected)
    np.testing.assert_allclose(model.shared_information, np.linalg.inv(expected))
    assert np.trace(unweighted) > np.trace(expected)


def test_minimum_norm_estimate_of_what_is_not_determined() -> None:
    model = LinearGaussianModel(Modality([[1.0, 1.0]]))  # one number seen, two parameters
    np.testing.assert_allclose(model.estimator() @ [2.0], [1.0, 1.0])
