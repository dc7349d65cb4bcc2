"""MLflow runs as typed sweeps: arms × conditions × seeds, with the trial that was selected on validation in each.

In: the `RunRecord`s of one experiment. Out: `SweepResults`, which the verdict, the figures and the page read. What an
arm is, and what a gain needs, the sweep's own space says (`SweepResults.design`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from uml_core.evaluation.statistics import PairedDifference, paired_difference
from uml_core.sweeps.space import Arm, Space, space_from_json
from uml_core.tracking.records import RunRecord


@dataclass(frozen=True)
class Condition:
    """What arms are compared under: shots per class of the target (None: all)."""

    shots: int | None

    @property
    def words(self) -> str:
        """For a sentence: "at 4 shots", "at 1 shot", "with all training data"."""
        if self.shots is None:
            return "with all training data"
        return f"at {self.shots} shot{'' if self.shots == 1 else 's'}"

    @property
    def title(self) -> str:
        return self.words[0].upper() + self.words[1:]

    @property
    def order(self) -> tuple[bool, int]:
        """By shots, all data last."""
        return self.shots is None, self.shots or 0


@dataclass(frozen=True)
class ArmResults:
    """One arm under one condition: its trials, and values by seed of those that validation selected."""

    arm: str
    condition: Condition
    trials: tuple[RunRecord, ...] = ()

    @cached_property
    def selected(self) -> dict[int, RunRecord]:
        return {seed_of(trial): trial for trial in self.trials if is_selected(trial)}

    def by_seed(self, metric: str) -> dict[int, float]:
        """A metric of the selected trials that have it."""
        return {seed: trial.metrics[metric] for seed, trial in self.selected.items() if metric in trial.metrics}

    def measured(self, prefix: str) -> list[str]:
        """The metrics of selected trials whose names begin so, without the prefix."""
        names = dict.fromkeys(name for trial in self.selected.values() for name in trial.metrics)
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    @cached_property
    def test(self) -> dict[int, float]:
        return self.by_seed("test/accuracy")

    @cached_property
    def val(self) -> dict[int, float]:
        return self.by_seed("val/accuracy")

    @cached_property
    def harmonic(self) -> dict[int, float]:
        """Of seen and unseen classes' accuracies on test."""
        return self.by_seed("test/harmonic_mean")

    @cached_property
    def shift(self) -> dict[str, dict[int, float]]:
        """Accuracies on every shifted test set."""
        splits = [name.split("/")[0] for name in self.measured("shift/") if name.endswith("/accuracy")]
        return {split: self.by_seed(f"shift/{split}/accuracy") for split in splits}


@dataclass(frozen=True)
class SweepResults:
    """One sweep: its parent run and its arms."""

    parent: RunRecord
    trials: tuple[RunRecord, ...]
    arms: dict[tuple[str, Condition], ArmResults]
    names_target: bool = False  # of several sweeps of one space, whose targets differ

    @cached_property
    def design(self) -> Space:
        """The space as its file wrote it.

        A sweep logged before spaces were has one by its tags, whose arms say nothing and which claims nothing.
        """
        if self.parent.space_json:
            return space_from_json(self.parent.space_json)
        tags = self.parent.tags
        return Space(
            tags.get("uml.question", ""),
            tuple(Arm(name) for name in tags.get("uml.arms", "").split(",") if name),
            baseline=tags.get("uml.baseline", "unimodal"),
            headline=tags.get("uml.headline", "uml"),
            seeds=(),
            needs=(),
        )

    @property
    def name(self) -> str:
        """The space, and the target where that tells it from another sweep."""
        return f"{self.space} for {self.target}" if self.names_target else self.space

    @property
    def space(self) -> str:
        """The name of a built-in space, or the file of a user's own."""
        return self.parent.tags.get("uml.space", "")

    @property
    def baseline(self) -> str:
        """The arm the others are compared with."""
        return self.design.baseline

    @property
    def headline(self) -> str:
        """The arm the verdict is about."""
        return self.design.headline

    @property
    def target(self) -> str:
        return self.parent.tags.get("uml.target", "")

    @property
    def auxiliaries(self) -> tuple[str, ...]:
        """The auxiliary corpora; unrelated controls and corpora of another role are left out."""
        corpora = [name for name in self.parent.tags.get("uml.corpora", "").split(",") if name]
        left_out = {("control", "unrelated"), ("role", "shifted"), ("role", "bridge"), ("role", "unlabelled")}
        params = self.parent.params
        return tuple(
            name
            for name in corpora
            if name != self.target and not any(params.get(f"corpora.{name}.{key}") == value for key, value in left_out)
        )

    @property
    def has_unseen(self) -> bool:
        """Whether some class had no train row of the target."""
        return int(self.parent.tags.get("uml.unseen_classes", 0)) > 0

    @property
    def conditions(self) -> list[Condition]:
        return sorted({condition for _, condition in self.arms}, key=lambda condition: condition.order)

    def arm(self, name: str, condition: Condition) -> ArmResults | None:
        """An arm under a condition if it has measured trials."""
        results = self.arms.get((name, condition))
        return results if results is not None and results.test else None

    def difference(self, name: str, against: str, condition: Condition) -> PairedDifference | None:
        """Test accuracy of an arm less another's, paired by seed; None where they have no measured seed in common."""
        treated, baseline = self.arm(name, condition), self.arm(against, condition)
        return shared_difference(treated.test, baseline.test) if treated and baseline else None

    def arm_names(self) -> list[str]:
        """Measured arms in the order of the space (others as they were first logged), baseline first."""
        measured = dict.fromkeys(arm for arm, _ in self.arms)
        order = dict.fromkeys([*(arm.name for arm in self.design.arms), *measured])
        return sorted((name for name in order if name in measured), key=lambda name: name != self.baseline)

    def equal_budgets(self, condition: Condition) -> bool:
        """Whether headline and baseline trained equally many trials for each seed; a solved head needs none."""
        headline, baseline = self.arm(self.headline, condition), self.arm(self.baseline, condition)
        if headline is None or baseline is None:
            return False
        is_solved = any(self.design.arm(name).is_solved for name in (self.headline, self.baseline))
        return is_solved or len(headline.trials) == len(baseline.trials)


