"""Search: TPE over grids, proposals with equal budgets, resuming from a folder, stopping within a group, resources."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler

from pipelines.tune.folder import Assignment, SweepFolder, TrialResult
from pipelines.tune.proposals import Proposals, TpeProposals, build_proposals, trial_resources
from pipelines.tune.tuner import GroupedScheduler
from tests.conftest import vector_tree
from tune_spaces import Arm, Space, TrialSpec
from uml_core.config import Experiment, TuneConfig, parse_experiment
from uml_core.errors import InputError
from uml_core.sweeps.tpe import TpeSearch
from uml_core.tracking.records import MetricPoint
from uml_core.training.packs import pack_label

SOLVED = {"model.head": "prior", "model.head_init": "random"}
AXES = {
    "optim.lr": (1e-4, 1e-3, 1e-2, 1e-1),
    "mixing.schedule": ("joint", "alternate"),
    "mixing.batch_ratio": ({"names": 1.0}, {"names": 2.0}),
}


def quality(point: dict[str, Any]) -> float:
    """Best at lr 0.01, alternate, ratio 2; no other point is as good."""
    near = {1e-4: 0.0, 1e-3: 0.3, 1e-2: 0.6, 1e-1: 0.1}[point["optim.lr"]]
    return near + 0.2 * (point["mixing.schedule"] == "alternate") + 0.1 * (point["mixing.batch_ratio"]["names"] == 2.0)


def test_tpe_tries_every_point_once_and_then_says_there_is_none() -> None:
    search = TpeSearch(AXES, stream="s")
    tried = []
    while (point := search.propose()) is not None:
        tried.append(tuple(map(str, point.values())))
        search.tell(point, [quality(point)])
    assert sorted(tried) == sorted(tuple(map(str, values)) for values in itertools.product(*AXES.values()))


def test_tpe_learns_where_the_optimum_is() -> None:
    """40 proposals of 100 points, 10 times: random draws find 2 of the 5 points around the optimum on average."""
    axes = {"optim.lr": tuple(0.9**index for index in range(50)), "model.learnable_scale": (False, True)}
    ordered = sorted(axes["optim.lr"])
    found = 0
    for stream in range(10):
        search = TpeSearch(axes, stream=str(stream))
        for _ in range(40):
            point = search.propose()
            assert point is not None
            distance = abs(ordered.index(point["optim.lr"]) - 33)
            search.tell(point, [-distance - 10 * (not point["model.learnable_scale"])])
            found += distance <= 2 and point["model.learnable_scale"]
    assert found >= 40, "of 50 that there are"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.integers(0, 12))
def test_tpe_never_repeats_what_a_resumed_sweep_tells_it(seed: int, done: int) -> None:
    first, again = (TpeSearch(AXES, stream=str(seed)) for _ in range(2))
    told = []
    for index in range(done):
        point = first.propose()
        assert point is not None
        told.append(point)
        again.tell(point, None if index % 5 == 4 else [quality(point)])
    assert again.num_tried == done
    later = [again.propose() for _ in range(16 - done)]
    assert None not in later
    assert not [point for point in later if point in told]
    assert again.propose() is None


def test_two_objectives() -> None:
    search = TpeSearch(AXES, stream="s", num_objectives=2)
    for _ in range(12):
        point = search.propose()
        assert point is not None
        search.tell(point, [quality(point), point["mixing.batch_ratio"]["names"]])
    assert search.num_tried == 12


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return parse_experiment(vector_tree(tmp_path, tune={"search": "tpe"}))


def space(num_rates: int = 6) -> Space:
    arms = (Arm("unimodal", {"mixing.loss_weight": {"names": 0.0}}), Arm("uml"))
    return Space("?", arms, "unimodal", "uml", (0, 1), grid={"optim.lr": tuple(0.1 * 2**-n for n in range(num_rates))})


def one_by_one(proposals: Proposals) -> Iterator[TrialSpec]:
    """Yield what a sweep with as many processes as trials is given."""
    while pack := proposals.next_pack(processes=1000):
        yield from pack


def test_packs_are_of_one_shape_and_leave_work_for_every_process(experiment: Experiment) -> None:
    proposals = build_proposals(space(), experiment.override({"tune.search": "grid"}))
    packs = []
    while pack := proposals.next_pack(processes=2):
        packs.append(pack)
    assert [len(pack) for pack in packs] == [8, 8, 4, 2, 1, 1]
    assert len({spec.key for pack in packs for spec in pack}) == proposals.total == 24
    for pack in packs:
        assert len({pack_label(spec.experiment) for spec in pack}) == 1
    assert [spec.experiment.seed for spec in packs[0]] == [0] * 6 + [1] * 2, "those that share batches come first"


def test_one_process_takes_many_heads_in_closed_form(experiment: Experiment) -> None:
    """600 of them in 10 packs of one process: each of Tune's own trials takes longer than such a head."""
    arms = tuple(Arm(f"prior_{weight}", SOLVED | {"mixing.loss_weight.names": weight}) for weight in (1.0, 0.0))
    many = Space("?", arms, "prior_0.0", "prior_1.0", tuple(range(100)), {"data.shots": (1, 2, 4)})
    proposals = build_proposals(many, experiment.override({"tune.search": "grid"}))
    packs = []
    while pack := proposals.next_pack(processes=1):
        packs.append(pack)
    assert [len(pack) for pack in packs] == [64] * 9 + [24]


