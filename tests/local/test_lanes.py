"""Which trials run in Tune's own processes, which under Ray Train, and how many at once."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.tune.lanes import groups_on_workers, trials_on_workers_at_once
from tests.unit.test_spaces import experiment
from tune_spaces import Arm, Space, load_space
from uml_core.config import TuneConfig
from uml_core.errors import InputError

TUNED = {"model.backbone": "finetune"}
GROUP = ("uml", "", 0)


def space_of(*arms: Arm, grid: dict[str, Any] | None = None) -> Space:
    return Space("which?", arms, arms[0].name, arms[-1].name, (0, 1), grid=grid or {})


def test_frozen_arms_and_single_workers_stay_in_tunes_processes() -> None:
    two = experiment(train_workers=2)
    found = groups_on_workers(two, load_space("finetune", two))
    assert {arm for arm, _, _ in found} == {
        *("unimodal", "unimodal_init", "uml_init", "shuffled_init", "partial_unimodal", "partial_uml_init"),
        *("lora_unimodal", "lora_uml_init", "uml_init_trained_text"),
    }
    assert set(found.values()) == {2}
    assert len(found) == 9 * 3, "seeds of an arm go together"
    one = experiment(train_workers=1)
    assert groups_on_workers(one, load_space("finetune", one)) == {}


def test_a_group_that_searches_the_backbone_is_of_one_lane() -> None:
    space = space_of(Arm("frozen"), Arm("uml", grid={"model.backbone": ("frozen", "finetune")}))
    assert {arm for arm, _, _ in groups_on_workers(experiment(train_workers=3), space)} == {"uml"}
    searched = space_of(Arm("uml", TUNED), grid={"train.workers": (1, 4)})
    assert set(groups_on_workers(experiment(), searched).values()) == {4}


@pytest.mark.parametrize("changes", [{"train.sharding": "full"}, {"train.min_workers": 1}])
def test_trials_in_shards_or_on_a_changing_number_of_workers_are_refused(changes: dict[str, Any]) -> None:
    (setting,) = changes
    space = space_of(Arm("uml", {**TUNED, **changes}))
    with pytest.raises(InputError, match=rf"{setting} is \S+, which python -m pipelines.train alone has"):
        groups_on_workers(experiment(train_workers=2), space)


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "gpus_per_trial", "expected"),
    [(2, 2, 0, 0, 1), (2, 5, 0, 0, 2), (4, 64, 8, 4, 2), (2, 64, 8, 4, 2), (2, 3, 8, 2, 1), (1, 7, 1, 0.25, 7)],
)
def test_the_workers_of_all_running_trials_fit(
    workers: int, cpus: int, gpus: int, gpus_per_trial: float, expected: int
) -> None:
    settings = TuneConfig(gpus_per_trial=gpus_per_trial)
    assert trials_on_workers_at_once(settings, {GROUP: workers}, cpus=cpus, gpus=gpus) == expected
    one = settings.model_copy(update={"max_concurrent_trials": 1})
    assert trials_on_workers_at_once(one, {GROUP: workers}, cpus=cpus, gpus=gpus) == 1


@pytest.mark.parametrize(
    ("workers", "gpus_per_trial", "message"),
    [
        (4, 0, r"train.workers is 4, but the cluster has 2 CPUs, and each worker of a trial takes one"),
        (2, 0.5, r"gpus_per_trial is 0.5 with train.workers 2; every worker needs whole GPUs: .*gpus_per_trial=2"),
        (2, 2, r"gpus_per_trial is 2, but the cluster has 1 GPUs"),
    ],
)
def test_trials_that_no_cluster_of_this_size_holds_are_refused(
    workers: int, gpus_per_trial: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trials_on_workers_at_once(TuneConfig(gpus_per_trial=gpus_per_trial), {GROUP: workers}, cpus=2, gpus=1)
