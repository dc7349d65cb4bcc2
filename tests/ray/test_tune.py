"""Sweeps: paired seeds, equal budgets, nested runs, test measured once for the selected, resuming, failing trials."""

from __future__ import annotations

import html
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray.tune
from mlflow.tracking import MlflowClient
from ray.tune import FailureConfig, RunConfig, Tuner
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

from pipelines.embed import step as embed
from pipelines.predict import step as predict
from pipelines.ray_session import num_gpus, own_interrupts
from pipelines.report import step as report
from pipelines.tune import step as tune
from pipelines.tune.folder import SweepFolder, TrialResult
from pipelines.tune.tuner import TrialCallback
from tests.conftest import vector_tree, write_embeddings, write_vector_corpora
from tests.scraped import assert_exported
from tune_spaces import load_space, trials_of
from uml_core.config import Experiment, parse_experiment
from uml_core.data.subsets import read_subset
from uml_core.errors import InputError
from uml_core.tracking.reading import download, experiment_runs
from uml_core.tracking.records import RunRecord

ROOT = Path(__file__).parents[2]
ONE_AT_A_TIME = {"tune.max_concurrent_trials": 1}  # a process less to start
in_one_cluster = pytest.mark.usefixtures("ray_cluster")

SPACE = '''
"""Does the learning rate matter?"""
from tune_spaces import Arm, Space
def build(experiment):
    arms = (Arm("unimodal", {"mixing.loss_weight": {"names": 0.0}}), Arm("uml"))
    return Space("lr?", arms, "unimodal", "uml", (0, 1), grid={"optim.lr": LR})
'''


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    directory = tmp_path_factory.mktemp("tune")
    write_vector_corpora(directory)
    names = pq.read_table(directory / "names.parquet").to_pydict()
    others = {"label": ["unknown", "class-0"], "split": ["train"] * 2, "embedding": [[1.0] * 6, [float("nan")] * 6]}
    write_embeddings(directory / "names.parquet", {key: [*names[key], *others[key]] for key in others})
    experiment = parse_experiment(vector_tree(directory, data={"shots": 2}))
    embed.run(experiment)
    return experiment


def nested(experiment: Experiment, parent_id: str) -> list[RunRecord]:
    return [
        record
        for record in experiment_runs(experiment.tracking.uri, experiment.name)
        if record.parent_run_id == parent_id
    ]


def write_space(directory: Path, lr: str) -> str:
    file = directory / "space.py"
    file.write_text(SPACE.replace("LR", lr), encoding="utf-8")
    return str(file)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each trial's JSON is read from here on, by this process: a driver."""
    reads, read = Counter[str](), SweepFolder.read

    def counting(folder: SweepFolder, key: str) -> TrialResult | None:
        reads[key] += 1
        return read(folder, key)

    monkeypatch.setattr(SweepFolder, "read", counting)
    return reads


SOLVED = ("ridge", "discriminant", "logistic", "prior", "shuffled_prior")


