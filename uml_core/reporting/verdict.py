"""The verdict: does the unpaired data help, by how much, and is it what the data says that helps?

In: a sweep. Out: sentences its own numbers support: which model to ship and what it gains over the second best, what
the unpaired data are worth in it, and whether training on them is what helps. A gain of training must stand above the
matched baseline, above every model that one could use instead (ridge, an untrained zero-shot head, ...), and above
every control (the same procedure with the auxiliary labels shuffled, ...), all paired over seeds and corrected for
testing several claims; those that the space needs must have been measured (docs/method.md, Controls).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from uml_core.evaluation.shipping import MIN_SEEDS, Choice, choose, lacking_alternatives
from uml_core.evaluation.statistics import (
    SIGNIFICANCE,
    WORTH,
    PairedDifference,
    detectable_difference,
    holm,
    paired_difference,
    pairs_to_decide,
)
from uml_core.reporting.collect import Condition, SweepResults
from uml_core.sweeps.space import ALTERNATIVE_WORDS, Arm, Control, Space

Kind = Literal["gain", "no_gain", "harm", "undecided"]
KIND_WORDS: dict[Kind, str] = {"harm": "warning, harm", "gain": "gain", "no_gain": "no gain", "undecided": "undecided"}
SOLVED_OR_UNTRAINED = ("ridge", "discriminant", "logistic", "pile", "zero_shot")


@dataclass(frozen=True)
class Claim:
    """The headline arm against another, with the p value corrected over the condition's claims."""

    against: str
    difference: PairedDifference
    adjusted_p: float

    @property
    def holds_above(self) -> bool:
        """Whether the arm is reliably better."""
        return self.difference.mean > 0 and self.adjusted_p < SIGNIFICANCE

    @property
    def holds_below(self) -> bool:
        """Whether the arm is reliably worse."""
        return self.difference.mean < 0 and self.adjusted_p < SIGNIFICANCE


@dataclass(frozen=True)
class Shipped:
    """What to ship under one condition, and differences on test of the shipped model, paired over seeds."""

    condition: Condition
    choice: Choice
    over_second: PairedDifference
    unpaired_over_alone: PairedDifference | None  # None where the sweep is about the target alone
    over_shuffled: PairedDifference | None  # of the best with unpaired data, above its own control
    of: str = ""  # what the points are of, where that is not accuracy over test rows
    over_shuffled_bridge: PairedDifference | None = None  # of the best with unpaired data, where it has a bridge

    @property
    def sentence(self) -> str:
        """Which model to ship, what it gains, and what unpaired data and a bridge are worth in it."""
        bridge = self.over_shuffled_bridge
        if bridge is None or self.choice.unpaired is None:
            return self._ships
        worth = f"{_with_doubt(bridge)} points over its names shuffled"
        if bridge.is_above:
            return f"{self._ships} Of {self.choice.unpaired.words} the bridge is worth {worth}."
        return f"{self._ships} The bridge adds nothing reliable to {self.choice.unpaired.words} ({worth})."

    @property
    def _ships(self) -> str:
        choice = self.choice
        gain = f"{_with_doubt(self.over_second)} points{self.of} over {choice.second.words}"
        if _are_equal(self.over_second):
            gain = f"as accurate as {choice.second.words} at every seed"
        is_trained = choice.second.uses_unpaired and not choice.second.is_solved
        if choice.arm.role == "zero_shot" and is_trained and self.over_second.is_above:
            gain = f"training lowers it by {100 * self.over_second.mean:.1f} points ({choice.second.words})"
        line = f"Ship {choice.arm.words} {self.condition.words}: {gain}"
        if choice.unpaired is None or self.unpaired_over_alone is None:
            return f"{line}."
        worth = f"{_with_doubt(self.unpaired_over_alone)} points"
        if not choice.ships_unpaired and self.unpaired_over_alone.is_above:
            return f"{line}; validation did not show what unpaired data add on test ({choice.unpaired.words}: {worth})."
        if not choice.ships_unpaired:
            return f"{line}; unpaired data add nothing reliable (the best with them, {choice.unpaired.words}: {worth})."
        if not self.unpaired_over_alone.is_above:
            over = "" if choice.second is choice.alone else f" ({worth} over {choice.alone.words})"
            return f"{line}; validation chose it, on test unpaired data add nothing reliable{over}."
        shuffled, doubt = self.over_shuffled, ""
        if shuffled is not None and not shuffled.is_above:
            doubt = ", but shuffled labels do as well"
        elif shuffled is None and choice.unpaired.role != "zero_shot":
            doubt = ", not compared with shuffled labels"
        if choice.second is choice.alone:
            return f"{line}, which is what unpaired data are worth{doubt}."
        return f"{line}; unpaired data are worth {worth} over {choice.alone.words}{doubt}."

    @property
    def is_gain(self) -> bool:
        """Whether the model to ship is reliably better for unpaired data, and not with shuffled labels as well."""
        if self.choice.unpaired is None or self.unpaired_over_alone is None:
            return False
        is_beyond = self.choice.unpaired.role == "zero_shot"  # with shuffled labels it is chance
        if self.over_shuffled is not None:
            is_beyond = self.over_shuffled.is_above
        return self.choice.ships_unpaired and is_beyond and self.unpaired_over_alone.is_above


