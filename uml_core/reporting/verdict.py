"""The verdict: does the unpaired data help, by how much, and is it what the data says that helps?

In: a sweep. Out: a sentence its own numbers support. A gain must stand above the matched baseline, above a plain linear
probe, and above the same procedure with the auxiliary labels shuffled, all paired over seeds and corrected for testing
several claims. What a control does as well is no gain (docs/method.md, Controls).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from uml_core.evaluation.statistics import PairedDifference, holm, paired_difference
from uml_core.reporting.collect import (
    DECIDING_SPACES,
    NEEDED_CONTROLS,
    WEIGHT_TRANSFER,
    ArmResults,
    Condition,
    SweepResults,
    collect_sweep,
)
from uml_core.tracking.records import RunRecord

Kind = Literal["gain", "no_gain", "harm", "undecided"]
KIND_WORDS: dict[Kind, str] = {"harm": "warning, harm", "gain": "gain", "no_gain": "no gain", "undecided": "undecided"}
MIN_SEEDS = 3
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Claim:
    """One comparison: an arm against another, with the p value corrected over the condition's claims."""

    arm: str
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
class ConditionVerdict:
    """The verdict under one condition, with the claims it rests on."""

    condition: Condition
    kind: Kind
    text: str
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The verdict of a sweep: one line over all conditions, and one for each."""

    kind: Kind
    text: str
    conditions: tuple[ConditionVerdict, ...] = ()


def sweep_verdict(records: Sequence[RunRecord], parent_run_id: str) -> Verdict:
    """Return the verdict of the sweep with that parent run."""
    parent = next(record for record in records if record.run_id == parent_run_id)
    return verdict_of(collect_sweep(records, parent))


def verdict_of(sweep: SweepResults) -> Verdict:
    """Return the verdict of a sweep."""
    parts = tuple(_condition_verdict(sweep, condition) for condition in sweep.conditions)
    if not parts:
        return Verdict("undecided", f"Undecided: sweep {sweep.space} has no finished trials.")
    if len(parts) == 1:
        return Verdict(parts[0].kind, parts[0].text, parts)
    kinds = {part.kind for part in parts}
    kind = next(option for option in KIND_WORDS if option in kinds)
    return Verdict(
        kind, " ".join(part.text for part in parts) if kind == "undecided" else _summary(sweep, parts), parts
    )


def _summary(sweep: SweepResults, parts: Sequence[ConditionVerdict]) -> str:
    """Return one sentence over several conditions, harm first; the conditions' own texts say why."""
    kinds = {part.kind for part in parts}
    if kinds <= {"gain", "no_gain"}:
        return _over_shots(sweep, parts)
    groups = []
    for kind, words in KIND_WORDS.items():
        found = [f"{part.condition.words}{_in_brackets(part)}" for part in parts if part.kind == kind]
        if found:
            groups.append(f"{words} {' and '.join(filter(None, [', '.join(found[:-1]), found[-1]]))}")
    sentence = "; ".join(groups)
    corpora, verb_s = _corpora(sweep)
    return (
        f"{sentence[0].upper()}{sentence[1:]}: what {corpora} change{verb_s} in test accuracy on {sweep.target}, "
        f"{sweep.headline} against {sweep.baseline}."
    )


def _in_brackets(part: ConditionVerdict) -> str:
    if part.kind == "undecided" or not part.claims:
        return ""
    main = part.claims[0]
    beyond = ", but not beyond the controls" if part.kind == "no_gain" and main.holds_above else ""
    return f" ({_points(main.difference.mean)} ± {100 * main.difference.std:.1f} points{beyond})"


