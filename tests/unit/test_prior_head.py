"""The head in closed form against sklearn, brute-force refits and the dense solution; its gate against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from uml_core.models.closed_form.prior_baselines import logistic_head, zero_shot_head
from uml_core.models.closed_form.prior_gates import ORDERS
from uml_core.models.closed_form.prior_head import fit_prior_head
from uml_core.models.closed_form.prior_model import ClassPrior, Mean, Point, Problem, unit_rows
from uml_core.models.closed_form.row_space import Array, ClassBasis, RowSpace
from uml_core.models.closed_form.temperature import fit_temperature, losses

CLASSES, DIM = 5, 7
RNG = np.random.default_rng


def rows_of(num_rows: int, dim: int = DIM, seed: int = 0) -> tuple[Array, np.ndarray, Array]:
    """Rows, labels with every class twice or more, and uneven whole weights."""
    rng = RNG(seed)
    labels = np.concatenate([np.tile(np.arange(CLASSES), 2), rng.integers(CLASSES, size=num_rows - 2 * CLASSES)])
    return rng.standard_normal((num_rows, dim)) + 1.5, labels, rng.integers(1, 4, size=num_rows).astype(float)


def gram_basis(share: float = 0.6, seed: int = 3) -> tuple[ClassBasis, Array]:
    prototypes = unit_rows(RNG(seed).standard_normal((CLASSES, 3)))
    covariance = share * prototypes @ prototypes.T + (1 - share) * np.eye(CLASSES)
    return ClassBasis.from_covariance(covariance), covariance


def problem_of(rows: Array, labels: np.ndarray, weights: Array, *, with_mean: bool) -> Problem:
    space, head = RowSpace.from_rows(rows, weights), RNG(8).standard_normal((rows.shape[1], CLASSES))
    mean = Mean.of_prototypes("text", head - head.mean(axis=1, keepdims=True), 0.7, space)
    return Problem(space, labels, CLASSES, (mean,) if with_mean else ())


@pytest.mark.parametrize("num_rows", [12, 40])  # fewer rows than columns twice over, and more
@pytest.mark.parametrize("dim", [7, 30])
def test_without_an_auxiliary_it_is_ridge(num_rows: int, dim: int) -> None:
    rows, labels, weights = rows_of(num_rows, dim)
    problem = problem_of(rows, labels, weights, with_mean=False)
    weight, bias = problem.head(Point(0.3))
    expected = Ridge(alpha=0.3 * problem.space.scale).fit(rows, np.eye(CLASSES)[labels], sample_weight=weights)
    np.testing.assert_allclose(weight, expected.coef_.T, atol=1e-8)
    np.testing.assert_allclose(bias, expected.intercept_, atol=1e-8)


def test_without_training_it_is_the_zero_shot_head() -> None:
    rows, labels, weights = rows_of(40)
    prototypes = unit_rows(RNG(1).standard_normal((CLASSES, DIM)))
    head = (prototypes - prototypes.mean(axis=0)).T
    problem = problem_of(rows, labels, weights, with_mean=False)
    problem = problem.with_means([Mean.of_prototypes("text", head, 1.0, problem.space)])
    weight, bias = problem.head(Point(math.inf, scales=(0.2,)))
    new = RNG(2).standard_normal((200, DIM))
    np.testing.assert_array_equal((new @ weight + bias).argmax(axis=1), (new @ prototypes.T).argmax(axis=1))


def test_much_shrinkage_comes_to_the_zero_shot_head() -> None:
    rows, labels, weights = rows_of(40)
    problem = problem_of(rows, labels, weights, with_mean=True)
    near, limit = problem.head(Point(1e9, scales=(2.0,))), problem.head(Point(math.inf, scales=(2.0,)))
    np.testing.assert_allclose(near[0], limit[0], atol=1e-6)


@pytest.mark.parametrize("num_rows", [12, 40])
def test_two_eigendecompositions_are_the_dense_solution(num_rows: int) -> None:
    rows, labels, weights = rows_of(num_rows, dim=4)
    problem = problem_of(rows, labels, weights, with_mean=True)
    basis, covariance = gram_basis()
    weight, _ = problem.head(Point(0.4, basis, (0.5,), 0.6))
    centred, mean = rows - weights @ rows / weights.sum(), problem.means[0].head
    targets = np.eye(CLASSES)[labels] - problem.class_share - 0.5 * centred @ mean
    # One vector of all weights: (K⁻¹ ⊗ λI + I ⊗ XᵀSX) vec(R) = vec(XᵀST), on classes less their mean.
    project = np.eye(CLASSES) - 1 / CLASSES
    inverse = np.linalg.pinv(project @ covariance @ project)
    left = np.kron(inverse, 0.4 * problem.space.scale * np.eye(4))
    left += np.kron(np.eye(CLASSES), centred.T @ (weights[:, None] * centred))
    right = (centred.T @ (weights[:, None] * targets)).T.ravel()
    dense = np.linalg.solve(left, right).reshape(CLASSES, 4).T @ project
    np.testing.assert_allclose(weight - 0.5 * mean, dense, atol=1e-8)


@pytest.mark.parametrize("with_mean", [False, True])
@pytest.mark.parametrize("with_gram", [False, True])
@pytest.mark.parametrize("dim", [7, 30])
def test_left_out_rows_are_those_of_a_refit(with_mean: bool, with_gram: bool, dim: int) -> None:
    """A copy of a row less, and its class's other rows answer for it; penalty, scales and offset stay."""
    rows, labels, weights = rows_of(24, dim)
    problem = problem_of(rows, labels, weights, with_mean=with_mean)
    classes = gram_basis()[0] if with_gram else ClassBasis.identity()
    scales = (0.4,) if with_mean else ()
    point = Point(0.5, classes, scales, 0.6 if with_gram else 0.0)
    everyone = np.arange(len(rows))
    ours = problem.left_out_logits(point, problem.left_rows(everyone))
    for row in everyone:
        less = weights.copy()
        less[row] -= 1
        kept = less > 0
        targets = np.eye(CLASSES)[labels]
        own = labels == labels[row]
        targets[own] *= problem.mass[labels[row]] / (problem.mass[labels[row]] - 1)
        expected = _refit(problem, point, (rows[kept], targets[kept], less[kept]), rows[row])
        np.testing.assert_allclose(ours[row], expected, atol=1e-8)