@dataclass(frozen=True)
class ConditionVerdict:
    """The verdict under one condition, with the claims it rests on; `kind` is that of training, the headline's."""

    condition: Condition
    kind: Kind
    text: str
    claims: tuple[Claim, ...] = ()
    shipped: Shipped | None = None

    @property
    def answer(self) -> Kind:
        """Whether unpaired data help: by training, or in another model that is shipped."""
        gains = self.kind in ("no_gain", "undecided") and self.shipped is not None and self.shipped.is_gain
        return "gain" if gains else self.kind


@dataclass(frozen=True)
class Verdict:
    """The verdict of a sweep: one line over all conditions, and one for each."""

    kind: Kind
    text: str
    conditions: tuple[ConditionVerdict, ...] = ()


def verdict_of(sweep: SweepResults) -> Verdict:
    """The verdict of a sweep; of one whose space was not logged, the one that was recorded when it ended."""
    recorded = sweep.parent.tags.get("uml.verdict")
    if recorded is not None and not sweep.parent.space_json:
        was = sweep.parent.tags.get("uml.verdict_kind")
        return Verdict(next((known for known in KIND_WORDS if known == was), "undecided"), recorded)
    parts = tuple(_condition_verdict(sweep, condition) for condition in sweep.conditions)
    if not parts:
        return Verdict("undecided", f"Undecided: sweep {sweep.space} has no finished trials.")
    kinds = {part.kind for part in parts}
    kind: Kind = next(option for option in KIND_WORDS if option in kinds)
    several = len(parts) > 1 and kind != "undecided"
    training = _summary(sweep, parts) if several else " ".join(part.text for part in parts)
    shipped = [part.shipped for part in parts if part.shipped is not None]
    ships = [each.sentence for each in shipped]
    if kind in ("no_gain", "undecided") and any(each.is_gain for each in shipped):
        kind = "gain"  # of another arm, which is shipped; the headline's text says why it has none
    if ships and not sweep.design.is_target_alone:
        ships.append("In closed form:" if sweep.design.takes_no_step else "Co-training:")
    return Verdict(kind, " ".join([*ships, training] if ships else [training, *_lacks(sweep)]), parts)


def _lacks(sweep: SweepResults) -> list[str]:
    """Say what a sweep does not compare the auxiliary data with, though it claims something of them."""
    measured = [arm for arm in sweep.design.arms if any(sweep.arm(arm.name, each) for each in sweep.conditions)]
    lacking = [] if sweep.design.subject else lacking_alternatives(measured)
    if not lacking or not sweep.design.needs:
        return []
    return [f"Not compared with {all_of(ALTERNATIVE_WORDS[role] for role in lacking)}."]


def _summary(sweep: SweepResults, parts: Sequence[ConditionVerdict]) -> str:
    """One sentence over several conditions, harm first; the conditions' own texts say why."""
    kinds = {part.kind for part in parts}
    if kinds <= {"gain", "no_gain"}:
        return _over_shots(sweep, parts)
    groups = []
    for kind, words in KIND_WORDS.items():
        found = [f"{part.condition.words}{_in_brackets(part)}" for part in parts if part.kind == kind]
        if found:
            groups.append(f"{words} {all_of(found)}")
    sentence = "; ".join(groups)
    subject, verb_s = _subject(sweep)
    return (
        f"{sentence[0].upper()}{sentence[1:]}: what {subject} change{verb_s} in test accuracy on {sweep.target}, "
        f"{sweep.headline} against {sweep.baseline}."
    )