def _over_shots(sweep: SweepResults, parts: Sequence[ConditionVerdict]) -> str:
    """Say where a gain begins and ends: "raise test accuracy by +5.8 ± 0.9 points at 1 shot, ...: worth it below 8"."""
    corpora, verb_s = _corpora(sweep)
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
    doubt = f"; not beyond the controls {_all_of(part.condition.words for part in beyond)}" if beyond else ""
    if not gains:
        return (
            f"No gain at any number of shots: {corpora} change{verb_s} test accuracy on {sweep.target} by {measured}, "
            f"{'not beyond the controls' if beyond else 'no reliable difference'} ({against})."
        )
    if len(gains) == len(parts):
        worth = "worth it at every number of shots measured"
    elif parts[: len(gains)] == tuple(gains) and parts[len(gains)].condition.shots is not None:
        worth = f"worth it below {parts[len(gains)].condition.shots} shots"
    else:
        worth = f"worth it {_all_of(part.condition.words for part in gains)}"
    return (
        f"Gain: {corpora} raise{verb_s} test accuracy on {sweep.target} by {measured}: {worth}, beyond the "
        f"{NEEDED_CONTROLS[sweep.space][0]} control{doubt} ({against})."
    )


def _all_of(words: Iterable[str]) -> str:
    *first, last = words
    return " and ".join(filter(None, [", ".join(first), last]))


def _condition_verdict(sweep: SweepResults, condition: Condition) -> ConditionVerdict:
    headline, baseline = sweep.arm(sweep.headline, condition), sweep.arm(sweep.baseline, condition)
    where = condition.words
    if headline is None or baseline is None:
        missing = sweep.headline if headline is None else sweep.baseline
        return ConditionVerdict(condition, "undecided", f"Undecided {where}: arm {missing} has no measured trials.")
    if not set(headline.test) & set(baseline.test):
        text = f"Undecided {where}: arms {sweep.headline} and {sweep.baseline} have no seed in common."
        return ConditionVerdict(condition, "undecided", text)
    claims = _claims(sweep, condition, headline)
    main = claims[0]
    if main.difference.count < MIN_SEEDS:
        seeds = f"{main.difference.count} seed{'' if main.difference.count == 1 else 's'}"
        text = (
            f"Undecided {where}: {seeds} cannot decide ({_points(main.difference.mean)} points measured); "
            f"run at least {MIN_SEEDS} (tune.seeds={MIN_SEEDS})."
        )
        return ConditionVerdict(condition, "undecided", text, claims)
    if sweep.space not in DECIDING_SPACES or not equal_budgets(sweep, condition):
        return ConditionVerdict(condition, "undecided", _without_controls(sweep, condition, main), claims)
    kind, text = _decide(sweep, condition, claims)
    return ConditionVerdict(condition, kind, text, claims)


def _claims(sweep: SweepResults, condition: Condition, headline: ArmResults) -> tuple[Claim, ...]:
    """Compare the headline arm with the baseline (first), the linear probe and its matched controls."""
    suffix = next((suffix for suffix in ("_init", "_frozen") if sweep.headline.endswith(suffix)), "")
    against = [sweep.baseline, "linear_probe", f"shuffled{suffix}", f"noise{suffix}", f"unrelated{suffix}"]
    differences: dict[str, PairedDifference] = {}
    for name in against:
        arm = sweep.arm(name, condition)
        if arm is not None and set(arm.test) & set(headline.test):
            differences[name] = paired_difference(headline.test, arm.test)
    adjusted = holm({name: difference.p_value for name, difference in differences.items()})
    return tuple(Claim(sweep.headline, name, difference, adjusted[name]) for name, difference in differences.items())


