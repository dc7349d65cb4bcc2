"""Statistics over paired seeds against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml_core.evaluation.statistics import holm, paired_difference, spread

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
    assert not found.above_zero
    assert not found.below_zero


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
    assert not found.above_zero
    with pytest.raises(ValueError, match="share no seed"):
        paired_difference({0: 0.6}, {1: 0.5})


def test_equal_arms_differ_by_nothing() -> None:
    arm = {0: 0.1 + 0.2, 1: 0.5, 2: 0.6}
    found = paired_difference(arm, {0: 0.3, 1: 0.5, 2: 0.6})
    assert found.p_value == 1.0
    assert found.mean == pytest.approx(0.0, abs=1e-15)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    treated, baseline = {0: 0.5, 1: 0.62, 2: 0.7}, {0: 0.48, 1: 0.6, 2: 0.63}
    narrow = paired_difference(treated, baseline, confidence=0.8)
    wide = paired_difference(treated, baseline, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


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
