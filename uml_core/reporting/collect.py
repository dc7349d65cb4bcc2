"""MLflow runs as typed sweeps: arms × conditions × seeds, with the trial that was selected on validation in each.

In: the `RunRecord`s of one experiment. Out: `SweepResults`, which the verdict, the figures and the page read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from uml_core.tracking.records import RunRecord

CONTROLS, FEW_SHOT, LINEAR_PROBE = "controls", "few_shot", "linear_probe"
MIXING_RATIO, EXCHANGE_RATE, MODALITIES, TEXT = "mixing_ratio", "exchange_rate", "modalities", "text"
SELF_SUPERVISED, FINE_TUNING = "self_supervised", "finetune"
WEIGHT_TRANSFER = "weight_transfer"
# What a space must have measured before a gain is claimed; self-supervised training reads no labels to shuffle.
NEEDED_CONTROLS = {
    **dict.fromkeys((CONTROLS, FEW_SHOT, LINEAR_PROBE, FINE_TUNING), ("shuffled", "linear_probe")),
    SELF_SUPERVISED: ("noise",),
    WEIGHT_TRANSFER: ("shuffled",),
}
DECIDING_SPACES = tuple(NEEDED_CONTROLS)


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


@dataclass(frozen=True)
class ArmResults:
    """One arm under one condition: values by seed of the selected trials, and what was spent."""

    arm: str
    condition: Condition
    test: dict[int, float] = field(default_factory=dict)
    val: dict[int, float] = field(default_factory=dict)
    shift: dict[str, dict[int, float]] = field(default_factory=dict)  # split -> seed -> accuracy
    trials: int = 0
    failed: int = 0
    train_s: float = 0.0


@dataclass(frozen=True)
class SweepResults:
    """One sweep: its parent run and its arms."""

    parent: RunRecord
    trials: tuple[RunRecord, ...]
    arms: dict[tuple[str, Condition], ArmResults]
    names_target: bool = False  # of several sweeps of one space, whose targets differ

    @property
    def name(self) -> str:
        """The space, and the target where that tells it from another sweep."""
        return f"{self.space} for {self.target}" if self.names_target else self.space

    @property
    def space(self) -> str:
        """controls, mixing_ratio, or the name of a user's space."""
        return self.parent.tags.get("uml.space", "")

    @property
    def baseline(self) -> str:
        """The arm the others are compared with."""
        return self.parent.tags.get("uml.baseline", "unimodal")

    @property
    def headline(self) -> str:
        """The arm the verdict is about."""
        return self.parent.tags.get("uml.headline", "uml")

    @property
    def target(self) -> str:
        """The target corpus."""
        return self.parent.tags.get("uml.target", "")

    @property
    def auxiliaries(self) -> tuple[str, ...]:
        """The auxiliary corpora; unrelated controls and shifted test sets are left out."""
        corpora = [name for name in self.parent.tags.get("uml.corpora", "").split(",") if name]
        return tuple(
            name
            for name in corpora
            if name != self.target and self.parent.params.get(f"corpora.{name}.control") != "unrelated"
        )

    @property
    def conditions(self) -> list[Condition]:
        """Conditions by shots, all data last."""
        found = {condition for _, condition in self.arms}
        return sorted(found, key=lambda condition: (condition.shots is None, condition.shots or 0))

    def arm(self, name: str, condition: Condition) -> ArmResults | None:
        """Return an arm under a condition if it has measured trials."""
        results = self.arms.get((name, condition))
        return results if results is not None and results.test else None

    def arm_names(self) -> list[str]:
        """Arms in the order of the space (where that is not known, as they were first logged), baseline first."""
        order = [name for name in self.parent.tags.get("uml.arms", "").split(",") if name]
        names = list(dict.fromkeys([*order, *(arm for arm, _ in self.arms)]))
        measured = {arm for arm, _ in self.arms}
        return sorted((name for name in names if name in measured), key=lambda name: name != self.baseline)


def latest_sweeps(records: Sequence[RunRecord]) -> dict[tuple[str, str], SweepResults]:
    """Return the newest finished sweep of every space and target (the newest unfinished one where none is finished)."""
    parents = [record for record in records if record.kind == "sweep"]
    chosen: dict[tuple[str, str], RunRecord] = {}
    for parent in sorted(parents, key=lambda record: (record.status == "FINISHED", record.start_time_ms)):
        chosen[parent.tags.get("uml.space", ""), parent.tags.get("uml.target", "")] = parent
    targets = Counter(space for space, _ in chosen)
    return {
        key: replace(collect_sweep(records, parent), names_target=targets[key[0]] > 1) for key, parent in chosen.items()
    }


def collect_sweep(records: Iterable[RunRecord], parent: RunRecord) -> SweepResults:
    """Gather the nested runs of one sweep."""
    trials = sorted(
        (record for record in records if record.parent_run_id == parent.run_id and record.kind == "trial"),
        key=lambda record: record.start_time_ms,
    )
    arms: dict[tuple[str, Condition], ArmResults] = {}
    counts: dict[tuple[str, Condition], list[float]] = {}
    for trial in trials:
        key = (trial.arm, condition_of(trial))
        results = arms.setdefault(key, ArmResults(*key))
        count = counts.setdefault(key, [0, 0, 0.0])
        count[0] += 1
        count[1] += trial.status == "FAILED"
        count[2] += trial.metrics.get("perf/train_s", 0.0)
        if trial.tags.get("uml.selected") == "true":
            _add_selected(results, trial)
    filled = {
        key: ArmResults(*key, results.test, results.val, results.shift, int(n), int(failed), seconds)
        for key, results in arms.items()
        for n, failed, seconds in [counts[key]]
    }
    return SweepResults(parent, tuple(trials), filled)


def condition_of(trial: RunRecord) -> Condition:
    """Return the condition a trial ran under."""
    shots = trial.params.get("data.shots", "None")
    return Condition(None if shots == "None" else int(shots))


def training_runs(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the plain training runs, newest first."""
    return [record for record in records if record.kind in ("uml", "unimodal") and record.parent_run_id is None]


def _add_selected(results: ArmResults, trial: RunRecord) -> None:
    seed = int(trial.params.get("seed", "0"))
    if "test/accuracy" in trial.metrics:
        results.test[seed] = trial.metrics["test/accuracy"]
    if "val/accuracy" in trial.metrics:
        results.val[seed] = trial.metrics["val/accuracy"]
    for name, value in trial.metrics.items():
        if name.startswith("shift/") and name.endswith("/accuracy"):
            results.shift.setdefault(name.split("/")[1], {})[seed] = value
