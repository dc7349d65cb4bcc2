"""Will an auxiliary corpus help the target? Predicted from embeddings, in closed form, before any training.

In: the target's labelled rows other than test, the auxiliary corpora's, bridges and unlabelled piles. Out: one
`Relevance` per auxiliary corpus, one `Addition` per bridge and pile, each with a verdict.

**Predicted gain.** In each of several draws the shots are taken from the target's rows, and the rest is left out to
judge. Fitted to the shots are the head whose prior this corpus writes (`fit_prior_head`) and the alternatives: ridge
and logistic regression on the target alone, and the untrained zero-shot head where widths agree. The gain is the
difference of hits on left-out rows to the alternative that is best over all draws. Bridges and piles take part as they
do in the head; a pile also without this corpus, as one more alternative. What one of them is worth itself is asked of
the head with all auxiliary corpora, and the same head without it is one more alternative.

**Labels that would settle it.** Of normal paired differences with the standard deviation that left-out rows show, as
many rows as tell the predicted gain with 80 % power from 0 or from `WORTH`, whichever is farther:
n = ((1.96 + 0.84) · deviation / distance)², divided by the classes, on top of the shots.

Shape legend: N rows, D embedding width, C classes, V rows left out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from uml_core.analysis.alignment import cka
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.subsets import rows_by_class
from uml_core.data.training_data import TrainingData
from uml_core.errors import InputError
from uml_core.evaluation.statistics import POWER, WORTH
from uml_core.models.closed_form.bridge import Bridge, bridge_name, over_bridges
from uml_core.models.closed_form.bridged_data import bridge_of
from uml_core.models.closed_form.discriminant import prior_of_rows
from uml_core.models.closed_form.prior_baselines import logistic_head, zero_shot_head
from uml_core.models.closed_form.prior_gates import MIN_CLASSES
from uml_core.models.closed_form.prior_head import PriorHead, fit_prior_head
from uml_core.models.closed_form.prior_model import ClassPrior, Codes, unit_rows
from uml_core.models.closed_form.prior_verdict import CONFIDENCE, Gain
from uml_core.models.closed_form.row_space import Array, have_equal_lengths
from uml_core.models.closed_form.unlabelled import fit_pooled_head
from uml_core.store.corpus_table import is_unread

Word = Literal["helps", "neutral", "harms", "not enough evidence"]

MAX_LEFT_OUT_ROWS = 1000  # of a draw: 1.6 points of standard error at most, and draws are averaged
MAX_LOGISTIC = 20_000  # train rows × classes up to which logistic regression takes about a second a draw
ALONE = ("ridge", "discriminant", "logistic", "pile")
WITHOUT = "without"  # the same head without a bridge or pile
# Of the calibration's corpora without controls (docs/measured.md): the mean gain where widths agree and where they do
# not, and the share that gained nothing.
TRIVIAL_GAIN, NEUTRAL_SHARE = {True: 0.003, False: 0.006}, 0.84

E = TypeVar("E", bound="Evidence")


@dataclass(frozen=True)
class Evidence(ABC):
    """What left-out rows say of a head with one more source of data: accuracies and gains, in [−1, 1]."""

    corpus: str
    rows: int
    num_classes: int  # of the target
    accuracies: dict[str, float]  # "prior", and of each alternative
    best_alternative: str
    gain: Gain  # of the prior head over the best alternative
    worth: Gain  # of the prior head over the same head without the corpus
    takes_part: float  # the share of draws in which the head uses it
    left_out_rows: int  # different ones, over all draws
    settled_at: int | None  # rows a class to judge by; None where the word stands, or no label could settle it

    @property
    @abstractmethod
    def untold(self) -> tuple[Word, str] | None:
        """The verdict where the head makes no use of it, or nothing can be told."""

    @property
    def verdict(self) -> tuple[Word, str]:
        """Whether the head with it is likely to beat every alternative, and why."""
        if self.untold is not None:
            return self.untold
        best = "the same head without it" if self.best_alternative == WITHOUT else self.best_alternative
        best = best.replace("_", "-")
        if self.gain.low > 0 and self.gain.mean >= WORTH:
            return "helps", f"above {best} on rows left out"
        if self.worth.high < 0 and self.worth.mean <= -WORTH:
            return "harms", "below the same head without it on rows left out"
        if self.gain.high <= WORTH:
            return "neutral", f"no gain over {best} worth having"
        return "not enough evidence", (
            f"about {self.settled_at} labelled rows a class beside the shots would settle it"
        )


@dataclass(frozen=True)
class Relevance(Evidence):
    """What the labelled rows say of one auxiliary corpus."""

    covered_classes: int  # of the target
    own_classes: int  # of the corpus, that the target lacks
    same_width: bool
    aligned: bool | None  # whether its space is the target's; None where the widths differ

    @property
    def untold(self) -> tuple[Word, str] | None:
        if self.covered_classes < MIN_CLASSES:
            return "not enough evidence", f"{self.covered_classes} common classes are too few to tell"
        if not self.takes_part:
            return "neutral", "its true class names do not beat permuted ones, so it takes no part"
        return None

    @property
    def alone(self) -> tuple[str, float]:
        """The best that needs no auxiliary corpus, and its accuracy."""
        return max(
            ((name, self.accuracies[name]) for name in ALONE if name in self.accuracies), key=lambda each: each[1]
        )

    @property
    def trivial_gain(self) -> float:
        """What would be predicted of a corpus of this width without looking at it."""
        return TRIVIAL_GAIN[self.same_width]

    @property
    def zero_shot_first(self) -> bool:
        """Whether the corpus's prototypes, untrained, are the best that needs no training with it."""
        return bool(self.aligned) and self.best_alternative == "zero_shot"