def _in_brackets(part: ConditionVerdict) -> str:
    if not part.claims:
        return ""
    main = part.claims[0]
    beyond = ", but not beyond the controls" if part.kind == "no_gain" and main.holds_above else ""
    return f" ({_points(main.difference.mean)} ± {100 * main.difference.std:.1f} points{beyond})"


def _over_shots(sweep: SweepResults, parts: Sequence[ConditionVerdict]) -> str:
    """Say where a gain begins and ends: "raise test accuracy by +5.8 ± 0.9 points at 1 shot, ...: worth it below 8"."""
    subject, verb_s = _subject(sweep)
    differences = [
        f"{_points(main.mean)} ± {100 * main.std:.1f}{' points' if index == 0 else ''} {part.condition.words}"
        for index, part in enumerate(parts)
        for main in [part.claims[0].difference]
    ]
    measured = ", ".join(differences)
    seeds = min(part.claims[0].difference.count for part in parts)
    against = f"{seeds} seeds, {sweep.headline} against {sweep.baseline}"
    gains = [part for part in parts if part.kind == "gain"]
    beyond = [part for part in parts if part.kind == "no_gain" and part.claims[0].holds_above]
    doubt = f"; not beyond the controls {all_of(part.condition.words for part in beyond)}" if beyond else ""
    if not gains:
        return (
            f"No gain at any number of shots: {subject} change{verb_s} test accuracy on {sweep.target} by {measured}, "
            f"{'not beyond the controls' if beyond else 'no reliable difference'} ({against})."
        )
    if len(gains) == len(parts):
        worth = "worth it at every number of shots measured"
    elif parts[: len(gains)] == tuple(gains) and parts[len(gains)].condition.shots is not None:
        worth = f"worth it below {parts[len(gains)].condition.shots} shots"
    else:
        worth = f"worth it {all_of(part.condition.words for part in gains)}"
    control = sweep.design.arm((sweep.design.needs or ("",))[0]).words
    return (
        f"Gain: {subject} raise{verb_s} test accuracy on {sweep.target} by {measured}: {worth}, beyond "
        f"{control}{doubt} ({against})."
    )


def all_of(words: Iterable[str]) -> str:
    """Words in a row: "a", "a and b", "a, b and c"."""
    *first, last = words
    return " and ".join(filter(None, [", ".join(first), last]))


def _condition_verdict(sweep: SweepResults, condition: Condition) -> ConditionVerdict:
    def undecided(why: str, claims: tuple[Claim, ...] = ()) -> ConditionVerdict:
        return ConditionVerdict(condition, "undecided", f"Undecided {condition.words}: {why}", claims)

    headline, baseline = sweep.arm(sweep.headline, condition), sweep.arm(sweep.baseline, condition)
    if headline is None or baseline is None:
        return undecided(f"arm {sweep.headline if headline is None else sweep.baseline} has no measured trials.")
    if sweep.difference(sweep.headline, sweep.baseline, condition) is None:
        return undecided(f"arms {sweep.headline} and {sweep.baseline} have no seed in common.")
    claims = _claims(sweep, condition)
    measured = claims[0].difference
    if measured.count < MIN_SEEDS:
        seeds = f"{measured.count} seed{'' if measured.count == 1 else 's'}"
        why = f"{seeds} cannot decide ({_points(measured.mean)} points measured)"
        return undecided(f"{why}; run at least {MIN_SEEDS} (tune.seeds={MIN_SEEDS}).", claims)
    if sweep.design.is_target_alone:
        text = f"No unpaired data {condition.words}: the sweep is about {sweep.target} alone."
        return ConditionVerdict(condition, "undecided", text, claims, _shipped(sweep, condition))
    if not sweep.design.needs or not sweep.equal_budgets(condition):
        return undecided(_without_controls(sweep, condition, claims[0]), claims)
    kind, text = _decide(sweep, condition, claims)
    return ConditionVerdict(condition, kind, text, claims, _shipped(sweep, condition))


