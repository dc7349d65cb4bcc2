"""Which discriminant: its penalty, what corpora say of its covariance over classes, and how far their means have a say.

In: labelled rows of which every class has some, and corpora that are believed. Out: a `Mixture`. All of it is decided
by rows that are left out. docs/method.md, A head whose prior the auxiliary corpora write.

Shape legend: N rows, n rows that are left out, D embedding width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from uml_core.models.closed_form.discriminant import Discriminant, FittedDiscriminant
from uml_core.models.closed_form.prior_gates import SeenClasses
from uml_core.models.closed_form.prior_model import ClassPrior, Mean, Point, Problem
from uml_core.models.closed_form.row_space import Array, LeftRows
from uml_core.models.closed_form.temperature import fit_temperature

SEARCH_TOLERANCE = 0.1  # of a temperature's logarithm
MEDIAN, MEDIAN_SPREAD = 2.0, 1.0  # of the penalty in units of the oracle's, and of its logarithm
STEPS = (1.0, 10.0, 100.0)  # from the median, refined by half a decade
SHARES = (0.3, 0.6)  # of Gram matrices in the covariance over classes
VOICES = np.linspace(0.0, 1.0, 11)  # of a mean beside what there is
# By so much what has a say must be likelier than the same without it, as a logarithm: a Gram matrix, a mean.
GRAM_CLEARLY, MEAN_CLEARLY = 3.0, 5.0


@dataclass(frozen=True)
class Untrained:
    """The head that a prior mean is by itself."""

    problem: Problem  # with that mean alone

    @property
    def name(self) -> str:
        """Of the corpus."""
        return self.problem.means[0].name

    def left_out_logits(self, left: LeftRows) -> Array:
        """Logits (n, C): it has never seen any row."""
        return self.problem.left_out_logits(Point(math.inf, scales=(1.0,)), self.problem.with_mean_logits(left))

    def head(self) -> tuple[Array, Array]:
        """Weight (D, C) and bias (C,)."""
        return self.problem.head(Point(math.inf, scales=(1.0,)))


@dataclass(frozen=True)
class Mixture:
    """Heads whose logits are added up, each times a factor: a product of experts."""

    trained: FittedDiscriminant
    factor: float  # of the trained one
    means: tuple[tuple[Untrained, float], ...] = ()

    @property
    def parts(self) -> tuple[tuple[FittedDiscriminant | Untrained, float], ...]:
        """Those with a say."""
        parts: list[tuple[FittedDiscriminant | Untrained, float]] = [(self.trained, self.factor), *self.means]
        return tuple(each for each in parts if each[1] > 0)

    def left_out_logits(self, left: LeftRows) -> Array:
        """Logits (n, C) by heads fitted without each row."""
        return np.asarray(sum(factor * part.left_out_logits(left) for part, factor in self.parts))

    def head(self) -> tuple[Array, Array]:
        """Weight (D, C) and bias (C,)."""
        heads = [(part.head(), factor) for part, factor in self.parts]
        return np.asarray(sum(f * w for (w, _), f in heads)), np.asarray(sum(f * b for (_, b), f in heads))

    def of_all_rows(self) -> Mixture:
        """The same where no row is left out: what is trained has seen more."""
        return replace(self, factor=self.factor * self.trained.rows.growth)

    def with_mean(self, mean: Untrained, voice: float, temperature: float) -> Mixture:
        """A mean's logits get a share, the others the rest."""
        others = tuple((part, (1 - voice) * factor) for part, factor in self.means)
        return replace(self, factor=(1 - voice) * self.factor, means=(*others, (mean, voice / temperature)))

    @property
    def in_units_of_the_trained(self) -> Mixture:
        """The same times a number, so that the trained head's logits stay as they are."""
        unit = self.factor or 1.0
        return replace(self, factor=self.factor / unit, means=tuple((part, each / unit) for part, each in self.means))