@dataclass(frozen=True)
class Addition(Evidence):
    """What the labelled rows say of a bridge or an unlabelled pile, beside all auxiliary corpora."""

    kind: Literal["bridge", "pile"]
    reasons: tuple[str, ...] = ()  # of a bridge: the gates of its maps
    classes: int = 0  # of a bridge
    overlap: int = 0  # of those, how many are named as one of the target's

    @property
    def untold(self) -> tuple[Word, str] | None:
        if self.kind == "bridge" and (few := min(self.classes, self.num_classes)) < MIN_CLASSES:
            return "not enough evidence", f"{few} classes are too few to tell"
        if not self.takes_part and self.kind == "bridge":
            return "neutral", "its true class names do not beat permuted ones, so it takes no part"
        if not self.takes_part:
            return "neutral", "the head leaves it out: labels among the shots are not clearly likelier with it"
        return None


@dataclass(frozen=True)
class Draw:
    """A draw of the shots, and which of the rows left out the target alone gets right."""

    data: TrainingData
    normalize: bool
    val: Array  # (V, D)
    val_rows: npt.NDArray[np.int64]  # of the target's table (V,)
    val_labels: Codes  # (V,)
    # Hits (V,) of "ridge", "discriminant", "logistic" where it takes little time, and "pile", the discriminant that
    # learns from the unlabelled rows, where there are some.
    alone: dict[str, Array]
    piles: dict[str, Array]  # unlabelled rows (U, D) by corpus

    @classmethod
    def from_data(cls, data: TrainingData, *, normalize: bool = False) -> Draw:
        """Fit the target alone and judge it on validation rows; `normalize` is model.normalize."""
        rows, val, num_classes = data.labelled, data.val, len(data.classes)
        normalize = normalize or have_equal_lengths(rows.gathered())
        if len(val) > MAX_LEFT_OUT_ROWS:
            val = _some(val, np.sort(np.random.default_rng(0).choice(len(val), MAX_LEFT_OUT_ROWS, replace=False)))
        train_ND, val_VD = _gathered(rows, normalize), _gathered(val, normalize)
        alone = {
            "ridge": fit_prior_head(train_ND, rows.labels, num_classes, discriminates=False).logits(val_VD),
            "discriminant": fit_prior_head(train_ND, rows.labels, num_classes).logits(val_VD),
        }
        if len(rows) * num_classes <= MAX_LOGISTIC:
            alone["logistic"] = _logistic_logits(train_ND, rows.labels, num_classes, val_VD)
        known = {row.tobytes() for row in val_VD}
        piles = {name: _unknown(_pile(name, pile, normalize), known) for name, pile in data.unlabelled.items()}
        piles = {name: pile_UD for name, pile_UD in piles.items() if len(pile_UD)}
        if piles:
            pooled = fit_pooled_head(train_ND, rows.labels, num_classes, [], np.concatenate(list(piles.values())))
            alone["pile"] = pooled.head.logits(val_VD)
        return cls(
            data=data,
            normalize=normalize,
            val=val_VD,
            val_rows=val.rows,
            val_labels=val.labels,
            alone={name: _hits(logits_VC, val.labels) for name, logits_VC in alone.items()},
            piles=piles,
        )

    @cached_property
    def bridges(self) -> list[Bridge]:
        return [bridge_of(each) for each in self.data.bridges]

    def prior_of(self, corpus: str) -> ClassPrior:
        rows = self.data.train[corpus]
        num_classes, dim = len(self.data.classes), self.val.shape[1]
        return prior_of_rows(corpus, _gathered(rows, self.normalize), rows.labels, num_classes, dim=dim)

    def head_of(self, priors: Sequence[ClassPrior], *, without: str = "") -> tuple[PriorHead, float]:
        """The head under these priors with every bridge and pile, but for the one that is named `without`; and how
        much of a say the piles have."""
        rows, num_classes = self.data.labelled, len(self.data.classes)
        over, _ = over_bridges(priors, [each for each in self.bridges if each.name != without])
        fitted = _gathered(rows, self.normalize), rows.labels, num_classes, [*priors, *over]
        piles = [pile_UD for name, pile_UD in self.piles.items() if name != without]
        if not piles:
            return fit_prior_head(*fitted), 0.0
        pooled = fit_pooled_head(*fitted, np.concatenate(piles))
        return pooled.head, pooled.voice

    def hits_of(self, head: PriorHead) -> Array:
        return _hits(head.logits(self.val), self.val_labels)

    def with_prior(self, prior: ClassPrior) -> tuple[PriorHead, dict[str, Array]]:
        """The head whose prior a corpus writes, and hits (V,) of it and of everything that it is to beat."""
        head, _ = self.head_of([prior])
        hits = {**self.alone, "prior": self.hits_of(head)}
        if prior.prototypes.shape[1] == self.val.shape[1]:
            weight_DC, bias_C = zero_shot_head(prior)
            hits["zero_shot"] = _hits(self.val @ weight_DC + bias_C, self.val_labels)
        return head, hits


