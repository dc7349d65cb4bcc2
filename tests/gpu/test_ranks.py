"""Two GPUs that train one model over NCCL, whole on each or in shards, against one GPU on the joined batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import finish
from tests.fine_tuning_runs import data_of, experiment_of, write_corpus
from tests.gpu.device import DEVICE, NEEDS_GPU, share_apart, weights_of
from tests.local.ranks import NUM_RANKS, Case, Left, train_on_ranks
from uml_core.training.run import TrainingRun

pytestmark = [
    *NEEDS_GPU,
    pytest.mark.skipif(torch.cuda.device_count() < NUM_RANKS, reason=f"needs {NUM_RANKS} GPUs, one a rank"),
]

# 7 pictures for two ranks: their shares are unequal.
COMMON = {"train.workers": NUM_RANKS, "train.batch_size": 7}
VARIANTS: dict[str, dict[str, Any]] = {
    "whole, float32": {"train.precision": "float32"},
    "whole, bfloat16": {},
    "shards, float32": {"train.sharding": "full", "train.precision": "float32", "optim.clip_norm": 0.3},
    "shards, bfloat16": {"train.sharding": "full"},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    directory = write_corpus(tmp_path_factory.mktemp("pictures"))
    experiments = {name: experiment_of(directory, **COMMON, **changes) for name, changes in VARIANTS.items()}
    data = data_of(experiments["whole, float32"])
    return {name: Case(each, data) for name, each in experiments.items()}


@pytest.fixture(scope="module")
def ranks(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Left]]:
    return train_on_ranks(tmp_path_factory.mktemp("ranks") / "left", cases, device=DEVICE)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_two_gpus_equal_one_on_the_joined_batch(
    cases: dict[str, Case], ranks: list[dict[str, Left]], name: str
) -> None:
    """Losses to 1 % and, in float32, weights to 2 % of how far they move in six steps, on average."""
    run, (first, second) = TrainingRun(cases[name].experiment, cases[name].data, device=DEVICE), ranks
    start = weights_of(run)
    losses = [evaluation.losses for evaluation in run.evaluations()]
    assert first[name].error == ""
    assert first[name].evaluations == second[name].evaluations, "ranks decide alike"
    for (_, _, _, found), expected in zip(first[name].evaluations, losses, strict=True):
        assert found == pytest.approx(expected, rel=0.01)
    if name.endswith("float32"):
        assert share_apart(first[name].state["model"], weights_of(run), start) < 0.02


def test_each_gpu_holds_half_of_a_sharded_encoder(ranks: list[dict[str, Left]]) -> None:
    for left in (rank["shards, float32"] for rank in ranks):
        assert left.held["weights"] == pytest.approx(left.whole / NUM_RANKS, rel=0.02)


def test_a_sharded_run_goes_on_on_one_gpu(cases: dict[str, Case], ranks: list[dict[str, Left]]) -> None:
    """What two ranks saved is whole: one goes on to where the two would have come, and is measured."""
    longer = cases["shards, float32"].experiment.override({"train.max_steps": 12})
    run = TrainingRun(longer, cases["shards, float32"].data, device=DEVICE)
    state = ranks[0]["shards, float32"].state
    run.load_state_dict({**state, "progress": {**state["progress"], "finished": False}})
    finish(run)
    assert run.progress.step == 12
    assert all(np.isfinite(value.numpy()).all() for value in weights_of(run).values())
