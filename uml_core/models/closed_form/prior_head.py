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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.special import softmax

from uml_core.data.row_statistics import RowStatistics
from uml_core.models.closed_form.discriminant_search import SEARCH_TOLERANCE, SHARES, DiscriminantSearch, Mixture
from uml_core.models.closed_form.prior_gates import Gate, SeenClasses
from uml_core.models.closed_form.prior_model import MAX_LEFT_OUT, ClassPrior, Codes, Mean, Point, Problem
from uml_core.models.closed_form.prior_unseen import Extension
from uml_core.models.closed_form.row_space import Array, ClassBasis, LeftRows, RowSpace
from uml_core.models.closed_form.temperature import fit_temperature, losses

Kind = Literal["ridge", "discriminant", "prior", "zero_shot"]

PENALTIES = (0.1, 1.0, 10.0, 100.0)  # λ, refined by half a decade
LARGEST_PENALTY = 1000.0  # what is beyond counts as that
# Where no class has two rows the share grows with the correlation of similarities beyond the first number.
FIRST_CORRELATION, FIRST_SHARE_PER_CORRELATION, FIRST_SHARE = 0.06, 5.0, 0.8
FIRST_BIAS = 0.14  # ½ τ² / (1 + τ²) where class means have τ² = 0.4 of the variance within classes
BIAS_SHARES = np.linspace(0.0, 1.2, 7)
BIAS_SPREAD = 0.3  # of the prior on β around raw geometry
CLEARLY = 2.0  # by so much what was trained must be likelier than prototypes, as a logarithm

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
    evidence: dict[str, float]  # log marginal likelihood per class, of "ridge" and "prior"; empty of discriminants
    # Of each row (N,), of statistics each kept one, by head: that of the target alone, "prior", "zero_shot"; empty at
    # one row a class.
    left_out_loss: dict[str, Array]
    left_out_correct: dict[str, Array]  # likewise, 0 or 1

    @property
    def alone(self) -> Kind:
        """Which head the target alone has."""
        return "discriminant" if "discriminant" in self.left_out_loss else "ridge"

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
    discriminates: bool = True,
) -> PriorHead:
    """Fit the head, every scale chosen by the labelled rows themselves.

    Args:
        rows: embeddings (N, D), as the encoder gives them or at unit length; rows of weight 0 count as absent.
        labels: codes (N,) in [0, num_classes); classes without rows get what the priors say of them.
        num_classes: C.
        priors: of auxiliary corpora. One of width D offers its prototypes as a mean, any one its Gram matrix.
        weights: how often each row counts (N,); once by default.
        discriminates: whether the head of the target alone is a linear discriminant where rows can be left out and
            every class has one; else it is ridge.
    """
    weights_N = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    present = weights_N > 0
    rows_ND, labels_N = np.asarray(rows, dtype=np.float64)[present], labels[present]
    space = RowSpace.from_rows(rows_ND, weights_N[present])
    seen, codes_N = np.unique(labels_N, return_inverse=True)
    if len(seen) == 1:
        return _constant(rows_ND.shape[1], num_classes, int(seen[0]))
    classes = SeenClasses(Problem(space, codes_N, len(seen)), seen, num_classes)
    return _Search(classes, tuple(priors), discriminates).run()


def fit_from_statistics(
    statistics: RowStatistics, priors: Sequence[ClassPrior] = (), *, discriminates: bool = True
) -> PriorHead:
    """`fit_prior_head` for rows that were added up: the same head where all of them are kept.

    Of more rows the kept ones stand for all where rows are left out, one at a time, of the head of all. Where there are
    classes without rows, the offset is that of heads fitted to the kept ones.
    """
    seen, (num_classes, dim) = np.flatnonzero(statistics.counts), statistics.sums.shape
    if len(seen) == 1:
        return _constant(dim, num_classes, int(seen[0]))
    problem = Problem.from_statistics(statistics.of_seen_classes())
    return _Search(SeenClasses(problem, seen, num_classes), tuple(priors), discriminates).run()


def _constant(dim: int, num_classes: int, code: int) -> PriorHead:
    """The head that always says the only class there are rows of."""
    bias_C = np.eye(num_classes)[code]
    return PriorHead(np.zeros((dim, num_classes)), bias_C, 1.0, "ridge", math.inf, 0.0, {}, (), (), {}, {}, {})


