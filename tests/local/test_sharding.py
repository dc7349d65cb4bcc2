"""Two ranks train the model that one worker trains on the joined batch: an encoder in shards, or with batch norm."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.conftest import finish, write_picture_corpora
from tests.fine_tuning_runs import data_of, experiment_of, predictions_of
from tests.local.ranks import Case, Left, on_ranks, training
from tests.local.test_joined_batch_norm import both, check_norms
from tests.text_models import save_text_model
from tests.tiny_models import save_vision, vision_model
from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.evaluation.outcome import measure_outcome
from uml_core.gradients.sharded_encoders import blocks_of
from uml_core.training.run import TrainingRun

SHARDED = {"train.workers": 2, "train.sharding": "full"}
# What a step does to gradients on their way: parts, clipping, the average, rates by depth; 7 pictures for two ranks.
EVERYTHING = {
    **{"train.accumulate": 2, "optim.ema_decay": 0.9, "optim.layer_decay": 0.7, "optim.clip_norm": 0.3},
    **{"train.batch_size": 7, "model.drop_path": 0.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": EVERYTHING,
    "partial": {"model.backbone": "partial", "model.trained_blocks": 2, "mixing.schedule": "alternate"},
    "lora": {"model.backbone": "lora", "optim.lora_lr": 1e-3},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a tiny vision transformer, a BERT to start it from, and an encoder of transformers with batch norm."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("sharding"), counts={"train": 6, "val": 4, "test": 4})
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), directory / "weights.pth")
    save_text_model(directory / "bert", "bert")
    save_vision(directory / "resnet", "resnet")
    return directory


def variants_of(directory: Path) -> dict[str, Experiment]:
    frozen = {"model.transfer": {"source": str(directory / "bert"), "freeze_steps": 2}}
    resnet = {"source": "transformers", "name": "resnet", "weights": str(directory / "resnet")}
    return {
        **{name: experiment_of(directory, **changes, **SHARDED) for name, changes in VARIANTS.items()},
        "thaw": experiment_of(directory, **frozen, **SHARDED),
        "thaw_whole": experiment_of(directory, **frozen, **{"train.workers": 2}),
        "lora_whole": experiment_of(directory, **VARIANTS["lora"], **{"train.workers": 2}),
        "bfloat16": experiment_of(directory, **SHARDED, **{"train.precision": "bfloat16"}),
        "batch_norm": experiment_of(directory, **SHARDED, **{"encoders.image": resnet}),
        "batch_norm_whole": experiment_of(
            directory, **{"train.workers": 2, "train.accumulate": 2, "train.batch_size": 7, "encoders.image": resnet}
        ),
    }


@pytest.fixture(scope="module")
def alone(directory: Path) -> dict[str, TrainingRun]:
    """Every variant by one worker, finished."""
    experiments = variants_of(directory)
    data = data_of(experiments["plain"])  # of one encoder, whatever is trained
    of_encoder = {name: data_of(each) if "batch_norm" in name else data for name, each in experiments.items()}
    return {name: finish(TrainingRun(each, of_encoder[name])) for name, each in experiments.items()}


@pytest.fixture(scope="module")
def on_two_ranks(directory: Path, alone: dict[str, TrainingRun]) -> list[list[Any]]:
    """What two ranks left of every variant, of runs that were interrupted, and of one with a bad row; their norms."""
    cases = {name: Case(run.experiment, run.data) for name, run in alone.items()}
    everything = cases["everything"]
    first = TrainingRun(everything.experiment, everything.data)
    next(first.evaluations())
    cases["goes_on"] = dataclasses.replace(everything, state=first.state_dict())
    cases["stops"] = dataclasses.replace(everything, evaluations=1)
    names = everything.data.train["names"]
    bad = np.array(names.embeddings)
    bad[names.rows[4]] = np.nan
    train = {**everything.data.train, "names": dataclasses.replace(names, embeddings=bad)}
    cases["bad_row"] = Case(everything.experiment, dataclasses.replace(everything.data, train=train))
    return on_ranks(directory / "ranks", training(cases), both)


@pytest.fixture(scope="module")
def ranks(on_two_ranks: list[list[Any]]) -> list[dict[str, Left]]:
    return [lefts for lefts, _ in on_two_ranks]


def test_two_ranks_norm_as_one_on_the_joined_batch(on_two_ranks: list[list[Any]]) -> None:
    check_norms([norms for _, norms in on_two_ranks])


def assert_weights(state: dict[str, Any], weights: dict[str, torch.Tensor], tolerance: float) -> None:
    assert state.keys() == weights.keys()
    for name, value in weights.items():
        compared = torch.ones(len(value), dtype=torch.bool) if value.ndim else torch.tensor(True)
        if name.endswith("attn.qkv.bias"):  # what it adds to keys, softmax takes away: its gradient is rounding alone
            compared[len(value) // 3 : 2 * len(value) // 3] = False
        difference = (state[name][compared] - value[compared]).abs()
        # Adam steps by a gradient's sign where it is next to nothing: one of 500 may be half a step apart.
        assert (difference > tolerance * (1 + value[compared].abs())).float().mean() <= 1 / 500, name
        assert difference.max() < 5e-4, name


@pytest.mark.parametrize("name", [*VARIANTS, "thaw", "thaw_whole", "lora_whole", "batch_norm", "batch_norm_whole"])
def test_two_ranks_equal_one_worker_on_the_joined_batch(
    alone: dict[str, TrainingRun], ranks: list[dict[str, Left]], name: str
) -> None:
    """After six steps of rate 1e-3, whose updates are of the size 1e-3 each, weights differ by less than 2e-5."""
    run, left = alone[name], ranks[0][name]
    assert run.best is not None
    assert_weights(left.state["model"], run.model.state_dict(), 2e-5)
    assert left.state["best"]["step"] == run.best.step
    assert left.state["best"]["val_nll"] == pytest.approx(run.best.val_nll, abs=1e-5)
    assert_weights(left.state["best"]["weights"], run.best.weights, 2e-5)
    assert ranks[1][name].evaluations == left.evaluations, "ranks decide alike"


def test_clipping_was_at_work(alone: dict[str, TrainingRun]) -> None:
    """Else the comparison above would not show that its norm is the unsharded one."""
    run = alone["everything"]
    unclipped = run.experiment.override({"optim.clip_norm": None})
    other = finish(TrainingRun(unclipped, run.data))
    weights = other.model.state_dict()
    assert max((weights[name] - value).abs().max() for name, value in run.model.state_dict().items()) > 1e-4


def test_every_rank_holds_half_of_the_encoder(ranks: list[dict[str, Left]]) -> None:
    for name in ("everything", "partial"):
        lefts = [left[name] for left in ranks]
        for left in lefts:
            assert left.held["weights"] == pytest.approx(left.whole / 2, rel=0.02), (
                "first dimensions of 1 stay on rank 0"
            )
            # The last update of schedule alternate is the auxiliary corpus's, which leaves the encoder no gradient.
            kinds = ("exp_avg", "exp_avg_sq", *(["gradients"] if name == "everything" else []))
            for kind in kinds:
                assert left.held[kind] == pytest.approx(left.trained / 2, rel=0.02), kind
        assert lefts[0].whole > 2 * 2**17, "of a model whose shards are more than padding"
        assert lefts[1].state["model"]["backbone.cls_token"] is None, "rank 0 alone gathers"


def test_a_run_goes_on_with_another_number_of_workers(
    alone: dict[str, TrainingRun], ranks: list[dict[str, Left]], tmp_path: Path
) -> None:
    whole, run = alone["everything"], TrainingRun(alone["everything"].experiment, alone["everything"].data)
    assert_weights(ranks[0]["goes_on"].state["model"], whole.model.state_dict(), 2e-5)
    torch.save(ranks[0]["stops"].state, tmp_path / "state.pt")
    run.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    finish(run)
    assert_weights(run.model.state_dict(), whole.model.state_dict(), 2e-5)
    assert run.progress.samples == whole.progress.samples


def test_a_sharded_runs_result_is_measured_and_served_by_one_process(
    alone: dict[str, TrainingRun], ranks: list[dict[str, Left]]
) -> None:
    whole = alone["plain"]
    run = TrainingRun(whole.experiment, whole.data)
    run.load_result(ranks[0]["plain"].state)
    outcome = measure_outcome(run)
    assert outcome.test_accuracy == measure_outcome(whole).test_accuracy
    assert outcome.trained_parameters == outcome.parameters, "shards are counted whole"
    raw = [run.data.raw[row].read() for row in run.data.test.rows]
    logits = [predictions_of(each.objective.predictor(), raw).logits for each in (run, whole)]
    assert np.allclose(logits[0], logits[1], atol=1e-3)


def test_bfloat16_follows_the_one_worker_that_casts(
    alone: dict[str, TrainingRun], ranks: list[dict[str, Left]]
) -> None:
    """Blocks keep their residuals in bfloat16 as well, which autocast does not: losses agree to 3 digits."""
    run, (first, second) = alone["bfloat16"], (left["bfloat16"] for left in ranks)
    assert all(value.dtype == torch.float32 for value in first.state["model"].values())
    assert first.evaluations == second.evaluations
    restored = TrainingRun(run.experiment, run.data)
    losses = [evaluation.losses for evaluation in restored.evaluations()]
    for (_, _, _, sharded), single in zip(first.evaluations, losses, strict=True):
        assert sharded == pytest.approx(single, rel=5e-3)
    plain = alone["plain"].model.state_dict()
    moved = max((first.state["model"][name] - value).abs().max() for name, value in plain.items())
    assert 1e-6 < moved < 1e-2, "another arithmetic, the same training"


def test_a_row_that_one_rank_reads_stops_both(ranks: list[dict[str, Left]]) -> None:
    errors = [left["bad_row"].error for left in ranks]
    assert errors[0] == errors[1]
    assert "the loss of names is not finite at step" in errors[0]


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("dinov2", 2),
        ("convnext", 4),
        ("swin", 2),
        ("timm/test_vit", 6),
        ("timm/test_convnext", 8),
        ("timm/resnet18", 8),
    ],
)
def test_blocks_are_the_innermost_repeated_modules(kind: str, count: int) -> None:
    module: nn.Module
    module = timm.create_model(kind.removeprefix("timm/")) if kind.startswith("timm/") else vision_model(kind)
    blocks = blocks_of(module)
    assert len(blocks) == count, [type(block).__name__ for block in blocks]
    assert len({id(parameter) for block in blocks for parameter in block.parameters()}) == sum(
        len(list(block.parameters())) for block in blocks
    ), "no parameter is of two blocks"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.workers": 1}, r"train.sharding is full, which needs train.workers of at least 2, one a shard; or set"),
        ({"model.backbone": "frozen"}, r"train.sharding is full, which needs model.backbone=finetune, partial or lora"),
        ({"train.compile": True}, r"train.sharding is full, which needs train.compile=false"),
        (
            {"train.batch_size": 1},
            r"model.backbone is finetune, which needs train.batch_size of at least",
        ),
        ({"train.min_workers": 3}, r"train.min_workers is 3 with train.workers 2; .* give at most train.workers"),
    ],
)
def test_what_cannot_be_sharded_is_refused(directory: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        experiment_of(directory, **{**SHARDED, **changes})
