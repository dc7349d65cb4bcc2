"""Margins, clusters, prototypes and the decision plane, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml_core.analysis.margins import (
    cluster_quality,
    decision_plane,
    functional_margins,
    most_confused,
    prototype_cosines,
)

# Three head rows in the plane. Row 0 against row 1 decides at the line x = y, and so on.
HEAD = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])


def test_margin_is_the_distance_to_the_boundary_with_the_best_wrong_class() -> None:
    points = np.array([[3.0, 1.0], [1.0, 3.0], [0.0, 0.0]])
    margins = functional_margins(points, HEAD, np.array([0, 0, 2]))
    # (3, 1) scores 3, 1, −4: (3 − 1)/√2. (1, 3) is of class 0 and scores 1 against 3: −√2. (0, 0) is on a boundary.
    assert margins.functional == pytest.approx([math.sqrt(2), -math.sqrt(2), 0.0])
    assert margins.relative == pytest.approx([math.sqrt(2) / math.sqrt(10), -math.sqrt(2) / math.sqrt(10), 0.0])


def test_equal_head_rows_have_no_boundary() -> None:
    margins = functional_margins(np.array([[1.0, 2.0]]), np.ones((2, 2)), np.array([0]))
    assert margins.functional.tolist() == [0.0]


@given(st.integers(0, 1000))
def test_margins_are_positive_exactly_where_the_class_is_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, head, labels = rng.normal(size=(30, 5)), rng.normal(size=(4, 5)), rng.integers(0, 4, size=30)
    margins = functional_margins(points, head, labels)
    assert ((margins.functional > 0) == ((points @ head.T).argmax(axis=1) == labels)).all()
    assert (np.abs(margins.relative) <= 1 + 1e-12).all()
    scaled = functional_margins(7 * points, 3 * head, labels)
    assert scaled.relative == pytest.approx(margins.relative), "the relative margin knows no scale"


def test_clusters() -> None:
    labels = np.array([0, 0, 1, 1])
    tight = np.array([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0]])
    quality = cluster_quality(tight, labels)
    # Davies-Bouldin: (0.5 + 0.5) / 10. Silhouette: own distance 1, other (10 + √101)/2.
    assert quality["davies_bouldin"] == pytest.approx(0.1)
    assert quality["silhouette"] == pytest.approx(1 - 1 / ((10 + math.sqrt(101)) / 2))
    assert cluster_quality(tight, np.arange(4)) == {}, "every row its own class"
    assert cluster_quality(tight, np.zeros(4, dtype=np.int64)) == {}


def test_prototype_cosines_leave_out_empty_classes() -> None:
    means = np.array([[2.0, 0.0], [1.0, 1.0], [np.nan, np.nan]])
    cosines = prototype_cosines(HEAD, means)
    assert cosines[0, 0] == pytest.approx(1.0)
    assert cosines[1, 1] == pytest.approx(1 / math.sqrt(2))
    assert cosines[2, 1] == pytest.approx(-1.0)
    assert np.isnan(cosines[:, 2]).all()


def test_most_confused_counts_both_ways_and_falls_back_to_thin_margins() -> None:
    labels = np.array([0, 1, 2, 2, 1, 0])
    points = HEAD[labels]
    margins = functional_margins(points, HEAD, labels)
    assert most_confused(np.array([0, 2, 1, 2, 1, 1]), labels, margins, 3) == (1, 2)
    points = np.array([[1.0, 0.0], [0.9, 1.0], [-1.0, -1.0], [-1.0, -1.0], [0.9, 1.0], [1.0, 0.9]])
    margins = functional_margins(points, HEAD, labels)
    assert most_confused(labels, labels, margins, 3) == (0, 1)


def test_decision_plane_has_the_boundary_at_zero_and_the_widest_direction_along_it() -> None:
    rng = np.random.default_rng(0)
    head = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    points = rng.normal(size=(200, 3)) * [1.0, 5.0, 0.5]
    plane = decision_plane(points, head, 0, 1)
    assert plane.across == pytest.approx(points[:, 0]), "w_a − w_b is the first axis"
    assert ((plane.across > 0) == (points @ head[0] > points @ head[1])).all()
    assert abs(np.corrcoef(plane.along, points[:, 1])[0, 1]) > 0.999
    assert plane.shown_variance == pytest.approx(26 / 26.25, abs=0.01)