def shared_difference(treated: dict[int, float], baseline: dict[int, float]) -> PairedDifference | None:
    """The paired difference, or None where the two share no seed."""
    return paired_difference(treated, baseline) if set(treated) & set(baseline) else None


def latest_sweeps(records: Sequence[RunRecord]) -> dict[tuple[str, str], SweepResults]:
    """The newest finished sweep of every space and target (the newest unfinished one where none is finished)."""
    parents = [record for record in records if record.kind == "sweep"]
    # Later ones overwrite: a sweep that is still running must not hide the finished one before it.
    chosen: dict[tuple[str, str], RunRecord] = {}
    for parent in sorted(parents, key=lambda record: (record.status == "FINISHED", record.start_time_ms)):
        chosen[parent.tags.get("uml.space", ""), parent.tags.get("uml.target", "")] = parent
    targets = Counter(space for space, _ in chosen)
    return {
        key: replace(collect_sweep(records, parent), names_target=targets[key[0]] > 1) for key, parent in chosen.items()
    }


def earlier_sweeps(records: Sequence[RunRecord], shown: Iterable[SweepResults]) -> list[SweepResults]:
    """All sweeps but those shown, newest first."""
    ids = {sweep.parent.run_id for sweep in shown}
    others = [record for record in records if record.kind == "sweep" and record.run_id not in ids]
    return [collect_sweep(records, parent) for parent in sorted(others, key=lambda each: -each.start_time_ms)]


def collect_sweep(records: Iterable[RunRecord], parent: RunRecord) -> SweepResults:
    """Gather the nested runs of one sweep."""
    trials = sorted(
        (record for record in records if record.parent_run_id == parent.run_id and record.kind == "trial"),
        key=lambda record: record.start_time_ms,
    )
    groups: dict[tuple[str, Condition], list[RunRecord]] = {}
    for trial in trials:
        groups.setdefault((trial.arm, condition_of(trial)), []).append(trial)
    arms = {key: ArmResults(*key, tuple(group)) for key, group in groups.items()}
    return SweepResults(parent, tuple(trials), arms)


def condition_of(trial: RunRecord) -> Condition:
    shots = trial.params.get("data.shots", "None")
    return Condition(None if shots == "None" else int(shots))


def seed_of(trial: RunRecord) -> int:
    return int(trial.params.get("seed", "0"))


def is_selected(trial: RunRecord) -> bool:
    """Whether validation selected it, so that test was measured."""
    return trial.tags.get("uml.selected") == "true"


def training_runs(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The plain training runs, newest first."""
    return [record for record in records if record.kind in ("uml", "unimodal") and record.parent_run_id is None]
