"""The four answers that a page begins with: does it help, how much, which corpus, and what do I ship.

In: a sweep with its verdict, and the other sweeps of the page. Out: `Answers`, in short sentences; the verdict's own
text says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uml_core.evaluation.shipping import alias_of
from uml_core.evaluation.statistics import SIGNIFICANCE, PairedDifference, mean_over_seeds
from uml_core.figures.words import percent, points
from uml_core.reporting.collect import Condition, SweepResults, condition_of
from uml_core.reporting.space_rows import subset_rows
from uml_core.reporting.verdict import Kind, Verdict, all_of
from uml_core.sweeps.space import Arm, Role
from uml_core.tracking.records import RunRecord

HELPS: dict[Kind, str] = {
    "gain": "yes",
    "no_gain": "no reliable gain",
    "harm": "no, it harms",
    "undecided": "undecided",
}
DECIDING_COMMAND = "python -m pipelines.tune EXPERIMENT.yaml --space controls"
WHICH_COMMAND = "python -m pipelines.tune EXPERIMENT.yaml --space modalities"
ADVISE_COMMAND = "python -m pipelines.advise EXPERIMENT.yaml"
MOST_SUBSETS = 5  # auxiliary corpora that space modalities compares


@dataclass(frozen=True)
class Ship:
    """A model to use: what it is, how good, and its URI ("" where none was logged)."""

    title: str
    says: str
    accuracy: str
    model: str


@dataclass(frozen=True)
class Answers:
    """Sentences; `ships` begins with the most shots, and is empty where there is no model yet."""

    helps: str
    amounts: tuple[str, ...]
    corpora: tuple[str, ...]
    command: str  # that would tell which corpus; "" where that is known
    ships: tuple[Ship, ...]


def answers_of(sweeps: Sequence[SweepResults], verdict: Verdict, plain: Sequence[RunRecord]) -> Answers:
    """What a page's sweeps say, the first of them the one whose verdict that is; without one, what plain runs say."""
    if not sweeps:
        return Answers("Undecided.", ("Single runs are not compared.",), (), DECIDING_COMMAND, _plain_ships(plain))
    sweep = sweeps[0]
    alone = sweep.design.is_target_alone
    corpora, command = (("None takes part.",), "") if alone else _which_corpus(sweeps, verdict)
    return Answers(
        f"No unpaired data: this sweep is about {sweep.target} alone." if alone else _helps(verdict),
        tuple(_amounts(sweep, verdict)),
        corpora,
        command,
        tuple(_ships(sweep, verdict, is_newest=_is_newest(sweeps))),
    )


def _helps(verdict: Verdict) -> str:
    """Yes or no, by condition where there are several."""
    kinds = {part.condition.words: part.answer for part in verdict.conditions}
    if len(set(kinds.values())) < 2:
        return f"{HELPS[verdict.kind].capitalize()}."
    groups = [
        f"{HELPS[kind]} {all_of([w for w in kinds if kinds[w] == kind])}" for kind in dict.fromkeys(kinds.values())
    ]
    text = "; ".join(groups)
    return f"{text[0].upper()}{text[1:]}."


def _amounts(sweep: SweepResults, verdict: Verdict) -> Iterator[str]:
    """What unpaired data add in the best model with them, and what training on them does, by condition."""
    found: dict[str, list[str]] = {}
    for part in verdict.conditions:
        where, shipped = part.condition.words, part.shipped
        if shipped is not None and shipped.choice.unpaired and shipped.unpaired_over_alone:
            pair = f"{shipped.choice.unpaired.words} over {shipped.choice.alone.words}"
            line = f"{with_interval(shipped.unpaired_over_alone)}{shipped.of} {where}"
            found.setdefault(f"Best with unpaired data over best without, {pair}", []).append(line)
        elif shipped is not None:
            line = f"{with_interval(shipped.over_second)}{shipped.of} {where}"
            pair = f"{shipped.choice.arm.words} over {shipped.choice.second.words}"
            found.setdefault(f"Best over second best, {pair}", []).append(line)
        if part.claims and not sweep.design.is_target_alone:
            line = f"{with_interval(part.claims[0].difference)} {where}"
            found.setdefault(f"{sweep.headline} over {sweep.baseline}, its matched baseline", []).append(line)
    return (f"{what}: {'; '.join(lines)}." for what, lines in found.items())


def with_interval(difference: PairedDifference) -> str:
    """A difference in points with its 95 % interval, where there is one."""
    if math.isnan(difference.low):
        return f"{points(difference.mean)} points (one seed, no interval)"
    return f"{points(difference.mean)} points (95 % interval {points(difference.low)} to {points(difference.high)})"


def _which_corpus(sweeps: Sequence[SweepResults], verdict: Verdict) -> tuple[tuple[str, ...], str]:
    """What is known of single corpora, and the command that would say more."""
    sweep, *others = sweeps
    beside = tuple(_bridges_and_piles(sweep, verdict))
    for each in [sweep, *(other for other in others if other.target == sweep.target)]:
        lines = _alone(each)
        if lines:
            named = () if each is sweep else (f"By sweep {each.name}:",)
            return (*named, *lines, *beside), ""
    if sweep.design.subject:
        return (f"This sweep is about {sweep.design.subject}, not about which corpus.", *beside), ""
    if len(sweep.auxiliaries) < 2:
        only = f"{sweep.auxiliaries[0]}, the only auxiliary corpus." if sweep.auxiliaries else "None is recorded."
        return (only, *beside), ""
    command = WHICH_COMMAND if len(sweep.auxiliaries) <= MOST_SUBSETS else ADVISE_COMMAND
    return (f"This sweep cannot tell: {all_of(sweep.auxiliaries)} take part together.", *beside), command