@dataclass(frozen=True)
class _Search:
    classes: SeenClasses
    priors: tuple[ClassPrior, ...]
    discriminates: bool = True

    @property
    def problem(self) -> Problem:
        return self.classes.problem

    def run(self) -> PriorHead:
        differ = len(self.problem.space.values) > 0  # rows that are all alike have no scatter
        can = self.leaves_out and self.has_all and differ
        return self._discriminant() if self.discriminates and can else self._ridge()

    @property
    def has_all(self) -> bool:
        """Whether every class has rows."""
        return len(self.classes.seen) == self.classes.num_classes

    def _discriminant(self) -> PriorHead:
        search = DiscriminantSearch(self.classes)
        alone = search.best_penalty()
        gates, means, grams = self._gated()
        trained = search.with_grams(alone, grams)
        mixture = search.with_means(trained, means)
        experts: dict[Kind, Mixture] = {"discriminant": Mixture(alone.fitted, 1.0), "prior": mixture}
        if means:
            experts["zero_shot"] = replace(mixture, factor=0.0)
        rows = self._everyone()
        logits: dict[str, Array] = {n: each.left_out_logits(rows) for n, each in experts.items() if each.parts}
        scales = {mean.name: factor for mean, factor in mixture.means if factor > 0}
        used = trained.grams if mixture.factor else ()
        kind: Kind = "zero_shot" if not mixture.factor else "prior" if scales or used else "discriminant"
        loss, correct, temperature = self._judged(rows.picked, logits)
        weight_DC, bias_C = mixture.of_all_rows().head()
        return PriorHead(
            weight=weight_DC,
            bias=bias_C,
            temperature=temperature,
            kind=kind,
            penalty=trained.fitted.penalty if mixture.factor else math.inf,
            share=trained.share if used else 0.0,
            scales=scales,
            grams=tuple(prior.name for prior in used),
            gates=gates,
            evidence={},
            left_out_loss=loss,
            left_out_correct=correct,
        )

    def _ridge(self) -> PriorHead:
        ridge = self._best_penalty()
        gates, means, grams = self._gated()
        problem, point = self.problem.with_means(means), ridge
        if means:
            point = self._with_means(problem, ridge)
        point, used = self._with_grams(problem, point, grams)
        kind: Kind = "zero_shot" if math.isinf(point.penalty) else "prior" if means or used else "ridge"
        extension = Extension(self.classes, problem, point, used, self.priors)
        weight_DC, bias_C = extension.head()
        if not self.has_all:
            bias_C = bias_C + extension.offset() * ~self.classes.mask
        elif self.discriminates:
            bias_C = bias_C - FIRST_BIAS * self._lengths(weight_DC, problem, point)
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

    def _lengths(self, weight_DC: Array, problem: Problem, point: Point) -> Array:
        """What was trained says so much of each class for its own mean row (C,)."""
        means_CD = problem.class_sums / problem.mass[:, None]
        untrained = sum(scale * mean.head for scale, mean in zip(point.scales, problem.means, strict=True))
        lengths_C: Array = np.einsum("cd,dc->c", means_CD, weight_DC - untrained)
        return lengths_C

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
        used = {mean.name for mean in problem.means}
        beyond = min(1.0 - prior.explained for prior in self.priors if prior.name in used)
        least = max(LEAST_UNEXPLAINED, math.sqrt(beyond))
        unexplained = min(max(loss / math.log(problem.num_classes), least), 1.0)
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
        """The corpus as a head: its prototypes, with as much of their raw bias as the rows' cross-entropy asks for, or
        what was trained on its rows, where that is clearly better."""
        problem, labels_N = self.problem, self.problem.labels
        few = np.arange(len(labels_N)) if len(labels_N) <= MAX_LEFT_OUT else problem.picked
        basis_nR, weights_n = problem.space.basis(few, np.float32), problem.space.weights[few]

        def fit(logits_nS: Array, mean: Mean) -> float:
            """The log-likelihood of labels, which the mean has never seen, at its best temperature."""
            biased_nS = logits_nS + mean.bias.astype(np.float32)
            return -float(weights_n.sum()) * fit_temperature(biased_nS, labels_N[few], weights_n, SEARCH_TOLERANCE)[1]

        head_DS = prior.centred(self.classes.mask)[self.classes.seen].T
        raw = Mean.of_prototypes(prior.name, head_DS, 1.0, problem.space)
        means = [replace(raw, bias=share * raw.bias, bias_share=share) for share in BIAS_SHARES.tolist()]
        logits_nS = basis_nR @ raw.projected.astype(np.float32)
        scores = [fit(logits_nS, each) - 0.5 * ((each.bias_share - 1) / BIAS_SPREAD) ** 2 for each in means]
        if self.has_all:
            means += [Mean.of_rows(prior.name, *head, problem.space) for head in prior.trained]
            trained = means[len(scores) :]
            scores += [fit(basis_nR @ each.projected.astype(np.float32), each) - CLEARLY for each in trained]
        return means[int(np.argmax(scores))]

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
        rows = self._everyone()
        logits = {name: where.left_out_logits(at, where.with_mean_logits(rows)) for name, (where, at) in points.items()}
        return self._judged(rows.picked, logits)

    def _everyone(self) -> LeftRows:
        """All rows that can be left out."""
        everyone = np.flatnonzero(self.problem.has_others)
        return self.problem.left_rows(everyone, np.float64 if len(everyone) <= MAX_LEFT_OUT // 2 else np.float32)

    def _judged(self, rows: Codes, logits: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array], float]:
        """Losses and hits of rows by the logits of heads fitted without them, and the temperature of "prior"."""
        labels_n, weights_n = self.problem.labels[rows], self.problem.space.weights[rows]
        temperatures = {name: fit_temperature(each, labels_n, weights_n)[0] for name, each in logits.items()}
        loss = {name: losses(each, labels_n, temperatures[name]) for name, each in logits.items()}
        correct = {name: (each.argmax(axis=1) == labels_n).astype(np.float64) for name, each in logits.items()}
        return loss, correct, temperatures["prior"]


def _log_prior(penalty: float, median: float) -> float:
    """Of λ, log-normal, up to a constant."""
    distance = math.log(min(penalty, LARGEST_PENALTY) / min(median, LARGEST_PENALTY))
    return -0.5 * (distance / PENALTY_SPREAD) ** 2