def _shipped(sweep: SweepResults, condition: Condition) -> Shipped | None:
    """What to ship under a condition; None where the sweep cannot say.

    Where classes have no train row, the harmonic mean of accuracy on those and on the others is what counts.
    """
    arms = {arm.name: found for arm in sweep.design.arms if (found := sweep.arm(arm.name, condition)) is not None}
    choice = choose(sweep.design, {name: arm.val for name, arm in arms.items()}, unseen=sweep.has_unseen)
    if choice is None:
        return None
    by_harmonic = sweep.has_unseen and bool(arms[choice.arm.name].harmonic)  # which needs test rows of both kinds

    def over(better: Arm, worse: Arm) -> PairedDifference:
        ours, theirs = arms[better.name], arms[worse.name]
        return paired_difference(*((each.harmonic if by_harmonic else each.test) for each in (ours, theirs)))

    unpaired = choice.unpaired

    def over_control(role: Control) -> PairedDifference | None:
        of_role = (arm for arm in sweep.design.arms if arm.role == role and arm.name in arms)
        own = next((arm for arm in of_role if unpaired and arm.controls in ("", unpaired.name)), None)
        return None if own is None or unpaired is None else over(unpaired, own)

    return Shipped(
        condition,
        choice,
        over(choice.arm, choice.second),
        None if unpaired is None else over(unpaired, choice.alone),
        over_control("shuffled"),
        " of the harmonic mean of accuracy on classes with and without train rows" if by_harmonic else "",
        over_control("shuffled_bridge"),
    )


def _claims(sweep: SweepResults, condition: Condition) -> tuple[Claim, ...]:
    """The headline arm compared with the baseline (first) and with each of its controls."""
    differences = {
        name: difference
        for name in [sweep.baseline, *(arm.name for arm in sweep.design.controls)]
        if (difference := sweep.difference(sweep.headline, name, condition)) is not None
    }
    # Within the condition alone: each is a question of its own, while all claims of one must hold together. That a gain
    # must stand above heads that are no part of the method as well only makes it rarer, and asks for no correction.
    p_values = {name: difference.p_value for name, difference in differences.items()}
    own = {name: value for name, value in p_values.items() if sweep.design.arm(name).role not in SOLVED_OR_UNTRAINED}
    adjusted = p_values | holm(own)
    return tuple(Claim(name, difference, adjusted[name]) for name, difference in differences.items())


def _decide(sweep: SweepResults, condition: Condition, claims: tuple[Claim, ...]) -> tuple[Kind, str]:
    design = sweep.design
    by_arm = {claim.against: claim for claim in claims}
    main, *others = claims
    subject, verb_s = _subject(sweep)
    where, measured = condition.words, _measured(main.difference)
    is_fixed = design.subject or design.takes_no_step  # a prior has no weight to lower
    if main.holds_below:
        return "harm", (
            f"Warning, harm {where}: {subject} lower{verb_s} test accuracy on {sweep.target} ({measured}); "
            f"leave {'it' if verb_s else 'them'} out{'' if is_fixed else ', or lower mixing.loss_weight'}."
        )
    if not main.holds_above:
        text = f"{where}: {subject} make{verb_s} no reliable difference ({measured}).{_power(design, [main], claims)}"
        return ("undecided", f"Undecided {text}") if _is_open(main) else ("no_gain", f"No gain {text}")
    needs = [design.arm(name) for name in design.needs or ()]
    missing = next((arm.words for arm in needs if arm.name not in by_arm), None)
    if missing is not None:
        return "undecided", f"Undecided {where}: {measured} over {main.against}, but {missing} was not measured."
    thin = [claim.against for claim in others if claim.difference.count < MIN_SEEDS]
    doubts = [claim for claim in others if not claim.holds_above and claim.against not in thin]
    if doubts and all(_is_open(claim) for claim in doubts):
        least = min(doubts, key=lambda claim: claim.difference.mean)
        return "undecided", (
            f"Undecided {where}: {sweep.headline} is above {main.against} by {measured}, but not reliably above "
            f"{design.arm(least.against).words} ({_measured(least.difference)}).{_power(design, doubts, claims)}"
        )
    instead = [claim for claim in doubts if design.arm(claim.against).role in ALTERNATIVE_WORDS]
    beyond = [claim for claim in doubts if claim not in instead]
    if beyond:
        names = " and ".join(f"{claim.against} ({_points(claim.difference.mean)} points)" for claim in beyond)
        return "no_gain", (
            f"No gain {where} beyond the controls: {sweep.headline} is above {main.against} by {measured}, "
            f"but not reliably above {names}: what {subject} say{verb_s} is not what helps."
        )
    if instead:
        best = min(instead, key=lambda claim: claim.difference.mean)
        words, points = design.arm(best.against).words, f"({_points(best.difference.mean)} points)"
        but = f"not reliably above {words} {points}" if best.difference.mean > 0 else f"{words} does as well {points}"
        return "no_gain", (
            f"No gain {where} over {words}: {sweep.headline} is above {main.against} by {measured}, but {but}."
        )
    if thin:
        return "undecided", (
            f"Undecided {where}: {measured} over {main.against}, but fewer than {MIN_SEEDS} seeds were measured of "
            f"control {' and '.join(thin)}."
        )
    above = _points(by_arm[needs[0].name].difference.mean)
    return "gain", (
        f"Gain {where}: {subject} raise{verb_s} test accuracy on {sweep.target} by {measured}, beyond "
        f"{needs[0].words} ({above} points above it).{_sources(sweep, condition)}"
    )


