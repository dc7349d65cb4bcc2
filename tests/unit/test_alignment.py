"""Alignment measures against their definitions, written out naively with whole N × N matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml_core.analysis.alignment import cka, mutual_knn

Array = np.ndarray
MEASURES: dict[str, Callable[[Array, Array], float]] = {"cka": cka, "mutual_knn": lambda x, y: mutual_knn(x, y, k=5)}


def related(n: int = 40, *, seed: int = 0, noise: float = 0.5) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 4))
    x, y = (latent @ rng.normal(size=(4, dim)) + noise * rng.normal(size=(n, dim)) for dim in (7, 9))
    return x + 3.0, y - 1.0


def hsic_by_definition(x: Array, y: Array) -> float:
    n, ones = len(x), np.ones(len(x))
    kernels = []
    for side in (x, y):
        kernel = (side - side.mean(axis=0)) @ (side - side.mean(axis=0)).T
        kernels.append(kernel - np.diag(np.diag(kernel)))
    k, l = kernels  # noqa: E741
    first, second = np.trace(k @ l), ones @ k @ ones * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((first + second - 2 / (n - 2) * ones @ k @ l @ ones) / (n * (n - 3)))


def test_cka_is_its_definition() -> None:
    x, y = related()
    expected = hsic_by_definition(x, y) / np.sqrt(hsic_by_definition(x, x) * hsic_by_definition(y, y))
    assert cka(x, y) == pytest.approx(expected, rel=1e-9)
    assert cka(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(expected, rel=1e-4)


def neighbours_by_definition(x: Array, k: int) -> list[set[int]]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = unit @ unit.T
    return [
        set(sorted((j for j in range(len(x)) if j != i), key=lambda j: -similarity[i, j])[:k]) for i in range(len(x))
    ]


def test_mutual_knn_is_its_definition() -> None:
    x, y = related(30)
    near_x, near_y = neighbours_by_definition(x, 6), neighbours_by_definition(y, 6)
    shares = [len(a & b) / 6 for a, b in zip(near_x, near_y, strict=True)]
    assert mutual_knn(x, y, k=6) == pytest.approx(np.mean(shares))


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
    for measure in MEASURES.values():
        assert measure(x, y) == pytest.approx(measure(y, x), rel=1e-6)


def test_cka_of_independent_rows_is_about_zero_even_where_there_are_few() -> None:
    rng = np.random.default_rng(0)
    assert abs(cka(rng.normal(size=(50, 400)), rng.normal(size=(50, 400)))) < 0.1


def test_what_cannot_be_measured() -> None:
    x, y = related()
    with pytest.raises(ValueError, match="40 and 39 rows"):
        cka(x, y[1:])
    with pytest.raises(ValueError, match="expected as many, at least 4"):
        cka(x[:3], y[:3])
    with pytest.raises(ValueError, match="with k 40; expected as many, and k below their number"):
        mutual_knn(x, y, k=40)
    assert np.isnan(cka(x, np.ones((40, 2)))), "one side does not vary"
