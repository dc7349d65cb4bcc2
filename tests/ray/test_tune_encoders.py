"""Sweeps that train encoders, on 2 CPUs: side by side with heads, killed and resumed, stopped early."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import timm
import torch

import uml_core.feed.pictures
from pipelines.__main__ import main as uml
from pipelines.embed import step as embed
from pipelines.ray_session import ray_session
from pipelines.stores import store_tables
from pipelines.tune import step as tune
from pipelines.tune.folder import Assignment, SweepFolder, TrialResult
from pipelines.tune.trial import train_encoder
from tests.conftest import CLASSES, picture_tree, write_embeddings, write_picture_corpora
from tests.ray.conftest import joining
from tests.ray.test_tune import ONE_AT_A_TIME, SOLVED, count_reads, nested, wait_for_trials
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.tracking.reading import experiment_runs
from uml_core.tracking.records import MetricPoint, RunRecord
from uml_core.training.run import Evaluation, TrainingRun

ROOT = Path(__file__).parents[2]
RATES = '''
"""Does the rate matter?"""
from tune_spaces import Arm, Space
FROZEN = {"model.backbone": "frozen"}
SLOW, FAST = ({"lr": lr, "backbone_lr": lr / 100, "warmup_steps": 0} for lr in (1e-9, 1e-2))
def build(experiment):
    return Space("rate?", ARMS, "uml", "uml", (0,), grid=GRID)
'''


@pytest.fixture(scope="module")
def two_cpus(request: pytest.FixtureRequest) -> Iterator[None]:
    """A local Ray of 2 CPUs, however many the machine has: the shared one where it has 2."""
    if os.cpu_count() == 2:
        request.getfixturevalue("ray_cluster")
        yield
        return
    request.getfixturevalue("no_ray")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="WARNING", log_to_driver=False)
        with ray_session():
            yield
        ray.shutdown()


@pytest.fixture(scope="module")
def experiment(two_cpus: None, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Pictures of shapes with a tiny vision transformer, embedded; names of the shapes as ready embeddings."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("encoders"))
    names = {"label": list(CLASSES), "embedding": torch.eye(3, 8).tolist()}
    write_embeddings(directory / "names.parquet", names)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), directory / "weights.pth")
    tree = picture_tree(directory)
    tree["corpora"]["names"] = {"modality": "vector", "format": "embeddings", "path": str(directory / "names.parquet")}
    image = {"source": "timm", "name": "test_vit", "image_size": 32, "weights": str(directory / "weights.pth")}
    given = parse_experiment(
        {
            **tree,
            "encoders": {"image": image},
            "model": {"backbone": "finetune", "head_init": "random"},
            "pictures": {"augment": False},
            "train": {"max_steps": 12, "eval_every": 4, "batch_size": 6, "report_every_s": 0.01, "report_share": 1},
            "optim": {"warmup_steps": 0, "lr": 1e-2, "backbone_lr": 1e-4},
            "tune": {"seeds": 2},
        }
    )
    embed.run(given)
    return given


def space_file(directory: Path, *, arms: str, grid: str) -> str:
    file = directory / "space.py"
    file.write_text(RATES.replace("ARMS", arms).replace("GRID", grid), encoding="utf-8")
    return str(file)


def value(trial: RunRecord, name: str) -> float:
    return trial.metrics[name]


def test_a_killed_search_over_frozen_and_trained_encoders_goes_on_without_repeating_or_doubling(
    experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """kill -9 of the driver in the middle of a search that learns; the same line with --resume runs what is missing.

    And goes on when a process of its trials is killed: no trial has failed.
    """
    search = {"tune.search": "tpe", "tune.lr": [1e-3, 3e-3, 1e-2], "tune.seeds": 1, **ONE_AT_A_TIME}
    sweep = experiment.override({"name": "killed", "train.max_steps": 20, **search})
    file = tmp_path / "experiment.yaml"
    file.write_text(sweep.to_yaml(), encoding="utf-8")
    line = [str(file), "--space", "finetune", "--trials", "27"]
    command = [sys.executable, "-m", "pipelines.tune", *line]
    driver = subprocess.Popen(command, cwd=ROOT, env=joining(), start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        wait_for_trials(sweep, 3)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    (parent,) = [run for run in experiment_runs(sweep.tracking.uri, sweep.name) if run.kind == "sweep"]
    before = {run.tags["uml.trial"]: run.run_id for run in nested(sweep, parent.run_id) if run.status == "FINISHED"}
    assert 3 <= len(before) < 27, "the kill fell into the sweep"

    read, earlier = count_reads(monkeypatch), trial_processes()
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill_one_of, lambda: trial_processes() - earlier)
        results = tune.run(sweep, "finetune", max_trials=27, resume=True).results
        assert "a process of the sweep was lost; its trials go on in another" in caplog.text, killed.result()
    assert read == dict.fromkeys(read, 1), "a trial's JSON is read once"
    assert len(read) == 27
    assert results["run_id"] == parent.run_id
    assert results["failed"] == 0
    trials = [run for run in nested(sweep, parent.run_id) if run.status == "FINISHED"]
    assert len(trials) == len({trial.tags["uml.trial"] for trial in trials}) == results["trials"] == 27
    assert before.items() <= {trial.tags["uml.trial"]: trial.run_id for trial in trials}.items()
    trained = [trial for trial in trials if trial.arm not in SOLVED]
    assert set(Counter(trial.arm for trial in trained).values()) == {2}, "equal budgets"
    assert len({(trial.arm, trial.params["optim.lr"]) for trial in trials}) == 27, "no point twice"
    trained = [trial for trial in trained if trial.arm != "zero_shot"]
    backbones = {(trial.params["model.backbone"], trial.arm.split("_")[0]) for trial in trained}
    own = {("finetune", arm) for arm in ("unimodal", "uml", "shuffled")}
    assert backbones == {("frozen", "linear"), *((name, name) for name in ("frozen", "partial", "lora")), *own}
    assert {value(trial, "mixing/target_samples") for trial in trained} == {20 * 6}, "the same samples in every arm"
    selected = [trial for trial in trials if trial.tags["uml.selected"] == "true"]
    assert len(selected) == 16
    assert all("test/accuracy" in trial.metrics and "shift/dark/accuracy" in trial.metrics for trial in selected)
    assert results["model"] == "models:/killed@best"
    assert not [file.name for file in sweep_folder(sweep).iterdir() if file.suffix not in (".json", ".pt")]
    assert uml(["tune", *line, "--resume"]) == 2
    assert "no unfinished sweep" in capsys.readouterr().err


def trial_processes() -> set[psutil.Process]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == ["ray::ImplicitFunc.train"]:  # one at work
                found.add(process)
    return found


def kill_one_of(processes: Callable[[], set[psutil.Process]], timeout_s: float = 60) -> int:
    """Kill -9 a process as soon as there is one."""
    deadline = time.monotonic() + timeout_s
    while not (found := processes()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process = found.pop()
    process.kill()
    return process.pid


def sweep_folder(sweep: Experiment) -> Path:
    """Where a sweep's trials lie: the newest run folder of the store."""
    folders = Path(sweep.store).glob("_runs/tune-*/*/trials")
    return max(folders, key=lambda folder: folder.stat().st_mtime)