def _refit(problem: Problem, point: Point, data: tuple[Array, Array, Array], row: Array) -> Array:
    rows, targets, weights = data
    mean = weights @ rows / weights.sum()
    head = sum(
        (scale * each.head for scale, each in zip(point.scales, problem.means, strict=True)),
        np.zeros((len(row), CLASSES)),
    )
    residual = targets - (rows - problem.space.mean) @ head
    average = weights @ residual / weights.sum()
    centred, rotated = rows - mean, point.classes.rotate(residual - average)
    values = np.broadcast_to(point.classes.values, (rotated.shape[1],))
    penalty = point.penalty * problem.space.scale
    gram = centred.T @ (weights[:, None] * centred)
    columns = [
        np.linalg.solve(gram + penalty / value * np.eye(len(row)), centred.T @ (weights * column))
        if value > 1e-12
        else np.zeros(len(row))
        for value, column in zip(values, rotated.T, strict=True)
    ]
    learned = point.classes.rotate_back((row - mean) @ np.stack(columns, axis=1))
    if point.classes.vectors is not None:  # what all classes share was projected out of the average as well
        project = np.eye(CLASSES) - 1 / CLASSES
        average = (average - problem.class_share) @ project + problem.class_share
    offset = problem.offset(point)
    own = learned + average + (row - problem.space.mean) @ head + offset
    return np.asarray(own)