@pytest.mark.parametrize(
    "change",
    [{"tune.pack": 1}, {"tune.stopping": "asha"}, {"optim.clip_norm": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_trials_that_train_alone(experiment: Experiment, change: dict[str, Any]) -> None:
    proposals = build_proposals(space(), experiment.override({"tune.search": "grid", **change}))
    assert [len(proposals.next_pack(processes=2)) for _ in range(25)] == [1] * 24 + [0]


def test_tpe_proposals_share_the_budget_equally_and_side_by_side(experiment: Experiment) -> None:
    proposals = build_proposals(space(), experiment, max_trials=17)
    assert isinstance(proposals, TpeProposals)
    assert (proposals.total, proposals.budget) == (16, {"unimodal": 4, "uml": 4})
    keys = []
    for spec in one_by_one(proposals):
        keys.append(spec.key)
        counts = Counter(spec.group for spec in proposals.specs.values())
        assert max(counts.values()) - min(counts.values()) <= 1 or len(counts) < 4
        proposals.tell(spec.key, TrialResult(0.5, 1.0))
    assert len(set(keys)) == len(keys) == 16
    assert set(Counter(spec.group for spec in proposals.specs.values()).values()) == {4}


@pytest.mark.parametrize("search", ["grid", "random", "tpe"])
def test_a_killed_sweep_s_folder_is_taken_over(experiment: Experiment, tmp_path: Path, search: str) -> None:
    experiment = experiment.override({"tune.search": search})
    folder = SweepFolder(str(tmp_path / "trials"))
    first = build_proposals(space(), experiment, max_trials=16)
    done = {}
    for index, spec in zip(range(7), one_by_one(first), strict=False):
        result = TrialResult.failed("died") if index == 3 else TrialResult(0.1 * index, 1.0)
        folder.write(Assignment(spec.key, spec.group, spec.overrides), result, state=None)
        done[spec.key] = spec.group
    second = build_proposals(space(), experiment, max_trials=16)
    second.take_over(folder.all())
    rest = {}
    for spec in one_by_one(second):
        rest[spec.key] = spec.group
    assert not set(rest) & set(done)
    assert len(rest) + len(done) == 16
    assert set(Counter([*rest.values(), *done.values()]).values()) == {4}
    assert set(second.specs) == {*rest, *done}
    assert list(folder.all()) == list(done), "in the order in which they ended"


def test_random_draws_differ_by_seed_and_agree_between_arms(experiment: Experiment) -> None:
    def rates(search: str) -> dict[tuple[str, int], set[float]]:
        proposals = Proposals(space(12), experiment.override({"tune.search": search}), max_trials=16)
        found: dict[tuple[str, int], set[float]] = {}
        for spec in proposals.specs.values():
            found.setdefault((spec.arm, spec.experiment.seed), set()).add(spec.experiment.optim.lr)
        return found

    drawn = rates("random")
    assert drawn["uml", 0] == drawn["unimodal", 0] != drawn["uml", 1] == drawn["unimodal", 1]
    assert len({frozenset(values) for values in rates("grid").values()}) == 1


@dataclass(eq=False)
class FakeTrial:
    """What schedulers look at."""

    config: dict[str, Any]
    trial_id: str
    status: str = "RUNNING"


def decisions(settings_: TuneConfig, accuracies: dict[tuple[str, str], float]) -> dict[tuple[str, str], set[str]]:
    """What the scheduler says of trials (group, name) that report one accuracy all the way, one after another."""
    scheduler = GroupedScheduler(settings_, max_steps=100)
    said: dict[tuple[str, str], set[str]] = {}
    trials = {key: FakeTrial({"trials": [Assignment(key[1], (key[0], "", 0), {})]}, key[1]) for key in accuracies}
    controller = SimpleNamespace(get_live_trials=lambda: list(trials.values()))
    for trial in trials.values():
        scheduler.on_trial_add(controller, trial)
    for step in range(10, 101, 10):
        for key, trial in trials.items():
            report = {"step": step, "val_accuracy": accuracies[key], "training_iteration": step}
            if TrialScheduler.STOP not in said.get(key, set()):
                said.setdefault(key, set()).add(scheduler.on_trial_result(controller, trial, report))
    return said


@pytest.mark.parametrize("stopping", ["asha", "median"])
def test_poor_trials_are_stopped_by_rivals_of_their_own_group_only(stopping: Any) -> None:
    good = {("uml", f"uml{index}"): 0.9 - 0.01 * index for index in range(6)}
    poor = {("noise", f"noise{index}"): 0.25 for index in range(6)}
    mixed = {**good, **poor, ("uml", "last"): 0.1}
    said = decisions(TuneConfig(stopping=stopping), mixed)
    assert TrialScheduler.STOP in said["uml", "last"]
    assert said["uml", "uml0"] == {TrialScheduler.CONTINUE}
    assert all(said[key] == {TrialScheduler.CONTINUE} for key in poor), "a poor arm is not stopped by a better one"


def test_shares_of_a_gpu() -> None:
    assert trial_resources(TuneConfig(), cpus=8, gpus=0) == ({"cpu": 1}, 8)
    assert trial_resources(TuneConfig(gpus_per_trial=0.25), cpus=16, gpus=2) == ({"cpu": 1, "gpu": 0.25}, 8)
    assert trial_resources(TuneConfig(gpus_per_trial=0.25), cpus=4, gpus=2) == ({"cpu": 1, "gpu": 0.25}, 4)
    assert trial_resources(TuneConfig(max_concurrent_trials=3), cpus=8, gpus=0) == ({"cpu": 1}, 3)
    with pytest.raises(InputError, match=r"tune.gpus_per_trial is 0.5, but the cluster has 0 GPUs"):
        trial_resources(TuneConfig(gpus_per_trial=0.5), cpus=4, gpus=0)
    with pytest.raises(InputError, match=r"tune.gpus_per_trial is 2, but a trial trains on one GPU or a share"):
        trial_resources(TuneConfig(gpus_per_trial=2), cpus=4, gpus=4)


def test_a_trial_that_was_cut_short_keeps_what_it_reported() -> None:
    report = {"val_accuracy": 0.4, "val_nll": 1.2, "cost": 320.0, "train_s": 0.7, "step": 20}
    result = TrialResult.cut_short(report)
    assert (result.val_accuracy, result.cost, result.stopped, result.error) == (0.4, 320.0, True, "")
    assert result.points[0] == MetricPoint("val/accuracy", 0.4, 20)
    assert MetricPoint("perf/train_s", 0.7, 20) in result.points, "what was spent counts"


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    """To the last bit, and with the infinite NLL of a trial that failed; a result of an earlier version is read too."""
    folder = SweepFolder(str(tmp_path))
    assignment = Assignment("key", ("uml", "data.shots=4", 1), {"optim.lr": 0.1 + 0.2, "mixing.loss_weight": {"a": 1}})
    done = TrialResult(1 / 3, 2 / 3, [MetricPoint("val/nll", 2 / 3, 20)], cost=320.0, val_rows=7)
    for result in (done, TrialResult.failed("died")):
        written = folder.write(assignment, result, state=None)
        assert (written.overrides, written.group) == (assignment.overrides, assignment.group)
        assert (written.points, written.val_nll, written.error) == (result.points, result.val_nll, result.error)
        assert folder.read("key") == written
    point = '{"name": "val/nll", "value": 0.5, "step": 20}'
    earlier = f'{{"val_accuracy": 0.0, "val_nll": Infinity, "points": [{point}], "group": ["uml", "", 0]}}'
    (tmp_path / "earlier.json").write_text(earlier, encoding="utf-8")
    read = folder.read("earlier")
    assert read is not None
    assert (read.points, read.group, read.val_nll) == ([MetricPoint("val/nll", 0.5, 20)], ("uml", "", 0), float("inf"))


@pytest.mark.parametrize("objectives", [[], ["cost"], ["cost", "accuracy"], ["accuracy", "accuracy"]])
def test_objectives_that_are_refused(experiment: Experiment, objectives: list[str]) -> None:
    with pytest.raises(InputError, match=r"tune.objectives is .*; allowed: \[accuracy\] or \[accuracy, cost\]"):
        experiment.override({"tune.objectives": objectives})