@in_one_cluster
def test_controls_are_paired_nested_and_reported(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = experiment.override({"tune.lr": [1e-3, 1e-2], "name": "controls-sweep"})
    reads = count_reads(monkeypatch)
    results = tune.run(sweep, "controls").results
    num_trials = 10 * 2 * 3 + len(SOLVED) * 3  # two points of every arm that is trained, one of a head in closed form
    assert sorted(reads.values()) == [1] * num_trials, "a trial's JSON is read once"
    trials = nested(sweep, results["run_id"])
    assert results["trials"] == len(trials) == num_trials
    seeds_of_arms = {
        arm: {trial.params["seed"] for trial in trials if trial.arm == arm} for arm in {t.arm for t in trials}
    }
    assert all(seeds == {"0", "1", "2"} for seeds in seeds_of_arms.values())
    budgets = Counter(trial.arm for trial in trials)
    assert {count for arm, count in budgets.items() if arm not in SOLVED} == {6}, "equal search budgets"
    assert {budgets[arm] for arm in SOLVED} == {3}
    selected = [trial for trial in trials if trial.tags["uml.selected"] == "true"]
    assert set(Counter((trial.arm, trial.params["seed"]) for trial in selected).values()) == {1}
    assert {"test/accuracy" in trial.metrics for trial in selected} == {True}
    assert {"test/accuracy" in trial.metrics for trial in trials if trial not in selected} == {False}
    for trial in selected:
        rivals = [other for other in trials if (other.arm, other.params["seed"]) == (trial.arm, trial.params["seed"])]
        assert trial.metrics["val/accuracy"] == max(other.metrics["val/accuracy"] for other in rivals)
    trained = [trial for trial in trials if trial.arm not in ("zero_shot", *SOLVED)]
    steps = {trial.metrics["mixing/target_samples"] for trial in trained}
    assert steps == {40 * 8}, "every arm sees the same number of target samples"
    parent = next(run for run in experiment_runs(sweep.tracking.uri, sweep.name) if run.run_id == results["run_id"])
    assert (parent.kind, parent.status) == ("sweep", "FINISHED")
    assert parent.tags["uml.verdict"] == results["verdict"]
    assert parent.tags["uml.left_out"].splitlines() == [
        "names: 1 rows could not be read and were left out; rejected.parquet of the store says why",
        "names: 1 rows of classes the target lacks were dropped: unknown (1)",
    ]
    page = report.run(sweep, tmp_path / "report").results
    assert page["verdict"] == results["verdict"]
    text = " ".join(html.unescape(Path(page["report"]).read_text(encoding="utf-8")).split())
    assert " ".join(results["verdict"].split()[:12]) in text
    the_parent_carries_the_results(sweep, parent, trials, tmp_path)
    the_best_model_is_registered(sweep, results, trials, tmp_path)


def the_parent_carries_the_results(
    sweep: Experiment, parent: RunRecord, trials: list[RunRecord], tmp_path: Path
) -> None:
    """Summary metrics, page and figures lie on the sweep's own run."""
    tested = [t.metrics["test/accuracy"] for t in trials if t.arm == "uml" and t.tags["uml.selected"] == "true"]
    assert parent.metrics["sweep/2_shots/test_accuracy/uml"] == pytest.approx(sum(tested) / 3)
    assert parent.metrics["sweep/trials"] == len(trials)
    folder = download(sweep.tracking.uri, f"runs:/{parent.run_id}/report", tmp_path / "fetched")
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "This sweep has status" not in page
    assert {file.suffix for file in (folder / "figures").iterdir()} == {".svg"}
    with_classes = {t.arm for t in trials if any(name.startswith("test/class_accuracy/") for name in t.metrics)}
    assert with_classes == {"unimodal", "uml_init"}, "baseline and headline"
    two_arms_can_be_compared_in_mlflow(sweep, trials)
    subsets = download(sweep.tracking.uri, f"runs:/{parent.run_id}/subsets", tmp_path / "fetched")
    drawn = {file.name: read_subset(str(file)).rows["train"] for file in subsets.iterdir()}
    assert set(drawn) == {f"shots-2-seed-{seed}.json" for seed in range(3)}
    assert {len(ids) for ids in drawn.values()} == {12}
    assert len({frozenset(ids) for ids in drawn.values()}) == 3, "every seed draws its own"


def two_arms_can_be_compared_in_mlflow(sweep: Experiment, trials: list[RunRecord]) -> None:
    """Baseline and headline hold the same figures at one seed; a trial's run lasts as long as its training did."""
    client = MlflowClient(sweep.tracking.uri, sweep.tracking.uri)
    with_figures = {}
    for trial in trials:
        files = {file.path for file in client.list_artifacts(trial.run_id, "evaluation/test")}
        if files:
            with_figures[trial.arm, trial.params["seed"]] = files
    assert set(with_figures) == {("unimodal", "0"), ("uml_init", "0")}
    assert with_figures["unimodal", "0"] == with_figures["uml_init", "0"]
    assert "evaluation/test/confusion.svg" in with_figures["unimodal", "0"]
    for trial in trials:
        assert trial.end_time_ms - trial.start_time_ms == pytest.approx(1000 * trial.metrics["perf/train_s"], abs=2)


def the_best_model_is_registered(
    sweep: Experiment, results: dict[str, Any], trials: list[RunRecord], tmp_path: Path
) -> None:
    """models:/NAME@best is of the arm that the verdict ships, the seed that validates best; predict takes it."""
    assert results["model"] == "models:/controls-sweep@best"
    client = MlflowClient(sweep.tracking.uri, sweep.tracking.uri)
    version = client.get_model_version_by_alias("controls-sweep", "best")
    assert client.get_model_version_by_alias("controls-sweep", "2-shots").version == version.version
    (best,) = [trial for trial in trials if trial.run_id == version.run_id]
    shipped = results["verdict"].removeprefix("Ship ").split(" at 2 shots: ")[0]
    names = {"linear probe": "linear_probe", "linear discriminant": "discriminant", "logistic regression": "logistic"}
    assert best.arm == names.get(shipped.removeprefix("the "), shipped)
    seeds = [t for t in trials if t.tags["uml.selected"] == "true" and t.arm == best.arm]
    assert best.metrics["val/accuracy"] == max(trial.metrics["val/accuracy"] for trial in seeds)
    inputs = pq.read_table(sweep.corpora["target"].path).to_pylist()
    test_rows = [row for row in inputs if row["split"] == "test"]
    write_embeddings(tmp_path / "new.parquet", {"embedding": [row["embedding"] for row in test_rows]})
    output = tmp_path / "predictions.parquet"
    predict.run(results["model"], str(tmp_path / "new.parquet"), str(output), sweep.tracking.uri)
    predicted = pq.read_table(output)["prediction"].to_pylist()
    right = [row["label"] == label for row, label in zip(test_rows, predicted, strict=True)]
    assert sum(right) / len(right) == pytest.approx(best.metrics["test/accuracy"])


@in_one_cluster
def test_exchange_rate_over_two_axes_is_measured_logged_and_reported(experiment: Experiment, tmp_path: Path) -> None:
    amounts = {"tune.shots": [1, 4], "tune.auxiliary_shots": [4, 0], "tune.seeds": 2}
    sweep = experiment.override({"name": "exchange-sweep", **amounts, **ONE_AT_A_TIME})
    results = tune.run(sweep, "exchange_rate").results
    trials = nested(sweep, results["run_id"])
    assert results["trials"] == len(trials) == 2 * 2 * 2
    cells = {(trial.arm, trial.params["data.shots"], trial.metrics["data/train_rows/target"]) for trial in trials}
    assert cells == {(arm, str(n), 6 * n) for arm in ("unimodal", "auxiliary_4") for n in (1, 4)}
    rows = {trial.arm: trial.metrics["data/train_rows/names"] for trial in trials}
    assert rows == {"auxiliary_4": 6 * 4, "unimodal": 6 * 10}
    weights = {(trial.arm, trial.params["mixing.loss_weight.names"]) for trial in trials}
    assert weights == {("unimodal", "0.0"), ("auxiliary_4", "1.0")}
    measured = results["exchange_rate"]
    parent = next(run for run in experiment_runs(sweep.tracking.uri, sweep.name) if run.run_id == results["run_id"])
    assert parent.metrics["analysis/exchange_rate/target_slope"] == pytest.approx(measured["target_slope"])
    many, few = (
        [trial.metrics["test/accuracy"] for trial in trials if trial.params["data.shots"] == shots]
        for shots in ("4", "1")
    )
    assert measured["target_slope"] == pytest.approx((sum(many) - sum(few)) / 4 / 3), "the slope of a balanced grid"
    page = Path(report.run(sweep, tmp_path / "report").results["report"])
    assert "<h3>Exchange rate</h3>" in page.read_text(encoding="utf-8")
    assert (page.parent / "figures" / "exchange_rate_iso_accuracy.svg").is_file()


@pytest.mark.parametrize("setting", ["tune.shots", "tune.auxiliary_shots"])
def test_exchange_rate_needs_two_amounts_of_each(experiment: Experiment, setting: str) -> None:
    with pytest.raises(InputError, match=rf"{setting} is \[4, 4\]; space exchange_rate needs at least two"):
        load_space("exchange_rate", experiment.override({setting: [4, 4]}))
    assert len(load_space("exchange_rate", experiment).arms) > 2, "the space has amounts of its own"


@in_one_cluster
def test_tpe_with_early_stopping_weighs_accuracy_against_cost(experiment: Experiment, tmp_path: Path) -> None:
    settings = {"search": "tpe", "stopping": "asha", "objectives": ["accuracy", "cost"]}
    sweep = experiment.override(
        {"name": "searched", "train.max_steps": 200, **{f"tune.{key}": value for key, value in settings.items()}}
    )
    results = tune.run(sweep, write_space(tmp_path, "(1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 3e-2)"), max_trials=20).results
    trials = nested(sweep, results["run_id"])
    assert results["trials"] == len(trials) == 2 * 2 * 5
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for trial in trials:
        groups.setdefault((trial.arm, trial.params["seed"]), []).append(trial)
    assert [len(group) for group in groups.values()] == [5] * 4, "equal budgets"
    stopped = [trial for trial in trials if trial.tags.get("uml.stopped") == "true"]
    assert results["stopped_early"] == len(stopped) > 0
    assert all(trial.metrics["perf/samples"] < 200 * 8 * 2 for trial in stopped), "they cost less"
    assert not [trial for trial in stopped if trial.tags["uml.selected"] == "true"]
    for group in groups.values():
        assert len({trial.params["optim.lr"] for trial in group}) == 5, "no point twice"
        (chosen,) = [trial for trial in group if trial.tags["uml.selected"] == "true"]
        done = [trial for trial in group if trial not in stopped]
        assert chosen.metrics["perf/samples"] <= max(done, key=accuracy_of).metrics["perf/samples"]
        assert any(trial.tags.get("uml.pareto") == "true" for trial in done)
    assert not {name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_S")}, "Ray would log trials' secrets"


@in_one_cluster
def test_a_space_of_ones_own_gets_a_verdict_on_its_own_control(experiment: Experiment, tmp_path: Path) -> None:
    """The example's space on real trials: its arms' words and its control reach verdict and page by way of MLflow."""
    sweep = experiment.override({"name": "own-space", **ONE_AT_A_TIME})
    results = tune.run(sweep, str(ROOT / "examples" / "own_space.py")).results
    assert results["trials"] == 3 * 3 * 2
    assert "controls to decide" not in results["verdict"], "its own control decides"
    page = report.run(sweep, tmp_path / "report").results
    assert (page["verdict"], page["verdict_kind"]) == (results["verdict"], results["verdict_kind"])
    text = Path(page["report"]).read_text(encoding="utf-8")
    assert "<dt>wrong</dt><dd>as together, with shuffled labels.</dd>" in text
    assert "What the verdict rests on" in text


def accuracy_of(trial: RunRecord) -> float:
    """What is selected by."""
    return trial.metrics["val/accuracy"]


@in_one_cluster
def test_trials_on_gpus_need_gpus(experiment: Experiment, tmp_path: Path) -> None:
    sweep = experiment.override({"name": "on-gpus", "tune.gpus_per_trial": 0.5})
    if num_gpus():
        assert tune.run(sweep, write_space(tmp_path, "(1e-3,)")).results["failed"] == 0
        return
    with pytest.raises(InputError, match=r"tune\.gpus_per_trial is 0\.5, but the cluster has 0 GPUs"):
        tune.run(sweep, write_space(tmp_path, "(1e-3,)"))
    with pytest.raises(InputError, match="no experiment 'on-gpus'"):
        experiment_runs(sweep.tracking.uri, "on-gpus")


@in_one_cluster
def test_a_failed_trial_is_recorded_and_does_not_end_the_sweep(experiment: Experiment, tmp_path: Path) -> None:
    failing = {"name": "failing", "tune.max_failed": 0.6, "optim.warmup_steps": 0}
    broken = experiment.override({**failing, **ONE_AT_A_TIME})
    results = tune.run(broken, write_space(tmp_path, "(1e-3, 1e38)")).results
    failed = [trial for trial in nested(broken, results["run_id"]) if trial.status == "FAILED"]
    assert results["failed"] == len(failed) > 0
    assert all("not finite" in trial.tags["uml.error"] for trial in failed)
    outcomes = {"failed": len(failed), "finished": results["trials"] - len(failed)}
    assert_exported({("ray_uml_trials_total", name): num for name, num in outcomes.items()}, broken.name, "outcome")
    with pytest.raises(InputError, match=r"trials failed .tune.max_failed is 10%"):
        tune.run(broken.override({"tune.max_failed": 0.1}), write_space(tmp_path, "(1e-3, 1e38)"))
    with pytest.raises(InputError, match="no unfinished sweep"):  # the same line begins anew
        tune.run(broken.override({"tune.max_failed": 0.1}), write_space(tmp_path, "(1e-3, 1e38)"), resume=True)


@in_one_cluster
def test_trials_that_raise_are_told_from_a_process_that_dies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails_once(config: dict[str, Any]) -> None:
        mark = tmp_path / str(config["raises"])
        if not mark.exists():
            mark.touch()
            if config["raises"]:
                raise KeyError("x")
            os._exit(1)
        ray.tune.report({})

    nothing: Any = None
    callbacks, once = [TrialCallback(nothing, nothing, nothing, nothing, nothing)], FailureConfig(max_failures=1)
    run_config = RunConfig(storage_path=str(tmp_path / "ray"), verbose=0, callbacks=callbacks, failure_config=once)
    space = {"trials": [], "raises": ray.tune.grid_search([True, False])}
    with own_interrupts():
        Tuner(fails_once, param_space=space, run_config=run_config).fit()
    said = sorted(record.message for record in caplog.records if record.name == TrialCallback.__module__)
    assert len(said) == 2, said
    assert said[0].startswith("a process of the sweep was lost; its trials go on in another (")
    assert said[1] == "trials of the sweep raised an error (KeyError: 'x')"


@pytest.mark.parametrize(
    ("space", "trials", "part"),
    [
        ("control", None, "did you mean 'controls'"),
        ("nowhere.py", None, "--space is nowhere.py"),
        ("controls", 5, "needs at least 45"),
        ("()", None, "the space is empty"),
        ("('fast',)", None, "optim.lr is 'fast'"),
        ("(1e-3, 1e-3)", None, "the same trial twice"),
    ],
)
def test_spaces_that_are_refused(
    experiment: Experiment, tmp_path: Path, space: str, trials: int | None, part: str
) -> None:
    name = write_space(tmp_path, space) if space.startswith("(") else space
    before = len(experiment_runs(experiment.tracking.uri, "controls-sweep"))
    with pytest.raises(InputError, match=part):
        tune.run(experiment.override({"name": "controls-sweep"}), name, max_trials=trials)
    assert len(experiment_runs(experiment.tracking.uri, "controls-sweep")) == before, "nothing half-started"


def test_a_space_that_names_a_corpus_that_does_not_exist(experiment: Experiment, tmp_path: Path) -> None:
    file = tmp_path / "space.py"
    file.write_text(SPACE.replace("LR", "(1e-3,)").replace('"names"', '"nmes"'), encoding="utf-8")
    with pytest.raises(InputError, match=r"names corpus 'nmes'.*did you mean 'names'"):
        tune.run(experiment, str(file))


def test_a_target_without_test_rows_is_refused_before_it_is_trained_on(experiment: Experiment) -> None:
    with pytest.raises(InputError, match=r"corpus names has no split test.*data\.test_fraction"):
        tune.run(experiment.override({"target": "names"}), "controls")


def test_mixing_ratio_needs_an_auxiliary(experiment: Experiment) -> None:
    corpora: dict[str, Any] = {"target": experiment.corpora["target"].model_dump(mode="json")}
    with pytest.raises(InputError, match="has no auxiliary corpus"):
        load_space("mixing_ratio", experiment.override({"corpora": corpora}))


def test_a_target_without_other_data_is_told_which_head_to_ship(experiment: Experiment, tmp_path: Path) -> None:
    corpora = experiment.model_dump(mode="json")["corpora"]
    alone = experiment.override({"name": "alone", "corpora": {"target": corpora["target"]}, "tune.seeds": 3})
    assert set(load_space("linear_probe", alone).grid) > {"optim.lr"}
    results = tune.run(alone, "closed_form").results
    assert results["trials"] == 3 * 3
    assert results["verdict"].startswith("Ship ")
    assert "the sweep is about target alone." in results["verdict"]
    assert "unpaired data add" not in results["verdict"]
    assert results["model"] == "models:/alone@best"
    page = Path(report.run(alone, tmp_path / "report").results["report"]).read_text(encoding="utf-8")
    assert "the sweep is about target alone" in page


def test_trials_thins_the_grid_equally(experiment: Experiment) -> None:
    wide = experiment.override({"tune.lr": [1e-4, 1e-3, 1e-2]})
    specs = trials_of(load_space("controls", wide), wide, max_trials=75)
    assert len(specs) == 75
    counts = Counter((spec.arm, spec.experiment.seed) for spec in specs)
    assert {count for (arm, _), count in counts.items() if arm not in SOLVED} == {2}


def wait_for_trials(sweep: Experiment, count: int, timeout_s: float = 120) -> None:
    """Wait until that many trials are logged."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        time.sleep(0.1)
        try:
            records = experiment_runs(sweep.tracking.uri, sweep.name)
        except InputError:
            continue
        if sum(record.kind == "trial" and record.status == "FINISHED" for record in records) >= count:
            return
    pytest.fail(f"no {count} trials in {timeout_s} s")
