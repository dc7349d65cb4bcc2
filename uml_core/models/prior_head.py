"""A linear head in closed form, whose prior the auxiliary corpora write: no gradient, no validation rows.

In: labelled rows of the target, and `ClassPrior`s of other corpora. Out: a `PriorHead`: one matrix, its temperature,
which corpora were believed and why. Ridge and the zero-shot head are two of its corners, so it is at worst one of them
as far as the labelled rows can tell. Derived in docs/method.md, A head whose prior the auxiliary corpora write.

    names = ClassPrior.from_rows("names", text_embeddings, text_labels, num_classes)
    head = fit_prior_head(embeddings, labels, num_classes, [names])
    head.probabilities(other_embeddings)

Shape legend: N rows, D embedding width, C classes, S classes that have rows, R rank of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.special import softmax

from uml_core.models.prior_gates import Gate, SeenClasses
from uml_core.models.prior_model import (
    MAX_LEFT_OUT,
    ClassPrior,
    Codes,
    Mean,
    Point,
    Problem,
)
from uml_core.models.prior_unseen import Extension
from uml_core.models.row_space import Array, ClassBasis, RowSpace
from uml_core.models.temperature import fit_temperature, losses

Kind = Literal["ridge", "prior", "zero_shot"]

SEARCH_TOLERANCE = 0.1  # of a temperature's logarithm
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # λ, refined by half a decade
LARGEST_PENALTY = 1000.0  # what is beyond counts as that
SHARES = (0.3, 0.6)  # of Gram matrices in the covariance over classes
# Where no class has two rows the share grows with the correlation of similarities beyond the first number.
FIRST_CORRELATION, FIRST_SHARE_PER_CORRELATION, FIRST_SHARE = 0.06, 5.0, 0.8
BIAS_SHARES = np.linspace(0.0, 1.2, 7)
BIAS_SPREAD = 0.3  # of the prior on β around raw geometry

FIRST_MEDIAN = 1.5  # of ridge's λ at one row a class, before any row is left out
PENALTY_SPREAD = 0.7  # of λ's logarithm around its median
TRUST = 0.25  # in the likelihood of left-out labels, which asks for more shrinkage than accuracy does
STEPS = 10 ** np.linspace(-1, 1, 5)  # of λ around its median, where there are means
LEAST_UNEXPLAINED = 0.01  # of the labels' entropy, however well the means do
VOICE = 0.5  # of a mean beside ridge; 1 would take the errors of both as independent


@dataclass(frozen=True)
class PriorHead:
    """A fitted head: logits (N, C) = rows weight + bias, probabilities = softmax(logits / temperature)."""

    weight: Array  # (D, C)
    bias: Array  # (C,)
    temperature: float
    kind: Kind
    penalty: float  # λ in units of a row's mean squared length; inf: nothing was trained
    share: float  # of Gram matrices in the covariance over classes
    scales: dict[str, float]  # of each corpus's mean that takes part
    grams: tuple[str, ...]  # corpora whose Gram matrix takes part
    gates: tuple[Gate, ...]
    evidence: dict[str, float]  # log marginal likelihood per class, of "ridge" and "prior"
    # Of each row (N,), by head: "ridge", "prior", "zero_shot"; empty at one row a class.
    left_out_loss: dict[str, Array]
    left_out_correct: dict[str, Array]  # likewise, 0 or 1

    def logits(self, rows: Array) -> Array:
        """Logits (N, C), the temperature left out."""
        logits_NC: Array = rows @ self.weight + self.bias
        return logits_NC

    def probabilities(self, rows: Array) -> Array:
        """Calibrated class probabilities (N, C)."""
        probabilities_NC: Array = softmax(self.logits(rows) / self.temperature, axis=1)
        return probabilities_NC


def fit_prior_head(
    rows: Array,
    labels: Codes,
    num_classes: int,
    priors: Sequence[ClassPrior] = (),
    *,
    weights: Array | None = None,
) -> PriorHead:
    """Fit the head, every scale chosen by the labelled rows themselves.

    Args:
        rows: embeddings (N, D), as the encoder gives them or at unit length; rows of weight 0 count as absent.
        labels: codes (N,) in [0, num_classes); classes without rows get what the priors say of them.
        num_classes: C.
        priors: of auxiliary corpora. One of width D offers its prototypes as a mean, any one its Gram matrix.
        weights: how often each row counts (N,); once by default.
    """
    weights_N = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    present = weights_N > 0
    rows_ND, labels_N = np.asarray(rows, dtype=np.float64)[present], labels[present]
    space = RowSpace.from_rows(rows_ND, weights_N[present])
    seen, codes_N = np.unique(labels_N, return_inverse=True)
    if len(seen) == 1:
        return _constant(rows_ND.shape[1], num_classes, int(seen[0]))
    return _Search(SeenClasses(Problem(space, codes_N, len(seen)), seen, num_classes), tuple(priors)).run()


def _constant(dim: int, num_classes: int, code: int) -> PriorHead:
    """The head that always says the only class there are rows of."""
    bias_C = np.eye(num_classes)[code]
    return PriorHead(np.zeros((dim, num_classes)), bias_C, 1.0, "ridge", math.inf, 0.0, {}, (), (), {}, {}, {})


@dataclass(frozen=True)
class _Search:
    classes: SeenClasses
    priors: tuple[ClassPrior, ...]

    @property
    def problem(self) -> Problem:
        return self.classes.problem

    def run(self) -> PriorHead:
        ridge = self._best_penalty()
        gates, means, grams = self._gated()
        problem, point = self.problem.with_means(means), ridge
        if means:
            point = self._with_means(problem, ridge)
        point, used = self._with_grams(problem, point, grams)
        kind: Kind = "zero_shot" if math.isinf(point.penalty) else "prior" if means or used else "ridge"
        extension = Extension(self.classes, problem, point, used, self.priors)
        weight_DC, bias_C = extension.head()
        if len(self.classes.seen) < self.classes.num_classes:
            bias_C = bias_C + extension.offset() * ~self.classes.mask
        points = {"ridge": (self.problem, ridge), "prior": (problem, point)}
        if means:
            untrained = problem.best_scales(math.inf, ClassBasis.identity())
            points["zero_shot"] = (problem, Point(math.inf, scales=untrained))
        loss, correct, temperature = self._left_out(points)
        return PriorHead(
            weight=weight_DC,
            bias=bias_C,
            temperature=temperature,
            kind=kind,
            penalty=point.penalty,
            share=point.share,
            scales={mean.name: scale for mean, scale in zip(means, point.scales, strict=True)},
            grams=tuple(prior.name for prior in used),
            gates=gates,
            evidence={name: where.evidence(at) for name, (where, at) in points.items() if name != "zero_shot"},
            left_out_loss=loss,
            left_out_correct=correct,
        )

    @cached_property
    def leaves_out(self) -> bool:
        """Whether leaving rows out can judge: not with one row a class, whose class would be left without any."""
        problem = self.problem
        return problem.space.total_weight >= 2 * problem.num_classes and len(problem.picked) > 0

    def _likelihood(self, problem: Problem, point: Point) -> float:
        """The log-likelihood of left-out labels, at the best temperature."""
        picked = problem.picked
        labels_n, weights_n = problem.labels[picked], problem.space.weights[picked]
        logits_nC = problem.left_out_logits(point, problem.search_rows)
        return -float(weights_n.sum()) * fit_temperature(logits_nC, labels_n, weights_n, SEARCH_TOLERANCE)[1]

    def _best_penalty(self) -> Point:
        """Ridge's λ by a grid that is refined once; its prior falls with the rows a class has."""
        problem, shots = self.problem, self.problem.space.total_weight / self.problem.num_classes

        def at(penalty: float) -> tuple[float, Point]:
            point = Point(penalty)
            fit = TRUST * self._likelihood(problem, point) if self.leaves_out else problem.evidence(point)
            return fit + _log_prior(penalty, FIRST_MEDIAN / max(shots, 1.0)), point

        tried = [at(penalty) for penalty in PENALTIES]
        best = max(tried, key=lambda each: each[0])[1].penalty
        tried += [at(penalty) for penalty in (best / math.sqrt(10), best * math.sqrt(10))]
        return max(tried, key=lambda each: each[0])[1]

    def _with_means(self, problem: Problem, ridge: Point) -> Point:
        """λ and the scales where means take part, from how well they serve rows that they have never seen.

        A mean has a say beside ridge by how sure each may be. What it leaves unexplained is the training's to find:
        that share, as a deviation, is what remains of the prior's.
        """
        everyone = np.arange(len(problem.labels)) if len(problem.labels) <= MAX_LEFT_OUT else problem.picked
        labels_n, weights_n = problem.labels[everyone], problem.space.weights[everyone]
        scales = problem.best_scales(ridge.penalty, ClassBasis.identity())
        logits_nC = problem.left_out_logits(Point(math.inf, scales=scales), problem.left_rows(everyone, np.float32))
        temperature, loss = fit_temperature(logits_nC, labels_n, weights_n, SEARCH_TOLERANCE)
        scales = tuple(VOICE * self._ridge_temperature(ridge) / temperature * scale for scale in scales)
        unexplained = min(max(loss / math.log(problem.num_classes), LEAST_UNEXPLAINED), 1.0)
        median = ridge.penalty / unexplained**2
        if not self.leaves_out:
            return Point(median, scales=scales)
        tried = [Point(penalty, scales=scales) for penalty in (*(median * STEPS), math.inf)]
        fits = [TRUST * self._likelihood(problem, each) + _log_prior(each.penalty, median) for each in tried]
        return tried[int(np.argmax(fits))]

    def _ridge_temperature(self, ridge: Point) -> float:
        """On rows left out, where that can judge."""
        problem = self.problem
        if not self.leaves_out:
            return problem.unjudged_temperature(ridge)
        logits_nC = problem.left_out_logits(ridge, problem.search_rows)
        return fit_temperature(logits_nC, problem.labels[problem.picked], problem.space.weights[problem.picked])[0]

    def _gated(self) -> tuple[tuple[Gate, ...], tuple[Mean, ...], tuple[ClassPrior, ...]]:
        """Which corpora are believed, as a mean and as a Gram matrix."""
        gates, means, grams = [], [], []
        dim = self.problem.space.centred.shape[1]
        for prior in self.priors:
            if prior.prototypes.shape[1] == dim:
                mean = self._mean(prior)
                gates.append(self.classes.mean_gate(prior, mean))
                if gates[-1].believed:
                    means.append(mean)
            gates.append(self.classes.gram_gate(prior))
            if gates[-1].believed:
                grams.append(prior)
        return tuple(gates), tuple(means), tuple(grams)

    def _mean(self, prior: ClassPrior) -> Mean:
        """The corpus's prototypes as a head, with as much of its raw bias as the rows' cross-entropy asks for."""
        space, labels_N, head_DS = (
            self.problem.space,
            self.problem.labels,
            prior.centred(self.classes.mask)[self.classes.seen].T,
        )
        few = np.arange(len(labels_N)) if len(labels_N) <= MAX_LEFT_OUT else self.problem.picked
        mean = Mean.of_rows(prior.name, head_DS, 0.0, space)
        logits_nS = space.basis(few, np.float32) @ mean.projected.astype(np.float32)
        bias_S = (space.mean @ head_DS).astype(np.float32)
        scores = []
        for share in BIAS_SHARES.astype(np.float32):
            shifted_nS = logits_nS + share * bias_S
            _, loss = fit_temperature(shifted_nS, labels_N[few], space.weights[few], SEARCH_TOLERANCE)
            scores.append(-float(space.weights[few].sum()) * loss - 0.5 * ((share - 1.0) / BIAS_SPREAD) ** 2)
        return replace(mean, bias_share=float(BIAS_SHARES[int(np.argmax(scores))]))

    def _with_grams(
        self, problem: Problem, point: Point, grams: tuple[ClassPrior, ...]
    ) -> tuple[Point, tuple[ClassPrior, ...]]:
        """The point with the best share of the believed Gram matrices, at its λ; unchanged where none is better.

        Where nothing can be left out the share follows from how well the similarities of classes agree.
        """
        if not grams or math.isinf(point.penalty) or (problem.means and not self.leaves_out):
            return point, ()

        def at(group: tuple[ClassPrior, ...], share: float) -> Point:
            classes = self.classes.basis(group, share)
            return Point(point.penalty, classes, point.scales, share)

        if not self.leaves_out:
            correlation = float(np.mean([self.classes.agreement(prior) for prior in grams]))
            share = FIRST_SHARE_PER_CORRELATION * max(correlation - FIRST_CORRELATION, 0.0)
            return at(grams, min(FIRST_SHARE, share)), grams
        tried: list[tuple[float, Point, tuple[ClassPrior, ...]]] = [(self._likelihood(problem, point), point, ())]
        groups: list[tuple[ClassPrior, ...]] = [(each,) for each in grams] + ([grams] if len(grams) > 1 else [])
        for group in groups:
            for share in SHARES:
                with_gram = at(group, share)
                tried.append((self._likelihood(problem, with_gram), with_gram, group))
        _, best, used = max(tried, key=lambda each: each[0])
        return best, used

    def _left_out(self, points: dict[str, tuple[Problem, Point]]) -> tuple[dict[str, Array], dict[str, Array], float]:
        """Losses and hits of every row by heads fitted without it, and the temperature of the head that is kept."""
        problem, point = points["prior"]
        if not self.leaves_out:
            ridge = points["ridge"][1]
            if not problem.means:
                return {}, {}, problem.unjudged_temperature(point)
            unexplained = math.sqrt(ridge.penalty / point.penalty)
            return {}, {}, (VOICE + (1 - VOICE) * unexplained) * self._ridge_temperature(ridge)
        space, labels_N = problem.space, problem.labels
        everyone = np.flatnonzero(problem.has_others)
        rows = problem.left_rows(everyone, np.float64 if len(everyone) <= MAX_LEFT_OUT // 2 else np.float32)
        loss, correct, temperatures = {}, {}, {}
        for name, (where, at) in points.items():
            with_means = rows if where.means else replace(rows, mean_logits=())
            logits_NC = where.left_out_logits(at, with_means)
            temperatures[name], _ = fit_temperature(logits_NC, labels_N[everyone], space.weights[everyone])
            loss[name] = losses(logits_NC, labels_N[everyone], temperatures[name])
            correct[name] = (logits_NC.argmax(axis=1) == labels_N[everyone]).astype(np.float64)
        return loss, correct, temperatures["prior"]


def _log_prior(penalty: float, median: float) -> float:
    """Of λ, log-normal, up to a constant."""
    distance = math.log(min(penalty, LARGEST_PENALTY) / min(median, LARGEST_PENALTY))
    return -0.5 * (distance / PENALTY_SPREAD) ** 2