def redrawn(data: TrainingData, pool: LabelledRows, *, shots: int, seed: int) -> TrainingData:
    """The data with so many rows a class of a pool as train rows, and all others of the pool as validation.

    A class with fewer rows leaves one out, if it has two.
    """
    orders = rows_by_class(pool.labels, np.arange(len(pool)), seed=seed).values()
    counts = [max(1, min(shots, len(order) - 1)) for order in orders]
    drawn, left = (
        _some(pool, np.sort(np.concatenate(parts)))
        for parts in (
            [order[:count] for order, count in zip(orders, counts, strict=True)],
            [order[count:] for order, count in zip(orders, counts, strict=True)],
        )
    )
    return replace(data, train={**data.train, data.target: drawn}, val=left)


def labelled_pool(data: TrainingData) -> LabelledRows:
    """The target's labelled rows other than test."""
    parts = (data.labelled, data.val)
    rows, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "labels"))
    return LabelledRows(data.labelled.embeddings, rows, labels)


def relevance(draws: Sequence[Draw], corpus: str) -> Relevance:
    """Predict what one auxiliary corpus is worth to the target, averaged over draws of its shots."""
    data = draws[0].data
    fitted = [draw.with_prior(prior) for draw, prior in zip(draws, _priors(draws, corpus), strict=True)]
    heads, hits = [head for head, _ in fitted], [right for _, right in fitted]
    aligned = [any((gate.corpus, gate.role) == (corpus, "mean") and gate.believed for gate in h.gates) for h in heads]
    same_width = "zero_shot" in hits[0]
    found = Relevance(
        corpus=corpus,
        rows=len(data.train[corpus]),
        covered_classes=len(np.unique(data.train[corpus].labels)),
        num_classes=len(data.classes),
        own_classes=len(set(data.dropped[corpus]) - {""}),
        same_width=same_width,
        aligned=bool(np.mean(aligned) > 0.5) if same_width else None,
        takes_part=float(np.mean([head.kind in ("prior", "zero_shot") for head in heads])),
        **_compared(draws, hits, without="pile" if "pile" in hits[0] else "discriminant"),
    )
    return _settled(found, draws, hits)


