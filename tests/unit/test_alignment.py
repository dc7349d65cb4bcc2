"""Alignment measures against their definitions, written out naively with whole N × N matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from sklearn.cross_decomposition import CCA

from uml_core.analysis import alignment
from uml_core.analysis.alignment import cka, cknna, minibatch_cka, mutual_knn, nearest_neighbours, svcca

Array = np.ndarray
MEASURES: dict[str, Callable[[Array, Array], float]] = {
    "linear": cka,
    "linear unbiased": lambda x, y: cka(x, y, unbiased=True),
    "rbf": lambda x, y: cka(x, y, kernel="rbf"),
    "rbf unbiased": lambda x, y: cka(x, y, kernel="rbf", unbiased=True),
    "minibatch": lambda x, y: minibatch_cka(x, y, batch_rows=10),
    "mutual_knn": lambda x, y: mutual_knn(x, y, k=5),
    "cknna": lambda x, y: cknna(x, y, k=5),
    "svcca": lambda x, y: svcca(x, y, max_dim=3),
}


def related(n: int = 40, *, seed: int = 0, noise: float = 0.5) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 4))
    x, y = (latent @ rng.normal(size=(4, dim)) + noise * rng.normal(size=(n, dim)) for dim in (7, 9))
    return x + 3.0, y - 1.0


def linear_kernel(x: Array) -> Array:
    return x @ x.T


def rbf_kernel(x: Array) -> Array:
    distances = squareform(pdist(x))
    above = np.sort(distances[np.triu_indices(len(x), 1)])
    return np.exp(-(distances**2) / (2 * above[(len(above) - 1) // 2] ** 2))  # the lower median


def hsic_by_definition(k: Array, l: Array, *, unbiased: bool) -> float:  # noqa: E741
    n = len(k)
    if not unbiased:
        centring = np.eye(n) - np.ones((n, n)) / n
        return float(np.trace(k @ centring @ l @ centring))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    ones = np.ones(n)
    first, second = np.trace(k @ l), ones @ k @ ones * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((first + second - 2 / (n - 2) * ones @ k @ l @ ones) / (n * (n - 3)))


def cka_by_definition(k: Array, l: Array, *, unbiased: bool) -> float:  # noqa: E741
    cross, own_k, own_l = (hsic_by_definition(*pair, unbiased=unbiased) for pair in ((k, l), (k, k), (l, l)))
    return cross / float(np.sqrt(own_k * own_l))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("block_entries", [1, 130, 10**6])
def test_cka_is_its_definition_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, kernel: alignment.Kernel, unbiased: bool, block_entries: int
) -> None:
    monkeypatch.setattr(alignment, "BLOCK_ENTRIES", block_entries)
    x, y = related()
    gram = {"linear": linear_kernel, "rbf": rbf_kernel}[kernel]
    expected = cka_by_definition(gram(x), gram(y), unbiased=unbiased)
    assert cka(x, y, kernel=kernel, unbiased=unbiased) == pytest.approx(expected, rel=1e-9)
    in_float32 = cka(x.astype(np.float32), y.astype(np.float32), kernel=kernel, unbiased=unbiased)
    assert in_float32 == pytest.approx(expected, rel=1e-4)


def test_minibatch_cka_averages_the_unbiased_hsic_of_batches() -> None:
    x, y = related(23)
    order = np.random.default_rng(5).permutation(23)
    batches = [order[:10], order[10:20]]  # three rows are left over

    def average(left: Array, right: Array) -> float:
        parts = [(linear_kernel(left[rows]), linear_kernel(right[rows])) for rows in batches]
        return float(np.mean([hsic_by_definition(*kernels, unbiased=True) for kernels in parts]))

    expected = average(x, y) / np.sqrt(average(x, x) * average(y, y))
    assert minibatch_cka(x, y, batch_rows=10, seed=5) == pytest.approx(expected)
    assert minibatch_cka(x, y, batch_rows=100) == pytest.approx(cka(x, y, unbiased=True)), "one batch holds all"
    one_batch = minibatch_cka(x, y, kernel="rbf", batch_rows=100)
    assert one_batch == pytest.approx(cka(x, y, kernel="rbf", unbiased=True))


def neighbours_by_definition(x: Array, k: int) -> list[set[int]]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = unit @ unit.T
    return [
        set(sorted((j for j in range(len(x)) if j != i), key=lambda j: -similarity[i, j])[:k]) for i in range(len(x))
    ]


@pytest.mark.parametrize("block_entries", [1, 10**6])
def test_mutual_knn_and_cknna_are_their_definitions(monkeypatch: pytest.MonkeyPatch, block_entries: int) -> None:
    monkeypatch.setattr(alignment, "BLOCK_ENTRIES", block_entries)
    x, y = related(30)
    k = 6
    near_x, near_y = neighbours_by_definition(x, k), neighbours_by_definition(y, k)
    assert [set(row) for row in nearest_neighbours(x, k).tolist()] == near_x
    shares = [len(a & b) / k for a, b in zip(near_x, near_y, strict=True)]
    assert mutual_knn(x, y, k=k) == pytest.approx(np.mean(shares))

    def align(left: Array, right: Array, near_left: list[set[int]], near_right: list[set[int]]) -> float:
        kernels = []
        for side in (left, right):
            unit = side / np.linalg.norm(side, axis=1, keepdims=True)
            kernel = unit @ unit.T
            kernels.append(kernel - kernel.mean(axis=1, keepdims=True))
        return float(sum(kernels[0][i, j] * kernels[1][i, j] for i in range(30) for j in near_left[i] & near_right[i]))

    expected = align(x, y, near_x, near_y) / np.sqrt(align(x, x, near_x, near_x) * align(y, y, near_y, near_y))
    assert cknna(x, y, k=k) == pytest.approx(expected)


def test_svcca_is_cca_where_nothing_is_cut() -> None:
    x, y = related(200)
    left, right = CCA(n_components=7, max_iter=5000, tol=1e-10).fit_transform(x, y)
    correlations = [np.corrcoef(left[:, index], right[:, index])[0, 1] for index in range(7)]
    assert svcca(x, y, variance=1.0) == pytest.approx(np.mean(correlations), abs=2e-3)


def test_svcca_keeps_the_directions_that_hold_the_variance() -> None:
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(300, 2))
    x = np.hstack([10 * latent, 0.1 * rng.normal(size=(300, 3))])
    y = np.hstack([10 * latent, 0.1 * rng.normal(size=(300, 3))])
    assert svcca(x, y) == pytest.approx(1.0, abs=1e-3), "99 % of the variance is the shared part"
    assert svcca(x, y, variance=1.0) < 0.6, "the noise directions do not correlate"


@pytest.mark.parametrize("name", MEASURES)
def test_equal_representations_score_one_up_to_rotation_and_scale(name: str) -> None:
    x, _ = related()
    x = x - x.mean(axis=0)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))[0]
    assert MEASURES[name](x, 2.5 * x @ rotation) == pytest.approx(1.0)


@pytest.mark.parametrize("name", MEASURES)
def test_related_rows_score_above_permuted_rows(name: str) -> None:
    x, y = related(noise=0.1)
    permuted = [MEASURES[name](x, np.random.default_rng(seed).permutation(y)) for seed in range(20)]
    assert MEASURES[name](x, y) > max(permuted)


@given(st.integers(0, 1000))
def test_measures_are_symmetric(seed: int) -> None:
    x, y = related(20, seed=seed)
    for name in ("linear", "linear unbiased", "rbf", "mutual_knn", "cknna", "svcca"):
        assert MEASURES[name](x, y) == pytest.approx(MEASURES[name](y, x), rel=1e-6)


def test_unbiased_cka_of_independent_rows_is_about_zero_where_the_biased_is_not() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 400)), rng.normal(size=(50, 400))
    assert cka(x, y) > 0.8
    assert abs(cka(x, y, unbiased=True)) < 0.1


def test_what_cannot_be_measured() -> None:
    x, y = related()
    with pytest.raises(ValueError, match="40 and 39 rows"):
        cka(x, y[1:])
    with pytest.raises(ValueError, match="expected at least 4"):
        cka(x[:3], y[:3], unbiased=True)
    with pytest.raises(ValueError, match="batch_rows is 3"):
        minibatch_cka(x, y, batch_rows=3)
    with pytest.raises(ValueError, match="k is 40; expected 1 to 39"):
        mutual_knn(x, y, k=40)
    assert np.isnan(cka(x, np.ones((40, 2)))), "one side does not vary"
    assert np.isnan(svcca(x, np.ones((40, 2))))
