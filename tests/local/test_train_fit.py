"""A step of several training runs, and what is left of one that was killed; training itself is played."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from pipelines.embed import step as embed
from pipelines.ray_train.attempts import Attempt
from pipelines.ray_train.faults import MistakeCallback, mistakes_raised
from pipelines.run_data import CheckedData, check_data
from pipelines.train import fit as train_fit
from pipelines.train import on_workers
from pipelines.train.on_workers import check_gpu_types
from pipelines.train.summary import seed_runs
from uml_core.config import Experiment
from uml_core.errors import InputError, OutageError
from uml_core.evaluation.outcome import RunOutcome
from uml_core.store.corpus_store import CorpusStore

CHECKED = CheckedData({}, None, {})


class KilledError(Exception):
    """Stands for a signal that ends the driver."""


@dataclass
class Played:
    """In place of MLflow and training: what is trained, and in which run; `faults` ends a run by its kind."""

    faults: dict[str, Exception] = field(default_factory=dict)
    trained: list[tuple[str, str]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)  # of the target, that were trained on
    ends: list[str] = field(default_factory=list)
    run_id: str = ""

    def open_run(self, experiment: Experiment, attempt: Attempt, _: CheckedData) -> Played:
        if attempt.run_id is None:
            attempt.begin(f"run-{len(self.trained)}")
        self.run_id = str(attempt.run_id)
        return self

    def fit(self, experiment: Experiment, checked: CheckedData, *_: Any) -> None:
        kind = train_fit.run_kind(experiment)
        self.trained.append((kind, self.run_id))
        if checked.data is not None:
            self.rows.append(checked.data.labelled.rows.tolist())
        if kind in self.faults:
            raise self.faults[kind]

    def log_outcome(self, experiment: Experiment, checked: Any, result: None, tracker: Played) -> RunOutcome:
        counts = {"best_step": 3, "steps": 4, "target_samples": 32, "trained_parameters": 5, "parameters": 6}
        rates = {"steps_per_s": 1 / 3, "train_s": 12.0, "samples_per_s": 0.1, "observed_ratio": {"names": 1.0}}
        rest = {"shift_accuracy": {}, "train_rows": {"target": 8}, "classes": 2, "model_uri": "models:/m"}
        return RunOutcome(tracker.run_id, 0.1 + 0.2, None, **counts, **rates, **rest)

    def finish(self, status: str = "FINISHED") -> None:
        self.ends.append(status)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    monkeypatch.setattr(train_fit, "_open_run", played.open_run)
    monkeypatch.setattr(train_fit, "_train_here", played.fit)
    monkeypatch.setattr(train_fit, "_log_outcome", played.log_outcome)
    return played


def test_a_driver_killed_during_the_twin_goes_on_with_the_twin(vector_experiment: Experiment, played: Played) -> None:
    both = [vector_experiment, vector_experiment.unimodal_twin()]
    played.faults = {"unimodal": KilledError()}
    with pytest.raises(KilledError):
        train_fit.train_in_turn(both, CHECKED, list)
    played.faults = {}
    first, twin = train_fit.train_in_turn(both, CHECKED, list)
    assert played.trained == [("uml", "run-0"), ("unimodal", "run-1"), ("unimodal", "run-1")]
    assert (first.run_id, twin.run_id) == ("run-0", "run-1")
    assert first == played.log_outcome(vector_experiment, None, None, Played(run_id="run-0")), "to the last digit"
    assert [each.run_id for each in train_fit.train_in_turn(both, CHECKED, list)] == ["run-3", "run-4"], "both anew"


def test_a_run_whose_tracking_server_stayed_away_goes_on(vector_experiment: Experiment, played: Played) -> None:
    both = [vector_experiment, vector_experiment.unimodal_twin()]
    played.faults = {"unimodal": OutageError("did not answer for 600 s")}
    with pytest.raises(InputError):
        train_fit.train_in_turn(both, CHECKED, list)
    assert played.ends == ["FINISHED"], "the second run is left as it is"
    played.faults = {}
    assert [each.run_id for each in train_fit.train_in_turn(both, CHECKED, list)] == ["run-0", "run-1"]


def test_a_mistake_ends_both_runs(vector_experiment: Experiment, played: Played) -> None:
    both = [vector_experiment, vector_experiment.unimodal_twin()]
    played.faults = {"unimodal": InputError("x")}
    with pytest.raises(InputError):
        train_fit.train_in_turn(both, CHECKED, list)
    assert played.ends == ["FINISHED", "FAILED"]
    played.faults = {}
    assert [each.run_id for each in train_fit.train_in_turn(both, CHECKED, list)] == ["run-2", "run-3"]


def test_a_mistake_that_a_worker_raises_ends_the_run_and_other_errors_do_not() -> None:
    lost, mistake = RuntimeError("connection closed"), UserExceptionWithTraceback(InputError("a.png"), "Traceback ...")
    MistakeCallback().after_exception(None, {0: lost, 1: UserExceptionWithTraceback(lost, "Traceback ...")})
    with pytest.raises(InputError, match=r"^a.png$") as told:
        MistakeCallback().after_exception(None, {0: lost, 1: mistake})
    with pytest.raises(InputError, match=r"^a.png$"), mistakes_raised():
        raise ControllerError(told.value)
    with pytest.raises(ControllerError), mistakes_raised():
        raise ControllerError(lost)


# As torch 2.13 says it: gloo's seen here, NCCL's by its source.
GLOO = "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation to complete"
CLOSED = "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:7552. This is typically caused by"
NCCL = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=4, "
    "NumelOut=4, Timeout(ms)=600000) ran for 600054 milliseconds before timing out."
)
CALLED = """  File "torch/distributed/c10d_logger.py", line 83, in wrapper
  File "torch/distributed/distributed_c10d.py", line 3913, in broadcast