def addition(draws: Sequence[Draw], name: str, others: Sequence[str]) -> Addition:
    """Predict what one bridge or unlabelled pile is worth to a head with some auxiliary corpora."""
    data = draws[0].data
    priors = list(zip(*(_priors(draws, other) for other in others), strict=True))
    used, hits = zip(*(_beside(draw, own, name) for draw, own in zip(draws, priors, strict=True)), strict=True)
    what: dict[str, Any] = {"corpus": name, "num_classes": len(data.classes), "takes_part": float(np.mean(used))}
    if name in data.unlabelled:
        what |= {"kind": "pile", "rows": len(data.unlabelled[name])}
    else:
        given, bridge = next(pair for pair in zip(data.bridges, draws[0].bridges, strict=True) if pair[1].name == name)
        _, gates = over_bridges(priors[0], [replace(bridge, overlap=0)])
        what |= {"kind": "bridge", "reasons": tuple(f"{gate.corpus}: {gate.reason}" for gate in gates)}
        what |= {"rows": len(given.rows), "classes": len(given.classes), "overlap": bridge.overlap}
    found = Addition(**what, **_compared(draws, hits, without=WITHOUT))
    return _settled(found, draws, hits)


def _beside(draw: Draw, priors: Sequence[ClassPrior], name: str) -> tuple[bool, dict[str, Array]]:
    """Whether the head uses a bridge or pile, and hits (V,) of it, of the head without, and of the target alone."""
    (head, voice), (without, _) = draw.head_of(priors), draw.head_of(priors, without=name)
    maps = {bridge_name(name, prior.name) for prior in priors}
    is_pile = name in draw.data.unlabelled
    used = voice > 0 if is_pile else bool(maps & {*head.scales, *head.grams})
    alone = {each: right for each, right in draw.alone.items() if not is_pile or each != "pile"}
    return used, {**alone, WITHOUT: draw.hits_of(without), "prior": draw.hits_of(head)}


def redundancy(data: TrainingData, one: str, other: str) -> float | None:
    """The unbiased linear CKA of two auxiliary corpora's prototypes; None for too few common classes.

    About 0: they place the classes independently. 1: the second says of the classes what the first does.
    """
    first, second = (
        ClassPrior.from_rows(name, _gathered(data.train[name], False), data.train[name].labels, len(data.classes))
        for name in (one, other)
    )
    both_C = first.covered & second.covered
    if both_C.sum() < MIN_CLASSES:
        return None
    value = cka(first.prototypes[both_C], second.prototypes[both_C])
    return None if math.isnan(value) else value


def _compared(draws: Sequence[Draw], hits: Sequence[dict[str, Array]], *, without: str) -> dict[str, Any]:
    """What the hits of all draws say of the head, as fields of `Evidence`."""
    val_rows = [draw.val_rows for draw in draws]
    accuracies = {name: float(np.mean(np.concatenate([each[name] for each in hits]))) for name in hits[0]}
    best = max((name for name in accuracies if name != "prior"), key=lambda name: accuracies[name])
    return {
        "accuracies": accuracies,
        "best_alternative": best,
        "gain": _gain([each["prior"] - each[best] for each in hits], val_rows),
        "worth": _gain([each["prior"] - each[without] for each in hits], val_rows),
        "left_out_rows": len(np.unique(np.concatenate(val_rows))),
        "settled_at": None,
    }


def _settled(found: E, draws: Sequence[Draw], hits: Sequence[dict[str, Array]]) -> E:
    """With the labels that would settle it, where the evidence is not enough."""
    if found.untold or found.verdict[0] != "not enough evidence":
        return found
    differences = [each["prior"] - each[found.best_alternative] for each in hits]
    val_rows = [draw.val_rows for draw in draws]
    return replace(found, settled_at=_rows_to_settle(differences, val_rows, found.num_classes))


