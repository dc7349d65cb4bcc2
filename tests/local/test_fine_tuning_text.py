"""Training an auxiliary corpus's text encoder as well: it starts as the frozen one, learns, and resumes to the bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CLASSES, finish
from tests.fine_tuning_runs import experiment_of, run_with_text, write_corpus
from tests.tiny_models import save_text
from uml_core.errors import InputError
from uml_core.evaluation.outcome import trained_parameters


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def sentences(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Names as sentences, and a tiny BERT of random weights: the changes that make an experiment of them."""
    directory = tmp_path_factory.mktemp("sentences")
    save_text(directory / "bert", "bert")
    texts = [(f"{word} sat on the mat", label) for label, word in zip(CLASSES, ("a", "cat", "dog"), strict=True)]
    lines = [json.dumps({"text": text, "label": label, "id": label}) for text, label in texts]
    (directory / "names.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {
        "corpora.names": {"modality": "text", "format": "table", "path": str(directory / "names.jsonl")},
        "encoders.text": {"source": "transformers", "name": "bert", "weights": str(directory / "bert")},
    }


TRAINED_TEXT = {"model.trained_auxiliaries": ["names"]}


def test_a_trained_text_encoder_starts_as_the_frozen_one_and_learns(corpus: Path, sentences: dict[str, Any]) -> None:
    trained = run_with_text(corpus, sentences, **TRAINED_TEXT)
    frozen = run_with_text(corpus, sentences)
    trained.model.eval()
    frozen.model.eval()
    one, other = (run.objective.batch(0, ["pictures", "names"]).losses(run.model, 1) for run in (trained, frozen))
    assert one["names"].item() == pytest.approx(other["names"].item(), rel=1e-5), "the same sentences, the same loss"
    before = copy.deepcopy(trained.model.text_backbones["names"].state_dict())
    finish(trained)
    after = trained.model.text_backbones["names"].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.weight"} <= moved
    assert trained.progress.samples == finish(frozen).progress.samples
    anew = trained.objective.embedded().train["names"].gathered()
    assert not np.allclose(anew, trained.data.train["names"].gathered(), atol=1e-4)
    assert trained.objective.batch_rows(0, "names") == frozen.objective.batch_rows(0, "names")


def test_a_trained_text_encoder_resumes_to_the_bit_and_leaves_the_target_path_alone(
    corpus: Path, sentences: dict[str, Any]
) -> None:
    changes = {**TRAINED_TEXT, "model.backbone": "partial", "model.trained_blocks": 1, "train.accumulate": 2}
    whole = finish(run_with_text(corpus, sentences, **changes))
    first = run_with_text(corpus, sentences, **changes)
    text = copy.deepcopy(first.model.text_backbones["names"])
    next(first.evaluations())
    second = run_with_text(corpus, sentences, **changes)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    finish(second)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    last = whole.model.text_backbones["names"].encoder.layer
    assert torch.equal(last[0].output.dense.weight, text.encoder.layer[0].output.dense.weight)
    assert not torch.equal(last[1].output.dense.weight, text.encoder.layer[1].output.dense.weight)
    alone = run_with_text(corpus, sentences, **TRAINED_TEXT, **{"mixing.loss_weight.names": 0.0})
    assert not len(alone.model.text_backbones), "a corpus of weight 0 needs no encoder"
    plain = run_with_text(corpus, sentences, **{"model.backbone": "partial", "model.trained_blocks": 1})
    assert trained_parameters(whole) == trained_parameters(plain)


def test_a_part_without_a_sentence_adds_nothing_to_the_update(corpus: Path, sentences: dict[str, Any]) -> None:
    rare = {**TRAINED_TEXT, "mixing.batch_ratio.names": 0.2, "train.max_steps": 1, "optim.weight_decay": 0.0}
    whole, parted = (run_with_text(corpus, sentences, **rare, **{"train.accumulate": parts}) for parts in (1, 2))
    batch = parted.objective.batch(0, ["pictures", "names"])
    assert sorted(len(part.labels["names"]) for part in batch.parts) == [0, 1]
    for run in (whole, parted):
        run.model.eval()  # dropout is drawn for every part
    losses = [run.objective.gradient()(run.objective.batch(0, ["pictures", "names"])).losses for run in (whole, parted)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    gradients = [
        {name: value.grad for name, value in run.model.named_parameters() if value.grad is not None}
        for run in (whole, parted)
    ]
    assert any(name.startswith("text_backbones.") for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)
    finish(run_with_text(corpus, sentences, **rare, **{"train.accumulate": 2}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.backbone": "frozen"}, r"trained_auxiliaries is \('names',\) with model.backbone frozen"),
        ({"corpora.names.control": "noise"}, r"needs no noise in place of its embeddings"),
        ({"data.auxiliary_shots": {"names": "average"}}, r"needs no data.auxiliary_shots average"),
        ({"encoders.text": {"source": "module", "name": "m:X"}}, r"needs a text encoder of source transformers or"),
        ({"model.trained_auxiliaries": ["pictures"]}, r"needs an auxiliary corpus, not the target"),
        ({"model.trained_auxiliaries": ["nmes"]}, r"names corpus 'nmes'.*did you mean 'names'"),
    ],
)
def test_text_encoders_that_cannot_be_trained_are_refused(
    corpus: Path, sentences: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        experiment_of(corpus, **{**sentences, **TRAINED_TEXT, **changes})
