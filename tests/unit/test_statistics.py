"""Statistics over paired seeds and rows against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml_core.evaluation.statistics import (
    bootstrap_difference,
    holm,
    mcnemar,
    paired_difference,
    sign_flip_test,
    spread,
)

P_VALUES = st.dictionaries(st.text(max_size=4), st.floats(0, 1), max_size=12)


def test_spread_has_the_sample_standard_deviation() -> None:
    found = spread([0.5, 0.6, 0.7])
    assert (found.mean, found.std, found.count) == (pytest.approx(0.6), pytest.approx(0.1), 3)


def test_spread_of_one_value_has_no_deviation_and_none_is_refused() -> None:
    assert math.isnan(spread([0.4]).std)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_paired_difference_by_hand() -> None:
    # Differences 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, error 0.01/√3; t(0.975, 2) = 4.30265.
    found = paired_difference({0: 0.51, 1: 0.62, 2: 0.73}, {0: 0.5, 1: 0.6, 2: 0.7})
    half = 4.302652729911275 * 0.01 / math.sqrt(3)
    assert found.mean == pytest.approx(0.02)
    assert found.std == pytest.approx(0.01)
    assert (found.low, found.high) == (pytest.approx(0.02 - half), pytest.approx(0.02 + half))
    # t = 0.02 / (0.01/√3) = √12; with two degrees of freedom P(|T| > t) = 1 - t / √(2 + t²) = 1 - √(12/14).
    assert found.p_value == pytest.approx(1 - math.sqrt(12 / 14))
    assert found.low <= 0 <= found.high


def test_only_shared_seeds_are_compared_and_pairing_matters() -> None:
    found = paired_difference({0: 0.9, 1: 0.52, 2: 0.71, 3: 0.93}, {1: 0.5, 2: 0.7, 3: 0.9, 9: 0.0})
    assert found.count == 3
    assert found.mean == pytest.approx(0.02)  # though the seeds themselves differ by 0.4
    swapped = paired_difference({1: 0.5, 2: 0.7, 3: 0.9, 9: 0.0}, {0: 0.9, 1: 0.52, 2: 0.71, 3: 0.93})
    assert (swapped.low, swapped.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_one_pair_has_no_interval_and_no_pair_is_refused() -> None:
    found = paired_difference({0: 0.6}, {0: 0.5})
    assert found.mean == pytest.approx(0.1)
    assert all(math.isnan(value) for value in (found.std, found.low, found.high, found.p_value))
    with pytest.raises(ValueError, match="share no seed"):
        paired_difference({0: 0.6}, {1: 0.5})


def test_equal_arms_differ_by_nothing() -> None:
    arm = {0: 0.1 + 0.2, 1: 0.5, 2: 0.6}
    found = paired_difference(arm, {0: 0.3, 1: 0.5, 2: 0.6})
    assert found.p_value == 1.0
    assert found.mean == pytest.approx(0.0, abs=1e-15)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, 0.04, made non-decreasing.
    adjusted = holm({"b": 0.04, "a": 0.01, "c": 0.03})
    assert adjusted == {"a": pytest.approx(0.03), "c": pytest.approx(0.06), "b": pytest.approx(0.06)}


def test_holm_leaves_nan_out_of_the_count() -> None:
    adjusted = holm({"a": 0.04, "b": math.nan})
    assert adjusted["a"] == pytest.approx(0.04)
    assert math.isnan(adjusted["b"])


@given(P_VALUES)
def test_holm_is_bounded_monotonic_and_never_below_the_raw_value(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    assert set(adjusted) == set(p_values)
    assert all(p_values[name] <= adjusted[name] <= 1 for name in p_values)
    ordered = [adjusted[name] for name in sorted(p_values, key=p_values.__getitem__)]
    assert ordered == sorted(ordered)


@given(P_VALUES.filter(bool))
def test_holm_gives_the_smallest_p_value_the_full_correction(p_values: dict[str, float]) -> None:
    smallest = min(p_values.values())
    assert min(holm(p_values).values()) == min(1.0, smallest * len(p_values))


def test_the_bootstrap_interval_of_rows_is_near_the_normal_one_and_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    rows = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=1000)
    found = bootstrap_difference([rows])
    half = 1.96 * rows.std() / math.sqrt(len(rows))
    assert found.mean == pytest.approx(rows.mean())
    assert (found.low, found.high) == (
        pytest.approx(rows.mean() - half, abs=half / 10),
        pytest.approx(rows.mean() + half, abs=half / 10),
    )
    covered = 0
    for trial in range(200):
        drawn = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=200)
        interval = bootstrap_difference([drawn], seed=trial)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99  # 95 %, three standard errors of 200 trials either way


@pytest.mark.parametrize("crossed", [False, True])
def test_the_bootstrap_over_seeds_and_rows_covers(crossed: bool) -> None:
    rng, seeds, rows, covered, trials = np.random.default_rng(1), 12, 60, 0, 60
    for trial in range(trials):
        gain_S1 = 0.1 + 0.1 * rng.normal(size=(seeds, 1))
        hard_1N = rng.random((1 if crossed else seeds, rows)) < 0.5  # rows that no seed gets right
        differences_SN = (rng.random((seeds, rows)) < gain_S1.clip(0, 1)) & ~hard_1N
        interval = bootstrap_difference(list(differences_SN.astype(float)), crossed=crossed, seed=trial)
        covered += interval.low <= 0.5 * 0.108 <= interval.high  # the mean of a normal (0.1, 0.1) cut at 0 is 0.108
    assert covered / trials >= 0.84


def test_rows_shared_by_all_seeds_leave_more_to_chance() -> None:
    rng = np.random.default_rng(2)
    same = list(np.repeat(rng.normal(size=(1, 100)), 8, axis=0))
    apart, crossed = bootstrap_difference(same), bootstrap_difference(same, crossed=True)
    assert crossed.high - crossed.low > 2 * (apart.high - apart.low), "8 seeds on one test set are not 8 test sets"


def test_mcnemar_by_hand() -> None:
    # 1 of 6 discordant rows: 2 · (C(6, 0) + C(6, 1)) / 2⁶.
    assert mcnemar(5, 1) == pytest.approx(2 * 7 / 64)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_sign_flips_by_hand() -> None:
    assert sign_flip_test([0.1, 0.2, 0.3]) == pytest.approx(2 / 8)  # the sample and its mirror are the extremes
    # |±1 ± 2 ± 3| reaches |−1 + 2 + 3| = 4 for ±(1, 2, 3), ±(−1, 2, 3).
    assert sign_flip_test([-1, 2, 3]) == pytest.approx(4 / 8)
    assert sign_flip_test([0.0, 0.0]) == 1.0
    assert 0 < sign_flip_test([0.01] * 20) < 0.001


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_sign_flips_do_not_know_which_arm_is_ours(differences: list[float]) -> None:
    p_value = sign_flip_test(differences)
    assert 0 < p_value <= 1
    assert p_value == pytest.approx(sign_flip_test([-each for each in differences]))