def test_a_weight_is_a_repeated_row() -> None:
    rows, labels, weights = rows_of(30)
    counts = weights.astype(int)
    weighted = fit_prior_head(rows, labels, CLASSES, weights=weights)
    repeated = fit_prior_head(np.repeat(rows, counts, axis=0), np.repeat(labels, counts), CLASSES)
    np.testing.assert_allclose(weighted.weight, repeated.weight, atol=1e-8)
    assert weighted.temperature == pytest.approx(repeated.temperature, rel=1e-6)


def test_the_temperature_is_the_best() -> None:
    logits, labels = RNG(0).standard_normal((200, CLASSES)), RNG(1).integers(CLASSES, size=200)
    logits[np.arange(200), labels] += 1.0
    temperature, loss = fit_temperature(logits, labels, np.ones(200))
    tried = [losses(logits, labels, temperature * factor).mean() for factor in (0.9, 1.0, 1.1)]
    assert tried[1] == min(tried)
    assert loss == pytest.approx(tried[1], abs=1e-6)


def world(
    shots: int, seed: int, *, num_classes: int = 30, dim: int = 60, noise: float = 2.0
) -> tuple[Array, np.ndarray, Array, Array, np.ndarray]:
    """Labelled rows, prototypes in the same space that are close to the classes' means, and test rows."""
    rng = RNG(seed)
    means = rng.standard_normal((num_classes, dim))
    labels, test = np.repeat(np.arange(num_classes), shots), np.repeat(np.arange(num_classes), 20)
    prototypes = unit_rows(means + rng.standard_normal((num_classes, dim)))
    rows = means[labels] + noise * rng.standard_normal((len(labels), dim))
    return rows, labels, prototypes, means[test] + noise * rng.standard_normal((len(test), dim)), test


def prior_of(prototypes: Array) -> ClassPrior:
    return ClassPrior("text", prototypes, np.ones(len(prototypes), dtype=bool))


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_aligned_prototypes_help(shots: int) -> None:
    rows, labels, prototypes, new, truth = world(shots, seed=0)
    alone, ours = (fit_prior_head(rows, labels, 30, priors) for priors in ([], [prior_of(prototypes)]))
    accuracy = {
        name: (head.logits(new).argmax(axis=1) == truth).mean() for name, head in (("alone", alone), ("ours", ours))
    }
    zero_shot = ((new @ prototypes.T).argmax(axis=1) == truth).mean()
    assert [gate.believed for gate in ours.gates if gate.role == "mean"] == [True]
    assert accuracy["ours"] > max(accuracy["alone"], zero_shot)


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_prototypes_that_are_right_for_a_third_of_the_classes_cost_nothing(shots: int) -> None:
    gains = []
    for seed in range(5):
        rows, labels, prototypes, new, truth = world(shots, seed, noise=1.2)
        prototypes[10:] = np.roll(prototypes[10:], 1, axis=0)
        alone, ours = (fit_prior_head(rows, labels, 30, priors) for priors in ([], [prior_of(prototypes)]))
        assert ours.gates[0].believed, "true names beat permuted ones all the same"
        hits = [(head.logits(new).argmax(axis=1) == truth).mean() for head in (ours, alone)]
        gains.append(hits[0] - hits[1])
    assert np.mean(gains) > -0.01


@pytest.mark.parametrize("shots", [1, 4])
def test_similarities_of_classes_are_believed_in_any_width(shots: int) -> None:
    rng = RNG(5)
    groups = rng.standard_normal((6, 60))[np.repeat(np.arange(6), 5)] * 1.5
    labels = np.repeat(np.arange(30), shots)
    rows = (groups + rng.standard_normal((30, 60)))[labels] + 2 * rng.standard_normal((len(labels), 60))
    names = unit_rows(groups[:, :20] + 0.3 * rng.standard_normal((30, 20)))
    head = fit_prior_head(rows, labels, 30, [prior_of(names)])
    assert [(gate.role, gate.believed) for gate in head.gates] == [("gram", True)]
    assert head.grams == ("text",)
    assert head.kind == "prior"