def test_a_trial_that_trains_an_encoder_is_stopped_by_a_better_one(experiment: Experiment, tmp_path: Path) -> None:
    arms = '(Arm("uml", grid={"optim": (FAST, SLOW)}), Arm("frozen", FROZEN, {"optim": (FAST, SLOW)}))'
    sweep = experiment.override({"name": "stopped", "train.max_steps": 40, "tune.seeds": 1})
    sweep = sweep.override({"tune.stopping": "asha", **ONE_AT_A_TIME})
    results = tune.run(sweep, space_file(tmp_path, arms=arms, grid="{}")).results
    trials = nested(sweep, results["run_id"])
    assert (results["trials"], results["failed"]) == (4, 0)
    uml = {trial.params["optim.lr"]: trial for trial in trials if trial.arm == "uml"}
    stopped = uml["1e-09"]
    assert stopped.tags["uml.stopped"] == "true"
    assert value(stopped, "perf/samples") < 40 * 6 * 2
    whole = uml["0.01"]
    assert whole.tags["uml.selected"] == "true"
    assert "test/accuracy" in whole.metrics


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"train.workers": 2}, "set train.workers=1"),
        ({"train.workers": 2, "train.sharding": "full"}, "remove train.sharding"),
        ({"train.min_workers": 1}, "remove train.min_workers"),
    ],
)
def test_trials_on_several_workers_are_refused(experiment: Experiment, changes: dict[str, Any], mend: str) -> None:
    """Of the sweep's own experiment, and where an arm alone asks for them."""
    setting, given = list(changes.items())[-1]
    with pytest.raises(InputError, match=rf"{setting} is {given}, which python -m pipelines.train alone has.*{mend}"):
        tune.run(experiment.override({"name": "refused", **changes}), "finetune")


