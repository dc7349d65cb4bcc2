"""train.compile: the same training up to rounding, the same names, and a warning where there is no compiler.

The first test takes some 20 seconds where nothing is cached: torch's own compiler and g++, as a user has them, because
a backend for tests would leave out what fails in practice. The others find its code compiled.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tests.conftest import finish, write_picture_corpora
from tests.fine_tuning_runs import experiment_of, run_of
from tests.local.test_low_rank import weights_of
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluation_points
from uml_core.models.fine_tuned import Compiled
from uml_core.training.run import TrainingRun

COMPILED = {"encoders.image.depth": 1, "train.compile": True}
ADAPTED = {"model.backbone": "lora", "model.lora.targets": ["qkv"], "model.lora.dropout": 0.2}
AVERAGED = {"optim.ema_decay": 0.9}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three shapes, and a vision transformer of one block with random weights."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("pictures"), counts={"train": 6, "val": 4})
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", img_size=32, depth=1).state_dict(), directory / "weights.pth")
    return directory


def compiled_run(directory: Path, **changes: Any) -> TrainingRun:
    return run_of(directory, **{**COMPILED, **ADAPTED, **AVERAGED, "optim.lora_lr": 1e-2, **changes})


def test_compiled_steps_train_the_same_model_under_the_same_names(corpus: Path) -> None:
    whole, plain = compiled_run(corpus), finish(compiled_run(corpus, **{"train.compile": False}))
    points = [point for evaluation in whole.evaluations() for point in evaluation_points(whole, evaluation)]
    assert [point.value for point in points if point.name == "perf/compiled"] == [1.0, 1.0]
    state, expected = whole.state_dict(), plain.state_dict()
    for part in (lambda saved: saved["model"], lambda saved: saved["average"]["average"]):
        assert part(state).keys() == part(expected).keys()
    for name, value in weights_of(whole.model).items():  # dropout drew the same units, or they would be far apart
        assert torch.allclose(value, weights_of(plain.model)[name], atol=1e-4), name
    assert whole.best is not None
    assert plain.best is not None
    assert np.isclose(whole.best.val_nll, plain.best.val_nll, atol=1e-5)
    assert set(whole.objective.predictor().encoder_weights) == set(plain.objective.predictor().encoder_weights)

    first = compiled_run(corpus)
    next(first.evaluations())
    second = compiled_run(corpus)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    finish(second)
    assert second.model.is_compiled
    for name, value in weights_of(whole.model).items():
        assert torch.equal(value, weights_of(second.model)[name]), f"resumed: {name}"


def test_without_a_compiler_training_goes_on_uncompiled_and_says_so(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/compiler"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    changes = {"model.lora.targets": ["proj"]}  # not what another test has compiled
    with caplog.at_level(logging.WARNING, logger="uml_core"):
        run = finish(compiled_run(corpus, **changes))
    told = [record.getMessage() for record in caplog.records if record.name.startswith("uml_core")]
    assert len(told) == 1, "once, in one line"
    assert "the encoder is trained uncompiled" in told[0]
    assert "C++ compiler" in told[0]
    assert "\n" not in told[0]
    assert not run.model.is_compiled
    plain = finish(compiled_run(corpus, **changes, **{"train.compile": False}))
    for name, value in weights_of(run.model).items():
        assert torch.equal(value, weights_of(plain.model)[name]), name


def test_other_errors_are_not_taken_for_the_compilers() -> None:
    def wrong(value: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Compiled(wrong)(torch.zeros(1))


def test_a_frozen_encoder_has_no_steps_to_compile(corpus: Path) -> None:
    with pytest.raises(InputError, match=r"train.compile is true with model.backbone frozen"):
        experiment_of(corpus, **COMPILED, **{"model.backbone": "frozen"})
