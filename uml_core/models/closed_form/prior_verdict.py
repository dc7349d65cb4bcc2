"""What to ship, and what each auxiliary corpus is worth, in words: from the rows a head left out.

In: a fitted `PriorHead`. Out: a `Verdict` that prints itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from uml_core.models.closed_form.prior_gates import Gate
from uml_core.models.closed_form.prior_head import Kind, PriorHead
from uml_core.models.closed_form.row_space import Array
from uml_core.models.closed_form.unlabelled import PooledHead

WORDS = {
    "ridge": "ridge",
    "discriminant": "the linear discriminant",
    "prior": "the prior head",
    "zero_shot": "the zero-shot head",
}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies over the same left-out rows, with its 95 % interval, in [−1, 1]."""

    mean: float
    low: float
    high: float

    @classmethod
    def paired(cls, ours: Array, theirs: Array) -> Gain:
        """Of two heads' hits on the same rows."""
        differences = ours - theirs
        if len(differences) < 2:
            return cls(float(differences.mean()), -1.0, 1.0)
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
        half = max(float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error, 1 / len(differences))
        mean = float(differences.mean())
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} points, 95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}"


@dataclass(frozen=True)
class AuxiliaryVerdict:
    """What one auxiliary corpus is worth."""

    name: str
    used_as: tuple[str, ...]  # "mean", "gram"; empty where it does not take part
    aligned: bool | None  # whether its space is the target's; None where the widths differ
    gain: Gain | None  # of the head with it over the head without; None where no row can be left out
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        roles = {"mean": "its prototypes as a start", "gram": "its similarities of classes"}
        used = " and ".join(roles[role] for role in self.used_as)
        space = {True: "spaces agree", False: "spaces do not agree", None: "another width"}[self.aligned]
        worth = f"worth {self.gain}" if self.gain and used else f"used: {used}" if used else "adds nothing reliable"
        return f"{self.name}: {worth}; {space}; {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class PileVerdict:
    """What an unlabelled pile is worth, by heads of half of the labelled rows each, judged on the other half."""

    kept: bool
    gain: Gain | None  # of the head with it over the head without; None where a class has one row
    auxiliaries: Gain | None  # of auxiliary corpora over the pile alone; None where none takes part as well

    def __str__(self) -> str:
        if self.gain is None:
            use = "used" if self.kept else "left out beside prototypes of another corpus"
            return f"unlabelled pile: {use}; one row a class cannot be left out to judge it"
        use = "worth" if self.kept else "left out: left-out labels are not clearly likelier with it,"
        beside = f"; auxiliary corpora over the pile alone: {self.auxiliaries}" if self.auxiliaries else ""
        return f"unlabelled pile: {use} {self.gain}{beside}"


@dataclass(frozen=True)
class Verdict:
    """Which head is shipped and what it gains over the second best; printing it says it in words."""

    ship: Kind
    second: Kind | None
    gain: Gain | None  # over the second best; None where no row can be left out
    accuracies: dict[str, float]  # of left-out rows, by head
    auxiliaries: tuple[AuxiliaryVerdict, ...]
    pile: PileVerdict | None = None

    @property
    def undecided(self) -> bool:
        """Whether the difference to the second best may as well be none."""
        return self.second is not None and (self.gain is None or self.gain.low <= 0)

    @property
    def headline(self) -> str:
        """The first line."""
        ship = WORDS[self.ship]
        if self.second is None:
            return f"Ship {ship}: " + (
                "no auxiliary corpus adds anything reliable." if self.auxiliaries else "there is no auxiliary corpus."
            )
        second = WORDS[self.second]
        if self.gain is None:
            return (
                f"Undecided between {ship} and {second}: one row a class cannot be left out. "
                f"Ships {ship}, because true class names beat permuted ones."
            )
        if self.undecided:
            return f"Undecided, ships {ship}: {self.gain} against {second}."
        return f"Ship {ship}: {self.gain} over {second}, the second best."

    def __str__(self) -> str:
        accuracies = ", ".join(f"{WORDS[name]} {100 * value:.1f} %" for name, value in self.accuracies.items())
        lines = [self.headline, *(f"  {each}" for each in (*self.auxiliaries, self.pile) if each)]
        return "\n".join([*lines, f"  rows left out: {accuracies}"] if accuracies else lines)


def pile_verdict(pooled: PooledHead, alone: PooledHead | None) -> PileVerdict:
    """The verdict on a pile; `alone` is the head of the target and its pile, where auxiliary corpora take part."""
    if not pooled.correct:
        return PileVerdict(pooled.voice > 0, None, None)
    gain = Gain.paired(pooled.correct["with"], pooled.correct["without"])
    beside = None if alone is None else Gain.paired(pooled.correct["with"], alone.correct["with"])
    return PileVerdict(pooled.voice > 0, gain, beside)


def verdict_of(head: PriorHead, without: Mapping[str, PriorHead]) -> Verdict:
    """The verdict on a head; `without` holds the heads fitted without one corpus each, for those that take part."""
    hits = head.left_out_correct
    others = [kind for kind in _compared(head) if kind != head.kind]
    second = max(others, key=lambda kind: hits[kind].mean() if hits else 0.0, default=None)
    gain = Gain.paired(hits["prior"], hits[second]) if hits and second is not None else None
    accuracies: dict[str, float] = {kind: float(hits[kind].mean()) for kind in _compared(head)} if hits else {}
    names = list(dict.fromkeys(gate.corpus for gate in head.gates))
    auxiliaries = tuple(_auxiliary(head, name, without.get(name)) for name in names)
    return Verdict(head.kind, second, gain, accuracies, auxiliaries)


def _compared(head: PriorHead) -> list[Kind]:
    """The heads between which the choice was, the one that is shipped among them."""
    kinds: list[Kind] = [head.alone]
    if head.kind == "prior":
        kinds.append("prior")
    if head.scales:
        kinds.append("zero_shot")
    return kinds


def _auxiliary(head: PriorHead, name: str, without: PriorHead | None) -> AuxiliaryVerdict:
    gates: Sequence[Gate] = [gate for gate in head.gates if gate.corpus == name]
    roles = [role for role, used in (("mean", head.scales), ("gram", head.grams)) if name in used]
    mean_gates = [gate for gate in gates if gate.role == "mean"]
    gain = None
    if without is not None and head.left_out_correct:
        gain = Gain.paired(head.left_out_correct["prior"], without.left_out_correct["prior"])
    words = {"mean": "as a start", "gram": "by similarities", "bridge": "as a map"}
    return AuxiliaryVerdict(
        name=name,
        used_as=tuple(roles),
        aligned=mean_gates[0].believed if mean_gates else None,
        gain=gain,
        reasons=tuple(f"{words[gate.role]}, {gate.reason}" for gate in gates),
    )