"""


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({0: GLOO}, "worker 0 waited 2 s in broadcast for the others"),
        ({0: CLOSED, 1: NCCL}, "worker 1 waited 600 s in allreduce for the others"),
        ({2: CLOSED}, "worker 2 lost its connection in broadcast for the others"),
        ({0: None, 1: CLOSED}, "again after each new start; workers that died: 0; see that all nodes reach each other"),
        ({0: CLOSED, 1: "CUDA out of memory"}, None),
        ({0: CLOSED, 1: "[Errno 104] Connection reset by peer"}, None),
        ({0: "NCCL error in: x.cpp, unhandled cuda error, ncclUnhandledCudaError: out of memory"}, None),
        ({0: None}, None),
    ],
)
def test_workers_that_lose_each_other_are_one_line(texts: dict[int, str | None], expected: str | None) -> None:
    failures: dict[int, Exception] = {
        rank: RayActorError() if text is None else UserExceptionWithTraceback(RuntimeError(text), CALLED)
        for rank, text in texts.items()
    }
    error = WorkerGroupError("many lines", failures)
    if expected is None:
        with pytest.raises(WorkerGroupError), mistakes_raised():
            raise error
        return
    with pytest.raises(OutageError) as told, mistakes_raised():
        raise error
    assert expected in str(told.value)


def test_gpus_of_several_types_are_refused_and_of_one_are_not() -> None:
    check_gpu_types({"H100": 8})
    check_gpu_types({})
    with pytest.raises(
        InputError, match=r"2 types \(2 of type A100, 4 of type T4\).* cluster.train_on=accelerator_type:T4"
    ):
        check_gpu_types({"T4": 4, "A100": 2})


def test_a_driver_killed_between_seeds_trains_those_that_are_left(
    vector_experiment: Experiment, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed.run(vector_experiment)
    few = vector_experiment.override({"data.shots": 2, "train.twin": True, "train.seeds": 3})
    experiments = [each for pair in seed_runs(few) for each in pair]
    loads: list[str] = []
    load = CorpusStore.load_labels
    monkeypatch.setattr(CorpusStore, "load_labels", lambda store, _: loads.append(store.corpus) or load(store, _))
    checked = check_data(experiments[0])
    fit = played.fit

    def killed_at_the_fourth(experiment: Experiment, *given: Any) -> None:
        if len(played.trained) == 3:
            raise KilledError
        fit(experiment, *given)

    monkeypatch.setattr(train_fit, "_train_here", killed_at_the_fourth)
    with pytest.raises(KilledError):
        train_fit.train_in_turn(experiments, checked, list)
    monkeypatch.setattr(train_fit, "_train_here", fit)

    def away(outcomes: Any) -> None:
        raise InputError("the tracking server is away")

    with pytest.raises(InputError, match="away"):
        train_fit.train_in_turn(experiments, checked, away)
    outcomes = train_fit.train_in_turn(experiments, checked, list)
    assert played.trained == [(("uml", "unimodal")[index % 2], f"run-{index}") for index in range(6)], "each once"
    assert [each.run_id for each in outcomes] == [f"run-{index}" for index in range(6)]
    assert played.rows[0::2] == played.rows[1::2], "a twin has its seed's rows"
    assert len({tuple(rows) for rows in played.rows}) == 3, "each seed draws its own"
    assert sorted(loads) == ["names", "target"], "labels are read once"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'The actor died in its creation task, init()\n  File "a.py", line 1\nValueError: no list',
            "ValueError: no list",
        ),
        (
            "The actor died unexpectedly.\n\tclass_name: TrainController",
            "died unexpectedly. class_name: TrainController",
        ),
    ],
)
def test_a_lost_controller_says_why(text: str, expected: str) -> None:
    class LostError(RayActorError):
        def __str__(self) -> str:
            return text

    assert on_workers._cause(LostError()).endswith(expected)