class TrialKilledError(Exception):
    """What stands for a kill."""


def interrupt(run: TrainingRun, evaluation: Evaluation) -> None:
    raise TrialKilledError


def trial_of(experiment: Experiment, folder: Path, **options: Any) -> tuple[TrialResult, dict[str, Any] | None]:
    return train_encoder(experiment, store_tables(experiment), SweepFolder(str(folder)), "trial", **options)


def without_times(result: TrialResult) -> list[MetricPoint]:
    return [point for point in result.points if not point.name.startswith("perf/")]


def assert_same(one: tuple[TrialResult, Any], other: tuple[TrialResult, Any]) -> None:
    """Two trials log the same and end with the same weights, to the bit."""
    assert without_times(one[0]) == without_times(other[0])
    for name, weight in one[1]["best"]["weights"].items():
        assert torch.equal(weight, other[1]["best"]["weights"][name]), name


def test_an_interrupted_trial_goes_on_from_its_checkpoint(experiment: Experiment, tmp_path: Path) -> None:
    whole = trial_of(experiment, tmp_path / "whole")
    with pytest.raises(TrialKilledError):
        trial_of(experiment, tmp_path / "cut", on_evaluation=interrupt)
    assert (tmp_path / "cut" / "trial.checkpoint").is_file()
    steps: list[int] = []
    resumed = trial_of(
        experiment, tmp_path / "cut", on_evaluation=lambda run, evaluation: steps.append(evaluation.step)
    )
    assert steps == [8], "the first four steps are not trained again"
    assert_same(whole, resumed)
    folder = SweepFolder(str(tmp_path / "cut"))
    folder.write(Assignment("trial", ("uml", "", 0), {}), resumed[0], state=resumed[1])
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == ["trial.json", "trial.pt"]


def test_trials_of_one_process_decode_a_picture_once_and_streamed_ones_train_the_same(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = trial_of(experiment, tmp_path / "kept")
    decode, decoded = uml_core.feed.pictures.decoded_picture, Counter[str]()

    def counting(row: Any, encoder: Any) -> Any:
        decoded[row.id] += 1
        return decode(row, encoder)

    monkeypatch.setattr(uml_core.feed.pictures, "decoded_picture", counting)
    again = trial_of(experiment.override({"optim.lr": 1e-3}), tmp_path / "again")
    assert decoded.total() == 1, "one, to know their size"
    assert without_times(again[0]) != without_times(kept[0])
    streamed = trial_of(experiment.override({"pictures.keep": "stream"}), tmp_path / "streamed")
    assert decoded.total() > 12 * 6, "every step decodes its own"
    assert_same(kept, streamed)
