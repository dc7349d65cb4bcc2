"""Statistics that are added up: the same head as from the rows themselves, in any blocks and order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.test_prior_head import prior_of, world
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.row_statistics import KEPT_ROWS, Block, RowStatistics, added_up, kept_places
from uml_core.models.closed_form.prior_head import fit_from_statistics, fit_prior_head
from uml_core.models.closed_form.prior_model import ClassPrior, Problem
from uml_core.models.closed_form.row_space import Array, ClassBasis, RowSpace
from uml_core.models.closed_form.summing import Summing

CLASSES = 30


def blocks(rows: Array, labels: np.ndarray, *, size: int = 50) -> Iterator[Block]:
    """Blocks from the last row to the first, as tasks may end in any order."""
    places = kept_places(LabelledRows(rows, np.arange(len(rows)), labels))
    for start in reversed(range(0, len(rows), size)):
        part = slice(start, start + size)
        yield Block(rows[part], labels[part], places[part])


@pytest.mark.parametrize("num_seen", [CLASSES, 25])
@pytest.mark.parametrize("right", [CLASSES, 10])
def test_the_head_is_that_of_the_rows(num_seen: int, right: int) -> None:
    rows, labels, prototypes, _, _ = world(4, seed=1, noise=1.2)
    prototypes[right:] = np.roll(prototypes[right:], 1, axis=0)
    seen = labels < num_seen
    rows, labels, priors = rows[seen], labels[seen], [prior_of(prototypes)]
    expected = fit_prior_head(rows, labels, CLASSES, priors)
    head = fit_from_statistics(added_up(blocks(rows, labels), CLASSES, with_scatter=True), priors)
    assert any(gate.believed for gate in expected.gates)
    assert (head.kind, head.gates, head.grams) == (expected.kind, expected.gates, expected.grams)
    for name in ("weight", "bias", "temperature", "penalty"):
        np.testing.assert_allclose(getattr(head, name), getattr(expected, name), rtol=1e-6, atol=1e-9)
    for name, loss in expected.left_out_loss.items():
        np.testing.assert_allclose(head.left_out_loss[name], loss, rtol=1e-3, atol=1e-5)  # float32


def test_of_many_rows_all_are_fitted_and_some_are_left_out() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=KEPT_ROWS + 500)
    rows = np.eye(3, 6)[labels] + rng.standard_normal((len(labels), 6))
    statistics = added_up(blocks(rows, labels, size=4000), 3, with_scatter=True)
    places = kept_places(LabelledRows(rows, np.arange(len(rows)), labels))
    np.testing.assert_array_equal(statistics.kept, rows[places >= 0])
    head = fit_from_statistics(statistics, discriminates=False)
    assert {len(loss) for loss in head.left_out_loss.values()} == {len(statistics.kept)}
    assert len(statistics.kept) == pytest.approx(KEPT_ROWS, abs=100)
    space = RowSpace.from_rows(rows, np.ones(len(rows)))
    projected = Problem(space, labels, 3).projected_labels
    np.testing.assert_allclose(head.weight, space.ridge(projected, head.penalty, ClassBasis.identity()), rtol=1e-9)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((400, 4)), rng.integers(2, size=400)
    near, far = (added_up(blocks(rows + mean, labels), 2, with_scatter=True).scatter for mean in (0.0, 1e6))
    assert near is not None
    assert far is not None
    np.testing.assert_allclose(far, near, rtol=1e-7, atol=1e-6)


def test_a_file_holds_all_of_it() -> None:
    rows, labels, _, _, _ = world(2, seed=0)
    for with_scatter in (True, False):
        statistics = added_up(blocks(rows, labels), CLASSES, with_scatter=with_scatter)
        again = RowStatistics.from_bytes(statistics.to_bytes())
        assert (again.scatter is not None) == with_scatter
        for name, value in vars(statistics).items():
            np.testing.assert_array_equal(getattr(again, name), value)


def test_other_corpora_place_their_classes_by_sums_alone() -> None:
    rows, labels, _, _, _ = world(3, seed=0)
    values = rows.astype(np.float32)
    statistics = Summing(CLASSES, with_scatter=False, keeps_rows=False, is_unit=True, num_rows=len(rows)).add_up_rows(
        LabelledRows(values, np.arange(len(rows)), labels)
    )
    assert statistics.scatter is None
    assert len(statistics.kept) == 0
    prior, expected = (
        ClassPrior.from_sums("names", statistics.sums, statistics.counts),
        ClassPrior.from_rows("names", values.astype(np.float64), labels, CLASSES),
    )
    np.testing.assert_array_equal(prior.prototypes, expected.prototypes)
    np.testing.assert_array_equal(prior.covered, expected.covered)