def test_shuffled_names_and_noise_are_not_believed() -> None:
    believed = 0
    for seed in range(20):
        rows, labels, prototypes, _, _ = world(2, seed)
        shuffled = RNG(seed).permutation(prototypes)
        noise = unit_rows(RNG(seed).standard_normal((30, 12)))
        for each in (shuffled, noise):
            head = fit_prior_head(rows, labels, 30, [prior_of(each)])
            believed += sum(gate.believed for gate in head.gates)
            if not any(gate.believed for gate in head.gates):
                np.testing.assert_array_equal(head.weight, fit_prior_head(rows, labels, 30).weight)
    assert believed <= 6  # of 60 gates, each open by chance 1 time in 40: 6 and fewer in 99.9 % of such tests


def test_few_classes_cannot_be_told_from_permuted_ones() -> None:
    rows, labels, _ = rows_of(40)
    few = labels < 3
    head = fit_prior_head(rows[few], labels[few], 3, [prior_of(np.eye(3, DIM))])
    assert head.kind == "discriminant"
    assert all(gate.orders < ORDERS for gate in head.gates)
    assert "fewer than" in head.gates[0].reason


def test_classes_without_rows_are_found_by_their_prototypes() -> None:
    rows, labels, prototypes, new, truth = world(4, seed=1)
    seen, unseen = labels < 25, truth >= 25
    head = fit_prior_head(rows[seen], labels[seen], 30, [prior_of(prototypes)])
    among_unseen = head.logits(new[unseen])[:, 25:].argmax(axis=1) + 25
    assert (among_unseen == truth[unseen]).mean() > 0.7
    found = head.logits(new).argmax(axis=1) == truth
    assert min(found[unseen].mean(), found[~unseen].mean()) > 0.5
    shuffled = fit_prior_head(rows[seen], labels[seen], 30, [prior_of(RNG(0).permutation(prototypes))])
    assert np.isfinite(shuffled.logits(new)).all()


def test_several_corpora_add_up() -> None:
    rows, labels, prototypes, new, truth = world(2, seed=2)
    other = unit_rows(prototypes + 0.1 * RNG(9).standard_normal(prototypes.shape))
    both = [ClassPrior(name, each, np.ones(30, dtype=bool)) for name, each in (("text", prototypes), ("sound", other))]
    head = fit_prior_head(rows, labels, 30, both)
    assert head.scales
    assert set(head.scales) <= {"text", "sound"}, "the second says of the classes what the first does"
    assert (head.logits(new).argmax(axis=1) == truth).mean() > (
        fit_prior_head(rows, labels, 30).logits(new).argmax(axis=1) == truth
    ).mean()


@pytest.mark.parametrize(("shots", "tolerance"), [(1, 0.15), (4, 0.1)])
def test_probabilities_are_calibrated(shots: int, tolerance: float) -> None:
    rows, labels, prototypes, new, truth = world(shots, seed=3)
    head = fit_prior_head(rows, labels, 30, [prior_of(prototypes)])
    probabilities = head.probabilities(new)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert probabilities.max(axis=1).mean() == pytest.approx(
        (probabilities.argmax(axis=1) == truth).mean(), abs=tolerance
    )


def test_baselines_without_a_prior_or_without_training() -> None:
    rows, labels, prototypes, new, truth = world(4, seed=3)
    weight, bias = logistic_head(rows, labels, 30)
    ridge = (fit_prior_head(rows, labels, 30).logits(new).argmax(axis=1) == truth).mean()
    assert ((new @ weight + bias).argmax(axis=1) == truth).mean() == pytest.approx(ridge, abs=0.08)
    weight, bias = zero_shot_head(prior_of(prototypes))
    np.testing.assert_array_equal((new @ weight + bias).argmax(axis=1), (new @ prototypes.T).argmax(axis=1))
    two = labels < 2
    weight, bias = logistic_head(rows[two], labels[two], 3)
    assert ((rows[two] @ weight + bias).argmax(axis=1) == labels[two]).all()
