"""What `train` says of one seed and of several: pairs, their difference with its interval, the model to register."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.results import Trained
from pipelines.train.summary import best_by_validation, by_seed, seed_runs, summary_of
from tests.unit.test_training import experiment
from tune_spaces import Arm, Space, trials_of
from uml_core.errors import InputError
from uml_core.evaluation.outcome import RunOutcome
from uml_core.sweeps.space import counted_seeds

FEEDS, MODEL = {"target": "memory"}, "models:/x/4"


def outcome_of(run_id: str, val: float, test: float | None) -> RunOutcome:
    counts = {"best_step": 3, "steps": 4, "target_samples": 32, "trained_parameters": 5, "parameters": 6}
    rates = {"steps_per_s": 1.0, "train_s": 12.0, "samples_per_s": 0.1, "observed_ratio": {"names": 1.0}}
    return RunOutcome(run_id, val, test, {}, **counts, **rates, train_rows={"target": 8}, classes=2, model_uri=run_id)


def found_of(tests: list[tuple[float | None, float | None]], **changes: Any) -> Any:
    runs = seed_runs(experiment(**{"train.twin": True, "train.seeds": len(tests), **changes}))
    outcomes = [
        outcome_of(f"{kind}{index}", 0.5 + 0.1 * (index == 1), value)
        for index, pair in enumerate(tests)
        for kind, value in zip(("uml", "twin"), pair, strict=True)
    ]
    return by_seed(runs, outcomes)


def test_seeds_are_the_pairs_of_a_sweep_of_the_same_seeds() -> None:
    settings = experiment(**{"seed": 3, "train.twin": True, "train.seeds": 2, "data.shots": 2})
    runs = seed_runs(settings)
    space = Space("?", (Arm("uml"), Arm("other", {"optim.lr": 0.1})), "other", "uml", counted_seeds(settings, 2))
    swept = [spec.experiment for spec in trials_of(space, settings.override({"train.seeds": 1})) if spec.arm == "uml"]
    assert [each for each, _ in runs] == swept
    assert [(twin.seed, twin.data.split_seed) for _, twin in runs] == [(3, 3), (4, 4)]
    assert all(twin == each.unimodal_twin() for each, twin in runs)


def test_one_seed_is_the_experiment_as_it_is() -> None:
    settings = experiment(**{"seed": 3, "data.split_seed": 7})
    assert seed_runs(settings) == [(settings,)]


def test_a_twin_that_would_be_the_run_itself_is_refused() -> None:
    alone = {"train.twin": True, "mixing.loss_weight.names": 0, "model.head_init": "random"}
    with pytest.raises(InputError, match=r"train.twin is true, and no auxiliary corpus takes part"):
        seed_runs(experiment(**alone))


def test_pairs_are_compared_over_seeds() -> None:
    found = found_of([(0.50, 0.40), (0.60, 0.58), (0.70, 0.64)])
    summary = summary_of(found, feeds=FEEDS, model=MODEL)
    lines = summary.text.splitlines()
    assert lines[0] == (
        "seed 0    uml val 50.0 %, test 50.0 %; unimodal val 50.0 %, test 40.0 %; difference +10.0 points; "
        "MLflow runs uml0, twin0"
    )
    assert lines[3:5] == ["uml       test 60.0 ± 10.0 % over 3 seeds", "unimodal  test 54.0 ± 12.5 % over 3 seeds"]
    # By hand: 10, 2 and 6 have mean 6 and deviation 4; t of 2 degrees is 4.303, so ± 4.303 · 4 / √3 = 9.94.
    assert lines[5].startswith(
        "difference on test: +6.0 ± 4.0 points over 3 paired seeds, 95 % interval -3.9 to +15.9;"
    )
    assert lines[6] == "model: models:/x/4, of seed 1, which validates best"
    results = json.loads(json.dumps(summary.results, allow_nan=False))
    assert (results["run_id"], results["model"], results["test_difference_points"]) == ("uml1", MODEL, 6.0)
    seeds = Trained.of(summary).seeds
    assert [each.twin and each.twin.run_id for each in seeds] == ["twin0", "twin1", "twin2"]
    assert results["test_difference"]["low"] == pytest.approx(-0.0394, abs=1e-4)
    assert [(each["seed"], each["run_id"], each["twin"]["run_id"]) for each in results["seeds"]] == [
        (seed, f"uml{seed}", f"twin{seed}") for seed in range(3)
    ]


def test_patience_ends_neither_of_a_pair_before_the_other() -> None:
    long = {"train.max_steps": 1000, "train.eval_every": 30, "train.patience": 2}
    (alone,), *_ = seed_runs(experiment(**long))
    pair = seed_runs(experiment(**long, **{"train.twin": True}))[0]
    assert [each.train.patience for each in (alone, *pair)] == [2, 34, 34]


def test_validation_alone_selects_the_model() -> None:
    assert best_by_validation(found_of([(0.9, 0.4), (0.1, 0.4), (0.5, 0.4)])).seed == 1


def test_without_a_twin_or_a_test_split_there_is_no_difference() -> None:
    for tests, changes in (([(None, None)] * 2, {}), ([(0.5, 0.5)] * 2, {"train.twin": False})):
        found = found_of(tests, **changes)
        summary = summary_of(found, feeds=FEEDS, model=MODEL)
        assert "difference" not in summary.text + "".join(summary.results)
        json.dumps(summary.results, allow_nan=False)
    assert "test 50.0 ± 0.0 % over 2 seeds" in summary.text
