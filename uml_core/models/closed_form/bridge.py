"""Classes the target has no row of, reached over a bridge: rows of *other* classes, and texts of both.

In: prototypes of the bridge's classes in the target's space, and of its and the target's classes in a text corpus's.
Out: prototypes of the target's classes in its own space, predicted from their texts by a Gaussian process over classes
(kernel ridge), and a gate that says whether the map is any good: its leave-one-class-out R² must beat permuted names.
Derived in docs/method.md, Bridges.

Shape legend: B classes of the bridge, C classes of the target, D the target's width, E the text corpus's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np

from uml_core.models.closed_form.prior_gates import MIN_CLASSES, ORDERS, Gate
from uml_core.models.closed_form.prior_model import ClassPrior, Codes, unit_rows
from uml_core.models.closed_form.row_space import Array

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # λ of the map
SHARPNESS = 3.0  # of the kernel exp(SHARPNESS · (cosine − 1)), decided on DTD and UCF101 (docs/measured.md)


@dataclass(frozen=True)
class Bridge:
    """Labelled rows of other classes in the target's space, and what text corpora say of those classes."""

    name: str
    prototypes: ClassPrior  # (B, D)
    texts: Mapping[str, ClassPrior]  # by the text corpus's name (B, E)
    overlap: int = 0  # how many of its classes are named as one of the target's


@dataclass(frozen=True)
class BridgeGate(Gate):
    """Whether a map from texts to prototypes is believed."""

    r2: float = 0.0  # of the bridge's prototypes, each class left out of its own prediction
    overlap: int = 0  # of its classes with the target's, by name

    @property
    def reason(self) -> str:
        """The outcome in words."""
        overlap = f"; {self.overlap} of its classes are named as one of the target's" if self.overlap else ""
        return f"left-out classes are predicted with an R² of {self.r2:.2f}, and {super().reason}{overlap}"


class _Map(NamedTuple):
    gate: BridgeGate
    coefficients: Array  # (B', D): prototypes = kernel · coefficients


def over_bridges(priors: Sequence[ClassPrior], bridges: Sequence[Bridge]) -> tuple[list[ClassPrior], list[BridgeGate]]:
    """What bridges that are believed predict of the target's classes, as further priors; and every bridge's gate."""
    found = [predicted_prior(bridge, prior) for bridge in bridges for prior in priors if prior.name in bridge.texts]
    return [prior for gate, prior in found if gate.believed], [gate for gate, _ in found]


def predicted_prior(bridge: Bridge, text: ClassPrior) -> tuple[BridgeGate, ClassPrior]:
    """What a bridge says of the target's classes through one text corpus (C, D), and whether to believe it.

    No row of the target takes part: how well it serves them is asked as of any other prior.
    """
    name, described = bridge_name(bridge.name, text.name), bridge.texts[text.name]
    both_B = bridge.prototypes.covered & described.covered
    centre_E = described.prototypes[both_B].mean(axis=0)
    texts_BE = unit_rows(described.prototypes[both_B] - centre_E)
    fitted = _fit(name, bridge.prototypes.prototypes[both_B].tobytes(), texts_BE.tobytes(), len(texts_BE))
    predicted_CD = kernel(unit_rows(text.prototypes - centre_E), texts_BE) @ fitted.coefficients
    # A class far from the bridge's has a short prediction; at unit length it is not the last choice of every row.
    unit_CD = unit_rows(predicted_CD - predicted_CD[text.covered].mean(axis=0))
    prototypes_CD = np.where(text.covered[:, None], unit_CD, 0.0)
    prior = ClassPrior(name, prototypes_CD, text.covered, explained=min(max(fitted.gate.r2, 0.0), 1.0))
    return replace(fitted.gate, overlap=bridge.overlap), prior


def kernel(texts_AE: Array, others_BE: Array) -> Array:
    """How much alike unit texts are (A, B)."""
    likeness_AB: Array = np.exp(SHARPNESS * (texts_AE @ others_BE.T - 1.0))
    return likeness_AB


def bridge_name(bridge: str, text: str) -> str:
    """What a bridge's predictions are called among priors."""
    return f"{text} over {bridge}"


@functools.lru_cache(maxsize=8)  # the trials of a sweep share one bridge
def _fit(name: str, prototypes: bytes, texts: bytes, num_classes: int) -> _Map:
    """The map of one text corpus; true and permuted names have the same search over λ."""
    # float32: a thousand classes take half a second, and R² is asked for to two digits.
    arrays = [np.frombuffer(each).reshape(num_classes, -1).astype(np.float32) for each in (prototypes, texts)]
    prototypes_BD, texts_BE = cast("list[Array]", arrays)
    centred_BD = prototypes_BD - prototypes_BD.mean(axis=0)
    if num_classes < MIN_CLASSES:
        return _Map(BridgeGate(name, "bridge", believed=False, beaten=0, orders=0), centred_BD)
    rng = np.random.default_rng(num_classes)
    orders = [np.arange(num_classes), *(rng.permutation(num_classes) for _ in range(ORDERS))]
    inverses = solutions(kernel(texts_BE, texts_BE))
    r2_LO = left_out_r2(inverses, centred_BD @ centred_BD.T, orders)
    best_O = r2_LO.max(axis=0)
    beaten = int((best_O[0] > best_O[1:]).sum())
    believed = beaten == ORDERS and best_O[0] > 0
    gate = BridgeGate(name, "bridge", believed=bool(believed), beaten=beaten, orders=ORDERS, r2=float(best_O[0]))
    return _Map(gate, inverses[int(r2_LO[:, 0].argmax())] @ centred_BD)


def solutions(kernel_BB: Array) -> list[Array]:
    """At every λ the matrix P (B, B) of ridge with a free mean: coefficients = P targets, and a class left out of its
    own prediction misses by (P targets)_b / P_bb."""
    centred_BB = kernel_BB - kernel_BB.mean(axis=0)
    centred_BB -= centred_BB.mean(axis=1, keepdims=True)
    values_B, vectors_BB = np.linalg.eigh(centred_BB)
    values_B = np.maximum(values_B, 0.0)
    shared = 1.0 / len(kernel_BB)  # the projection on what all classes share, which the mean takes care of
    return [vectors_BB / (values_B + penalty) @ vectors_BB.T - shared / penalty for penalty in PENALTIES]


def left_out_r2(inverses: Sequence[Array], gram_BB: Array, orders: Sequence[Codes]) -> Array:
    """R² (L, O) of left-out classes at every λ, under every order of the names.

    The squared misses are a quadratic form in the prototypes' inner products, so an order costs B² and no solution.
    """
    num_classes = len(gram_BB)
    total = float(np.trace(gram_BB)) * (num_classes / (num_classes - 1)) ** 2  # what the other classes' mean misses
    weighted = [inverse_BB / np.diag(inverse_BB)[:, None] for inverse_BB in inverses]
    forms = [(weighted_BB.T @ weighted_BB).ravel() for weighted_BB in weighted]
    misses = []
    for order in orders:
        ordered = gram_BB[np.ix_(order, order)].ravel()
        misses.append([float(form @ ordered) for form in forms])
    r2_LO: Array = 1.0 - np.array(misses).T / total
    return r2_LO