def _alone(sweep: SweepResults) -> list[str]:
    """A line per auxiliary corpus that has an arm alone with the target."""
    found: dict[str, list[str]] = {}
    for row in subset_rows(sweep):
        if row.difference is not None and len(row.facts.corpora or ()) == 1 and not row.facts.initialised:
            sure = "reliable" if row.adjusted_p < SIGNIFICANCE else "not reliable"
            (corpus,) = row.facts.corpora or ()
            found.setdefault(corpus, []).append(f"{with_interval(row.difference)} {row.condition.words}, {sure}")
    return [f"{corpus}, alone: {'; '.join(lines)}." for corpus, lines in found.items()]


def _bridges_and_piles(sweep: SweepResults, verdict: Verdict) -> Iterator[str]:
    """What a bridge and an unlabelled pile are worth by their own arms, under the condition with the most shots."""
    part = verdict.conditions[-1] if verdict.conditions else None
    if part is None:
        return
    if part.shipped is not None and part.shipped.over_shuffled_bridge is not None:
        worth = with_interval(part.shipped.over_shuffled_bridge)
        yield f"The bridge, in the best with unpaired data: {worth} over its names shuffled {part.condition.words}."
    pile, alone = (_name_of(sweep, role) for role in ("pile", "discriminant"))
    worth_of_pile = sweep.difference(pile, alone, part.condition)
    if worth_of_pile is not None:
        yield f"The unlabelled pile, without text: {with_interval(worth_of_pile)} over {alone} {part.condition.words}."


def _name_of(sweep: SweepResults, role: Role) -> str:
    return next((arm.name for arm in sweep.design.arms if arm.role == role), "")


def _is_newest(sweeps: Sequence[SweepResults]) -> bool:
    """Whether the first sweep registered its models last, so that aliases are its own."""
    registered = [sweep.parent.start_time_ms for sweep in sweeps if "uml.best_model" in sweep.parent.tags]
    return sweeps[0].parent.start_time_ms >= max(registered, default=0)


def _ships(sweep: SweepResults, verdict: Verdict, *, is_newest: bool) -> Iterator[Ship]:
    """The model of every number of shots, the most first: what the verdict ships, else what was registered."""
    tags = sweep.parent.tags
    best, uri = tags.get("uml.best_trial", ""), tags.get("uml.best_model", "")
    trial = next((trial for trial in sweep.trials if trial.run_id == best), None)
    arms = {part.condition: part.shipped.choice.arm for part in verdict.conditions if part.shipped is not None}
    if trial is not None:
        arms |= {condition_of(trial): sweep.design.arm(trial.arm)}
    if uri and not arms:
        yield Ship("The best by validation without any control", "", "", uri)
    for index, (condition, arm) in enumerate(sorted(arms.items(), key=lambda item: item[0].order, reverse=True)):
        alias = uri if index == 0 else f"{uri.partition('@')[0]}@{alias_of(condition.shots)}"
        own = f"runs:/{best}/model" if best and index == 0 else ""
        yield _ship(sweep, arm, condition, (alias if is_newest else own) if uri else "")


def _ship(sweep: SweepResults, arm: Arm, condition: Condition, model: str) -> Ship:
    results = sweep.arm(arm.name, condition)
    words = arm.name if arm.words == arm.name else f"{arm.words[0].upper()}{arm.words[1:]} ({arm.name})"
    accuracy = "" if results is None else f"Test accuracy {_over_seeds(results.test)}."
    if results is not None and results.harmonic:
        accuracy = (
            f"{accuracy[:-1]}; harmonic mean of classes with and without train rows {_over_seeds(results.harmonic)}."
        )
    return Ship(f"{words} {condition.words}", f"{arm.says[:1].upper()}{arm.says[1:]}", accuracy, model)


def _over_seeds(by_seed: dict[int, float]) -> str:
    found = mean_over_seeds(by_seed)
    if math.isnan(found.low):
        return f"{percent(found.mean)} % (one seed, no interval)"
    interval = f"95 % interval {percent(found.low)} to {percent(found.high)} over {found.count} seeds"
    return f"{percent(found.mean)} % ({interval})"


def _plain_ships(plain: Sequence[RunRecord]) -> tuple[Ship, ...]:
    """The newest finished run, of UML where there is one: its model was compared with nothing."""
    done = sorted((run for run in plain if run.status == "FINISHED"), key=lambda run: run.kind != "uml")
    return tuple(
        Ship(
            f"Not compared yet; the model of the newest {run.kind} run, {run.run_id[:8]}",
            "",
            f"Test accuracy {percent(run.metrics.get('test/accuracy'))} %, one seed.",
            f"runs:/{run.run_id}/model",
        )
        for run in done[:1]
    )