@dataclass(frozen=True)
class Judged:
    """A discriminant, and how it does on rows that are left out."""

    fitted: FittedDiscriminant
    logits: Array  # (n, C)
    temperature: float
    likelihood: float  # of the labels, as a logarithm, at that temperature
    share: float = 0.0  # of Gram matrices in its covariance over classes
    grams: tuple[ClassPrior, ...] = ()


@dataclass(frozen=True)
class DiscriminantSearch:
    """Of one set of labelled rows."""

    classes: SeenClasses

    @cached_property
    def discriminant(self) -> Discriminant:
        return Discriminant(self.classes.problem)

    def best_penalty(self) -> Judged:
        """By a grid that is refined once; its prior is around the oracle's."""
        median = MEDIAN * self.discriminant.oracle_penalty

        def score(judged: Judged) -> float:
            return judged.likelihood - 0.5 * (math.log(judged.fitted.penalty / median) / MEDIAN_SPREAD) ** 2

        tried = [self._judged(self.discriminant.fit(step * median)) for step in STEPS]
        best = max(tried, key=score).fitted.penalty
        tried += [self._judged(self.discriminant.fit(best * step)) for step in (math.sqrt(0.1), math.sqrt(10.0))]
        return max(tried, key=score)

    def with_grams(self, alone: Judged, grams: tuple[ClassPrior, ...]) -> Judged:
        """With the best share of the believed Gram matrices; as it is where none is better."""
        groups: list[tuple[ClassPrior, ...]] = [(each,) for each in grams] + ([grams] if len(grams) > 1 else [])
        tried = [alone]
        for group in groups:
            for share in SHARES:
                fitted = self.discriminant.fit(alone.fitted.penalty, self.classes.covariance(group, share))
                tried.append(replace(self._judged(fitted), share=share, grams=group))
        return max(tried, key=lambda each: each.likelihood - GRAM_CLEARLY * bool(each.grams))

    def with_means(self, trained: Judged, means: Sequence[Mean]) -> Mixture:
        """The means one after the other, the one first that does best by itself."""
        problem = self.classes.problem
        mixture, logits_nC = Mixture(trained.fitted, 1 / trained.temperature), trained.logits / trained.temperature
        untrained = [Untrained(problem.with_means([mean])) for mean in means]
        theirs = [each.left_out_logits(problem.search_rows) for each in untrained]
        fits = [self._fit_temperature(each) for each in theirs]
        for index in np.argsort([loss for _, loss in fits]):
            own_nC = theirs[index] / fits[index][0]
            mixed = [(1 - voice) * logits_nC + voice * own_nC for voice in VOICES.tolist()]
            scores = [-self._total * self._fit_temperature(each)[1] for each in mixed]
            best = int(np.argmax(np.array(scores) - MEAN_CLEARLY * (VOICES > 0)))
            mixture = mixture.with_mean(untrained[index], float(VOICES[best]), fits[index][0])
            logits_nC = mixed[best]
        return mixture.in_units_of_the_trained

    def _judged(self, fitted: FittedDiscriminant) -> Judged:
        logits_nC = fitted.left_out_logits(self.classes.problem.search_rows)
        temperature, loss = self._fit_temperature(logits_nC)
        mass_C = self.classes.problem.mass
        if mass_C.max() > mass_C.min():
            fitted = replace(fitted, class_bias=temperature * np.log(mass_C / mass_C.mean()))
            logits_nC = fitted.left_out_logits(self.classes.problem.search_rows)
            temperature, loss = self._fit_temperature(logits_nC)
        return Judged(fitted, logits_nC, temperature, -self._total * loss)

    @cached_property
    def _total(self) -> float:
        """How many rows are left out, each as often as it counts."""
        return float(self.classes.problem.space.weights[self.classes.problem.picked].sum())

    def _fit_temperature(self, logits_nC: Array) -> tuple[float, float]:
        problem = self.classes.problem
        labels_n, weights_n = problem.labels[problem.picked], problem.space.weights[problem.picked]
        return fit_temperature(logits_nC, labels_n, weights_n, SEARCH_TOLERANCE)