def _decide(sweep: SweepResults, condition: Condition, claims: tuple[Claim, ...]) -> tuple[Kind, str]:
    by_arm = {claim.against: claim for claim in claims}
    main = claims[0]
    corpora, verb_s = _corpora(sweep)
    where, measured = condition.words, _measured(main.difference)
    needed = NEEDED_CONTROLS[sweep.space]
    control = next((claim for name, claim in by_arm.items() if name.startswith(needed[0])), None)
    probe = by_arm.get("linear_probe")
    if main.holds_below:
        return "harm", (
            f"Warning, harm {where}: {corpora} lower{verb_s} test accuracy on {sweep.target} ({measured}); "
            f"leave {'it' if verb_s else 'them'} out{'' if _is_transfer(sweep) else ', or lower mixing.loss_weight'}."
        )
    if not main.holds_above:
        return "no_gain", f"No gain {where}: {corpora} make{verb_s} no reliable difference ({measured})."
    if control is None or ("linear_probe" in needed and probe is None):
        missing = f"{needed[0]} control" if control is None else "linear probe"
        return "undecided", f"Undecided {where}: {measured} over {main.against}, but no {missing} was measured."
    thin = [claim.against for claim in claims[1:] if claim.difference.count < MIN_SEEDS]
    doubts = [claim for claim in claims[1:] if not claim.holds_above and claim.against not in thin]
    beyond = [claim for claim in doubts if claim is not probe]
    if beyond:
        names = " and ".join(f"{claim.against} ({_points(claim.difference.mean)} points)" for claim in beyond)
        return "no_gain", (
            f"No gain {where} beyond the controls: {main.arm} is above {main.against} by {measured}, "
            f"but not reliably above {names}: what {corpora} say{verb_s} is not what helps."
        )
    if probe is not None and probe in doubts:
        return "no_gain", (
            f"No gain {where} over a plain linear probe: {main.arm} is above {main.against} by {measured}, but the "
            f"linear probe without projection does as well ({_points(probe.difference.mean)} points)."
        )
    if thin:
        return "undecided", (
            f"Undecided {where}: {measured} over {main.against}, but fewer than {MIN_SEEDS} seeds were measured of "
            f"control {' and '.join(thin)}."
        )
    return "gain", (
        f"Gain {where}: {corpora} raise{verb_s} test accuracy on {sweep.target} by {measured}, beyond the {needed[0]} "
        f"control ({_points(control.difference.mean)} points above it).{_sources(sweep, condition)}"
    )


def _sources(sweep: SweepResults, condition: Condition) -> str:
    """Say how much of a gain is the initialisation and how much is training on the auxiliary data."""
    if not sweep.headline.endswith("_init"):
        return ""
    headline, baseline = sweep.arm(sweep.headline, condition), sweep.arm(sweep.baseline, condition)
    initialised = sweep.arm(f"{sweep.baseline}_init", condition)
    if headline is None or baseline is None or initialised is None:
        return ""
    if not set(initialised.test) & set(baseline.test) & set(headline.test):
        return ""
    start = paired_difference(initialised.test, baseline.test)
    training = paired_difference(headline.test, initialised.test)
    return f" Of it, initialising the head gives {_with_doubt(start)} and co-training {_with_doubt(training)}."


def _with_doubt(difference: PairedDifference) -> str:
    doubt = "" if difference.p_value < SIGNIFICANCE else " (not reliable)"
    return f"{_points(difference.mean)} ± {100 * difference.std:.1f}{doubt}"


def equal_budgets(sweep: SweepResults, condition: Condition) -> bool:
    """Return whether headline and baseline trained equally many trials for each seed they were measured with."""
    headline, baseline = sweep.arm(sweep.headline, condition), sweep.arm(sweep.baseline, condition)
    if headline is None or baseline is None:
        return False
    return headline.trials == baseline.trials


def _without_controls(sweep: SweepResults, condition: Condition, main: Claim) -> str:
    unequal = "" if equal_budgets(sweep, condition) else "unequal search budgets"
    missing = "" if sweep.space in DECIDING_SPACES else "no controls"
    return (
        f"Undecided {condition.words}: in sweep {sweep.space}, {main.arm} differs from {main.against} by "
        f"{_measured(main.difference)}, with {' and '.join(filter(None, [unequal, missing]))}; "
        "run tune --space controls to decide."
    )


def _corpora(sweep: SweepResults) -> tuple[str, str]:
    """Return what is judged in words, and "s" for the verb if it is one thing (corpora's names are taken as plural)."""
    if _is_transfer(sweep):
        return "the text model's weights", ""
    names = sweep.auxiliaries
    joined = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "the auxiliary data"
    return f"corpus {joined}" if len(names) == 1 else joined, "s" if len(names) <= 1 else ""


def _is_transfer(sweep: SweepResults) -> bool:
    return sweep.space == WEIGHT_TRANSFER


def _measured(difference: PairedDifference) -> str:
    """Return mean ± std with interval and seeds, in percent points."""
    if math.isnan(difference.low):
        return f"{_points(difference.mean)} points, one seed"
    return (
        f"{_points(difference.mean)} ± {100 * difference.std:.1f} points, 95 % interval "
        f"{_points(difference.low)} to {_points(difference.high)}, {difference.count} seeds"
    )


def _points(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