def _sources(sweep: SweepResults, condition: Condition) -> str:
    """How much of a gain is the head's start and how much is training on the auxiliary data, where an arm tells."""
    design = sweep.design
    starts = [arm.name for arm in design.arms if arm.role == "baseline" and arm.facts.initialised]
    if not starts or not design.arm(sweep.headline).facts.initialised:
        return ""
    start = sweep.difference(starts[0], sweep.baseline, condition)
    training = sweep.difference(sweep.headline, starts[0], condition)
    if start is None or training is None:
        return ""
    return f" Of it, initialising the head gives {_with_doubt(start)} and co-training {_with_doubt(training)}."


def _is_open(claim: Claim) -> bool:
    """Whether a claim that does not hold may be true: its interval holds a gain worth having."""
    return claim.difference.high >= WORTH


def _power(design: Space, doubts: Sequence[Claim], claims: Sequence[Claim]) -> str:
    """What a sweep could have seen of the doubt that spreads most, and the seeds that would decide all open ones."""
    corrected = [each.against for each in claims if design.arm(each.against).role not in SOLVED_OR_UNTRAINED]
    tests = {doubt.against: len(corrected) if doubt.against in corrected else 1 for doubt in doubts}
    widest = max(doubts, key=lambda doubt: doubt.difference.std)
    if not widest.difference.std:
        return ""
    least = 100 * detectable_difference(widest.difference, tests=tests[widest.against])
    seen = f" {widest.difference.count} seeds like these show a gain of {least:.1f} points or more"
    needed = [
        pairs_to_decide(doubt.difference, WORTH, tests=tests[doubt.against]) for doubt in doubts if _is_open(doubt)
    ]
    if not needed:
        return f"{seen}."
    seeds = [count for count in needed if count is not None]
    told = f"tune.seeds={max(seeds)}" if len(seeds) == len(needed) else "more than 200"
    return f"{seen}; {told} would decide."


def _are_equal(difference: PairedDifference) -> bool:
    return difference.std == 0 and difference.mean == 0


def _with_doubt(difference: PairedDifference) -> str:
    doubt = "" if difference.p_value < SIGNIFICANCE else " (not reliable)"
    return f"{_points(difference.mean)} ± {100 * difference.std:.1f}{doubt}"


def _without_controls(sweep: SweepResults, condition: Condition, main: Claim) -> str:
    needs = sweep.design.needs
    lacking = [
        *([] if sweep.equal_budgets(condition) else ["unequal search budgets"]),
        *([] if needs else ["no controls"]),
    ]
    # A space that says needs=() knows that it claims nothing; one that says nothing may be meant to.
    hint = ", or name the controls that a gain needs in the space: Space(needs=...)" if needs is None else ""
    return (
        f"in sweep {sweep.space}, {sweep.headline} differs from {main.against} by {_measured(main.difference)}, with "
        f"{' and '.join(lacking)}; run tune --space controls to decide{hint}."
    )


def _subject(sweep: SweepResults) -> tuple[str, str]:
    """What is claimed to help, and "s" for its verb if it is one thing (corpora's names are taken as plural)."""
    if sweep.design.subject:
        return sweep.design.subject, ""
    names = sweep.auxiliaries
    joined = all_of(names) if names else "the auxiliary data"
    return f"corpus {joined}" if len(names) == 1 else joined, "s" if len(names) <= 1 else ""


def _measured(difference: PairedDifference) -> str:
    """Mean ± std with interval and seeds, in percent points."""
    if _are_equal(difference):
        return f"equal accuracy at each of {difference.count} seeds"
    return (
        f"{_points(difference.mean)} ± {100 * difference.std:.1f} points, 95 % interval "
        f"{_points(difference.low)} to {_points(difference.high)}, {difference.count} seeds"
    )


def _points(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