def _pile(name: str, pile: LabelledRows, normalize: bool) -> Array:
    if is_unread(pile.embeddings):
        raise InputError(f"corpora.{name} is an unlabelled pile, and does not fit into feed.memory_gib; raise it")
    return _gathered(pile, normalize)


def _unknown(rows_UD: Array, known: set[bytes]) -> Array:
    """The rows that are none of those that judge."""
    return rows_UD[[row.tobytes() not in known for row in rows_UD]]


def _priors(draws: Sequence[Draw], corpus: str) -> list[ClassPrior]:
    """Of every draw, computed anew only where a draw has other rows of the corpus."""
    priors: list[ClassPrior] = []
    for draw in draws:
        rows, before = draw.data.train[corpus], draws[max(len(priors) - 1, 0)].data.train[corpus]
        is_same = rows.embeddings is before.embeddings and all(
            np.array_equal(getattr(rows, name), getattr(before, name)) for name in ("rows", "labels")
        )
        priors.append(priors[-1] if priors and is_same else draw.prior_of(corpus))
    return priors


def _some(rows: LabelledRows, picked: npt.NDArray[np.int64]) -> LabelledRows:
    return replace(rows, rows=rows.rows[picked], labels=rows.labels[picked])


def _gathered(rows: LabelledRows, normalize: bool) -> Array:
    values: Array = rows.gathered().astype(np.float64)
    return unit_rows(values) if normalize else values


def _hits(logits_VC: Array, labels_V: Codes) -> Array:
    hits_V: Array = (logits_VC.argmax(axis=1) == labels_V).astype(np.float64)
    return hits_V


def _logistic_logits(train_ND: Array, labels_N: Codes, num_classes: int, val_VD: Array) -> Array:
    """Logits (V, C) of logistic regression, fitted in the span of the rows, where its weights lie anyway."""
    mean_D = train_ND.mean(axis=0)
    _, _, axes_RD = np.linalg.svd(train_ND - mean_D, full_matrices=False)
    weight_RC, bias_C = logistic_head((train_ND - mean_D) @ axes_RD.T, labels_N, num_classes)
    logits_VC: Array = (val_VD - mean_D) @ axes_RD.T @ weight_RC + bias_C
    return logits_VC


def _gain(differences: Sequence[Array], rows: Sequence[npt.NDArray[np.int64]]) -> Gain:
    """The mean difference with its 95 % t interval, clustered both by draw and by row: draws share rows."""
    difference_M = np.concatenate(differences)
    mean = float(difference_M.mean())
    draw_M = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    _, row_M = np.unique(np.concatenate(rows), return_inverse=True)
    by_row, by_draw, by_both = (
        _variance(difference_M - mean, codes_M) for codes_M in (row_M, draw_M, np.arange(len(difference_M)))
    )
    num_rows, num_draws = int(row_M.max()) + 1, len(rows)
    if num_rows < 2:
        return Gain(mean, -1.0, 1.0)
    variance = by_row if num_draws == 1 else max(by_row, by_draw, by_row + by_draw - by_both)
    freedom = num_rows - 1 if num_draws == 1 else min(num_rows, num_draws) - 1
    half = max(float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance), 1 / num_rows)
    return Gain(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def _variance(deviations_M: Array, clusters_M: npt.NDArray[np.int64]) -> float:
    """Of their mean, where those of one cluster depend on each other."""
    sums = np.bincount(clusters_M, weights=deviations_M)
    return float((sums**2).sum()) * len(sums) / max(len(sums) - 1, 1) / len(deviations_M) ** 2


def _rows_to_settle(differences: Sequence[Array], rows: Sequence[npt.NDArray[np.int64]], num_classes: int) -> int:
    """Rows a class, left out, that would tell the gain from 0 or from `WORTH`."""
    _, row_M = np.unique(np.concatenate(rows), return_inverse=True)
    mean_V = np.bincount(row_M, weights=np.concatenate(differences)) / np.bincount(row_M)
    deviation, mean = float(mean_V.std()), float(np.concatenate(differences).mean())
    distance = max(mean, WORTH - mean)
    quantiles = float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER))
    return math.ceil(max((quantiles * deviation / distance) ** 2, 1 / WORTH) / num_classes)
