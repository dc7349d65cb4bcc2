"""The discriminant against the dense solution and brute-force refits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tests.unit.test_prior_head import CLASSES, gram_basis, rows_of
from uml_core.models.closed_form.discriminant import Discriminant, prior_of_rows
from uml_core.models.closed_form.discriminant_search import Mixture, Untrained
from uml_core.models.closed_form.prior_head import fit_prior_head
from uml_core.models.closed_form.prior_model import Mean, Problem, unit_rows
from uml_core.models.closed_form.row_space import Array, RowSpace

RNG = np.random.default_rng


def discriminant_of(rows: Array, labels: np.ndarray, weights: Array) -> Discriminant:
    return Discriminant(Problem(RowSpace.from_rows(rows, weights), labels, CLASSES))


def test_without_priors_and_penalty_it_is_the_linear_discriminant() -> None:
    labels = np.repeat(np.arange(CLASSES), 40)
    rows = RNG(0).standard_normal((len(labels), 7)) + 2.0 * RNG(1).standard_normal((CLASSES, 7))[labels]
    ours = discriminant_of(rows, labels, np.ones(len(rows)))
    vars(ours)["spread"] = 1e9
    weight, bias = ours.fit(1e-9).head()
    theirs = LinearDiscriminantAnalysis(
        solver="lsqr",
    ).fit(rows, labels)
    logits, expected = len(rows) * (rows @ weight + bias), theirs.decision_function(rows)
    np.testing.assert_allclose(*(each - each[:, :1] for each in (logits, expected)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [7, 30])
def test_left_out_rows_are_those_of_a_refit(dim: int, weighted: bool) -> None:
    """The whole is the head's logits; without a row, the means' smoother and the origin stay."""
    rows, labels, weights = rows_of(24, dim)
    weights = weights if weighted else np.ones(len(rows))
    ours = discriminant_of(rows, labels, weights)
    problem, fitted = ours.problem, ours.fit(0.4, gram_basis()[1])
    centred = rows - problem.space.mean

    def refit(kept: Array, row: Array) -> Array:
        means = np.stack([kept[labels == c] @ centred[labels == c] / kept[labels == c].sum() for c in range(CLASSES)])
        within = centred - means[labels]
        scatter = within.T @ (kept[:, None] * within) + 0.4 * problem.space.scale * np.eye(dim)
        expected = fitted.smoother @ means
        weight = np.linalg.solve(scatter, expected.T)
        return np.asarray(row @ weight - 0.5 * np.einsum("cd,dc->c", expected, weight))

    weight, bias = fitted.head()
    np.testing.assert_allclose(rows @ weight + bias, [refit(weights, row) for row in centred], atol=1e-9)
    everyone = np.arange(len(rows))
    refits = [refit(weights - np.eye(len(rows))[row], centred[row]) for row in everyone]
    np.testing.assert_allclose(fitted.left_out_logits(problem.left_rows(everyone)), refits, atol=1e-9)


def test_the_spread_of_class_means_is_found_again() -> None:
    rng = RNG(0)
    labels = np.repeat(np.arange(CLASSES), 400)
    found = []
    for _ in range(40):
        means = np.sqrt(0.5) * rng.standard_normal((CLASSES, 30))
        rows = means[labels] + rng.standard_normal((len(labels), 30))
        found.append(discriminant_of(rows, labels, np.ones(len(rows))).spread)
    assert np.mean(found) == pytest.approx(0.5, rel=0.05)


def test_the_penalty_is_that_of_oracle_approximating_shrinkage() -> None:
    rows, labels, _ = rows_of(40, 12)
    ours = discriminant_of(rows, labels, np.ones(len(rows)))
    within = rows - np.stack([rows[labels == c].mean(axis=0) for c in range(CLASSES)])[labels]
    count, dim = len(rows) - CLASSES, 12
    # scikit-learn divides by the rows: as many as there are degrees of freedom, with the same scatter.
    values, axes = np.linalg.eigh(within.T @ within)
    _, share = oas(np.vstack([np.sqrt(values)[:, None] * axes.T, np.zeros((count - dim, dim))]), assume_centered=True)
    expected = share / (1 - share) * values.sum() / dim / ours.problem.space.scale
    assert ours.oracle_penalty == pytest.approx(expected)


def test_a_mean_alone_is_the_zero_shot_head() -> None:
    rows, labels, weights = rows_of(40)
    discriminant = discriminant_of(rows, labels, weights)
    problem, prototypes = discriminant.problem, unit_rows(RNG(1).standard_normal((CLASSES, 7)))
    mean = Mean.of_prototypes("text", (prototypes - prototypes.mean(axis=0)).T, 1.0, problem.space)
    mixture = Mixture(discriminant.fit(1.0), 2.0).with_mean(Untrained(problem.with_means([mean])), 1.0, 0.5)
    weight, bias = mixture.head()
    new = RNG(2).standard_normal((200, 7))
    np.testing.assert_array_equal((new @ weight + bias).argmax(axis=1), (new @ prototypes.T).argmax(axis=1))
    assert [factor for _, factor in mixture.parts] == [2.0]


def test_left_out_logits_of_a_mixture_are_those_of_its_parts() -> None:
    rows, labels, weights = rows_of(40)
    discriminant = discriminant_of(rows, labels, weights)
    problem, fitted = discriminant.problem, discriminant.fit(1.0)
    mean = Mean.of_rows("text", RNG(1).standard_normal((7, CLASSES)), RNG(2).standard_normal(CLASSES), problem.space)
    mixture = Mixture(fitted, 2.0).with_mean(Untrained(problem.with_means([mean])), 0.25, 0.5)
    left = problem.left_rows(np.arange(len(rows)))
    untrained = (rows - problem.space.mean) @ mean.head + mean.bias
    expected = 1.5 * fitted.left_out_logits(left) + 0.5 * untrained
    np.testing.assert_allclose(mixture.left_out_logits(left), expected, atol=1e-9)


@pytest.mark.parametrize("shots", [2, 8])
def test_it_does_not_hide_classes_behind_others(shots: int) -> None:
    """Many classes in few dimensions, where ridge does."""
    rng = RNG(0)
    means, labels, truth = rng.standard_normal((30, 4)), np.repeat(np.arange(30), shots), np.repeat(np.arange(30), 20)
    rows, new = (means[each] + 0.15 * rng.standard_normal((len(each), 4)) for each in (labels, truth))
    ours, ridge = (fit_prior_head(rows, labels, 30, discriminates=each) for each in (True, False))
    right = [(head.logits(new).argmax(axis=1) == truth).mean() for head in (ours, ridge)]
    assert (ours.kind, ridge.kind) == ("discriminant", "ridge")
    assert right[0] > right[1] + 0.1


def test_a_corpus_of_the_same_width_lends_a_head_that_was_trained_on_its_rows() -> None:
    """Prototypes lie along directions in which its rows differ most within classes; those of the target do as well."""
    rng = RNG(3)
    stretch = np.linspace(3.0, 0.3, 40)
    means = rng.standard_normal((20, 40)) * stretch**0.5
    few, many, truth = np.arange(20), np.repeat(np.arange(20), 40), np.repeat(np.arange(20), 20)
    rows, others, new = (means[each] + rng.standard_normal((len(each), 40)) * stretch for each in (few, many, truth))
    with_heads = prior_of_rows("other", others, many, 20, dim=40)
    assert not prior_of_rows("other", others, many, 20, dim=39).trained
    priors = (with_heads, replace(with_heads, trained=()))
    right = [(fit_prior_head(rows, few, 20, [each]).logits(new).argmax(axis=1) == truth).mean() for each in priors]
    assert right[0] > right[1] + 0.05


@pytest.mark.parametrize("within", [0.0, 1e-9])
@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_rows_that_hardly_differ_give_finite_probabilities(within: float, apart: float) -> None:
    labels = np.repeat(np.arange(6), 4)
    rows = 1.0 + apart * RNG(0).standard_normal((6, 10))[labels] + within * RNG(1).standard_normal((24, 10))
    assert np.isfinite(fit_prior_head(rows, labels, 6).probabilities(rows)).all()


def test_where_rows_say_nothing_the_shares_of_the_classes_do() -> None:
    labels = np.repeat(np.arange(CLASSES), [80, 20, 20, 20, 20])
    head = fit_prior_head(RNG(0).standard_normal((160, 12)), labels, CLASSES)
    shares = head.probabilities(RNG(1).standard_normal((400, 12))).mean(axis=0)
    np.testing.assert_allclose(shares, np.bincount(labels) / 160, atol=0.08)
