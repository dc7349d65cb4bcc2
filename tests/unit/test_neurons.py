"""Multimodal neurons: planted ones are found, noise and confounds are not."""

from __future__ import annotations

import numpy as np
import pytest

from uml_core.analysis.neurons import PairedActivations, pearson, unit_correlations

PAIRS, UNITS = 60, 100


def noise(seed: int, pairs: int = PAIRS, units: int = UNITS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(pairs, units)), rng.normal(size=(pairs, units))


def planted(seed: int, units: tuple[int, ...] = (3, 40)) -> PairedActivations:
    """Noise units, and some that carry a concept of the pair on both sides: r = 1/(1 + 0.25) = 0.8."""
    first, second = noise(seed)
    concepts = np.random.default_rng(seed + 1000).normal(size=(PAIRS, len(units)))
    for column, unit in enumerate(units):
        first[:, unit] = concepts[:, column] + 0.5 * first[:, unit]
        second[:, unit] = concepts[:, column] + 0.5 * second[:, unit]
    return PairedActivations(first, second)


def test_planted_units_are_found_and_noise_is_not() -> None:
    found = unit_correlations(planted(0))
    assert sorted(found.found[:2]) == [3, 40]
    assert len(found.found) <= 3, "at a false discovery rate of 5 %"
    assert sorted(np.flatnonzero(found.holm_p < 0.05)) == [3, 40]
    assert found.r[[3, 40]] == pytest.approx([0.8, 0.8], abs=0.12)
    assert found.p_value[3] == pytest.approx(1e-4), "no shuffle of 9,999 reaches it"
    assert np.quantile(found.null_maxima, 0.95) < found.partial_r[3]
    between = float(found.partial_r[[3, 40]].mean())
    assert found.beyond(np.array([[0.1, between]])).tolist() == [found.found[0]], "an untrained unit sets the bar"


def test_noise_alone_gives_nothing_and_uniform_p_values() -> None:
    results = [unit_correlations(PairedActivations(*noise(seed)), num_permutations=999) for seed in range(6)]
    assert sum(len(found.found) for found in results) <= 1
    p_values = np.concatenate([found.p_value for found in results])
    assert (p_values < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert np.median(p_values) == pytest.approx(0.5, abs=0.08)


def test_units_that_only_follow_the_length_of_the_input_are_not_reported() -> None:
    first, second = noise(1)
    length = np.random.default_rng(5).normal(size=PAIRS)
    sway = np.where(np.arange(UNITS) % 2 == 0, 1.0, -1.0)  # mean activation does not show the length
    first, second = first + 2 * length[:, None] * sway, second + 2 * length[:, None] * sway
    # Measured lengths: each side's own, in its own unit.
    confounded = PairedActivations(first, second, first_length=3 * length + 1, second_length=10 - length)
    found = unit_correlations(confounded, num_permutations=1999)
    assert np.median(found.r) > 0.6, "the plain correlation is fooled"
    assert not len(found.found)
    fooled = unit_correlations(PairedActivations(first, second), num_permutations=1999)
    assert len(fooled.found) == UNITS, "without the lengths, so is the test"


def test_units_that_only_follow_the_mean_activation_are_not_reported() -> None:
    first, second = noise(2)
    loudness = 2 * np.random.default_rng(6).normal(size=(PAIRS, 1))
    found = unit_correlations(PairedActivations(first + loudness, second + loudness), num_permutations=1999)
    assert np.median(found.r) > 0.6
    assert not len(found.found)


def test_a_planted_unit_survives_the_removal_of_confounds() -> None:
    pairs = planted(3)
    length = np.random.default_rng(7).normal(size=PAIRS)
    loud = PairedActivations(
        pairs.first + 2 * length[:, None], pairs.second + 2 * length[:, None], None, length, length
    )
    found = unit_correlations(loud)
    assert sorted(found.found[:2]) == [3, 40]
    assert found.partial_r[[3, 40]] == pytest.approx([0.8, 0.8], abs=0.12)


def test_per_label_correlation() -> None:
    """Within label 0 the unit agrees, within label 1 it is opposed; label 2 has too few pairs to say."""
    labels = np.array([0] * 6 + [1] * 6 + [2] * 2)
    ramp = np.concatenate([np.arange(6.0), np.arange(6.0), [0.0, 1.0]])
    first = np.stack([ramp, ramp**2, np.ones(14)], axis=1)
    second = first * np.where(labels == 1, -1.0, 1.0)[:, None]
    found = unit_correlations(PairedActivations(first, second, labels), num_permutations=99)
    assert list(found.per_label) == [0, 1]
    assert found.per_label[0] == pytest.approx([1.0, 1.0, 0.0])
    assert found.per_label[1] == pytest.approx([-1.0, -1.0, 0.0])


def test_pearson_is_numpys_and_constant_units_are_zero() -> None:
    first, second = noise(4, pairs=20, units=5)
    first[:, 2] = 7.0
    expected = [np.corrcoef(first[:, unit], second[:, unit])[0, 1] if unit != 2 else 0.0 for unit in range(5)]
    assert pearson(first, second) == pytest.approx(expected)
    assert unit_correlations(PairedActivations(first, second), num_permutations=99).p_value[2] == 1.0


def test_the_same_seed_gives_the_same_p_values() -> None:
    pairs = PairedActivations(*noise(8, pairs=12, units=10))
    one, two = (unit_correlations(pairs, num_permutations=199, seed=5) for _ in range(2))
    assert one.p_value.tolist() == two.p_value.tolist()
